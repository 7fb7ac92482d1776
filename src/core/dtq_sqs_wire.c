#include "dtq_sqs_wire.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "dtq_alloc.h"
#include "dtq_json.h"
#include "dtq_json_cursor.h"

#define FIRST_PAIRS 64
#define ENTRY_BYTES 256 /* names, braces and ids around an entry's texts, generously */

static const char not_mentioned[] = "MissingFromAnswer";

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

/* How an entry begins; in no string, where a quote has a backslash before it. */
static const char entry_start[] = "{\"Id\":\"";
static const char batch_end[] = "]}";

static void open_entry(struct dtq_buf *out, size_t index)
{
    if (index)
        dtq_buf_add_char(out, ',');
    dtq_buf_add_str(out, entry_start);
    dtq_buf_add_char(out, (char)('0' + index)); /* a batch has ten entries at most */
    dtq_buf_add_str(out, "\",");
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
    return close_request(out, batch_end, err);
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
    return close_request(out, batch_end, err);
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

enum dtq_code dtq_sqs_wire_join(struct dtq_slice request, size_t count, struct dtq_buf *out, struct dtq_error *err)
{
    const char *end = request.data + request.length - strlen(batch_end);
    const char *entry = strstr(request.data, entry_start), *next;
    out->length -= strlen(batch_end);
    for (; entry; entry = next) {
        const char *rest = entry + strlen(entry_start) + strlen("0\",");
        next = strstr(rest, entry_start);
        open_entry(out, count++);
        dtq_buf_add(out, rest, (size_t)((next ? next - 1 : end) - rest));
    }
    return close_request(out, batch_end, err);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

void dtq_sqs_answer_clean_up(struct dtq_sqs_answer *answer)
{
    dtq_free(answer->text);
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

static enum dtq_code not_a(const char *key, const char *type, struct dtq_error *err)
{
    return dtq_error_set(err, DTQ_RESPONSE, "\"%s\" is not %s", key, type);
}

/* *out is inside the object that the answer is. */
static enum dtq_code open_answer(struct dtq_slice body, struct dtq_sqs_answer *answer, struct dtq_json_cursor *out,
                                 struct dtq_error *err)
{
    memset(answer, 0, sizeof *answer);
    enum dtq_code rc = dtq_json_check(body, "the service's answer", err);
    if (rc)
        return as_response(rc, err);
    answer->text = dtq_strndup(body.data, body.length);
    if (!answer->text)
        return dtq_error_no_memory(err);
    *out = dtq_json_cursor(answer->text, body.length);
    return dtq_json_enter_object(out) ? DTQ_OK
                                      : dtq_error_set(err, DTQ_RESPONSE, "the service's answer is not a JSON object");
}

/* True when the next value is null, which is as good as not there. */
static bool take_null(struct dtq_json_cursor *at)
{
    if (dtq_json_peek(at) != 'n')
        return false;
    dtq_json_skip(at);
    return true;
}

static enum dtq_code take_text(struct dtq_json_cursor *at, const char *key, struct dtq_slice *out,
                               struct dtq_error *err)
{
    return take_null(at) || dtq_json_take_string(at, out) ? DTQ_OK : not_a(key, "a string", err);
}

static void fail_entry(struct dtq_sqs_entry_result *entry, const char *code, const char *message)
{
    entry->ok = false;
    entry->code = code;
    entry->message = message;
    entry->message_id = NULL;
}

/* What an item of either list says; NULL for what it does not say as a string. */
struct batch_item {
    const char *id, *message_id, *digest, *code, *message;
    bool sender_fault;
};

static void read_item(struct dtq_json_cursor *at, struct batch_item *item)
{
    const struct {
        const char *key;
        const char **out;
    } texts[] = {{"Id", &item->id},
                 {"MessageId", &item->message_id},
                 {"MD5OfMessageBody", &item->digest},
                 {"Code", &item->code},
                 {"Message", &item->message}};
    const char *key;
    memset(item, 0, sizeof *item);
    if (!dtq_json_enter_object(at)) {
        dtq_json_skip(at);
        return;
    }
    while (dtq_json_next_member(at, &key)) {
        struct dtq_slice text = {NULL, 0};
        size_t i = 0;
        while (i < sizeof texts / sizeof texts[0] && strcmp(key, texts[i].key) != 0)
            i++;
        if (strcmp(key, "SenderFault") == 0)
            item->sender_fault = dtq_json_peek(at) == 't';
        if (dtq_json_take_string(at, &text) && i < sizeof texts / sizeof texts[0])
            *texts[i].out = text.data;
    }
}

/* The index of the entry of the request that has this Id; count for an Id that was not ours. */
static size_t index_of(const char *id, size_t count)
{
    bool is_digit = id && id[0] >= '0' && id[0] <= '9' && id[1] == '\0';
    size_t index = is_digit ? (size_t)(id[0] - '0') : count;
    return index < count ? index : count;
}

/* A failure wins, whichever comes first. */
static void read_success(struct dtq_sqs_entry_result *entry, const struct batch_item *item, const char *digest)
{
    if (!entry->ok && entry->code != not_mentioned)
        return;
    if (digest && digest[0] && item->digest && strcasecmp(item->digest, digest) != 0) {
        fail_entry(entry, "BodyDigestMismatch", "the service holds another body than the one that was sent");
        return;
    }
    entry->ok = true;
    entry->code = entry->message = NULL;
    entry->message_id = digest ? item->message_id : NULL;
}

static void read_failure(struct dtq_sqs_entry_result *entry, const struct batch_item *item)
{
    fail_entry(entry, item->code ? item->code : "Unknown", item->message);
    entry->sender_fault = item->sender_fault;
}

static enum dtq_code read_list(struct dtq_json_cursor *at, const char *key, const char (*digests)[DTQ_MD5_HEX_SIZE],
                               struct dtq_sqs_answer *out, struct dtq_error *err)
{
    bool are_successful = strcmp(key, "Successful") == 0;
    if (!are_successful && strcmp(key, "Failed") != 0) {
        dtq_json_skip(at);
        return DTQ_OK;
    }
    if (take_null(at))
        return DTQ_OK;
    if (!dtq_json_enter_array(at))
        return not_a(key, "an array", err);
    while (dtq_json_next_item(at)) {
        struct batch_item item;
        read_item(at, &item);
        size_t index = index_of(item.id, out->count);
        if (index == out->count)
            continue;
        if (are_successful)
            read_success(&out->entries[index], &item, digests ? digests[index] : NULL);
        else
            read_failure(&out->entries[index], &item);
    }
    return DTQ_OK;
}

enum dtq_code dtq_sqs_wire_read_batch(struct dtq_slice body, size_t count, const char (*digests)[DTQ_MD5_HEX_SIZE],
                                      struct dtq_sqs_answer *out, struct dtq_error *err)
{
    struct dtq_json_cursor at;
    const char *key;
    enum dtq_code rc = open_answer(body, out, &at, err);
    out->count = rc ? 0 : count;
    for (size_t i = 0; i < out->count; i++)
        fail_entry(&out->entries[i], not_mentioned, "the service's answer does not mention this entry");
    while (!rc && dtq_json_next_member(&at, &key))
        rc = read_list(&at, key, digests, out, err);
    if (rc)
        dtq_sqs_answer_clean_up(out);
    return rc;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* All attributes of all messages share one array, which moves while it grows: until the end, where those of a message
 * begin is kept as an index. */
struct message_reader {
    struct dtq_sqs_answer *out;
    size_t pair_count, pair_capacity;
    size_t system_start[DTQ_SQS_BATCH_MAX], own_start[DTQ_SQS_BATCH_MAX];
};

static enum dtq_code add_pair(struct message_reader *reader, const char *name, struct dtq_slice value,
                              struct dtq_error *err)
{
    if (reader->pair_count == reader->pair_capacity) {
        size_t capacity = reader->pair_capacity ? 2 * reader->pair_capacity : FIRST_PAIRS;
        struct dtq_pair *pairs = dtq_realloc(reader->out->pairs, capacity * sizeof *pairs);
        if (!pairs)
            return dtq_error_no_memory(err);
        reader->out->pairs = pairs;
        reader->pair_capacity = capacity;
    }
    struct dtq_pair *pair = &reader->out->pairs[reader->pair_count++];
    pair->name = name;
    pair->value = value.data;
    return DTQ_OK;
}

/* The value of a system attribute is a string, of a message attribute an object; others than strings are left out. */
static struct dtq_slice take_attribute_value(struct dtq_json_cursor *at)
{
    struct dtq_slice value = {NULL, 0}, other;
    const char *key;
    if (!dtq_json_enter_object(at)) {
        dtq_json_take_string(at, &value);
        return value;
    }
    while (dtq_json_next_member(at, &key))
        dtq_json_take_string(at, strcmp(key, "StringValue") == 0 ? &value : &other);
    return value;
}

static enum dtq_code read_pairs(struct message_reader *reader, struct dtq_json_cursor *at, const char *key,
                                size_t *start, size_t *count, struct dtq_error *err)
{
    const char *name;
    enum dtq_code rc = DTQ_OK;
    if (take_null(at))
        return DTQ_OK;
    if (!dtq_json_enter_object(at))
        return not_a(key, "an object", err);
    *start = reader->pair_count;
    while (!rc && dtq_json_next_member(at, &name)) {
        struct dtq_slice value = take_attribute_value(at);
        if (value.data)
            rc = add_pair(reader, name, value, err);
    }
    *count = reader->pair_count - *start;
    return rc;
}

static enum dtq_code read_member(struct message_reader *reader, struct dtq_json_cursor *at, const char *key,
                                 struct dtq_slice *digest, struct dtq_error *err)
{
    size_t index = reader->out->count - 1;
    struct dtq_sqs_message *message = &reader->out->messages[index];
    struct dtq_slice text = {NULL, 0};
    enum dtq_code rc = DTQ_OK;
    if (strcmp(key, "Body") == 0)
        return take_text(at, key, &message->body, err);
    if (strcmp(key, "MD5OfBody") == 0)
        return take_text(at, key, digest, err);
    if (strcmp(key, "Attributes") == 0)
        return read_pairs(reader, at, key, &reader->system_start[index], &message->system_attribute_count, err);
    if (strcmp(key, "MessageAttributes") == 0)
        return read_pairs(reader, at, key, &reader->own_start[index], &message->attribute_count, err);
    if (strcmp(key, "MessageId") == 0) {
        rc = take_text(at, key, &text, err);
        message->message_id = text.data;
    }
    else if (strcmp(key, "ReceiptHandle") == 0) {
        rc = take_text(at, key, &text, err);
        message->receipt_handle = text.data;
    }
    else {
        dtq_json_skip(at);
    }
    return rc;
}

static enum dtq_code read_message(struct message_reader *reader, struct dtq_json_cursor *at, struct dtq_error *err)
{
    struct dtq_sqs_message *message = &reader->out->messages[reader->out->count++];
    struct dtq_slice digest = {NULL, 0};
    char actual[DTQ_MD5_HEX_SIZE];
    const char *key;
    enum dtq_code rc = DTQ_OK;
    if (!dtq_json_enter_object(at))
        return dtq_error_set(err, DTQ_RESPONSE, "a message of the answer is not an object");
    while (!rc && dtq_json_next_member(at, &key))
        rc = read_member(reader, at, key, &digest, err);
    if (rc)
        return rc;
    const char *missing = !message->message_id       ? "MessageId"
                          : !message->receipt_handle ? "ReceiptHandle"
                          : !message->body.data      ? "Body"
                                                     : NULL;
    if (missing)
        return dtq_error_set(err, DTQ_RESPONSE, "\"%s\" is missing", missing);
    if (digest.data) {
        dtq_sqs_wire_digest(message->body, actual);
        message->damaged = actual[0] && strcasecmp(actual, digest.data) != 0;
    }
    return DTQ_OK;
}

static enum dtq_code read_messages(struct message_reader *reader, struct dtq_json_cursor *at, struct dtq_error *err)
{
    enum dtq_code rc = DTQ_OK;
    if (take_null(at))
        return DTQ_OK;
    if (!dtq_json_enter_array(at))
        return not_a("Messages", "an array", err);
    while (!rc && dtq_json_next_item(at)) {
        rc = reader->out->count < DTQ_SQS_BATCH_MAX
                 ? read_message(reader, at, err)
                 : dtq_error_set(err, DTQ_RESPONSE, "the answer holds more than %d messages", DTQ_SQS_BATCH_MAX);
    }
    return rc;
}

enum dtq_code dtq_sqs_wire_read_messages(struct dtq_slice body, struct dtq_sqs_answer *out, struct dtq_error *err)
{
    struct message_reader reader = {.out = out};
    struct dtq_json_cursor at;
    const char *key;
    enum dtq_code rc = open_answer(body, out, &at, err);
    while (!rc && dtq_json_next_member(&at, &key)) {
        if (strcmp(key, "Messages") == 0 && out->count == 0)
            rc = read_messages(&reader, &at, err);
        else
            dtq_json_skip(&at);
    }
    if (rc) {
        dtq_sqs_answer_clean_up(out);
        return rc;
    }
    for (size_t i = 0; out->pairs && i < out->count; i++) {
        out->messages[i].system_attributes = out->pairs + reader.system_start[i];
        out->messages[i].attributes = out->pairs + reader.own_start[i];
    }
    return DTQ_OK;
}
