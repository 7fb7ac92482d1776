#include "dtq_sqs_wire.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "dtq_alloc.h"
#include "dtq_json.h"

#define ENTRY_BYTES 256 /* names, braces and ids around an entry's texts, generously */

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static void add_string(struct dtq_buf *out, const char *key, const char *value)
{
    dtq_json_write_key(out, key);
    dtq_json_write_str(out, value);
}

static void add_int(struct dtq_buf *out, const char *key, int value)
{
    dtq_buf_add_char(out, ',');
    dtq_json_write_key(out, key);
    dtq_json_write_int(out, value);
}

static void open_batch(struct dtq_buf *out, const char *queue_url)
{
    dtq_buf_add_char(out, '{');
    add_string(out, "QueueUrl", queue_url);
    dtq_buf_add_str(out, ",\"Entries\":[");
}

static void open_entry(struct dtq_buf *out, size_t index)
{
    dtq_buf_addf(out, "%s{\"Id\":\"%zu\",", index ? "," : "", index);
}

/* What the buffer says, in words that fit a request. */
static enum dtq_code close_request(struct dtq_buf *out, const char *text, struct dtq_error *err)
{
    dtq_buf_add_str(out, text);
    if (out->failed == DTQ_INVALID_ARGUMENT)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a text of the request is not UTF-8, or holds a NUL");
    return dtq_buf_check(out, err, "the request");
}

static enum dtq_code check_count(size_t count, struct dtq_error *err)
{
    if (count < 1 || count > DTQ_SQS_BATCH_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a batch has 1 to %d entries, not %zu", DTQ_SQS_BATCH_MAX,
                             count);
    return DTQ_OK;
}

/* *out: bytes of the bodies and attributes. */
static enum dtq_code check_entries(const struct dtq_sqs_entry *entries, size_t count, size_t *out,
                                   struct dtq_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        const struct dtq_sqs_entry *entry = &entries[i];
        if (entry->body.length == 0)
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the body of entry %zu is empty", i);
        if (entry->delay_s < -1 || entry->delay_s > DTQ_SQS_DELAY_S_MAX)
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the delay of entry %zu is not within 0..%d s", i,
                                 DTQ_SQS_DELAY_S_MAX);
        if (entry->attribute_count > DTQ_SQS_ATTRIBUTES_MAX)
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "entry %zu has more than %d attributes", i,
                                 DTQ_SQS_ATTRIBUTES_MAX);
        bytes += entry->body.length;
        for (size_t k = 0; k < entry->attribute_count; k++)
            bytes += strlen(entry->attributes[k].name) + strlen("String") + strlen(entry->attributes[k].value);
    }
    if (bytes > DTQ_SQS_MESSAGE_BYTES_MAX)
        return dtq_error_set(err, DTQ_TOO_LARGE, "the bodies and attributes of one send are %zu bytes; SQS takes %d",
                             bytes, DTQ_SQS_MESSAGE_BYTES_MAX);
    *out = bytes;
    return DTQ_OK;
}

static void add_attributes(struct dtq_buf *out, const struct dtq_sqs_entry *entry)
{
    for (size_t i = 0; i < entry->attribute_count; i++) {
        dtq_buf_add_str(out, i ? "," : ",\"MessageAttributes\":{");
        dtq_json_write_str(out, entry->attributes[i].name);
        dtq_buf_add_str(out, ":{\"DataType\":\"String\",");
        add_string(out, "StringValue", entry->attributes[i].value);
        dtq_buf_add_char(out, '}');
    }
    if (entry->attribute_count)
        dtq_buf_add_char(out, '}');
}

enum dtq_code dtq_sqs_wire_send_batch(const char *queue_url, const struct dtq_sqs_entry *entries, size_t count,
                                      struct dtq_buf *out, struct dtq_error *err)
{
    size_t bytes = 0;
    enum dtq_code rc = check_count(count, err);
    if (!rc)
        rc = check_entries(entries, count, &bytes, err);
    if (rc)
        return rc;
    dtq_buf_reserve(out, bytes + bytes / 4 + count * ENTRY_BYTES); /* most requests grow no further */
    open_batch(out, queue_url);
    for (size_t i = 0; i < count; i++) {
        const struct dtq_sqs_entry *entry = &entries[i];
        open_entry(out, i);
        dtq_json_write_key(out, "MessageBody");
        dtq_json_write_string(out, entry->body);
        if (entry->delay_s >= 0)
            add_int(out, "DelaySeconds", entry->delay_s);
        if (entry->group_id) {
            dtq_buf_add_char(out, ',');
            add_string(out, "MessageGroupId", entry->group_id);
        }
        if (entry->deduplication_id) {
            dtq_buf_add_char(out, ',');
            add_string(out, "MessageDeduplicationId", entry->deduplication_id);
        }
        add_attributes(out, entry);
        dtq_buf_add_char(out, '}');
    }
    return close_request(out, "]}", err);
}

enum dtq_code dtq_sqs_wire_receive(const char *queue_url, int max_messages, int wait_s, int visibility_s,
                                   struct dtq_buf *out, struct dtq_error *err)
{
    if (max_messages < 1 || max_messages > DTQ_SQS_BATCH_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a receive brings 1 to %d messages, not %d", DTQ_SQS_BATCH_MAX,
                             max_messages);
    if (wait_s < 0 || wait_s > DTQ_SQS_WAIT_S_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a long poll waits 0 to %d s, not %d", DTQ_SQS_WAIT_S_MAX,
                             wait_s);
    if (visibility_s < -1 || visibility_s > DTQ_SQS_VISIBILITY_S_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a visibility timeout is 0 to %d s, not %d",
                             DTQ_SQS_VISIBILITY_S_MAX, visibility_s);
    dtq_buf_add_char(out, '{');
    add_string(out, "QueueUrl", queue_url);
    add_int(out, "MaxNumberOfMessages", max_messages);
    add_int(out, "WaitTimeSeconds", wait_s);
    if (visibility_s >= 0)
        add_int(out, "VisibilityTimeout", visibility_s);
    return close_request(out, ",\"AttributeNames\":[\"All\"],\"MessageAttributeNames\":[\"All\"]}", err);
}

/* The entries of a delete (visibility_s NULL) or of a change of visibility. */
static enum dtq_code write_handles(const char *queue_url, const char *const *receipt_handles, const int *visibility_s,
                                   size_t count, struct dtq_buf *out, struct dtq_error *err)
{
    enum dtq_code rc = check_count(count, err);
    if (rc)
        return rc;
    open_batch(out, queue_url);
    for (size_t i = 0; i < count; i++) {
        if (!receipt_handles[i] || !receipt_handles[i][0])
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the receipt handle of entry %zu is empty", i);
        if (visibility_s && (visibility_s[i] < 0 || visibility_s[i] > DTQ_SQS_VISIBILITY_S_MAX))
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a visibility timeout is 0 to %d s, not %d",
                                 DTQ_SQS_VISIBILITY_S_MAX, visibility_s[i]);
        open_entry(out, i);
        add_string(out, "ReceiptHandle", receipt_handles[i]);
        if (visibility_s)
            add_int(out, "VisibilityTimeout", visibility_s[i]);
        dtq_buf_add_char(out, '}');
    }
    return close_request(out, "]}", err);
}

enum dtq_code dtq_sqs_wire_delete_batch(const char *queue_url, const char *const *receipt_handles, size_t count,
                                        struct dtq_buf *out, struct dtq_error *err)
{
    return write_handles(queue_url, receipt_handles, NULL, count, out, err);
}

enum dtq_code dtq_sqs_wire_visibility_batch(const char *queue_url, const char *const *receipt_handles,
                                            const int *visibility_s, size_t count, struct dtq_buf *out,
                                            struct dtq_error *err)
{
    return write_handles(queue_url, receipt_handles, visibility_s, count, out, err);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

void dtq_sqs_answer_clean_up(struct dtq_sqs_answer *answer)
{
    dtq_json_free(answer->tree);
    dtq_free(answer->pairs);
    memset(answer, 0, sizeof *answer);
}

void dtq_sqs_wire_digest(struct dtq_slice body, char out[DTQ_MD5_HEX_SIZE])
{
    if (dtq_md5_hex(body, out, NULL) != DTQ_OK)
        out[0] = '\0';
}

/* Whatever is wrong with an answer's text is the service's fault. */
static enum dtq_code as_response(enum dtq_code rc, struct dtq_error *err)
{
    if (rc == DTQ_OK || rc == DTQ_NO_MEMORY)
        return rc;
    if (err)
        err->code = DTQ_RESPONSE;
    return DTQ_RESPONSE;
}

static enum dtq_code read_object(struct dtq_slice body, struct cJSON **out, struct dtq_error *err)
{
    enum dtq_code rc = dtq_json_parse(body, DTQ_HTTP_BODY_BYTES_MAX, "the service's answer", out, err);
    if (!rc && !dtq_json_is_object(*out)) {
        dtq_json_free(*out);
        *out = NULL;
        return dtq_error_set(err, DTQ_RESPONSE, "the service's answer is not a JSON object");
    }
    return as_response(rc, err);
}

static const char *find_text(const struct cJSON *object, const char *key)
{
    struct dtq_slice text = {NULL, 0};
    return dtq_json_find_string(object, key, &text, NULL) == DTQ_OK ? text.data : NULL;
}

/* The entry of the request that item is about, NULL for an Id that was not ours. */
static struct dtq_sqs_entry_result *find_entry(struct dtq_sqs_answer *answer, const struct cJSON *item, size_t *index)
{
    const char *id = dtq_json_is_object(item) ? find_text(item, "Id") : NULL;
    if (!id || id[0] < '0' || id[0] > '9' || id[1] != '\0' || (size_t)(id[0] - '0') >= answer->count)
        return NULL;
    *index = (size_t)(id[0] - '0');
    return &answer->entries[*index];
}

static void fail_entry(struct dtq_sqs_entry_result *entry, const char *code, const char *message)
{
    entry->ok = false;
    entry->code = code;
    entry->message = message;
    entry->message_id = NULL;
}

static void read_success(struct dtq_sqs_answer *answer, const struct cJSON *item,
                         const char (*digests)[DTQ_MD5_HEX_SIZE])
{
    size_t index = 0;
    struct dtq_sqs_entry_result *entry = find_entry(answer, item, &index);
    if (!entry)
        return;
    const char *digest = digests ? find_text(item, "MD5OfMessageBody") : NULL;
    if (digest && digests[index][0] && strcasecmp(digest, digests[index]) != 0) {
        fail_entry(entry, "BodyDigestMismatch", "the service holds another body than the one that was sent");
        return;
    }
    entry->ok = true;
    entry->code = entry->message = NULL;
    entry->message_id = digests ? find_text(item, "MessageId") : NULL;
}

static void read_failure(struct dtq_sqs_answer *answer, const struct cJSON *item)
{
    size_t index = 0;
    struct dtq_sqs_entry_result *entry = find_entry(answer, item, &index);
    if (!entry)
        return;
    const char *code = find_text(item, "Code");
    fail_entry(entry, code ? code : "Unknown", find_text(item, "Message"));
    if (dtq_json_find_bool(item, "SenderFault", &entry->sender_fault, NULL) != DTQ_OK)
        entry->sender_fault = false;
}

enum dtq_code dtq_sqs_wire_read_batch(struct dtq_slice body, size_t count, const char (*digests)[DTQ_MD5_HEX_SIZE],
                                      struct dtq_sqs_answer *out, struct dtq_error *err)
{
    const struct cJSON *successful = NULL, *failed = NULL;
    memset(out, 0, sizeof *out);
    enum dtq_code rc = read_object(body, &out->tree, err);
    if (!rc)
        rc = dtq_json_find_array(out->tree, "Successful", &successful, err);
    if (!rc)
        rc = dtq_json_find_array(out->tree, "Failed", &failed, err);
    if (rc) {
        dtq_sqs_answer_clean_up(out);
        return as_response(rc, err);
    }
    out->count = count;
    for (size_t i = 0; i < count; i++)
        fail_entry(&out->entries[i], "MissingFromAnswer", "the service's answer does not mention this entry");
    for (const struct cJSON *item = dtq_json_first(successful); item; item = dtq_json_next(item))
        read_success(out, item, digests);
    for (const struct cJSON *item = dtq_json_first(failed); item; item = dtq_json_next(item))
        read_failure(out, item);
    return DTQ_OK;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* The value of a system attribute is a string, of a message attribute an object; others than strings are left out. */
static bool attribute_value(const struct cJSON *item, struct dtq_slice *value)
{
    if (dtq_json_as_string(item, value))
        return true;
    value->data = NULL;
    return dtq_json_is_object(item) && dtq_json_find_string(item, "StringValue", value, NULL) == DTQ_OK && value->data;
}

static size_t read_pairs(const struct cJSON *attributes, struct dtq_pair *pairs)
{
    size_t count = 0;
    for (const struct cJSON *item = dtq_json_first(attributes); item; item = dtq_json_next(item)) {
        struct dtq_slice value = {NULL, 0};
        if (!attribute_value(item, &value))
            continue;
        pairs[count].name = dtq_json_key(item);
        pairs[count].value = value.data;
        count++;
    }
    return count;
}

static enum dtq_code read_message(const struct cJSON *item, struct dtq_sqs_message *message, struct dtq_error *err)
{
    struct dtq_slice id = {NULL, 0}, handle = {NULL, 0}, digest = {NULL, 0};
    char actual[DTQ_MD5_HEX_SIZE];
    if (!dtq_json_is_object(item))
        return dtq_error_set(err, DTQ_RESPONSE, "a message of the answer is not an object");
    enum dtq_code rc = dtq_json_get_string(item, "MessageId", &id, err);
    if (!rc)
        rc = dtq_json_get_string(item, "ReceiptHandle", &handle, err);
    if (!rc)
        rc = dtq_json_get_string(item, "Body", &message->body, err);
    if (!rc)
        rc = dtq_json_find_string(item, "MD5OfBody", &digest, err);
    if (rc)
        return rc;
    message->message_id = id.data;
    message->receipt_handle = handle.data;
    if (digest.data) {
        dtq_sqs_wire_digest(message->body, actual);
        message->damaged = actual[0] && strcasecmp(actual, digest.data) != 0;
    }
    return DTQ_OK;
}

/* All attributes of all messages share one array, so first they are counted. */
static enum dtq_code read_attributes(const struct cJSON *messages, struct dtq_sqs_answer *out, struct dtq_error *err)
{
    const struct cJSON *system[DTQ_SQS_BATCH_MAX] = {NULL}, *own[DTQ_SQS_BATCH_MAX] = {NULL};
    size_t total = 0, index = 0;
    for (const struct cJSON *item = dtq_json_first(messages); item; item = dtq_json_next(item), index++) {
        enum dtq_code rc = dtq_json_find_object(item, "Attributes", &system[index], err);
        if (!rc)
            rc = dtq_json_find_object(item, "MessageAttributes", &own[index], err);
        if (rc)
            return rc;
        total += dtq_json_count(system[index]) + dtq_json_count(own[index]);
    }
    if (!total)
        return DTQ_OK;
    out->pairs = dtq_calloc(total, sizeof *out->pairs);
    if (!out->pairs)
        return dtq_error_no_memory(err);
    struct dtq_pair *pairs = out->pairs;
    for (size_t i = 0; i < out->count; i++) {
        struct dtq_sqs_message *message = &out->messages[i];
        message->system_attributes = pairs;
        message->system_attribute_count = read_pairs(system[i], pairs);
        pairs += message->system_attribute_count;
        message->attributes = pairs;
        message->attribute_count = read_pairs(own[i], pairs);
        pairs += message->attribute_count;
    }
    return DTQ_OK;
}

enum dtq_code dtq_sqs_wire_read_messages(struct dtq_slice body, struct dtq_sqs_answer *out, struct dtq_error *err)
{
    const struct cJSON *messages = NULL;
    memset(out, 0, sizeof *out);
    enum dtq_code rc = read_object(body, &out->tree, err);
    if (!rc)
        rc = dtq_json_find_array(out->tree, "Messages", &messages, err);
    if (!rc && dtq_json_count(messages) > DTQ_SQS_BATCH_MAX)
        rc = dtq_error_set(err, DTQ_RESPONSE, "the answer holds more than %d messages", DTQ_SQS_BATCH_MAX);
    for (const struct cJSON *item = dtq_json_first(messages); !rc && item; item = dtq_json_next(item))
        rc = read_message(item, &out->messages[out->count++], err);
    if (!rc && messages)
        rc = read_attributes(messages, out, err);
    if (rc)
        dtq_sqs_answer_clean_up(out);
    return as_response(rc, err);
}
