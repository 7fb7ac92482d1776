/*
 * The heartbeat: renews the leases and the message visibilities of the step processes that really run, from the I/O
 * thread.
 *
 * What it is for: a step that hogs the interpreter, or a worker's busy event loop, must not cost a lease.
 * Each beat sends one renew statement for the whole list of (run_id, step_key, attempt, generation), never "where owner
 * is me": a claim whose reply was lost must run out.  A confirmed renewal moves the step's deadline on the fence board
 * (dtq_fence.h) to boot clock before the statement was handed over + ttl - margin.  Visibilities are renewed at a beat
 * when a third of them has passed, ten messages in a request.
 * Ownership: the beat is a source of the loop of its store, destroyed with it; strings are copied.
 * Thread: any.  The I/O thread must run, as it does once anything was submitted to the loop (a claim was).
 * Events: DTQ_EVENT_LEASE_LOST when the row is no longer claimed with that generation or the local deadline passed
 * unrenewed (the entry is removed), DTQ_EVENT_CANCEL once per entry, DTQ_EVENT_VISIBILITY_LOST once per entry (its
 * lease goes on).
 * Failure: DTQ_INVALID_ARGUMENT (a ttl not longer than the margin, a ttl or heartbeat over DTQ_BEAT_SECONDS_MAX, a
 * generation that is there already), DTQ_NO_MEMORY, DTQ_FORKED, DTQ_CLOSED.  A renewal that fails is tried again until
 * the local deadline.  An event that there is no memory for is not told: the fence and the row say the same.
 */
#ifndef DTQ_BEAT_H
#define DTQ_BEAT_H

#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_fence.h"
#include "dtq_sqs.h"
#include "dtq_store.h"

#define DTQ_BEAT_SECONDS_MAX (366 * 24 * 3600)

struct dtq_beat;

struct dtq_beat_options {
    struct dtq_fence_board *board; /* NULL: no fence.  Borrowed; outlives the loop */
    struct dtq_sqs *sqs;           /* NULL: no visibility renewals */
};

struct dtq_beat_entry {
    const char *run_id;
    const char *step_key;
    int attempt;
    int64_t generation;
    double ttl_s;
    double margin_s;            /* the fence kills this much before the lease ends */
    double heartbeat_s;         /* the beat's interval is the smallest of its entries' */
    uint64_t claimed_boot_ns;   /* boot clock before the claim was sent: the first deadline counts from here */
    int slot;                   /* of the fence board; -1: none */
    const char *queue_url;      /* NULL: no visibility renewal */
    const char *receipt_handle; /* NULL: no visibility renewal */
    int visibility_s;
    uint64_t received_boot_ns; /* for SQS's 12 hours from receipt */
};

enum dtq_code dtq_beat_new(struct dtq_store *store, const struct dtq_beat_options *options, struct dtq_beat **out,
                           struct dtq_error *err) DTQ_MUST_CHECK;
/* Gives entry->slot of the board to the generation, too: before the step process is forked. */
enum dtq_code dtq_beat_add(struct dtq_beat *beat, const struct dtq_beat_entry *entry,
                           struct dtq_error *err) DTQ_MUST_CHECK;
/* After it returns no renewal for this generation is begun.  Unknown ones are ignored. */
void dtq_beat_remove(struct dtq_beat *beat, int64_t generation);
/* Keep the lease, stop hiding the message (it is about to be deleted). */
void dtq_beat_forget_message(struct dtq_beat *beat, int64_t generation);

#endif
