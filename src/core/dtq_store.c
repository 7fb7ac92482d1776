/*
 * DESIGN
 *
 * One connection in pipeline mode.  Each operation is sent as its own implicit transaction (a sync point after it), so
 * that one that fails takes no other with it, and is done when its sync point is answered: only then has it committed.
 * Whatever is in the pipeline has a slot there, in order; the slot outlives an operation that was cancelled.
 *
 * States of the connection: NONE -> DIALING -> READY, and back to WAITING (backoff) when it is lost.  When it is lost,
 * what was in the pipeline goes back to the head of the queue: nobody knows whether it was executed, and every move
 * gives the first one's answer when it is sent again.  Scripts are the exception: they end with DTQ_PG_LOST.
 *
 * A fresh connection first gets its settings and all LISTENs; DTQ_EVENT_STORE_CONNECTED follows their confirmation, so
 * a reader that looks at the rows then has missed nothing.
 *
 * A script needs the simple query protocol, which pipeline mode does not have: it waits until the pipeline is empty and
 * holds back what comes after it.
 *
 * A peer that is alive but does not answer: once the caller of the oldest slot has given up and nothing at all has been
 * received for STALL_MS, the connection counts as lost; it would hold up everything behind it.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "dtq_alloc.h"
#include "dtq_clock.h"
#include "dtq_pg.h"
#include "dtq_rand.h"
#include "dtq_retry.h"
#include "dtq_store_queue.h"

#define DEFAULT_CONNECT_TIMEOUT_MS 10000
#define DEFAULT_OPERATION_TIMEOUT_MS 30000
#define DEFAULT_BACKOFF_BASE_MS 50
#define DEFAULT_BACKOFF_CAP_MS 2000
#define STALL_MS 5000
#define HELD_MS 1000  /* a connection that is lost earlier counts as one that has failed */
#define SLOTS_MAX 256 /* sent and not answered; the rest waits in our queue */

/* The moves are written for READ COMMITTED, and a move that was answered must survive a crash of the server.  Plans are
 * for single rows: compiling them costs more than it saves. */
#define SETUP_SQL                                                                                                      \
    "SELECT set_config('default_transaction_isolation', 'read committed', false), set_config('jit', 'off', false), "   \
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END"

enum connection_state { NONE, WAITING, DIALING, READY };

struct channel {
    struct channel *next;
    char *name;
};

struct dtq_store {
    struct dtq_source source; /* first */
    char *url;
    char *application_name;
    int connect_timeout_ms;
    int operation_timeout_ms;
    struct dtq_retry_policy backoff;
    atomic_int socket; /* of the connection, -1: none; for a forked child */

    /* I/O thread */
    enum connection_state state;
    struct dtq_pg_dial *dial;
    PGconn *conn;
    struct dtq_error last_error; /* why there is no connection */
    int failures;                /* of connections that did not hold, in a row */
    uint64_t retry_at_ms;
    uint64_t heard_ms; /* when the server last said anything */
    uint64_t prepared; /* one bit for each statement, on this connection */
    bool announced;    /* DTQ_EVENT_STORE_CONNECTED of this connection is out, */
    uint64_t announced_ms; /* since when */
    bool unflushed;
    bool closing;
    struct dtq_store_queue queue;
    struct dtq_store_op *script; /* runs alone */
    struct channel *channels;
};

static struct dtq_store *store_of(struct dtq_source *source)
{
    return (struct dtq_store *)source;
}

static void publish(struct dtq_store *store, enum dtq_event_kind kind, const char *text, const char *detail)
{
    /* Without memory for a notification the reader's slow poll finds the row. */
    struct dtq_event *event = dtq_event_new(&store->source, kind, 0, text, detail);
    if (event)
        dtq_loop_publish(store->source.loop, &event->op);
}

static void finish(struct dtq_store *store, struct dtq_store_op *op, const struct dtq_error *error)
{
    op->op.error = *error;
    dtq_loop_finish(store->source.loop, &op->op);
}

static void finish_ok(struct dtq_store *store, struct dtq_store_op *op)
{
    dtq_error_clear(&op->op.error);
    dtq_loop_finish(store->source.loop, &op->op);
}

/* ---- channels ---------------------------------------------------------------------------------------------------- */

static struct channel **channel_find(struct dtq_store *store, const char *name)
{
    struct channel **at = &store->channels;
    while (*at && strcmp((*at)->name, name) != 0)
        at = &(*at)->next;
    return at;
}

static enum dtq_code channel_add(struct dtq_store *store, const char *name)
{
    struct channel **at = channel_find(store, name);
    if (*at)
        return DTQ_OK;
    struct channel *channel = dtq_calloc(1, sizeof *channel);
    char *copy = dtq_strdup(name);
    if (!channel || !copy) {
        dtq_free(channel);
        dtq_free(copy);
        return DTQ_NO_MEMORY;
    }
    channel->name = copy;
    *at = channel;
    return DTQ_OK;
}

static void channel_remove(struct dtq_store *store, const char *name)
{
    struct channel **at = channel_find(store, name);
    struct channel *channel = *at;
    if (!channel)
        return;
    *at = channel->next;
    dtq_free(channel->name);
    dtq_free(channel);
}

/* The channel is not wanted any more: what has not been sent is done. */
static void end_pending_listens(struct dtq_store *store, const char *name)
{
    struct dtq_store_op *next;
    for (struct dtq_store_op *op = store->queue.pending; op; op = next) {
        next = op->next_pending;
        if (op->kind != DTQ_STORE_LISTEN || strcmp(op->text, name) != 0)
            continue;
        dtq_store_pending_remove(&store->queue, op);
        finish_ok(store, op);
    }
}

static void fail_all_pending(struct dtq_store *store, const struct dtq_error *error)
{
    while (store->queue.pending) {
        struct dtq_store_op *op = store->queue.pending;
        dtq_store_pending_remove(&store->queue, op);
        if (op->kind == DTQ_STORE_LISTEN)
            channel_remove(store, op->text);
        finish(store, op, error);
    }
}

/* ---- the connection ---------------------------------------------------------------------------------------------- */

static bool has_work(const struct dtq_store *store)
{
    return store->queue.pending || (store->channels && !store->closing);
}

static void wait_before_next_dial(struct dtq_store *store)
{
    store->failures++;
    uint64_t ceiling_ms = dtq_retry_ceiling_ms(&store->backoff, store->failures);
    store->retry_at_ms = dtq_clock_monotonic_ms() + dtq_jitter_ms(ceiling_ms);
    store->state = WAITING;
}

static void drop_connection(struct dtq_store *store)
{
    atomic_store(&store->socket, -1);
    if (store->conn)
        PQfinish(store->conn);
    store->conn = NULL;
    store->prepared = 0;
    store->unflushed = false;
}

static void connection_lost(struct dtq_store *store, const struct dtq_error *error)
{
    struct dtq_error why = *error; /* may belong to a slot */
    drop_connection(store);
    dtq_store_slots_to_pending(&store->queue);
    store->last_error = why;
    if (store->announced && dtq_clock_monotonic_ms() - store->announced_ms >= HELD_MS)
        store->failures = 0;
    wait_before_next_dial(store);
    if (store->script) {
        struct dtq_store_op *script = store->script;
        store->script = NULL;
        finish(store, script, &why);
    }
    if (store->announced)
        publish(store, DTQ_EVENT_STORE_LOST, NULL, why.message);
    store->announced = false;
}

static void connection_failed(struct dtq_store *store)
{
    struct dtq_error error;
    dtq_pg_connection_error(store->conn, DTQ_PG_LOST, &error);
    connection_lost(store, &error);
}

static void begin_dial(struct dtq_store *store)
{
    struct dtq_error error;
    if (dtq_pg_dial(store->source.loop, store->url, store->application_name, store->connect_timeout_ms, &store->dial,
                    &error)) {
        store->last_error = error;
        wait_before_next_dial(store);
        return;
    }
    store->state = DIALING;
}

/* Trying again would give the same answer: the role, its password or the database is wrong. */
static bool is_refusal(const struct dtq_error *error)
{
    return strncmp(error->sqlstate, "28", 2) == 0 || strcmp(error->sqlstate, "3D000") == 0;
}

static bool send_own(struct dtq_store *store, enum dtq_store_slot_kind kind, const char *sql)
{
    return sql && PQsendQueryParams(store->conn, sql, 0, NULL, NULL, NULL, NULL, 0) && PQpipelineSync(store->conn) &&
           dtq_store_slot_append(&store->queue, kind, NULL);
}

static void begin_session(struct dtq_store *store)
{
    bool sent = PQenterPipelineMode(store->conn) && send_own(store, DTQ_SLOT_SETUP, SETUP_SQL);
    for (struct channel *channel = store->channels; sent && channel; channel = channel->next) {
        char *sql = dtq_store_listen_sql("LISTEN", channel->name);
        sent = send_own(store, DTQ_SLOT_LISTEN, sql);
        dtq_free(sql);
    }
    if (!sent)
        connection_failed(store);
}

static void end_dial(struct dtq_store *store)
{
    PGconn *conn = NULL;
    struct dtq_error error;
    if (!dtq_pg_dial_take(store->dial, &conn, &error))
        return;
    store->dial = NULL;
    if (!conn) {
        store->last_error = error;
        wait_before_next_dial(store);
        if (is_refusal(&error))
            fail_all_pending(store, &error);
        return;
    }
    store->conn = conn;
    store->state = READY;
    store->heard_ms = dtq_clock_monotonic_ms();
    atomic_store(&store->socket, PQsocket(conn));
    begin_session(store);
}

/* The settings and all LISTENs are confirmed. */
static void announce(struct dtq_store *store)
{
    store->announced = true;
    store->announced_ms = dtq_clock_monotonic_ms();
    dtq_error_clear(&store->last_error);
    publish(store, DTQ_EVENT_STORE_CONNECTED, NULL, NULL);
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

static bool send_statement(struct dtq_store *store, struct dtq_store_op *op, struct dtq_store_slot *slot)
{
    const struct dtq_statement *statement = op->statement;
    uint64_t bit = (uint64_t)1 << dtq_statement_index(statement);
    if (!(store->prepared & bit)) {
        if (!PQsendPrepare(store->conn, statement->name, statement->sql, 0, NULL))
            return false;
        slot->prepares = statement;
        store->prepared |= bit;
    }
    return PQsendQueryPrepared(store->conn, statement->name, op->value_count, op->values, NULL, NULL, 0);
}

static bool send_listen(struct dtq_store *store, struct dtq_store_op *op)
{
    char *sql = dtq_store_listen_sql(op->kind == DTQ_STORE_LISTEN ? "LISTEN" : "UNLISTEN", op->text);
    bool sent = sql && PQsendQueryParams(store->conn, sql, 0, NULL, NULL, NULL, NULL, 0);
    dtq_free(sql);
    return sent;
}

/* op is out of the queue.  False: the connection is lost (and op is back in the queue, or done). */
static bool send_op(struct dtq_store *store, struct dtq_store_op *op)
{
    struct dtq_store_slot *slot = dtq_store_slot_append(&store->queue, DTQ_SLOT_OP, op);
    if (!slot) {
        struct dtq_error error;
        dtq_error_no_memory(&error);
        finish(store, op, &error);
        return true;
    }
    bool sent = op->kind == DTQ_STORE_STATEMENT ? send_statement(store, op, slot) : send_listen(store, op);
    if (sent && PQpipelineSync(store->conn))
        return true;
    connection_failed(store);
    return false;
}

/* The pipeline is empty.  False: the connection is lost. */
static bool send_script(struct dtq_store *store, struct dtq_store_op *op)
{
    store->script = op;
    if (PQexitPipelineMode(store->conn) && PQsendQuery(store->conn, op->text))
        return true;
    connection_failed(store);
    return false;
}

static void send_pending(struct dtq_store *store, uint64_t now_ms)
{
    struct dtq_store_op *next;
    for (struct dtq_store_op *op = store->queue.pending; op && !store->script; op = next) {
        next = op->next_pending;
        if (op->not_before_ms > now_ms)
            continue;
        if (store->queue.slot_count >= SLOTS_MAX || (op->kind == DTQ_STORE_SCRIPT && store->queue.slots))
            break;
        dtq_store_pending_remove(&store->queue, op);
        if (!(op->kind == DTQ_STORE_SCRIPT ? send_script(store, op) : send_op(store, op)))
            return;
    }
    int left = PQflush(store->conn);
    if (left < 0)
        connection_failed(store);
    else
        store->unflushed = left > 0;
}

/* ---- receiving --------------------------------------------------------------------------------------------------- */

/* False when there is no time left for another try. */
static bool try_again_later(struct dtq_store *store, struct dtq_store_op *op)
{
    uint64_t now_ms = dtq_clock_monotonic_ms();
    op->failures++;
    uint64_t at_ms = now_ms + dtq_jitter_ms(dtq_retry_ceiling_ms(&store->backoff, op->failures));
    if (op->op.deadline_ms && at_ms >= op->op.deadline_ms)
        return false;
    op->not_before_ms = at_ms;
    dtq_store_pending_append(&store->queue, op);
    return true;
}

static void check_columns(const struct dtq_store_op *op, struct dtq_error *error)
{
    int expected = (int)strlen(op->statement->columns);
    if (PQnfields(op->result) < expected)
        dtq_error_set(error, DTQ_PG_SCHEMA, "%s gave %d columns instead of %d", op->statement->name,
                      PQnfields(op->result), expected);
}

static void end_op(struct dtq_store *store, struct dtq_store_slot *slot)
{
    struct dtq_store_op *op = slot->op;
    if (slot->error.code == DTQ_PG_TRANSIENT && try_again_later(store, op))
        return;
    if (slot->error.code && op->kind == DTQ_STORE_LISTEN)
        channel_remove(store, op->text);
    if (!slot->error.code && op->statement) {
        op->result = slot->result;
        slot->result = NULL;
        check_columns(op, &slot->error);
    }
    finish(store, op, &slot->error);
}

/* What the server knows, when it is not what we thought: somebody else (a pooler, DISCARD ALL) had the session. */
static void note_prepared(struct dtq_store *store, const struct dtq_store_slot *slot)
{
    const struct dtq_statement *failed = NULL;
    if (slot->error.code && slot->prepares && strcmp(slot->error.sqlstate, "42P05") != 0)
        failed = slot->prepares;
    else if (slot->op && slot->op->statement && strcmp(slot->error.sqlstate, "26000") == 0)
        failed = slot->op->statement;
    if (failed)
        store->prepared &= ~((uint64_t)1 << dtq_statement_index(failed));
}

/* The oldest slot is answered.  False: the connection is lost. */
static bool end_slot(struct dtq_store *store)
{
    struct dtq_store_slot *slot = store->queue.slots;
    if (slot->error.code == DTQ_PG_LOST || slot->error.code == DTQ_PG_READ_ONLY ||
        (slot->error.code && slot->kind != DTQ_SLOT_OP)) {
        connection_lost(store, &slot->error);
        return false;
    }
    slot = dtq_store_slot_take(&store->queue);
    note_prepared(store, slot);
    if (slot->op)
        end_op(store, slot);
    bool own = slot->kind != DTQ_SLOT_OP;
    dtq_store_slot_free(slot);
    if (own && !(store->queue.slots && store->queue.slots->kind != DTQ_SLOT_OP) && !store->announced)
        announce(store);
    return true;
}

static void keep_result(struct dtq_store_slot *slot, PGresult *result)
{
    switch (PQresultStatus(result)) {
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
        slot->prepares = NULL;
        PQclear(slot->result);
        slot->result = result;
        return;
    case PGRES_PIPELINE_ABORTED:
        break;
    default:
        if (!slot->error.code)
            dtq_pg_result_error(result, &slot->error);
    }
    PQclear(result);
}

/* False: the connection is lost. */
static bool read_pipeline(struct dtq_store *store)
{
    int nothing = 0;
    while (store->queue.slots && !PQisBusy(store->conn)) {
        PGresult *result = PQgetResult(store->conn);
        if (!result) {
            /* The end of one command; twice in a row would mean that libpq and we disagree about what was sent. */
            if (++nothing > 1) {
                connection_failed(store);
                return false;
            }
            continue;
        }
        nothing = 0;
        if (PQresultStatus(result) != PGRES_PIPELINE_SYNC) {
            keep_result(store->queue.slots, result);
            continue;
        }
        PQclear(result);
        if (!end_slot(store))
            return false;
    }
    return true;
}

/* False: the connection is lost. */
static bool read_script(struct dtq_store *store)
{
    struct dtq_store_op *op = store->script;
    while (!PQisBusy(store->conn)) {
        PGresult *result = PQgetResult(store->conn);
        if (!result) {
            store->script = NULL;
            bool ready = PQenterPipelineMode(store->conn);
            dtq_loop_finish(store->source.loop, &op->op);
            if (!ready)
                connection_failed(store);
            return ready;
        }
        ExecStatusType status = PQresultStatus(result);
        struct dtq_error error = {0};
        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_EMPTY_QUERY)
            dtq_pg_result_error(result, &error);
        PQclear(result);
        if (error.code == DTQ_PG_LOST) {
            connection_lost(store, &error);
            return false;
        }
        if (error.code && !op->op.error.code)
            op->op.error = error;
    }
    return true;
}

static void read_notifications(struct dtq_store *store)
{
    PGnotify *notification;
    while ((notification = PQnotifies(store->conn))) {
        publish(store, DTQ_EVENT_NOTIFICATION, notification->relname, notification->extra);
        PQfreemem(notification);
    }
}

static void receive(struct dtq_store *store)
{
    store->heard_ms = dtq_clock_monotonic_ms();
    bool alive = dtq_pg_consume(store->conn);
    /* What arrived before the end is worth reading: it says why. */
    if (!(store->script ? read_script(store) : read_pipeline(store)))
        return;
    read_notifications(store);
    if (!alive || PQstatus(store->conn) == CONNECTION_BAD)
        connection_failed(store);
}

/* When the oldest slot counts as never to be answered; 0: somebody waits for it. */
static uint64_t stall_ms(const struct dtq_store *store)
{
    const struct dtq_store_slot *slot = store->queue.slots;
    if (!slot || slot->op)
        return 0;
    uint64_t since_ms = slot->sent_ms > store->heard_ms ? slot->sent_ms : store->heard_ms;
    return since_ms + (slot->kind == DTQ_SLOT_OP ? STALL_MS : (uint64_t)store->connect_timeout_ms);
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static void source_submit(struct dtq_source *source, struct dtq_op *op)
{
    struct dtq_store *store = store_of(source);
    struct dtq_store_op *mine = (struct dtq_store_op *)op;
    struct dtq_error error;
    if (mine->kind == DTQ_STORE_LISTEN && channel_add(store, mine->text)) {
        dtq_error_no_memory(&error);
        finish(store, mine, &error);
        return;
    }
    if (mine->kind == DTQ_STORE_UNLISTEN) {
        channel_remove(store, mine->text);
        end_pending_listens(store, mine->text);
        if (store->state != READY) {
            finish_ok(store, mine);
            return;
        }
    }
    dtq_store_pending_append(&store->queue, mine);
}

static void source_cancel(struct dtq_source *source, struct dtq_op *op)
{
    struct dtq_store *store = store_of(source);
    struct dtq_store_op *mine = (struct dtq_store_op *)op;
    bool unreachable = op->error.code == DTQ_TIMEOUT && store->state != READY && store->last_error.code;
    if (mine->slot) {
        mine->slot->op = NULL;
        mine->slot = NULL;
    }
    else if (mine == store->script) {
        /* It cannot be told apart from what would follow it. */
        struct dtq_error error;
        dtq_error_set(&error, DTQ_PG_LOST, "the connection was given up with a script that took too long");
        store->script = NULL;
        connection_lost(store, &error);
    }
    else
        dtq_store_pending_remove(&store->queue, mine);
    if (unreachable) {
        struct dtq_error why = store->last_error;
        dtq_error_set(&op->error, DTQ_PG_CONNECT, "no connection to PostgreSQL in time: %s", why.message);
        memcpy(op->error.sqlstate, why.sqlstate, sizeof why.sqlstate);
    }
    dtq_loop_finish(store->source.loop, op);
}

static void wake_at(uint64_t *wake_ms, uint64_t at_ms)
{
    if (at_ms < *wake_ms)
        *wake_ms = at_ms;
}

static unsigned source_prepare(struct dtq_source *source, uint64_t now_ms, struct curl_waitfd *fds, unsigned room,
                               uint64_t *wake_ms)
{
    struct dtq_store *store = store_of(source);
    if (has_work(store) && (store->state == NONE || (store->state == WAITING && now_ms >= store->retry_at_ms)))
        begin_dial(store);
    if (store->state == READY)
        send_pending(store, now_ms);
    if (store->state == WAITING && has_work(store))
        wake_at(wake_ms, store->retry_at_ms);
    if (store->state != READY || room == 0)
        return 0;
    for (struct dtq_store_op *op = store->queue.pending; op; op = op->next_pending) {
        if (op->not_before_ms > now_ms)
            wake_at(wake_ms, op->not_before_ms);
    }
    if (stall_ms(store))
        wake_at(wake_ms, stall_ms(store));
    fds[0].fd = PQsocket(store->conn);
    fds[0].events = (short)(CURL_WAIT_POLLIN | (store->unflushed ? CURL_WAIT_POLLOUT : 0));
    fds[0].revents = 0;
    return 1;
}

static void source_dispatch(struct dtq_source *source, uint64_t now_ms, const struct curl_waitfd *fds, unsigned count)
{
    struct dtq_store *store = store_of(source);
    if (store->state == DIALING)
        end_dial(store);
    else if (store->state == READY && count && fds[0].revents)
        receive(store);
    if (store->state == READY && stall_ms(store) && now_ms >= stall_ms(store)) {
        struct dtq_error error;
        dtq_error_set(&error, DTQ_PG_LOST, "PostgreSQL did not answer in time");
        connection_lost(store, &error);
    }
}

static void forget_everything(struct dtq_store *store)
{
    dtq_pg_dial_abandon(store->dial);
    store->dial = NULL;
    drop_connection(store);
    store->state = NONE;
    store->script = NULL;
    dtq_store_slots_to_pending(&store->queue);
    store->queue.pending = store->queue.last_pending = NULL; /* the loop ends them */
    while (store->channels)
        channel_remove(store, store->channels->name);
}

static void source_stop(struct dtq_source *source, bool graceful)
{
    struct dtq_store *store = store_of(source);
    store->closing = true;
    if (!graceful)
        forget_everything(store);
}

static bool source_is_idle(struct dtq_source *source)
{
    struct dtq_store *store = store_of(source);
    return !store->queue.pending && !store->queue.slots && !store->script;
}

static void store_free(struct dtq_store *store)
{
    forget_everything(store);
    if (store->url)
        dtq_free_secret(store->url, strlen(store->url));
    dtq_free(store->application_name);
    dtq_free(store);
}

static void source_destroy(struct dtq_source *source, bool forked)
{
    struct dtq_store *store = store_of(source);
    if (forked) {
        /* Only our copy of the descriptor, without a word to the server: else it would take the parent for alive for as
         * long as this process lives.  One that is just being opened has no owner here, and lives that long. */
        int fd = atomic_exchange(&store->socket, -1);
        if (fd >= 0)
            close(fd);
        return;
    }
    store_free(store);
}

static const struct dtq_source_class source_class = {
    .name = "store",
    .submit = source_submit,
    .cancel = source_cancel,
    .prepare = source_prepare,
    .dispatch = source_dispatch,
    .stop = source_stop,
    .is_idle = source_is_idle,
    .destroy = source_destroy,
};

static int or_default(int value, int fallback)
{
    return value > 0 ? value : fallback;
}

enum dtq_code dtq_store_new(struct dtq_loop *loop, const struct dtq_store_options *options, struct dtq_store **out,
                            struct dtq_error *err)
{
    *out = NULL;
    enum dtq_code rc = dtq_pg_check_url(options->url, err);
    if (rc)
        return rc;
    struct dtq_store *store = dtq_calloc(1, sizeof *store);
    if (!store)
        return dtq_error_no_memory(err);
    store->source.source_class = &source_class;
    atomic_init(&store->socket, -1);
    store->connect_timeout_ms = or_default(options->connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS);
    store->operation_timeout_ms = or_default(options->operation_timeout_ms, DEFAULT_OPERATION_TIMEOUT_MS);
    store->backoff.base_ms = or_default(options->backoff_base_ms, DEFAULT_BACKOFF_BASE_MS);
    store->backoff.cap_ms = or_default(options->backoff_cap_ms, DEFAULT_BACKOFF_CAP_MS);
    store->url = dtq_strdup(options->url);
    store->application_name = options->application_name ? dtq_strdup(options->application_name) : NULL;
    if (!store->url || (options->application_name && !store->application_name)) {
        rc = dtq_error_no_memory(err);
        goto cleanup;
    }
    rc = dtq_loop_add(loop, &store->source, err);
    if (rc)
        goto cleanup;
    *out = store;
cleanup:
    if (rc)
        store_free(store);
    return rc;
}

struct dtq_source *dtq_store_source(struct dtq_store *store)
{
    return &store->source;
}

uint64_t dtq_store_deadline_ms(const struct dtq_store *store, int timeout_ms)
{
    if (timeout_ms < 0)
        return 0;
    return dtq_clock_monotonic_ms() + (uint64_t)(timeout_ms ? timeout_ms : store->operation_timeout_ms);
}
