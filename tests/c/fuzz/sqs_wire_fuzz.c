/*
 * SQS's answers and refusals from anybody; and requests built from any texts, which must be JSON.
 *
 * The first byte chooses what the rest is.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dtq_json.h"
#include "dtq_sqs_wire.h"

#define QUEUE "http://127.0.0.1:9324/000000000000/steps"

static void require(int holds)
{
    if (!holds)
        abort();
}

/* Every text that a reader lends is whole. */
static size_t touch(const char *text)
{
    return text ? strlen(text) : 0;
}

static void read_batch(struct dtq_slice body, size_t count, int sent)
{
    char digests[DTQ_SQS_BATCH_MAX][DTQ_MD5_HEX_SIZE] = {"900150983cd24fb0d6963f7d28e17f72"};
    struct dtq_sqs_answer answer;
    struct dtq_error err;
    enum dtq_code rc =
        dtq_sqs_wire_read_batch(body, count, sent ? (const char(*)[DTQ_MD5_HEX_SIZE])digests : NULL, &answer, &err);
    if (rc) {
        require(rc == DTQ_RESPONSE && err.code == rc && !answer.text);
        return;
    }
    require(answer.count == count);
    for (size_t i = 0; i < count; i++) {
        const struct dtq_sqs_entry_result *entry = &answer.entries[i];
        require(entry->ok == (entry->code == NULL));
        touch(entry->code);
        touch(entry->message);
        touch(entry->message_id);
    }
    dtq_sqs_answer_clean_up(&answer);
}

static void touch_pairs(const struct dtq_pair *pairs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        require(pairs[i].name && pairs[i].value);
        touch(pairs[i].name);
        touch(pairs[i].value);
    }
}

static void read_messages(struct dtq_slice body)
{
    struct dtq_sqs_answer answer;
    struct dtq_error err;
    enum dtq_code rc = dtq_sqs_wire_read_messages(body, &answer, &err);
    if (rc) {
        require(rc == DTQ_RESPONSE && err.code == rc && !answer.text);
        return;
    }
    require(answer.count <= DTQ_SQS_BATCH_MAX);
    for (size_t i = 0; i < answer.count; i++) {
        const struct dtq_sqs_message *message = &answer.messages[i];
        require(message->message_id && message->receipt_handle && message->body.data);
        require(touch(message->body.data) == message->body.length);
        touch(message->message_id);
        touch(message->receipt_handle);
        touch_pairs(message->system_attributes, message->system_attribute_count);
        touch_pairs(message->attributes, message->attribute_count);
    }
    dtq_sqs_answer_clean_up(&answer);
}

static void read_refusal(int status, struct dtq_slice text)
{
    struct dtq_sqs_refusal refusal;
    char query_error[128];
    size_t header = text.length < sizeof query_error - 1 ? text.length : sizeof query_error - 1;
    memcpy(query_error, text.data, header);
    query_error[header] = '\0';
    dtq_sqs_wire_read_refusal(status, text, query_error, &refusal);
    require(refusal.code != DTQ_OK && dtq_error_info(refusal.code));
    require(strlen(refusal.type) < sizeof refusal.type && strlen(refusal.message) < sizeof refusal.message);
    require(dtq_is_text(dtq_slice_str(refusal.message)) && dtq_is_text(dtq_slice_str(refusal.type)));
}

/* The same text as body, attribute and receipt handle. */
static void build(struct dtq_slice text)
{
    struct dtq_buf out;
    struct dtq_error err;
    char *copy = malloc(text.length + 1);
    memcpy(copy, text.data, text.length);
    copy[text.length] = '\0';
    const char *handles[] = {copy};
    const int visibility[] = {0};
    const struct dtq_pair attributes[] = {{copy, copy}};
    struct dtq_sqs_entry entry = {text, -1, copy, copy, attributes, 1};
    dtq_buf_init(&out, 1 << 20);
    enum dtq_code sent = dtq_sqs_wire_send_batch(QUEUE, &entry, 1, &out, &err);
    require(sent != DTQ_OK || dtq_json_check(dtq_buf_slice(&out), "request", &err) == DTQ_OK);
    dtq_buf_clear(&out);
    if (dtq_sqs_wire_visibility_batch(copy, handles, visibility, 1, &out, &err) == DTQ_OK)
        require(dtq_json_check(dtq_buf_slice(&out), "request", &err) == DTQ_OK);
    dtq_buf_clean_up(&out);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    struct dtq_slice text = dtq_slice((const char *)data + 1, size - 1);
    switch (data[0] & 3) {
    case 0:
        read_batch(text, 1 + data[0] / 4 % DTQ_SQS_BATCH_MAX, data[0] >= 128);
        break;
    case 1:
        read_messages(text);
        break;
    case 2:
        read_refusal(300 + data[0], text);
        break;
    default:
        build(text);
        break;
    }
    return 0;
}
