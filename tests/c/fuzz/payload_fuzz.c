/*
 * Messages from a queue: what decodes must encode, and decode again to the same; what is not signed must not pass for
 * signed.  The input is tried as the whole message and as the text of the task in one.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dtq_alloc.h"
#include "dtq_buf.h"
#include "dtq_json.h"
#include "dtq_payload.h"

static const struct dtq_payload_key key = {{"a key", 5}};

static char *encode(const struct dtq_step_task *task, const struct dtq_payload_key *with)
{
    struct dtq_error err;
    char *message = NULL;
    size_t length = 0;
    if (dtq_payload_encode(task, "id", with, &message, &length, &err))
        abort();
    return message;
}

/* The encoder's text of the task is the same after a round through the decoder. */
static void check_round(const struct dtq_step_task *task)
{
    struct dtq_step_task again;
    struct dtq_error err;
    char *first = encode(task, &key);
    if (dtq_payload_decode(dtq_slice_str(first), &key, 1, &again, &err))
        abort();
    char *second = encode(&again, &key);
    if (strcmp(first, second) != 0)
        abort();
    dtq_step_task_clean_up(&again);
    dtq_free(second);
    dtq_free(first);
}

static void try_message(struct dtq_slice message)
{
    struct dtq_step_task task;
    struct dtq_error err;
    if (dtq_payload_decode(message, &key, 1, &task, &err) == DTQ_OK)
        dtq_step_task_clean_up(&task); /* an input of the corpus is signed with this key */
    if (dtq_payload_decode(message, NULL, 0, &task, &err) == DTQ_OK) {
        check_round(&task);
        dtq_step_task_clean_up(&task);
    }
}

static void try_task_text(struct dtq_slice text)
{
    struct dtq_buf message;
    struct dtq_step_task task;
    struct dtq_error err;
    dtq_buf_init(&message, 1 << 20);
    dtq_buf_add_str(&message, "{\"task_name\":\"" DTQ_PAYLOAD_TASK_NAME "\",\"kwargs\":{\"task\":");
    dtq_json_write_string(&message, text);
    dtq_buf_add_str(&message, "}}");
    if (!message.failed) {
        if (dtq_payload_decode(dtq_buf_slice(&message), &key, 1, &task, &err) != DTQ_UNSIGNED)
            abort();
        try_message(dtq_buf_slice(&message));
    }
    dtq_buf_clean_up(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dtq_slice text = dtq_slice((const char *)data, size);
    try_message(text);
    try_task_text(text);
    return 0;
}
