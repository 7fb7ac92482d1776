/*
 * DESIGN
 *
 * The list of entries is what really runs; callers change it under the lock, and the I/O thread reads it under the
 * lock.  At each beat the I/O thread copies the list into one renew operation of the store, and remembers for it only
 * the boot clock before it was handed over: a confirmed entry may live until then + ttl - margin, whatever the way
 * took.
 * The answer is matched by generation with what the list holds at that time, so an entry that was removed meanwhile is
 * simply not found.
 *
 * One renew at a time.  It waits for a connection no longer than a beat, so that the next one starts counting anew.
 *
 * Visibilities are renewed at a beat when a third of them has passed, at most ten messages of a queue in a request; an
 * answer that is lost is made good by a later beat.
 */
#include "dtq_beat.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "dtq_alloc.h"
#include "dtq_buf.h"
#include "dtq_clock.h"
#include "dtq_json.h"
#include "dtq_limits.h"
#include "dtq_rand.h"

#define NS_PER_S 1e9
#define NS_PER_MS 1000000u
#define PARAMS_BYTES_MAX (16 * 1024 * 1024)
#define RENEW_TIMEOUT_MIN_MS 1000
#define RENEW_TIMEOUT_MAX_MS 15000
#define RETRY_MS 500 /* after a renewal that failed */
#define VISIBILITY_TIMEOUT_MS 15000
#define VISIBILITY_RENEWALS 3 /* within one visibility */

struct entry {
    struct entry *next;
    char *run_id;
    char *step_key;
    char *queue_url;
    char *receipt_handle;
    int attempt;
    int64_t generation;
    double ttl_s;
    double margin_s;
    double heartbeat_s;
    int slot;
    int visibility_s;
    uint64_t deadline_ns; /* of the step process, by what is confirmed */
    uint64_t received_boot_ns;
    uint64_t visible_from_ns; /* when its visibility was last renewed */
    bool hides;               /* its message is to be kept hidden */
    bool hiding;              /* a request for that is under way */
    bool cancel_told;
};

struct dtq_beat {
    struct dtq_source source; /* first */
    struct dtq_store *store;
    struct dtq_sqs *sqs;
    struct dtq_fence_board *board;
    pthread_mutex_t lock;

    /* under the lock */
    struct entry *entries;
    uint64_t next_beat_ms; /* UINT64_MAX: nothing to renew */

    /* I/O thread */
    struct dtq_store_op *renewal; /* under way */
    uint64_t renewal_boot_ns;     /* before it was handed over */
    int64_t *renewing;            /* its generations */
    size_t renewing_count;
};

/* One ChangeMessageVisibilityBatch under way. */
struct hide_request {
    struct dtq_beat *beat;
    uint64_t sent_boot_ns;
    size_t count;
    int64_t generations[DTQ_SQS_BATCH_MAX];
};

static struct dtq_beat *beat_of(struct dtq_source *source)
{
    return (struct dtq_beat *)source;
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static void entry_free(struct entry *entry)
{
    if (!entry)
        return;
    dtq_free(entry->run_id);
    dtq_free(entry->step_key);
    dtq_free(entry->queue_url);
    dtq_free(entry->receipt_handle);
    dtq_free(entry);
}

static struct entry **find_locked(struct dtq_beat *beat, int64_t generation)
{
    struct entry **at = &beat->entries;
    while (*at && (*at)->generation != generation)
        at = &(*at)->next;
    return at;
}

static void remove_locked(struct entry **at)
{
    struct entry *entry = *at;
    *at = entry->next;
    entry_free(entry);
}

static uint64_t deadline_after(const struct entry *entry, uint64_t since_ns)
{
    double left_s = entry->ttl_s - entry->margin_s;
    return since_ns + (left_s > 0 ? (uint64_t)(left_s * NS_PER_S) : 0);
}

static bool copy_text(char **to, const char *from)
{
    *to = from ? dtq_strdup(from) : NULL;
    return !from || *to;
}

static struct entry *entry_new(const struct dtq_beat_entry *given)
{
    struct entry *entry = dtq_calloc(1, sizeof *entry);
    if (!entry)
        return NULL;
    entry->attempt = given->attempt;
    entry->generation = given->generation;
    entry->ttl_s = given->ttl_s;
    entry->margin_s = given->margin_s;
    entry->heartbeat_s = given->heartbeat_s;
    entry->slot = given->slot;
    entry->visibility_s = given->visibility_s;
    entry->received_boot_ns = entry->visible_from_ns = given->received_boot_ns;
    entry->hides = given->queue_url && given->receipt_handle && given->visibility_s > 0;
    if (!copy_text(&entry->run_id, given->run_id) || !copy_text(&entry->step_key, given->step_key) ||
        !copy_text(&entry->queue_url, given->queue_url) || !copy_text(&entry->receipt_handle, given->receipt_handle)) {
        entry_free(entry);
        return NULL;
    }
    return entry;
}

/* ---- telling ----------------------------------------------------------------------------------------------------- */

static void tell(struct dtq_beat *beat, enum dtq_event_kind kind, int64_t generation)
{
    struct dtq_event *event = dtq_event_new(&beat->source, kind, generation, NULL, NULL);
    if (event)
        dtq_loop_publish(beat->source.loop, &event->op);
}

/* Entries whose step process the fence kills by now: no later renewal may bring them back. */
static void drop_overdue_locked(struct dtq_beat *beat, uint64_t boot_ns)
{
    struct entry **at = &beat->entries;
    while (*at) {
        if ((*at)->deadline_ns > boot_ns) {
            at = &(*at)->next;
            continue;
        }
        tell(beat, DTQ_EVENT_LEASE_LOST, (*at)->generation);
        remove_locked(at);
    }
}

/* ---- planning ---------------------------------------------------------------------------------------------------- */

static uint64_t interval_ms_locked(const struct dtq_beat *beat)
{
    double least_s = 0;
    for (const struct entry *entry = beat->entries; entry; entry = entry->next) {
        if (least_s == 0 || entry->heartbeat_s < least_s)
            least_s = entry->heartbeat_s;
    }
    return (uint64_t)(least_s * 1000);
}

/* Workers that started together must not stay in step: each interval is up to a tenth shorter. */
static void plan_locked(struct dtq_beat *beat, uint64_t now_ms)
{
    uint64_t interval_ms = interval_ms_locked(beat);
    beat->next_beat_ms = beat->entries ? now_ms + interval_ms - dtq_jitter_ms(interval_ms / 10) : UINT64_MAX;
}

/* ---- leases ------------------------------------------------------------------------------------------------------ */

static void confirm_locked(struct dtq_beat *beat, struct entry *entry, bool cancel_requested)
{
    uint64_t deadline_ns = deadline_after(entry, beat->renewal_boot_ns);
    if (deadline_ns > entry->deadline_ns)
        entry->deadline_ns = deadline_ns;
    if (beat->board)
        dtq_fence_extend(beat->board, entry->slot, entry->generation, deadline_ns);
    if (cancel_requested && !entry->cancel_told) {
        entry->cancel_told = true;
        tell(beat, DTQ_EVENT_CANCEL, entry->generation);
    }
}

/* Index of the row that confirms generation; the number of rows when none does. */
static size_t find_row(const struct dtq_store_op *op, int64_t generation)
{
    size_t rows = dtq_store_op_rows(op), row = 0;
    while (row < rows && strtoll(dtq_store_op_value(op, row, 0).data, NULL, 10) != generation)
        row++;
    return row;
}

static void take_answer_locked(struct dtq_beat *beat, const struct dtq_store_op *op)
{
    for (size_t i = 0; i < beat->renewing_count; i++) {
        struct entry **at = find_locked(beat, beat->renewing[i]);
        if (!*at)
            continue;
        size_t row = find_row(op, beat->renewing[i]);
        if (row < dtq_store_op_rows(op)) {
            confirm_locked(beat, *at, dtq_slice_equal(dtq_store_op_value(op, row, 1), dtq_slice_str("t")));
            continue;
        }
        tell(beat, DTQ_EVENT_LEASE_LOST, (*at)->generation);
        remove_locked(at);
    }
}

static void renewal_done(struct dtq_op *op)
{
    struct dtq_beat *beat = op->user;
    uint64_t now_ms = dtq_clock_monotonic_ms();
    pthread_mutex_lock(&beat->lock);
    drop_overdue_locked(beat, dtq_clock_boot_ns());
    if (op->error.code == DTQ_OK)
        take_answer_locked(beat, beat->renewal);
    else if (beat->next_beat_ms > now_ms + RETRY_MS)
        beat->next_beat_ms = now_ms + RETRY_MS;
    pthread_mutex_unlock(&beat->lock);
    beat->renewal = NULL;
    dtq_op_release(beat->source.loop, op);
}

struct columns {
    struct dtq_buf run_ids, step_keys, attempts, generations, ttls;
};

static void add_text(struct dtq_buf *array, const char *text)
{
    dtq_buf_add_str(array, array->length ? ",\"" : "{\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            dtq_buf_add_char(array, '\\');
        dtq_buf_add_char(array, *text);
    }
    dtq_buf_add_char(array, '"');
}

static void fill_columns_locked(struct dtq_beat *beat, struct columns *columns)
{
    for (struct entry *entry = beat->entries; entry; entry = entry->next) {
        const char *before = entry == beat->entries ? "{" : ",";
        add_text(&columns->run_ids, entry->run_id);
        add_text(&columns->step_keys, entry->step_key);
        dtq_buf_addf(&columns->attempts, "%s%d", before, entry->attempt);
        dtq_buf_addf(&columns->generations, "%s%" PRId64, before, entry->generation);
        dtq_buf_add_str(&columns->ttls, before);
        /* printf would follow the locale, and a comma begins the next lease's. */
        (void)dtq_json_write_double(&columns->ttls, entry->ttl_s);
        beat->renewing[beat->renewing_count++] = entry->generation;
    }
}

static size_t count_locked(const struct dtq_beat *beat)
{
    size_t count = 0;
    for (const struct entry *entry = beat->entries; entry; entry = entry->next)
        count++;
    return count;
}

static enum dtq_code close_array(struct dtq_buf *array, struct dtq_param *param)
{
    dtq_buf_add_char(array, '}');
    param->data = dtq_buf_str(array);
    param->length = array->length;
    return dtq_buf_check(array, NULL, "a renewal");
}

static struct dtq_store_op *make_renewal_locked(struct dtq_beat *beat, int timeout_ms)
{
    struct dtq_store_op *op = NULL;
    struct columns columns;
    struct dtq_buf *all[] = {&columns.run_ids, &columns.step_keys, &columns.attempts, &columns.generations,
                             &columns.ttls};
    struct dtq_param params[5];
    enum dtq_code rc = DTQ_OK;
    for (size_t i = 0; i < 5; i++)
        dtq_buf_init(all[i], PARAMS_BYTES_MAX);
    dtq_free(beat->renewing);
    beat->renewing_count = 0;
    beat->renewing = dtq_calloc(count_locked(beat), sizeof *beat->renewing);
    if (!beat->renewing)
        goto cleanup;
    fill_columns_locked(beat, &columns);
    for (size_t i = 0; i < 5 && !rc; i++)
        rc = close_array(all[i], &params[i]);
    if (!rc)
        op = dtq_store_run(beat->store, dtq_statement_find("renew"), params, timeout_ms, NULL);
cleanup:
    for (size_t i = 0; i < 5; i++)
        dtq_buf_clean_up(all[i]);
    return op;
}

static int renew_timeout_ms_locked(const struct dtq_beat *beat)
{
    uint64_t interval_ms = interval_ms_locked(beat);
    if (interval_ms < RENEW_TIMEOUT_MIN_MS)
        return RENEW_TIMEOUT_MIN_MS;
    return interval_ms < RENEW_TIMEOUT_MAX_MS ? (int)interval_ms : RENEW_TIMEOUT_MAX_MS;
}

/* Without memory, or while the loop closes: the next beat tries again. */
static void renew_leases(struct dtq_beat *beat)
{
    beat->renewal_boot_ns = dtq_clock_boot_ns();
    pthread_mutex_lock(&beat->lock);
    struct dtq_store_op *op = beat->entries ? make_renewal_locked(beat, renew_timeout_ms_locked(beat)) : NULL;
    pthread_mutex_unlock(&beat->lock);
    if (!op)
        return;
    struct dtq_op *head = (struct dtq_op *)op;
    head->user = beat;
    head->on_done = renewal_done;
    if (dtq_loop_submit(beat->source.loop, head, NULL))
        dtq_op_release(beat->source.loop, head);
    else
        beat->renewal = op;
}

/* ---- visibilities ------------------------------------------------------------------------------------------------ */

static void stop_hiding_locked(struct dtq_beat *beat, struct entry *entry)
{
    entry->hides = false;
    tell(beat, DTQ_EVENT_VISIBILITY_LOST, entry->generation);
}

/* Its receipt handle is void, or the message is no longer hidden: trying again would give the same answer. */
static bool is_final(const struct dtq_sqs_entry_result *result)
{
    return result->sender_fault && !(result->code && strstr(result->code, "Throttl"));
}

static void hide_done(struct dtq_op *op)
{
    struct hide_request *request = op->user;
    struct dtq_beat *beat = request->beat;
    const struct dtq_sqs_op *answer = (const struct dtq_sqs_op *)op;
    bool answered = op->error.code == DTQ_OK && dtq_sqs_op_count(answer) == request->count;
    pthread_mutex_lock(&beat->lock);
    for (size_t i = 0; i < request->count; i++) {
        struct entry *entry = *find_locked(beat, request->generations[i]);
        if (!entry)
            continue;
        entry->hiding = false;
        const struct dtq_sqs_entry_result *result = answered ? dtq_sqs_op_entry(answer, i) : NULL;
        if (result && result->ok)
            entry->visible_from_ns = request->sent_boot_ns;
        else if (result && is_final(result) && entry->hides)
            stop_hiding_locked(beat, entry);
    }
    pthread_mutex_unlock(&beat->lock);
    dtq_free(request);
    dtq_op_release(beat->source.loop, op);
}

/* Whether its visibility is to be renewed now.  When SQS's twelve hours leave no room for another one, it is told. */
static bool is_due_locked(struct dtq_beat *beat, struct entry *entry, uint64_t boot_ns)
{
    if (!entry->hides || entry->hiding)
        return false;
    double since_s = (double)(boot_ns - entry->visible_from_ns) / NS_PER_S;
    if (since_s * VISIBILITY_RENEWALS < entry->visibility_s)
        return false;
    double held_s = (double)(boot_ns - entry->received_boot_ns) / NS_PER_S;
    if (held_s + entry->visibility_s >= DTQ_SQS_VISIBILITY_S_MAX) {
        stop_hiding_locked(beat, entry);
        return false;
    }
    return true;
}

/* Up to ten messages of one queue. NULL: nothing is due, or no memory. */
static struct dtq_sqs_op *make_request_locked(struct dtq_beat *beat, uint64_t boot_ns)
{
    const char *handles[DTQ_SQS_BATCH_MAX];
    int seconds[DTQ_SQS_BATCH_MAX];
    const char *queue_url = NULL;
    struct hide_request *request = dtq_calloc(1, sizeof *request);
    if (!request)
        return NULL;
    request->beat = beat;
    request->sent_boot_ns = boot_ns;
    for (struct entry *entry = beat->entries; entry && request->count < DTQ_SQS_BATCH_MAX; entry = entry->next) {
        if ((queue_url && strcmp(queue_url, entry->queue_url ? entry->queue_url : "") != 0) ||
            !is_due_locked(beat, entry, boot_ns))
            continue;
        queue_url = entry->queue_url;
        entry->hiding = true;
        handles[request->count] = entry->receipt_handle;
        seconds[request->count] = entry->visibility_s;
        request->generations[request->count++] = entry->generation;
    }
    struct dtq_sqs_op *op = NULL;
    if (request->count)
        op = dtq_sqs_visibility_batch(beat->sqs, queue_url, handles, seconds, request->count, VISIBILITY_TIMEOUT_MS,
                                      NULL);
    if (!op) {
        for (size_t i = 0; i < request->count; i++)
            (*find_locked(beat, request->generations[i]))->hiding = false;
        dtq_free(request);
        return NULL;
    }
    ((struct dtq_op *)op)->user = request;
    ((struct dtq_op *)op)->on_done = hide_done;
    return op;
}

static void renew_visibilities(struct dtq_beat *beat)
{
    if (!beat->sqs)
        return;
    uint64_t boot_ns = dtq_clock_boot_ns();
    for (;;) {
        pthread_mutex_lock(&beat->lock);
        struct dtq_op *op = (struct dtq_op *)make_request_locked(beat, boot_ns);
        pthread_mutex_unlock(&beat->lock);
        if (!op)
            return;
        if (dtq_loop_submit(beat->source.loop, op, NULL)) {
            /* The loop closes. */
            dtq_free(op->user);
            dtq_op_release(beat->source.loop, op);
            return;
        }
    }
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static void source_submit(struct dtq_source *source, struct dtq_op *op)
{
    dtq_error_set(&op->error, DTQ_UNSUPPORTED, NULL);
    dtq_loop_finish(source->loop, op);
}

static void source_cancel(struct dtq_source *source, struct dtq_op *op)
{
    dtq_loop_finish(source->loop, op);
}

static unsigned source_prepare(struct dtq_source *source, uint64_t now_ms, struct curl_waitfd *fds, unsigned room,
                               uint64_t *wake_ms)
{
    struct dtq_beat *beat = beat_of(source);
    uint64_t boot_ns = dtq_clock_boot_ns();
    (void)fds;
    (void)room;
    pthread_mutex_lock(&beat->lock);
    drop_overdue_locked(beat, boot_ns);
    bool due = beat->entries && now_ms >= beat->next_beat_ms;
    if (due || !beat->entries)
        plan_locked(beat, now_ms);
    if (beat->next_beat_ms < *wake_ms)
        *wake_ms = beat->next_beat_ms;
    for (const struct entry *entry = beat->entries; entry; entry = entry->next) {
        uint64_t at_ms = now_ms + (entry->deadline_ns - boot_ns) / NS_PER_MS + 1;
        if (at_ms < *wake_ms)
            *wake_ms = at_ms;
    }
    pthread_mutex_unlock(&beat->lock);
    if (due) {
        if (!beat->renewal)
            renew_leases(beat);
        renew_visibilities(beat);
    }
    return 0;
}

static void source_stop(struct dtq_source *source, bool graceful)
{
    (void)source;
    (void)graceful;
}

static bool source_is_idle(struct dtq_source *source)
{
    (void)source;
    return true;
}

static void beat_free(struct dtq_beat *beat)
{
    while (beat->entries)
        remove_locked(&beat->entries);
    dtq_free(beat->renewing);
    pthread_mutex_destroy(&beat->lock);
    dtq_free(beat);
}

static void source_destroy(struct dtq_source *source, bool forked)
{
    if (!forked)
        beat_free(beat_of(source));
}

static const struct dtq_source_class source_class = {
    .name = "beat",
    .submit = source_submit,
    .cancel = source_cancel,
    .prepare = source_prepare,
    .stop = source_stop,
    .is_idle = source_is_idle,
    .destroy = source_destroy,
};

/* ---- callers ----------------------------------------------------------------------------------------------------- */

enum dtq_code dtq_beat_new(struct dtq_store *store, const struct dtq_beat_options *options, struct dtq_beat **out,
                           struct dtq_error *err)
{
    *out = NULL;
    struct dtq_loop *loop = dtq_store_source(store)->loop;
    if (options->sqs && dtq_sqs_source(options->sqs)->loop != loop)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the SQS client and the store have different loops");
    struct dtq_beat *beat = dtq_calloc(1, sizeof *beat);
    if (!beat)
        return dtq_error_no_memory(err);
    pthread_mutex_init(&beat->lock, NULL);
    beat->source.source_class = &source_class;
    beat->store = store;
    beat->sqs = options->sqs;
    beat->board = options->board;
    beat->next_beat_ms = UINT64_MAX;
    enum dtq_code rc = dtq_loop_add(loop, &beat->source, err);
    if (rc)
        beat_free(beat);
    else
        *out = beat;
    return rc;
}

enum dtq_code dtq_beat_add(struct dtq_beat *beat, const struct dtq_beat_entry *given, struct dtq_error *err)
{
    enum dtq_code rc = dtq_loop_check_fork(beat->source.loop, err);
    if (rc)
        return rc;
    if (!(given->margin_s >= 0))
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the margin must not be negative");
    if (!given->run_id || !given->step_key || !(given->heartbeat_s > 0) || !(given->ttl_s > given->margin_s))
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT,
                             "a heartbeat must be positive and a ttl longer than the margin of %g s", given->margin_s);
    if (!(given->ttl_s <= DTQ_BEAT_SECONDS_MAX) || !(given->heartbeat_s <= DTQ_BEAT_SECONDS_MAX))
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a ttl and a heartbeat may have up to %d s",
                             DTQ_BEAT_SECONDS_MAX);
    struct entry *entry = entry_new(given);
    if (!entry)
        return dtq_error_no_memory(err);
    entry->deadline_ns = deadline_after(entry, given->claimed_boot_ns);
    uint64_t first_ms = dtq_clock_monotonic_ms() + (uint64_t)(given->heartbeat_s * 1000);
    pthread_mutex_lock(&beat->lock);
    if (*find_locked(beat, given->generation))
        rc = dtq_error_set(err, DTQ_INVALID_ARGUMENT, "generation %" PRId64 " beats already", given->generation);
    else {
        if (beat->board)
            dtq_fence_set(beat->board, entry->slot, entry->generation, entry->deadline_ns);
        entry->next = beat->entries;
        beat->entries = entry;
        if (first_ms < beat->next_beat_ms)
            beat->next_beat_ms = first_ms;
    }
    pthread_mutex_unlock(&beat->lock);
    if (rc)
        entry_free(entry);
    else
        dtq_loop_wakeup(beat->source.loop);
    return rc;
}

void dtq_beat_remove(struct dtq_beat *beat, int64_t generation)
{
    if (dtq_loop_check_fork(beat->source.loop, NULL))
        return;
    pthread_mutex_lock(&beat->lock);
    struct entry **at = find_locked(beat, generation);
    if (*at)
        remove_locked(at);
    pthread_mutex_unlock(&beat->lock);
}

void dtq_beat_forget_message(struct dtq_beat *beat, int64_t generation)
{
    if (dtq_loop_check_fork(beat->source.loop, NULL))
        return;
    pthread_mutex_lock(&beat->lock);
    struct entry *entry = *find_locked(beat, generation);
    if (entry)
        entry->hides = false;
    pthread_mutex_unlock(&beat->lock);
}
