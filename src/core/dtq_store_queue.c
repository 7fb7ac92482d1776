#include "dtq_store_queue.h"

#include "dtq_alloc.h"
#include "dtq_clock.h"

void dtq_store_pending_append(struct dtq_store_queue *queue, struct dtq_store_op *op)
{
    op->next_pending = NULL;
    if (queue->last_pending)
        queue->last_pending->next_pending = op;
    else
        queue->pending = op;
    queue->last_pending = op;
}

void dtq_store_pending_remove(struct dtq_store_queue *queue, struct dtq_store_op *op)
{
    struct dtq_store_op *before = NULL;
    for (struct dtq_store_op *at = queue->pending; at; before = at, at = at->next_pending) {
        if (at != op)
            continue;
        if (before)
            before->next_pending = op->next_pending;
        else
            queue->pending = op->next_pending;
        if (queue->last_pending == op)
            queue->last_pending = before;
        op->next_pending = NULL;
        return;
    }
}

struct dtq_store_slot *dtq_store_slot_append(struct dtq_store_queue *queue, enum dtq_store_slot_kind kind,
                                             struct dtq_store_op *op)
{
    struct dtq_store_slot *slot = dtq_calloc(1, sizeof *slot);
    if (!slot)
        return NULL;
    slot->kind = kind;
    slot->op = op;
    slot->sent_ms = dtq_clock_monotonic_ms();
    if (op)
        op->slot = slot;
    if (queue->last_slot)
        queue->last_slot->next = slot;
    else
        queue->slots = slot;
    queue->last_slot = slot;
    queue->slot_count++;
    return slot;
}

struct dtq_store_slot *dtq_store_slot_take(struct dtq_store_queue *queue)
{
    struct dtq_store_slot *slot = queue->slots;
    queue->slots = slot->next;
    if (!queue->slots)
        queue->last_slot = NULL;
    queue->slot_count--;
    if (slot->op)
        slot->op->slot = NULL;
    return slot;
}

void dtq_store_slot_free(struct dtq_store_slot *slot)
{
    PQclear(slot->result);
    dtq_free(slot);
}

void dtq_store_slots_to_pending(struct dtq_store_queue *queue)
{
    struct dtq_store_op *rest = queue->pending, *last = queue->last_pending;
    queue->pending = queue->last_pending = NULL;
    while (queue->slots) {
        struct dtq_store_slot *slot = dtq_store_slot_take(queue);
        if (slot->op)
            dtq_store_pending_append(queue, slot->op);
        dtq_store_slot_free(slot);
    }
    if (!rest)
        return;
    if (queue->last_pending)
        queue->last_pending->next_pending = rest;
    else
        queue->pending = rest;
    queue->last_pending = last;
}
