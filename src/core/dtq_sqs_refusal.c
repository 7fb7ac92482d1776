/* What a refusal of SQS means (contract: dtq_sqs_wire.h).  Apart from the rest, because its tables are read by people.
 */
#include "dtq_sqs_wire.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "dtq_json.h"

struct meaning {
    const char *type;
    enum dtq_code code;
};

/* Error types that mean more than their HTTP status tells.  "Common Errors" (Amazon SQS API Reference), the retry
 * behaviour of the AWS SDKs ("Retry behavior", AWS SDKs and Tools Reference Guide), and the names that the older query
 * protocol used, which some implementations still give. */
static const struct meaning meanings[] = {
    {"BandwidthLimitExceeded", DTQ_THROTTLED},
    {"EC2ThrottledException", DTQ_THROTTLED},
    {"KmsThrottled", DTQ_THROTTLED},
    {"LimitExceededException", DTQ_THROTTLED},
    {"PriorRequestNotComplete", DTQ_THROTTLED},
    {"ProvisionedThroughputExceededException", DTQ_THROTTLED},
    {"RequestLimitExceeded", DTQ_THROTTLED},
    {"RequestThrottled", DTQ_THROTTLED},
    {"RequestThrottledException", DTQ_THROTTLED},
    {"SlowDown", DTQ_THROTTLED},
    {"ThrottledException", DTQ_THROTTLED},
    {"Throttling", DTQ_THROTTLED},
    {"ThrottlingException", DTQ_THROTTLED},
    {"TooManyRequestsException", DTQ_THROTTLED},
    {"TransactionInProgressException", DTQ_THROTTLED},
    {"AWS.SimpleQueueService.NonExistentQueue", DTQ_QUEUE_MISSING},
    {"NonExistentQueue", DTQ_QUEUE_MISSING},
    {"QueueDoesNotExist", DTQ_QUEUE_MISSING},
    {"InternalError", DTQ_UNAVAILABLE},
    {"InternalFailure", DTQ_UNAVAILABLE},
    {"RequestTimeout", DTQ_UNAVAILABLE},
    {"RequestTimeoutException", DTQ_UNAVAILABLE},
    {"ServiceUnavailable", DTQ_UNAVAILABLE},
    {"AuthFailure", DTQ_CREDENTIALS},
    {"ExpiredToken", DTQ_CREDENTIALS},
    {"ExpiredTokenException", DTQ_CREDENTIALS},
    {"IncompleteSignature", DTQ_CREDENTIALS},
    {"IncompleteSignatureException", DTQ_CREDENTIALS},
    {"InvalidAccessKeyId", DTQ_CREDENTIALS},
    {"InvalidClientTokenId", DTQ_CREDENTIALS},
    {"InvalidSignatureException", DTQ_CREDENTIALS},
    {"MissingAuthenticationToken", DTQ_CREDENTIALS},
    {"MissingAuthenticationTokenException", DTQ_CREDENTIALS},
    {"RequestExpired", DTQ_CREDENTIALS},
    {"RequestInTheFuture", DTQ_CREDENTIALS},
    {"RequestTimeTooSkewed", DTQ_CREDENTIALS},
    {"SignatureDoesNotMatch", DTQ_CREDENTIALS},
    {"UnrecognizedClientException", DTQ_CREDENTIALS},
};

static bool is_one_of(const char *text, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0)
            return true;
    }
    return false;
}

/* Always the clock, or a signature that was refused with a text about time. */
static bool is_clock_skew(const char *type, const char *message)
{
    static const char *const always[] = {"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"};
    static const char *const perhaps[] = {"AuthFailure", "InvalidSignatureException", "SignatureDoesNotMatch"};
    static const char *const texts[] = {"signature expired", "signature not yet current", "is now earlier than",
                                        "is now later than"};
    if (is_one_of(type, always, sizeof always / sizeof always[0]))
        return true;
    if (!is_one_of(type, perhaps, sizeof perhaps / sizeof perhaps[0]))
        return false;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (strcasestr(message, texts[i]))
            return true;
    }
    return false;
}

static bool is_expired_token(const char *type)
{
    return strcmp(type, "ExpiredToken") == 0 || strcmp(type, "ExpiredTokenException") == 0;
}

/* A type is "namespace#Name:more": the Name is what counts.  Whatever is not a plain name is no type. */
static void copy_type(const char *text, char out[64])
{
    const char *hash = strchr(text, '#');
    const char *start = hash ? hash + 1 : text;
    size_t length = strspn(start, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._");
    if (length >= 64 || (start[length] && !strchr(":;", start[length])))
        length = 0;
    memcpy(out, start, length);
    out[length] = '\0';
}

/* Printable, one line, whole UTF-8 sequences. */
static void copy_message(struct dtq_slice text, char out[256])
{
    size_t length = text.length < 255 ? text.length : 255;
    while (length < text.length && length > 0 && ((unsigned char)text.data[length] & 0xc0) == 0x80)
        length--;
    for (size_t i = 0; i < length; i++)
        out[i] = (unsigned char)text.data[i] < 0x20 || text.data[i] == 0x7f ? ' ' : text.data[i];
    out[length] = '\0';
}

static void read_body(struct dtq_slice body, struct dtq_sqs_refusal *out)
{
    static const char *const message_keys[] = {"message", "Message", "errorMessage"};
    struct cJSON *tree = NULL;
    struct dtq_slice type = {NULL, 0}, message = {NULL, 0};
    if (dtq_json_parse(body, DTQ_HTTP_BODY_BYTES_MAX, "the refusal", &tree, NULL) != DTQ_OK)
        return;
    if (dtq_json_is_object(tree)) {
        if (dtq_json_find_string(tree, "__type", &type, NULL) == DTQ_OK && type.data)
            copy_type(type.data, out->type);
        for (size_t i = 0; i < sizeof message_keys / sizeof message_keys[0] && !message.length; i++) {
            if (dtq_json_find_string(tree, message_keys[i], &message, NULL) != DTQ_OK)
                message = dtq_slice(NULL, 0);
        }
        copy_message(message, out->message);
    }
    dtq_json_free(tree);
}

static enum dtq_code meaning_of(const char *type)
{
    for (size_t i = 0; i < sizeof meanings / sizeof meanings[0]; i++) {
        if (strcmp(type, meanings[i].type) == 0)
            return meanings[i].code;
    }
    return DTQ_OK;
}

void dtq_sqs_wire_read_refusal(int http_status, struct dtq_slice body, const char *query_error,
                               struct dtq_sqs_refusal *out)
{
    char query_type[64];
    memset(out, 0, sizeof *out);
    read_body(body, out);
    copy_type(query_error, query_type);
    if (!out->type[0])
        memcpy(out->type, query_type, sizeof out->type);
    out->code = meaning_of(out->type);
    if (!out->code)
        out->code = meaning_of(query_type);
    if (!out->code)
        out->code = http_status == 429 ? DTQ_THROTTLED : http_status >= 500 ? DTQ_UNAVAILABLE : DTQ_SERVICE;
    out->clock_skew = is_clock_skew(out->type, out->message);
    out->expired_token = is_expired_token(out->type);
}
