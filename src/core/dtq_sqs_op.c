/* Constructors and results of the SQS client's operations (contract: dtq_sqs.h).  Runs on the callers' threads. */
#include "dtq_sqs_priv.h"

#include <string.h>

#include "dtq_alloc.h"
#include "dtq_clock.h"
#include "dtq_json.h"
#include "dtq_limits.h"
#include "dtq_uri.h"

#define REQUEST_BYTES_MAX ((size_t)8 * DTQ_SQS_MESSAGE_BYTES_MAX) /* JSON escapes a body six-fold at worst */
#define DEFAULT_TIMEOUT_MS_MAX 60000
#define ACTION_BYTES_MAX 64
#define QUEUE_URL_BYTES_MAX 2048

static void destroy(struct dtq_op *base)
{
    struct dtq_sqs_op *op = (struct dtq_sqs_op *)base;
    dtq_free(op->target);
    dtq_free(op->url);
    dtq_free(op->queue_url);
    dtq_buf_clean_up(&op->request);
    dtq_sqs_answer_clean_up(&op->answer);
    dtq_free(op->json);
    if (op->carrier)
        dtq_op_release(op->client->source.loop, &op->carrier->op);
    dtq_free(op);
}

static const struct dtq_op_class sqs_op_class = {DTQ_OP_SQS, destroy};

/* ---- construction ------------------------------------------------------------------------------------------------ */

static char *join(const char *first, const char *second, size_t second_length)
{
    size_t first_length = strlen(first);
    char *text = dtq_malloc(first_length + second_length + 1);
    if (text) {
        memcpy(text, first, first_length);
        if (second_length)
            memcpy(text + first_length, second, second_length);
        text[first_length + second_length] = '\0';
    }
    return text;
}

static bool is_action(const char *action)
{
    size_t length = action ? strspn(action, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") : 0;
    return length > 0 && length <= ACTION_BYTES_MAX && action[length] == '\0';
}

/* The path that the request goes to: the queue's, or the endpoint's own. */
static enum dtq_code find_path(const struct dtq_sqs *client, const char *queue_url, struct dtq_slice *path,
                               struct dtq_error *err)
{
    struct dtq_uri uri;
    *path = dtq_slice_str(client->base_path);
    if (!queue_url)
        return DTQ_OK;
    if (strlen(queue_url) > QUEUE_URL_BYTES_MAX || dtq_uri_split(dtq_slice_str(queue_url), &uri, NULL) != DTQ_OK)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "\"%.200s\" is not a queue URL", queue_url);
    if (uri.path.length)
        *path = uri.path;
    return DTQ_OK;
}

static uint64_t deadline_of(const struct dtq_sqs *client, int wait_s, int timeout_ms)
{
    uint64_t default_ms = (uint64_t)client->retry.max_attempts * (uint64_t)client->request_timeout_ms;
    if (default_ms > DEFAULT_TIMEOUT_MS_MAX)
        default_ms = DEFAULT_TIMEOUT_MS_MAX;
    return dtq_clock_monotonic_ms() + (timeout_ms ? (uint64_t)timeout_ms : default_ms + (uint64_t)wait_s * 1000);
}

static struct dtq_sqs_op *new_op(struct dtq_sqs *client, enum dtq_sqs_action action, const char *name,
                                 const char *queue_url, int wait_s, int timeout_ms, struct dtq_error *err)
{
    struct dtq_slice path;
    if (timeout_ms < 0) {
        dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a timeout is not negative");
        return NULL;
    }
    if (action != DTQ_SQS_CALL && !queue_url) {
        dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the queue URL is missing");
        return NULL;
    }
    if (find_path(client, queue_url, &path, err) != DTQ_OK)
        return NULL;
    struct dtq_sqs_op *op = dtq_calloc(1, sizeof *op);
    if (!op) {
        dtq_error_no_memory(err);
        return NULL;
    }
    dtq_op_init(&op->op, &sqs_op_class, &client->source);
    dtq_buf_init(&op->request, REQUEST_BYTES_MAX);
    op->client = client;
    op->action = action;
    op->wait_s = wait_s;
    op->op.deadline_ms = deadline_of(client, wait_s, timeout_ms);
    op->target = join("AmazonSQS.", name, strlen(name));
    op->url = join(client->origin, path.data, path.length);
    op->queue_url = queue_url ? dtq_strdup(queue_url) : NULL;
    if (!op->target || !op->url || (queue_url && !op->queue_url)) {
        dtq_error_no_memory(err);
        destroy(&op->op);
        return NULL;
    }
    op->path = dtq_slice(op->url + strlen(client->origin), path.length);
    return op;
}

/* op when its request could be built, else NULL. */
static struct dtq_sqs_op *built(struct dtq_sqs_op *op, enum dtq_code rc)
{
    if (!rc)
        return op;
    destroy(&op->op);
    return NULL;
}

struct dtq_sqs_op *dtq_sqs_send_batch(struct dtq_sqs *client, const char *queue_url,
                                      const struct dtq_sqs_entry *entries, size_t count, int timeout_ms,
                                      struct dtq_error *err)
{
    struct dtq_sqs_op *op = new_op(client, DTQ_SQS_SEND, "SendMessageBatch", queue_url, 0, timeout_ms, err);
    if (!op)
        return NULL;
    op->count = count;
    enum dtq_code rc = dtq_sqs_wire_send_batch(queue_url, entries, count, &op->request, err);
    for (size_t i = 0; !rc && i < count; i++)
        dtq_sqs_wire_digest(entries[i].body, op->digests[i]);
    return built(op, rc);
}

struct dtq_sqs_op *dtq_sqs_receive(struct dtq_sqs *client, const char *queue_url, int max_messages, int wait_s,
                                   int visibility_s, int timeout_ms, struct dtq_error *err)
{
    struct dtq_sqs_op *op = new_op(client, DTQ_SQS_RECEIVE, "ReceiveMessage", queue_url, wait_s, timeout_ms, err);
    if (!op)
        return NULL;
    return built(op, dtq_sqs_wire_receive(queue_url, max_messages, wait_s, visibility_s, &op->request, err));
}

struct dtq_sqs_op *dtq_sqs_delete_batch(struct dtq_sqs *client, const char *queue_url,
                                        const char *const *receipt_handles, size_t count, int timeout_ms,
                                        struct dtq_error *err)
{
    struct dtq_sqs_op *op = new_op(client, DTQ_SQS_DELETE, "DeleteMessageBatch", queue_url, 0, timeout_ms, err);
    if (!op)
        return NULL;
    op->count = count;
    return built(op, dtq_sqs_wire_delete_batch(queue_url, receipt_handles, count, &op->request, err));
}

struct dtq_sqs_op *dtq_sqs_visibility_batch(struct dtq_sqs *client, const char *queue_url,
                                            const char *const *receipt_handles, const int *visibility_s, size_t count,
                                            int timeout_ms, struct dtq_error *err)
{
    struct dtq_sqs_op *op =
        new_op(client, DTQ_SQS_VISIBILITY, "ChangeMessageVisibilityBatch", queue_url, 0, timeout_ms, err);
    if (!op)
        return NULL;
    op->count = count;
    return built(op, dtq_sqs_wire_visibility_batch(queue_url, receipt_handles, visibility_s, count, &op->request, err));
}

struct dtq_sqs_op *dtq_sqs_call(struct dtq_sqs *client, const char *action, const char *queue_url,
                                struct dtq_slice request_json, int timeout_ms, struct dtq_error *err)
{
    if (!is_action(action)) {
        dtq_error_set(err, DTQ_INVALID_ARGUMENT, "an action's name is 1 to %d letters", ACTION_BYTES_MAX);
        return NULL;
    }
    if (dtq_json_check(request_json, "the request", err) != DTQ_OK)
        return NULL;
    struct dtq_sqs_op *op = new_op(client, DTQ_SQS_CALL, action, queue_url, 0, timeout_ms, err);
    if (!op)
        return NULL;
    dtq_buf_add_slice(&op->request, request_json);
    return built(op, dtq_buf_check(&op->request, err, "the request"));
}

struct dtq_sqs_op *dtq_sqs_hand_back(struct dtq_sqs *client, const char *queue_url,
                                     const struct dtq_sqs_answer *messages)
{
    const char *handles[DTQ_SQS_BATCH_MAX];
    const int visible_at_once[DTQ_SQS_BATCH_MAX] = {0};
    for (size_t i = 0; i < messages->count; i++)
        handles[i] = messages->messages[i].receipt_handle;
    struct dtq_sqs_op *op =
        dtq_sqs_visibility_batch(client, queue_url, handles, visible_at_once, messages->count, 0, NULL);
    if (op)
        op->internal = true;
    return op;
}

struct dtq_sqs_op *dtq_sqs_carrier(struct dtq_sqs *client, const char *queue_url)
{
    struct dtq_sqs_op *op = new_op(client, DTQ_SQS_DELETE, "DeleteMessageBatch", queue_url, 0, 0, NULL);
    if (op)
        op->internal = true;
    return op;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

enum dtq_sqs_result_kind dtq_sqs_op_kind(const struct dtq_sqs_op *op)
{
    if (op->action == DTQ_SQS_CALL)
        return DTQ_SQS_RESULT_JSON;
    return op->action == DTQ_SQS_RECEIVE ? DTQ_SQS_RESULT_MESSAGES : DTQ_SQS_RESULT_ENTRIES;
}

size_t dtq_sqs_op_count(const struct dtq_sqs_op *op)
{
    return op->answer.count;
}

const struct dtq_sqs_entry_result *dtq_sqs_op_entry(const struct dtq_sqs_op *op, size_t index)
{
    return &op->answer.entries[index];
}

const struct dtq_sqs_message *dtq_sqs_op_message(const struct dtq_sqs_op *op, size_t index)
{
    return &op->answer.messages[index];
}

struct dtq_slice dtq_sqs_op_json(const struct dtq_sqs_op *op)
{
    return dtq_slice(op->json, op->json_length);
}
