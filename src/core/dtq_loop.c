/*
 * DESIGN
 *
 * Why a thread: a lease must be renewed while the interpreter is busy, and a long poll must wait beside sends.  One
 * thread can do all of it, because nothing here blocks: libcurl's multi interface and libpq's non-blocking calls share
 * one wait.
 *
 * Threads and locks: one mutex guards what callers and the I/O thread share: the submit queue, the drain list, the list
 * of sources, the state of the thread.  It is held for a few instructions and never while a source's callback or
 * libcurl runs.  The list of active operations and everything inside the sources belong to the I/O thread alone, so
 * they need no lock.
 *
 * An operation is in one list at a time: submitted (lock) -> active (I/O thread) -> drain (lock), and changes hands
 * whole.  Its reference moves with it.  Cancelling only sets a flag on it; the I/O thread looks for the flags when told
 * that there are some.
 *
 * One turn: take what was submitted, deliver cancels, end what is past its deadline, let libcurl work, hand out
 * finished transfers, ask the sources what to wait for, wait, let the sources look at their descriptors and timers.
 *
 * Completion: what a turn finishes is handed over at once, before the wait and after it: waiters are woken by a
 * condition variable; watched operations go into the drain list, whose descriptor is written only when the list stops
 * being empty.  So a batch of completions costs one lock and one wake-up.  Nor is the thread woken while it works: who
 * submits writes to its descriptor only when it is asleep.
 *
 * Fork: a child has the memory but no I/O thread, and a lock may have been held by a thread that does not exist there.
 * So every function looks at the fork mark before it takes the lock.
 */
#include "dtq_loop.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "dtq_alloc.h"
#include "dtq_clock.h"
#include "dtq_fork.h"
#include "dtq_notifier.h"

#define CONNECTIONS_MAX 64      /* kept open; more than long polls and sends at once */
#define WAIT_MAX_MS 60000       /* a turn at least this often */
#define FAILED_WAIT_PAUSE_MS 10 /* when even the wait failed: no busy loop */

enum thread_state { THREAD_NONE, THREAD_RUNNING, THREAD_ENDED, THREAD_JOINED };

struct op_list {
    struct dtq_op *head, *tail;
};

struct dtq_loop {
    CURLM *multi;
    struct dtq_notifier notifier; /* set while the drain list is not empty */
    struct dtq_fork_mark mark;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an operation is done, or the thread has ended */
    pthread_t thread;

    /* under the lock */
    enum thread_state state;
    struct op_list submitted;
    struct op_list drain;
    struct dtq_source *sources;
    unsigned source_count;
    unsigned waiters;
    bool woken;   /* there is something that the thread has not seen: it does not go to sleep */
    bool asleep;  /* it waits, or is about to: waking it takes curl_multi_wakeup */
    bool cancels; /* some operation has cancel_requested that was not delivered */
    bool closing;
    bool joining;
    uint64_t close_at_ms;

    /* I/O thread */
    struct op_list active;
    struct dtq_op *finished, **finished_end; /* and events: of this turn, not handed over yet */
    struct dtq_op *cursor;                   /* next of a walk over the active list; moved when that one is unlinked */
    uint64_t next_deadline_ms;               /* no active operation ends before this; UINT64_MAX: none */
    struct curl_waitfd waits[DTQ_LOOP_SOURCES_MAX * DTQ_LOOP_FDS_MAX];
};

/* ---- lists ------------------------------------------------------------------------------------------------------- */

static void list_append(struct op_list *list, struct dtq_op *op)
{
    op->next = NULL;
    op->prev = list->tail;
    if (list->tail)
        list->tail->next = op;
    else
        list->head = op;
    list->tail = op;
}

static void list_unlink(struct op_list *list, struct dtq_op *op)
{
    if (op->prev)
        op->prev->next = op->next;
    else
        list->head = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        list->tail = op->prev;
    op->next = op->prev = NULL;
}

static struct dtq_op *list_take(struct op_list *list)
{
    struct dtq_op *head = list->head;
    list->head = list->tail = NULL;
    return head;
}

static bool is_forked(const struct dtq_loop *loop)
{
    return dtq_fork_happened(&loop->mark);
}

enum dtq_code dtq_loop_check_fork(const struct dtq_loop *loop, struct dtq_error *err)
{
    if (is_forked(loop))
        return dtq_error_set(err, DTQ_FORKED,
                             "the loop belongs to the parent of this forked process: make a new one here");
    return DTQ_OK;
}

/* The reference goes with op. */
static void drain_append_locked(struct dtq_loop *loop, struct dtq_op *op)
{
    bool was_empty = !loop->drain.head;
    op->listed = true;
    list_append(&loop->drain, op);
    if (was_empty)
        dtq_notifier_set(&loop->notifier);
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

void dtq_op_init(struct dtq_op *op, const struct dtq_op_class *op_class, struct dtq_source *source)
{
    memset(op, 0, sizeof *op);
    op->op_class = op_class;
    op->source = source;
    atomic_init(&op->references, 1);
    atomic_init(&op->done, false);
    atomic_init(&op->cancel_requested, false);
}

struct dtq_op *dtq_op_acquire(struct dtq_loop *loop, struct dtq_op *op)
{
    if (!is_forked(loop))
        atomic_fetch_add_explicit(&op->references, 1, memory_order_relaxed);
    return op;
}

void dtq_op_release(struct dtq_loop *loop, struct dtq_op *op)
{
    if (!op || is_forked(loop))
        return;
    if (atomic_fetch_sub_explicit(&op->references, 1, memory_order_acq_rel) == 1)
        op->op_class->destroy(op);
}

bool dtq_op_is_done(struct dtq_loop *loop, struct dtq_op *op)
{
    (void)loop;
    return atomic_load_explicit(&op->done, memory_order_acquire);
}

struct dtq_op *dtq_op_next(struct dtq_op *op)
{
    return op->next;
}

static void event_destroy(struct dtq_op *op)
{
    struct dtq_event *event = (struct dtq_event *)op;
    dtq_free(event->text);
    dtq_free(event->detail);
    dtq_free(event);
}

struct dtq_event *dtq_event_new(struct dtq_source *source, enum dtq_event_kind kind, int64_t generation,
                                const char *text, const char *detail)
{
    static const struct dtq_op_class event_class = {DTQ_OP_EVENT, event_destroy};
    struct dtq_event *event = dtq_calloc(1, sizeof *event);
    if (!event)
        return NULL;
    dtq_op_init(&event->op, &event_class, source);
    event->kind = kind;
    event->generation = generation;
    event->text = text ? dtq_strdup(text) : NULL;
    event->detail = detail ? dtq_strdup(detail) : NULL;
    if ((text && !event->text) || (detail && !event->detail)) {
        event_destroy(&event->op);
        return NULL;
    }
    return event;
}

/* ---- the I/O thread ---------------------------------------------------------------------------------------------- */

static void append_finished(struct dtq_loop *loop, struct dtq_op *op)
{
    op->finished_next = NULL;
    *loop->finished_end = op;
    loop->finished_end = &op->finished_next;
}

void dtq_loop_finish(struct dtq_loop *loop, struct dtq_op *op)
{
    if (op->active) {
        if (loop->cursor == op)
            loop->cursor = op->next;
        list_unlink(&loop->active, op);
        op->active = false;
    }
    if (op->on_done)
        op->on_done(op);
    append_finished(loop, op);
}

/* What is not watched keeps the loop's reference until the lock is open again: its end may be long work. */
static void hand_over_finished(struct dtq_loop *loop)
{
    struct dtq_op *unwatched = NULL, *next;
    if (!loop->finished)
        return;
    pthread_mutex_lock(&loop->lock);
    for (struct dtq_op *op = loop->finished; op; op = next) {
        next = op->finished_next;
        atomic_store_explicit(&op->done, true, memory_order_release);
        if (op->watched) {
            drain_append_locked(loop, op);
        }
        else {
            op->finished_next = unwatched;
            unwatched = op;
        }
    }
    if (loop->waiters)
        pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->lock);
    loop->finished = NULL;
    loop->finished_end = &loop->finished;
    for (; unwatched; unwatched = next) {
        next = unwatched->finished_next;
        dtq_op_release(loop, unwatched);
    }
}

void dtq_loop_publish(struct dtq_loop *loop, struct dtq_op *event)
{
    event->watched = true;
    append_finished(loop, event); /* behind what was finished before it */
}

CURLM *dtq_loop_multi(struct dtq_loop *loop)
{
    return loop->multi;
}

static void begin_op(struct dtq_loop *loop, struct dtq_op *op)
{
    list_append(&loop->active, op);
    op->active = true;
    if (op->deadline_ms && op->deadline_ms < loop->next_deadline_ms)
        loop->next_deadline_ms = op->deadline_ms;
    if (atomic_load_explicit(&op->cancel_requested, memory_order_relaxed)) {
        dtq_error_set(&op->error, DTQ_CANCELLED, NULL);
        dtq_loop_finish(loop, op);
        return;
    }
    op->source->source_class->submit(op->source, op);
}

static void begin_submitted(struct dtq_loop *loop, struct dtq_op *op)
{
    while (op) {
        struct dtq_op *next = op->next;
        begin_op(loop, op);
        op = next;
    }
}

static void deliver_cancels(struct dtq_loop *loop)
{
    for (struct dtq_op *op = loop->active.head; op; op = loop->cursor) {
        loop->cursor = op->next;
        if (op->cancel_delivered || !atomic_load_explicit(&op->cancel_requested, memory_order_relaxed))
            continue;
        op->cancel_delivered = true;
        dtq_error_set(&op->error, DTQ_CANCELLED, NULL);
        op->source->source_class->cancel(op->source, op);
    }
}

static void end_overdue(struct dtq_loop *loop, uint64_t now_ms)
{
    if (now_ms < loop->next_deadline_ms)
        return;
    loop->next_deadline_ms = UINT64_MAX;
    for (struct dtq_op *op = loop->active.head; op; op = loop->cursor) {
        loop->cursor = op->next;
        if (!op->deadline_ms)
            continue;
        if (op->deadline_ms > now_ms) {
            if (op->deadline_ms < loop->next_deadline_ms)
                loop->next_deadline_ms = op->deadline_ms;
            continue;
        }
        op->deadline_ms = 0;
        dtq_error_set(&op->error, DTQ_TIMEOUT, NULL);
        op->source->source_class->cancel(op->source, op);
    }
}

static void run_transfers(struct dtq_loop *loop)
{
    int running = 0, left = 0;
    curl_multi_perform(loop->multi, &running);
    CURLMsg *message;
    while ((message = curl_multi_info_read(loop->multi, &left))) {
        if (message->msg != CURLMSG_DONE)
            continue;
        CURL *easy = message->easy_handle;
        CURLcode result = message->data.result;
        char *context = NULL;
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, &context);
        curl_multi_remove_handle(loop->multi, easy);
        struct dtq_source *source = ((struct dtq_transfer *)(void *)context)->source;
        source->source_class->transfer_done(source, easy, result);
    }
}

/* False when something has come since the turn began. */
static bool may_sleep(struct dtq_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->asleep = !loop->woken;
    bool may = loop->asleep;
    pthread_mutex_unlock(&loop->lock);
    return may;
}

static void wait_and_dispatch(struct dtq_loop *loop, struct dtq_source *sources, uint64_t wake_ms)
{
    unsigned counts[DTQ_LOOP_SOURCES_MAX] = {0};
    unsigned total = 0, index = 0;
    uint64_t now_ms = dtq_clock_monotonic_ms();
    if (loop->next_deadline_ms < wake_ms)
        wake_ms = loop->next_deadline_ms;
    for (struct dtq_source *source = sources; source; source = source->next, index++) {
        if (source->source_class->prepare)
            counts[index] =
                source->source_class->prepare(source, now_ms, loop->waits + total, DTQ_LOOP_FDS_MAX, &wake_ms);
        total += counts[index];
    }
    int timeout_ms = wake_ms <= now_ms ? 0 : wake_ms - now_ms < WAIT_MAX_MS ? (int)(wake_ms - now_ms) : WAIT_MAX_MS;
    hand_over_finished(loop);
    if (timeout_ms && !may_sleep(loop))
        timeout_ms = 0;
    if (curl_multi_poll(loop->multi, loop->waits, total, timeout_ms, NULL) != CURLM_OK) {
        struct timespec pause = {0, FAILED_WAIT_PAUSE_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
    now_ms = dtq_clock_monotonic_ms();
    struct curl_waitfd *waits = loop->waits;
    index = 0;
    for (struct dtq_source *source = sources; source; source = source->next, index++) {
        if (source->source_class->dispatch)
            source->source_class->dispatch(source, now_ms, waits, counts[index]);
        waits += counts[index];
    }
}

static void stop_sources(struct dtq_source *sources, bool graceful)
{
    for (struct dtq_source *source = sources; source; source = source->next)
        source->source_class->stop(source, graceful);
}

static bool is_idle(const struct dtq_loop *loop, struct dtq_source *sources)
{
    if (loop->active.head)
        return false;
    for (struct dtq_source *source = sources; source; source = source->next) {
        if (!source->source_class->is_idle(source))
            return false;
    }
    return true;
}

/* What no source has finished by itself. */
static void end_rest(struct dtq_loop *loop)
{
    while (loop->active.head) {
        dtq_error_set(&loop->active.head->error, DTQ_CLOSED, "the loop was closed before the operation was done");
        dtq_loop_finish(loop, loop->active.head);
    }
}

static void name_thread(void)
{
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "dtq-io");
#elif defined(__APPLE__)
    pthread_setname_np("dtq-io");
#endif
}

static void *thread_main(void *argument)
{
    struct dtq_loop *loop = argument;
    bool stopping = false;
    name_thread();
    for (;;) {
        hand_over_finished(loop);
        pthread_mutex_lock(&loop->lock);
        struct dtq_op *submitted = list_take(&loop->submitted);
        struct dtq_source *sources = loop->sources; /* grows at its head only: this part of it stays as it is */
        bool cancels = loop->cancels;
        bool closing = loop->closing;
        uint64_t wake_ms = closing ? loop->close_at_ms : UINT64_MAX;
        loop->woken = loop->asleep = loop->cancels = false;
        pthread_mutex_unlock(&loop->lock);

        begin_submitted(loop, submitted);
        if (cancels)
            deliver_cancels(loop);
        uint64_t now_ms = dtq_clock_monotonic_ms();
        end_overdue(loop, now_ms);
        if (closing) {
            if (now_ms < wake_ms && !stopping) {
                stopping = true;
                stop_sources(sources, true);
            }
            if (now_ms >= wake_ms || is_idle(loop, sources)) {
                stop_sources(sources, false);
                break;
            }
        }
        run_transfers(loop);
        if (closing && is_idle(loop, sources))
            continue; /* the last transfer has just ended: nothing would end a wait */
        wait_and_dispatch(loop, sources, wake_ms);
    }
    end_rest(loop);
    hand_over_finished(loop);
    pthread_mutex_lock(&loop->lock);
    loop->state = THREAD_ENDED;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->lock);
    return NULL;
}

/* All signals stay blocked in the new thread: handlers belong to the interpreter's threads, and SIGPIPE to nobody. */
static enum dtq_code start_thread_locked(struct dtq_loop *loop, struct dtq_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&loop->thread, NULL, thread_main, loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return dtq_error_set_errno(err, failed, "the I/O thread could not be started");
    loop->state = THREAD_RUNNING;
    return DTQ_OK;
}

/* ---- callers ----------------------------------------------------------------------------------------------------- */

/* libcurl wants its one process-wide initialisation done by one thread.  A pthread_once_t is the one static that C
 * offers for that; it is never undone, since other users of libcurl in this process may live longer than we do. */
static void init_curl(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
#ifndef __APPLE__
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

enum dtq_code dtq_loop_new(struct dtq_loop **out, struct dtq_error *err)
{
    static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
    pthread_once(&curl_once, init_curl);
    *out = NULL;
    struct dtq_loop *loop = dtq_calloc(1, sizeof *loop);
    if (!loop)
        return dtq_error_no_memory(err);
    loop->next_deadline_ms = UINT64_MAX;
    loop->finished_end = &loop->finished;
    pthread_mutex_init(&loop->lock, NULL);
    init_condition(&loop->changed);
    dtq_fork_mark_init(&loop->mark);
    enum dtq_code rc = dtq_notifier_open(&loop->notifier, err);
    if (!rc) {
        loop->multi = curl_multi_init();
        if (!loop->multi)
            rc = dtq_error_no_memory(err);
        /* libcurl makes a handle even where it gets no descriptors for waking it. */
        else if (curl_multi_wakeup(loop->multi) != CURLM_OK)
            rc = dtq_error_set(err, DTQ_SYSTEM, "no descriptors are left for the I/O thread: raise the limit of open"
                                                " files (ulimit -n)");
    }
    if (rc) {
        dtq_loop_destroy(loop);
        return rc;
    }
    curl_multi_setopt(loop->multi, CURLMOPT_MAXCONNECTS, (long)CONNECTIONS_MAX);
    curl_multi_setopt(loop->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    *out = loop;
    return DTQ_OK;
}

/* Wake the thread unless it is awake, or somebody has done so since it last looked.  The thread runs. */
static void wake_locked(struct dtq_loop *loop)
{
    if (loop->asleep && !loop->woken)
        curl_multi_wakeup(loop->multi);
    loop->woken = true;
}

enum dtq_code dtq_loop_submit(struct dtq_loop *loop, struct dtq_op *op, struct dtq_error *err)
{
    enum dtq_code rc = dtq_loop_check_fork(loop, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&loop->lock);
    if (loop->closing)
        rc = dtq_error_set(err, DTQ_CLOSED, "the loop is closed");
    else if (loop->state == THREAD_NONE)
        rc = start_thread_locked(loop, err);
    if (!rc) {
        atomic_fetch_add_explicit(&op->references, 1, memory_order_relaxed);
        list_append(&loop->submitted, op);
        wake_locked(loop);
    }
    pthread_mutex_unlock(&loop->lock);
    return rc;
}

/* False when deadline_ms passed.  UINT64_MAX waits for ever. */
static bool wait_changed_locked(struct dtq_loop *loop, uint64_t deadline_ms)
{
    if (deadline_ms == UINT64_MAX) {
        pthread_cond_wait(&loop->changed, &loop->lock);
        return true;
    }
    uint64_t now_ms = dtq_clock_monotonic_ms();
    if (now_ms >= deadline_ms)
        return false;
#ifdef __APPLE__
    uint64_t part_ms = deadline_ms - now_ms;
    struct timespec part = {(time_t)(part_ms / 1000), (long)(part_ms % 1000) * 1000000L};
    pthread_cond_timedwait_relative_np(&loop->changed, &loop->lock, &part);
#else
    struct timespec until = {(time_t)(deadline_ms / 1000), (long)(deadline_ms % 1000) * 1000000L};
    pthread_cond_timedwait(&loop->changed, &loop->lock, &until);
#endif
    return true;
}

enum dtq_code dtq_loop_wait(struct dtq_loop *loop, struct dtq_op *op, int timeout_ms, struct dtq_error *err)
{
    if (dtq_op_is_done(loop, op))
        return DTQ_OK;
    enum dtq_code rc = dtq_loop_check_fork(loop, err);
    if (rc)
        return rc;
    uint64_t deadline_ms = timeout_ms < 0 ? UINT64_MAX : dtq_clock_monotonic_ms() + (uint64_t)timeout_ms;
    pthread_mutex_lock(&loop->lock);
    loop->waiters++;
    while (!rc && !dtq_op_is_done(loop, op)) {
        if (!wait_changed_locked(loop, deadline_ms))
            rc = dtq_error_set(err, DTQ_TIMEOUT, "the operation was not done after %d ms", timeout_ms);
    }
    loop->waiters--;
    pthread_mutex_unlock(&loop->lock);
    return rc;
}

void dtq_loop_cancel(struct dtq_loop *loop, struct dtq_op *op)
{
    if (is_forked(loop))
        return;
    pthread_mutex_lock(&loop->lock);
    bool asked = atomic_exchange(&op->cancel_requested, true);
    if (!asked && !dtq_op_is_done(loop, op) && loop->state == THREAD_RUNNING) {
        loop->cancels = true;
        wake_locked(loop);
    }
    pthread_mutex_unlock(&loop->lock);
}

void dtq_loop_watch(struct dtq_loop *loop, struct dtq_op *op)
{
    if (is_forked(loop))
        return;
    pthread_mutex_lock(&loop->lock);
    op->watched = true;
    if (dtq_op_is_done(loop, op) && !op->listed) {
        atomic_fetch_add_explicit(&op->references, 1, memory_order_relaxed);
        drain_append_locked(loop, op);
    }
    pthread_mutex_unlock(&loop->lock);
}

int dtq_loop_fd(struct dtq_loop *loop)
{
    return is_forked(loop) ? -1 : loop->notifier.read_fd;
}

struct dtq_op *dtq_loop_drain(struct dtq_loop *loop)
{
    if (is_forked(loop))
        return NULL;
    pthread_mutex_lock(&loop->lock);
    struct dtq_op *head = list_take(&loop->drain);
    if (head)
        dtq_notifier_reset(&loop->notifier);
    pthread_mutex_unlock(&loop->lock);
    return head;
}

void dtq_loop_wakeup(struct dtq_loop *loop)
{
    if (is_forked(loop))
        return;
    pthread_mutex_lock(&loop->lock);
    if (loop->state == THREAD_RUNNING)
        wake_locked(loop);
    pthread_mutex_unlock(&loop->lock);
}

enum dtq_code dtq_loop_add(struct dtq_loop *loop, struct dtq_source *source, struct dtq_error *err)
{
    enum dtq_code rc = dtq_loop_check_fork(loop, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&loop->lock);
    if (loop->closing)
        rc = dtq_error_set(err, DTQ_CLOSED, "the loop is closed");
    else if (loop->source_count == DTQ_LOOP_SOURCES_MAX)
        rc = dtq_error_set(err, DTQ_TOO_LARGE, "a loop serves at most %d clients and stores", DTQ_LOOP_SOURCES_MAX);
    if (!rc) {
        source->loop = loop;
        source->next = loop->sources;
        loop->sources = source;
        loop->source_count++;
    }
    pthread_mutex_unlock(&loop->lock);
    return rc;
}

void dtq_loop_close(struct dtq_loop *loop, int timeout_ms)
{
    if (is_forked(loop))
        return;
    uint64_t close_at_ms = dtq_clock_monotonic_ms() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0);
    pthread_mutex_lock(&loop->lock);
    if (!loop->closing || close_at_ms < loop->close_at_ms)
        loop->close_at_ms = close_at_ms;
    loop->closing = true;
    if (loop->state == THREAD_RUNNING)
        wake_locked(loop);
    while (loop->state == THREAD_RUNNING || (loop->state == THREAD_ENDED && loop->joining))
        wait_changed_locked(loop, UINT64_MAX);
    if (loop->state == THREAD_ENDED) {
        loop->joining = true;
        pthread_mutex_unlock(&loop->lock);
        pthread_join(loop->thread, NULL);
        pthread_mutex_lock(&loop->lock);
        loop->state = THREAD_JOINED;
        pthread_cond_broadcast(&loop->changed);
    }
    pthread_mutex_unlock(&loop->lock);
}

static void destroy_sources(struct dtq_loop *loop, bool forked)
{
    struct dtq_source *source = loop->sources;
    while (source) {
        struct dtq_source *next = source->next;
        source->source_class->destroy(source, forked);
        source = next;
    }
}

void dtq_loop_destroy(struct dtq_loop *loop)
{
    if (!loop)
        return;
    if (is_forked(loop)) {
        destroy_sources(loop, true);
        dtq_notifier_close(&loop->notifier);
        return;
    }
    dtq_loop_close(loop, 0);
    for (struct dtq_op *op = dtq_loop_drain(loop), *next; op; op = next) {
        next = op->next;
        dtq_op_release(loop, op);
    }
    destroy_sources(loop, false);
    if (loop->multi)
        curl_multi_cleanup(loop->multi);
    dtq_notifier_close(&loop->notifier);
    dtq_fork_mark_clean_up(&loop->mark);
    pthread_cond_destroy(&loop->changed);
    pthread_mutex_destroy(&loop->lock);
    dtq_free(loop);
}
