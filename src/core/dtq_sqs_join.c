/*
 * Deletes of one queue that travel together (dtq_sqs_priv.h).  Runs on the I/O thread.
 *
 * Why: workers delete one message for each step, and SQS takes ten in a request, which costs what one costs.  A delete
 * that finds none of its queue on the wire goes at once.  Otherwise it waits until one of them leaves the wire, however
 * that ends, or until ten are together.  So nobody waits for company while the pipe is idle.  One that hangs there
 * holds up the others for join_wait_ms only: what has waited so long goes, and those behind it with it.
 *
 * How: those that travel together are carried by an operation of the client's own, which has their entries, is tried
 * again like any other, and hands each its results.  They keep their own deadlines and may leave at any time.  Sends do
 * not wait for each other: a step begins with its message, and executors have many of them at once anyway.
 */
#include "dtq_sqs_priv.h"

#include <string.h>

#include "dtq_clock.h"

static bool is_of(const struct dtq_sqs_op *op, const char *queue_url)
{
    return strcmp(op->queue_url, queue_url) == 0;
}

static bool is_on_wire(const struct dtq_sqs *client, const char *queue_url)
{
    if (!client->deletes_on_wire)
        return false;
    for (const struct dtq_sqs_exchange *exchange = client->busy; exchange; exchange = exchange->next) {
        if (exchange->op->action == DTQ_SQS_DELETE && is_of(exchange->op, queue_url))
            return true;
    }
    return false;
}

/* ---- departure --------------------------------------------------------------------------------------------------- */

/* Take up to ten entries of this queue out of those that wait: a chain in their order. */
static struct dtq_sqs_op *gather(struct dtq_sqs *client, const char *queue_url, size_t *entries)
{
    struct dtq_sqs_op *chain = NULL, **end = &chain, *next;
    *entries = 0;
    for (struct dtq_sqs_op *op = client->joining.head; op; op = next) {
        next = op->next;
        if (!is_of(op, queue_url) || *entries + op->count > DTQ_SQS_BATCH_MAX)
            continue;
        dtq_sqs_list_remove(&client->joining, op);
        op->first_entry = *entries;
        *entries += op->count;
        op->next = NULL;
        *end = op;
        end = &op->next;
    }
    return chain;
}

/* NULL when memory is short. */
static struct dtq_sqs_op *load(struct dtq_sqs *client, struct dtq_sqs_op *riders)
{
    struct dtq_sqs_op *carrier = dtq_sqs_carrier(client, riders->queue_url);
    if (!carrier)
        return NULL;
    dtq_buf_add_slice(&carrier->request, dtq_buf_slice(&riders->request));
    enum dtq_code rc = dtq_buf_check(&carrier->request, NULL, "the request");
    carrier->count = riders->count;
    for (struct dtq_sqs_op *op = riders->next; op && !rc; op = op->next) {
        rc = dtq_sqs_wire_join(dtq_buf_slice(&op->request), carrier->count, &carrier->request, NULL);
        carrier->count += op->count;
    }
    if (!rc)
        return carrier;
    dtq_op_release(client->source.loop, &carrier->op);
    return NULL;
}

static void send_off(struct dtq_sqs *client, struct dtq_sqs_op *riders)
{
    struct dtq_sqs_op *carrier = riders->next ? load(client, riders) : NULL, *next;
    if (carrier) {
        carrier->riders = riders;
        for (struct dtq_sqs_op *op = riders; op; op = op->next)
            op->carrier = carrier;
        dtq_sqs_list_append(&client->calls, carrier);
        return;
    }
    for (struct dtq_sqs_op *op = riders; op; op = next) { /* one alone, or no memory to carry them */
        next = op->next;
        dtq_sqs_list_append(&client->calls, op);
    }
}

void dtq_sqs_depart(struct dtq_sqs *client, const char *queue_url)
{
    struct dtq_sqs_op *riders;
    size_t entries = 0;
    while ((riders = gather(client, queue_url, &entries)))
        send_off(client, riders);
}

void dtq_sqs_depart_overdue(struct dtq_sqs *client, uint64_t now_ms)
{
    const struct dtq_sqs_op *first;
    while ((first = client->joining.head) && first->depart_at_ms <= now_ms)
        dtq_sqs_depart(client, first->queue_url);
}

bool dtq_sqs_join(struct dtq_sqs *client, struct dtq_sqs_op *op)
{
    size_t entries = 0;
    if (op->action != DTQ_SQS_DELETE || op->internal || op->count == DTQ_SQS_BATCH_MAX ||
        !is_on_wire(client, op->queue_url))
        return false;
    op->depart_at_ms = dtq_clock_monotonic_ms() + (uint64_t)client->join_wait_ms;
    dtq_sqs_list_append(&client->joining, op);
    for (const struct dtq_sqs_op *each = client->joining.head; each; each = each->next)
        entries += is_of(each, op->queue_url) ? each->count : 0;
    if (entries >= DTQ_SQS_BATCH_MAX)
        send_off(client, gather(client, op->queue_url, &entries));
    return true;
}

/* ---- arrival ----------------------------------------------------------------------------------------------------- */

void dtq_sqs_set_down(struct dtq_sqs *client, struct dtq_sqs_op *carrier,
                      void (*finish)(struct dtq_sqs *client, struct dtq_sqs_op *op))
{
    struct dtq_sqs_op *op;
    while ((op = carrier->riders)) {
        carrier->riders = op->next;
        op->op.error = carrier->op.error;
        op->attempts = carrier->attempts;
        op->answer.count = carrier->answer.count ? op->count : 0;
        for (size_t i = 0; i < op->answer.count; i++)
            op->answer.entries[i] = carrier->answer.entries[op->first_entry + i];
        dtq_op_acquire(client->source.loop, &carrier->op); /* the texts are its own; op->carrier stays */
        finish(client, op);
    }
}

struct dtq_sqs_op *dtq_sqs_pop_joining(struct dtq_sqs *client)
{
    struct dtq_sqs_op *op = client->joining.head;
    if (op)
        dtq_sqs_list_remove(&client->joining, op);
    return op;
}

bool dtq_sqs_leave(struct dtq_sqs *client, struct dtq_sqs_op *op, struct dtq_sqs_op **left)
{
    struct dtq_sqs_op *carrier = op->carrier;
    *left = NULL;
    if (!carrier)
        return op->action == DTQ_SQS_DELETE && dtq_sqs_list_remove(&client->joining, op);
    struct dtq_sqs_op **link = &carrier->riders;
    while (*link != op)
        link = &(*link)->next;
    *link = op->next;
    op->carrier = NULL;
    if (!carrier->riders)
        *left = carrier;
    return true;
}
