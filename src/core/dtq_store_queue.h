/*
 * What a store has to do: operations that wait, and slots of what is in the pipeline.  I/O thread only.
 */
#ifndef DTQ_STORE_QUEUE_H
#define DTQ_STORE_QUEUE_H

#include "dtq_store_priv.h"

enum dtq_store_slot_kind {
    DTQ_SLOT_OP,
    DTQ_SLOT_SETUP,  /* the connection's own: its settings */
    DTQ_SLOT_LISTEN, /* the connection's own: a channel after a reconnect */
};

struct dtq_store_slot {
    struct dtq_store_slot *next;
    struct dtq_store_op *op; /* NULL: the connection's own, or nobody waits for it any more */
    enum dtq_store_slot_kind kind;
    const struct dtq_statement *prepares; /* the first answer is that of its preparation; NULL once it is there */
    uint64_t sent_ms;
    struct dtq_error error; /* the first one */
    PGresult *result;
};

struct dtq_store_queue {
    struct dtq_store_op *pending, *last_pending; /* not sent */
    struct dtq_store_slot *slots, *last_slot;    /* sent, not answered, in the order of the answers */
    unsigned slot_count;
};

void dtq_store_pending_append(struct dtq_store_queue *queue, struct dtq_store_op *op);
void dtq_store_pending_remove(struct dtq_store_queue *queue, struct dtq_store_op *op);

/* NULL when memory is short. */
struct dtq_store_slot *dtq_store_slot_append(struct dtq_store_queue *queue, enum dtq_store_slot_kind kind,
                                             struct dtq_store_op *op);
/* The oldest one, taken out; it still names its op. */
struct dtq_store_slot *dtq_store_slot_take(struct dtq_store_queue *queue);
void dtq_store_slot_free(struct dtq_store_slot *slot);

/* What was sent goes back to the head of what waits, in its order; slots that nobody waits for are freed. */
void dtq_store_slots_to_pending(struct dtq_store_queue *queue);

#endif
