/*
 * The SQS client on the I/O thread (dtq_sqs_priv.h): which operation goes on the wire when.
 *
 * Receives and all other requests have places of their own on the wire, so that a send never waits behind long polls.
 * An operation is in one of four states: it waits for a place (polls, calls), it is on the wire (busy), it waits for
 * its next attempt (later), or it is a delete that waits for company or is carried (dtq_sqs_join.c).
 */
#include "dtq_sqs_priv.h"

#include <stdio.h>
#include <string.h>

#include "dtq_clock.h"
#include "dtq_rand.h"

/* Together below the number of connections that the loop keeps open. */
#define POLLS_MAX 32
#define CALLS_MAX 24

/* ---- lists ------------------------------------------------------------------------------------------------------- */

void dtq_sqs_list_append(struct dtq_sqs_op_list *list, struct dtq_sqs_op *op)
{
    op->next = NULL;
    if (list->tail)
        list->tail->next = op;
    else
        list->head = op;
    list->tail = op;
}

static struct dtq_sqs_op *list_pop(struct dtq_sqs_op_list *list)
{
    struct dtq_sqs_op *op = list->head;
    if (op) {
        list->head = op->next;
        if (!list->head)
            list->tail = NULL;
    }
    return op;
}

/* Take op out of a chain that starts at *link; *last is set to what is the last of it then. */
static bool chain_remove(struct dtq_sqs_op **link, struct dtq_sqs_op *op, struct dtq_sqs_op **last)
{
    bool found = false;
    *last = NULL;
    while (*link) {
        if (*link == op) {
            *link = op->next;
            found = true;
            continue;
        }
        *last = *link;
        link = &(*link)->next;
    }
    return found;
}

bool dtq_sqs_list_remove(struct dtq_sqs_op_list *list, struct dtq_sqs_op *op)
{
    return chain_remove(&list->head, op, &list->tail);
}

static struct dtq_sqs_op_list *list_of(struct dtq_sqs *client, const struct dtq_sqs_op *op)
{
    return op->action == DTQ_SQS_RECEIVE ? &client->polls : &client->calls;
}

/* ---- ends -------------------------------------------------------------------------------------------------------- */

/* op->op.error says how. */
static void finish(struct dtq_sqs *client, struct dtq_sqs_op *op)
{
    if (op->riders) {
        dtq_sqs_set_down(client, op, finish);
        dtq_op_release(client->source.loop, &op->op);
        return;
    }
    if (op->op.error.code)
        atomic_fetch_add_explicit(&client->failed, 1, memory_order_relaxed);
    if (op->internal)
        dtq_op_release(client->source.loop, &op->op);
    else
        dtq_loop_finish(client->source.loop, &op->op);
}

static void finish_closed(struct dtq_sqs *client, struct dtq_sqs_op *op)
{
    dtq_error_set(&op->op.error, DTQ_CLOSED, "the client was closed before the request was done");
    finish(client, op);
}

/* ---- attempts ---------------------------------------------------------------------------------------------------- */

static void begin(struct dtq_sqs *client, struct dtq_sqs_op *op)
{
    op->attempts++;
    if (dtq_sqs_exchange_begin(client, op, &op->op.error) == DTQ_OK) {
        if (op->action == DTQ_SQS_RECEIVE)
            client->polls_on_wire++;
        else
            client->calls_on_wire++;
        if (op->action == DTQ_SQS_DELETE)
            client->deletes_on_wire++;
        return;
    }
    dtq_sqs_add_context(client, op, &op->op.error);
    finish(client, op);
}

static void begin_waiting(struct dtq_sqs *client)
{
    while (client->polls.head && client->polls_on_wire < POLLS_MAX)
        begin(client, list_pop(&client->polls));
    while (client->calls.head && client->calls_on_wire < CALLS_MAX)
        begin(client, list_pop(&client->calls));
}

/* What the first attempt of an operation could not know, and a second one can: the service's clock, newer credentials.
 * Each at most once. */
static bool can_correct(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange,
                        const struct dtq_sqs_verdict *verdict)
{
    struct dtq_sqs_op *op = exchange->op;
    if (verdict->clock_skew && verdict->service_time_s >= 0 && !op->clock_corrected) {
        op->clock_corrected = true;
        client->clock_offset_s = verdict->service_time_s - dtq_clock_wall_s();
        return true;
    }
    if (verdict->expired_token && !op->credentials_renewed) {
        op->credentials_renewed = true;
        return dtq_sqs_has_newer_credentials(client, exchange->credentials);
    }
    return false;
}

/* A receive that may have been served has hidden messages: one more would hide others. */
static bool may_try_again(const struct dtq_sqs_op *op, const struct dtq_sqs_verdict *verdict)
{
    const struct dtq_error_info *info = dtq_error_info(verdict->code);
    return info && info->retryable && !(op->action == DTQ_SQS_RECEIVE && verdict->may_have_arrived);
}

static bool try_again_later(struct dtq_sqs *client, struct dtq_sqs_op *op, const struct dtq_sqs_verdict *verdict)
{
    uint64_t random = 0;
    if (!may_try_again(op, verdict))
        return false;
    if (dtq_random_bytes(&random, sizeof random, NULL) != DTQ_OK)
        random = dtq_retry_ceiling_ms(&client->retry, op->attempts);
    if (!dtq_retry_next(&client->retry, op->attempts, dtq_clock_monotonic_ms(), op->op.deadline_ms, random,
                        &op->again_at_ms))
        return false;
    op->next = client->later;
    client->later = op;
    return true;
}

static void hand_back(struct dtq_sqs *client, const struct dtq_sqs_op *op, const struct dtq_sqs_answer *answer)
{
    struct dtq_sqs_op *change = answer->count ? dtq_sqs_hand_back(client, op->queue_url, answer) : NULL;
    if (change)
        dtq_sqs_list_append(&client->calls, change);
}

static void end_detached(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange, CURLcode result)
{
    struct dtq_sqs_answer answer = {0};
    struct dtq_sqs_verdict verdict;
    struct dtq_error err;
    dtq_sqs_exchange_judge(client, exchange, result, &answer, &verdict, &err);
    if (verdict.code == DTQ_OK)
        hand_back(client, exchange->op, &answer);
    dtq_sqs_answer_clean_up(&answer);
}

static void end_attempt(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange, CURLcode result)
{
    struct dtq_sqs_op *op = exchange->op;
    struct dtq_sqs_verdict verdict;
    dtq_error_clear(&op->last);
    dtq_sqs_exchange_judge(client, exchange, result, &op->answer, &verdict, &op->last);
    if (verdict.code == DTQ_OK) {
        dtq_error_clear(&op->op.error);
        finish(client, op);
        return;
    }
    if (can_correct(client, exchange, &verdict)) {
        atomic_fetch_add_explicit(&client->retries, 1, memory_order_relaxed);
        dtq_sqs_list_append(list_of(client, op), op);
        return;
    }
    if (verdict.expired_token && client->owner_renews) {
        dtq_sqs_want_credentials(client, exchange->credentials);
        op->last.code = DTQ_EXPIRED;
    }
    if (try_again_later(client, op, &verdict))
        return;
    op->op.error = op->last;
    dtq_sqs_add_context(client, op, &op->op.error);
    finish(client, op);
}

static void leave_wire(struct dtq_sqs *client, const struct dtq_sqs_op *op)
{
    if (op->action == DTQ_SQS_RECEIVE)
        client->polls_on_wire--;
    else
        client->calls_on_wire--;
    if (op->action == DTQ_SQS_DELETE) {
        client->deletes_on_wire--;
        dtq_sqs_depart(client, op->queue_url);
    }
}

static void sqs_transfer_done(struct dtq_source *source, CURL *easy, CURLcode result)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    char *context = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &context);
    struct dtq_sqs_exchange *exchange = (struct dtq_sqs_exchange *)(void *)context;
    leave_wire(client, exchange->op);
    if (exchange->detached)
        end_detached(client, exchange, result);
    else
        end_attempt(client, exchange, result);
    dtq_sqs_exchange_end(client, exchange);
    begin_waiting(client);
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static void sqs_submit(struct dtq_source *source, struct dtq_op *base)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    struct dtq_sqs_op *op = (struct dtq_sqs_op *)base;
    if (!dtq_sqs_join(client, op))
        dtq_sqs_list_append(list_of(client, op), op);
    begin_waiting(client);
}

/* Nobody waits for this poll any more; it goes on by itself. */
static void detach(struct dtq_sqs_exchange *exchange)
{
    exchange->op->exchange = NULL;
    exchange->detached = true;
}

static void drop(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange)
{
    leave_wire(client, exchange->op);
    curl_multi_remove_handle(dtq_loop_multi(client->source.loop), exchange->http.easy);
    dtq_sqs_exchange_end(client, exchange);
}

/* Nobody waits for this carrier any more. */
static void abandon(struct dtq_sqs *client, struct dtq_sqs_op *carrier)
{
    struct dtq_sqs_op *last;
    if (carrier->exchange)
        drop(client, carrier->exchange);
    else if (!dtq_sqs_list_remove(&client->calls, carrier))
        chain_remove(&client->later, carrier, &last);
    dtq_op_release(client->source.loop, &carrier->op);
}

static void explain_early_end(struct dtq_sqs *client, struct dtq_sqs_op *op)
{
    struct dtq_error *err = &op->op.error;
    if (op->carrier) {
        op->attempts = op->carrier->attempts;
        op->last = op->carrier->last;
    }
    if (err->code == DTQ_TIMEOUT && op->last.code)
        dtq_error_set(err, DTQ_TIMEOUT, "the deadline passed after %d attempts, the last one: %.200s", op->attempts,
                      op->last.message);
    else if (err->code == DTQ_TIMEOUT)
        dtq_error_set(err, DTQ_TIMEOUT, "the deadline passed before the service had answered");
    dtq_sqs_add_context(client, op, err);
}

static void sqs_cancel(struct dtq_source *source, struct dtq_op *base)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    struct dtq_sqs_op *op = (struct dtq_sqs_op *)base, *last, *left;
    explain_early_end(client, op);
    if (dtq_sqs_leave(client, op, &left)) {
        if (left)
            abandon(client, left);
    }
    else if (op->exchange && op->action == DTQ_SQS_RECEIVE)
        detach(op->exchange);
    else if (op->exchange)
        drop(client, op->exchange);
    else if (!dtq_sqs_list_remove(list_of(client, op), op))
        chain_remove(&client->later, op, &last);
    finish(client, op);
    begin_waiting(client); /* a place may have become free */
}

static unsigned sqs_prepare(struct dtq_source *source, uint64_t now_ms, struct curl_waitfd *fds, unsigned room,
                            uint64_t *wake_ms)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    (void)now_ms;
    (void)fds;
    (void)room;
    for (struct dtq_sqs_op *op = client->later; op; op = op->next) {
        if (op->again_at_ms < *wake_ms)
            *wake_ms = op->again_at_ms;
    }
    const struct dtq_sqs_op *first = client->joining.head; /* none of them departs before it */
    if (first && first->depart_at_ms < *wake_ms)
        *wake_ms = first->depart_at_ms;
    return 0;
}

static void sqs_dispatch(struct dtq_source *source, uint64_t now_ms, const struct curl_waitfd *fds, unsigned count)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    (void)fds;
    (void)count;
    for (struct dtq_sqs_op **link = &client->later; *link;) {
        struct dtq_sqs_op *op = *link;
        if (op->again_at_ms > now_ms) {
            link = &op->next;
            continue;
        }
        *link = op->next;
        atomic_fetch_add_explicit(&client->retries, 1, memory_order_relaxed);
        dtq_sqs_list_append(list_of(client, op), op);
    }
    dtq_sqs_depart_overdue(client, now_ms);
    begin_waiting(client);
}

/* Receives end at once; sends, deletes and the like are let finish with their retries. */
static void stop_gracefully(struct dtq_sqs *client)
{
    struct dtq_sqs_op *op, *last;
    for (struct dtq_sqs_exchange *exchange = client->busy; exchange; exchange = exchange->next) {
        op = exchange->op;
        if (op->action != DTQ_SQS_RECEIVE || exchange->detached)
            continue;
        detach(exchange);
        finish_closed(client, op);
    }
    while ((op = list_pop(&client->polls)))
        finish_closed(client, op);
    for (struct dtq_sqs_op *next, *each = client->later; each; each = next) {
        next = each->next;
        if (each->action == DTQ_SQS_RECEIVE && chain_remove(&client->later, each, &last))
            finish_closed(client, each);
    }
}

static void stop_now(struct dtq_sqs *client)
{
    struct dtq_sqs_op *op;
    while (client->busy) {
        struct dtq_sqs_exchange *exchange = client->busy;
        op = exchange->detached ? NULL : exchange->op;
        drop(client, exchange); /* op has at least the loop's reference, or is the client's own */
        if (op)
            finish_closed(client, op);
    }
    while ((op = list_pop(&client->polls)) || (op = list_pop(&client->calls)) || (op = dtq_sqs_pop_joining(client)))
        finish_closed(client, op);
    while ((op = client->later)) {
        client->later = op->next;
        finish_closed(client, op);
    }
}

static void sqs_stop(struct dtq_source *source, bool graceful)
{
    if (graceful)
        stop_gracefully((struct dtq_sqs *)source);
    else
        stop_now((struct dtq_sqs *)source);
}

static bool sqs_is_idle(struct dtq_source *source)
{
    struct dtq_sqs *client = (struct dtq_sqs *)source;
    return !client->busy && !client->polls.head && !client->calls.head && !client->joining.head && !client->later;
}

const struct dtq_source_class dtq_sqs_source_class = {
    .name = "sqs",
    .submit = sqs_submit,
    .cancel = sqs_cancel,
    .prepare = sqs_prepare,
    .dispatch = sqs_dispatch,
    .transfer_done = sqs_transfer_done,
    .stop = sqs_stop,
    .is_idle = sqs_is_idle,
    .destroy = dtq_sqs_destroy_source,
};
