/*
 * The I/O thread.
 *
 * What it is for: one thread per loop that owns a CURLM and every libpq socket of the participants ("sources") that
 * were added to it: the SQS client, the idempotency store, the heartbeat.  Other threads hand operations over and get
 * them back done.
 *
 * Ownership: an operation is created by a caller, belongs to the loop from dtq_loop_submit until it is done, and to the
 * caller again afterwards (dtq_op_release frees it).  Operations are counted (acquire/release): the loop holds one
 * reference while it works on the operation and one while it waits in the drain list.  They are never looked into from
 * two threads at once: results may be read after dtq_op_is_done returned true.  The loop outlives its operations.
 * Thread: dtq_loop_* and dtq_op_* below may be called from any thread unless said otherwise (dtq_loop_wait,
 * dtq_loop_close and dtq_loop_destroy: any but the I/O thread); the callbacks of a source run on the I/O thread,
 * without any lock.  The I/O thread starts with the first submit, blocks all signals, and never touches Python.
 * Fork: in a forked child every function refuses with DTQ_FORKED or does nothing, and dtq_loop_destroy frees nothing
 * that could disturb the parent (no join, no PQfinish, no curl clean-up): the memory stays as it was at the fork.
 * Failure: see each function.  A failed submit leaves the operation with the caller.
 */
#ifndef DTQ_LOOP_H
#define DTQ_LOOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <curl/curl.h>

#include "dtq_attr.h"
#include "dtq_error.h"

struct dtq_loop;
struct dtq_source;
struct dtq_op;

/* ---- operations ------------------------------------------------------------------------------------------------ */

enum dtq_op_kind {
    DTQ_OP_SQS,   /* struct dtq_sqs_op (dtq_sqs.h) */
    DTQ_OP_STORE, /* struct dtq_store_op (dtq_store.h) */
    DTQ_OP_EVENT, /* struct dtq_event: something that nobody asked for at this moment: a notification, a lease lost */
};

struct dtq_op_class {
    enum dtq_op_kind kind;
    void (*destroy)(struct dtq_op *op); /* free everything, op itself included */
};

/* The head of each concrete operation.  Fields below "loop's own" are for dtq_loop.c only. */
struct dtq_op {
    const struct dtq_op_class *op_class;
    struct dtq_source *source; /* who works on it; set by the constructor, outlives the operation's work */
    uint64_t deadline_ms;      /* dtq_clock_monotonic_ms at which it ends with DTQ_TIMEOUT; 0 = none */
    void *user;                /* the caller's; never touched here */
    /* For a source that uses another one's operations: called on the I/O thread, by dtq_loop_finish, before anybody
     * else sees op as done.  NULL for none. */
    void (*on_done)(struct dtq_op *op);
    struct dtq_error error; /* error.code is DTQ_OK for success; valid once done */
    /* loop's own */
    struct dtq_op *next, *prev, *finished_next;
    atomic_int references;
    atomic_bool done, cancel_requested;
    bool active, watched, listed, cancel_delivered;
};

/* For constructors: zeroed head, one reference. */
void dtq_op_init(struct dtq_op *op, const struct dtq_op_class *op_class, struct dtq_source *source);
struct dtq_op *dtq_op_acquire(struct dtq_loop *loop, struct dtq_op *op);
void dtq_op_release(struct dtq_loop *loop, struct dtq_op *op); /* NULL-safe; the last one destroys */

/* ---- the loop, seen by callers ---------------------------------------------------------------------------------- */

enum dtq_code dtq_loop_new(struct dtq_loop **out, struct dtq_error *err) DTQ_MUST_CHECK;

/* Give op to its source.  Starts the thread when it is not there yet.  DTQ_CLOSED after close, DTQ_FORKED in a
 * child. */
enum dtq_code dtq_loop_submit(struct dtq_loop *loop, struct dtq_op *op, struct dtq_error *err) DTQ_MUST_CHECK;

bool dtq_op_is_done(struct dtq_loop *loop, struct dtq_op *op);

/* Block until op is done or timeout_ms passed (DTQ_TIMEOUT; the operation goes on).  -1 waits for ever.  The
 * operation's own outcome is in op->error.  The caller holds a reference. */
enum dtq_code dtq_loop_wait(struct dtq_loop *loop, struct dtq_op *op, int timeout_ms,
                            struct dtq_error *err) DTQ_MUST_CHECK;

/* Ask for op to end early with DTQ_CANCELLED.  A request that is on the wire may end with its result instead; a long
 * poll is let finish by the source, because an abandoned one hides messages. */
void dtq_loop_cancel(struct dtq_loop *loop, struct dtq_op *op);

/* From now on op, when done, is put into the drain list (at once if it is done already). */
void dtq_loop_watch(struct dtq_loop *loop, struct dtq_op *op);

/* A descriptor that is readable while the drain list is not empty (eventfd, elsewhere a pipe). -1 in a child.  Owned by
 * the loop. */
int dtq_loop_fd(struct dtq_loop *loop);

/* Take the drain list: watched operations that are done and events, oldest first.  Resets the descriptor.  The caller
 * gets the list's reference of each and walks it by dtq_op_next. */
struct dtq_op *dtq_loop_drain(struct dtq_loop *loop);
struct dtq_op *dtq_op_next(struct dtq_op *op);

/* Stop: new submits are refused, each source gets stop(graceful = true), and the thread ends when all of them are idle
 * or after timeout_ms, whichever is first; then stop(graceful = false), which must take milliseconds.  What is not done
 * ends with DTQ_CLOSED.  Blocks until the thread has ended.  Idempotent; a second call with a shorter time shortens the
 * first one's. */
void dtq_loop_close(struct dtq_loop *loop, int timeout_ms);

/* Close (timeout 0) when still open, free, with all sources and what is left in the drain list. */
void dtq_loop_destroy(struct dtq_loop *loop); /* NULL-safe */

/* DTQ_OK, or DTQ_FORKED when this process is a fork of the one that made the loop. */
enum dtq_code dtq_loop_check_fork(const struct dtq_loop *loop, struct dtq_error *err) DTQ_MUST_CHECK;

/* ---- the loop, seen by sources (I/O thread unless said otherwise) ------------------------------------------------ */

#define DTQ_LOOP_FDS_MAX 16     /* descriptors that one source may wait for */
#define DTQ_LOOP_SOURCES_MAX 64 /* sources of one loop */

struct dtq_source_class {
    const char *name;
    /* op arrives.  The source finishes it by dtq_loop_finish, now or later. */
    void (*submit)(struct dtq_source *source, struct dtq_op *op);
    /* op is to end before its work is done: its caller no longer wants it (op->error is DTQ_CANCELLED) or its deadline
     * passed (op->error is DTQ_TIMEOUT; called once for each of the two).  The source calls dtq_loop_finish with that
     * error, with a better message or with the result, now or soon.  What goes on without op (a long poll, a statement
     * in the pipeline) must not point to it. */
    void (*cancel)(struct dtq_source *source, struct dtq_op *op);
    /* Before the wait: write the descriptors to wait for (at most room), return their number, lower *wake_ms (absolute,
     * monotonic) to the next timer.  May be NULL, as may dispatch and transfer_done. */
    unsigned (*prepare)(struct dtq_source *source, uint64_t now_ms, struct curl_waitfd *fds, unsigned room,
                        uint64_t *wake_ms);
    /* After the wait: fds as prepared, with revents. Called on every turn, also when nothing is ready: timers are
     * looked at here. */
    void (*dispatch)(struct dtq_source *source, uint64_t now_ms, const struct curl_waitfd *fds, unsigned count);
    /* An easy handle that this source added (its CURLOPT_PRIVATE is a struct dtq_transfer *) is finished; it has been
     * removed from the CURLM. */
    void (*transfer_done)(struct dtq_source *source, CURL *easy, CURLcode result);
    /* The loop closes: finish what may be finished (graceful) or drop all of it now. */
    void (*stop)(struct dtq_source *source, bool graceful);
    bool (*is_idle)(struct dtq_source *source);
    /* Free the source.  Runs on the thread that destroys the loop, after the I/O thread has ended.  forked: this is a
     * child of the loop's process; touch no socket, and trust no struct that the I/O thread may have been changing at
     * the fork. */
    void (*destroy)(struct dtq_source *source, bool forked);
};

/* The head of each concrete source.  The concrete SQS client embeds it and its easy handles carry
 * CURLOPT_PRIVATE = struct dtq_transfer * whose first member is the source (so that the loop can find it). */
struct dtq_source {
    const struct dtq_source_class *source_class;
    struct dtq_loop *loop;
    struct dtq_source *next; /* loop's own */
};

struct dtq_transfer {
    struct dtq_source *source;
};

/* Any thread.  The loop owns the source from here on and destroys it with itself, the newest first.  On failure
 * (DTQ_CLOSED, DTQ_FORKED, DTQ_TOO_LARGE: too many) it stays the caller's. */
enum dtq_code dtq_loop_add(struct dtq_loop *loop, struct dtq_source *source, struct dtq_error *err) DTQ_MUST_CHECK;

/* I/O thread: the CURLM, to which a source adds easy handles. */
CURLM *dtq_loop_multi(struct dtq_loop *loop);

/* I/O thread: op is done; op->error tells how.  Before the thread waits again, waiters are woken, op is listed when it
 * is watched, and the loop's reference is dropped: op may be gone when the source's callback returns. */
void dtq_loop_finish(struct dtq_loop *loop, struct dtq_op *op);

/* I/O thread: put an event (an operation of kind DTQ_OP_EVENT, whose reference is taken over) into the drain list, behind
 * what was finished before it.  This too is done before the thread waits again. */
void dtq_loop_publish(struct dtq_loop *loop, struct dtq_op *event);

/* Any thread: make the loop turn once soon. */
void dtq_loop_wakeup(struct dtq_loop *loop);

/* ---- events ------------------------------------------------------------------------------------------------------ */

enum dtq_event_kind {
    DTQ_EVENT_NOTIFICATION,    /* text = channel, detail = payload */
    DTQ_EVENT_STORE_CONNECTED, /* a (re)connect of the store: notifications may have been missed, look at the rows */
    DTQ_EVENT_STORE_LOST,      /* the store's connection is gone; it reconnects by itself */
    DTQ_EVENT_LEASE_LOST, /* generation: the row is no longer claimed with it, or it could not be renewed in time */
    DTQ_EVENT_CANCEL,     /* generation: cancel_requested is set on the row */
    DTQ_EVENT_VISIBILITY_LOST, /* generation: the message can no longer be hidden (12 hours, or its receipt handle is
                                  void) */
};

struct dtq_event {
    struct dtq_op op;
    enum dtq_event_kind kind;
    int64_t generation; /* 0 where it has no meaning */
    char *text;         /* owned; NULL where it has no meaning */
    char *detail;       /* owned; NULL where it has no meaning */
};

/* NULL when memory is short.  source: who says it. */
struct dtq_event *dtq_event_new(struct dtq_source *source, enum dtq_event_kind kind, int64_t generation,
                                const char *text, const char *detail);

#endif
