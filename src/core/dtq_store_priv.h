/*
 * What dtq_store.c (connection and queue, I/O thread) and dtq_store_op.c (operations, any thread) share.
 */
#ifndef DTQ_STORE_PRIV_H
#define DTQ_STORE_PRIV_H

#include <libpq-fe.h>

#include "dtq_store.h"

enum dtq_store_op_kind {
    DTQ_STORE_STATEMENT,
    DTQ_STORE_LISTEN,
    DTQ_STORE_UNLISTEN,
    DTQ_STORE_SCRIPT,
};

struct dtq_store_slot;

struct dtq_store_op {
    struct dtq_op op; /* first: a dtq_op is a dtq_store_op */
    enum dtq_store_op_kind kind;
    const struct dtq_statement *statement; /* NULL unless DTQ_STORE_STATEMENT */
    const char **values;                   /* one for each parameter; with their text in one block */
    int value_count;
    char *text; /* channel, or script */

    /* I/O thread, until done */
    struct dtq_store_op *next_pending;
    struct dtq_store_slot *slot; /* where it is in the pipeline; NULL: not sent */
    int failures;                /* transient ones */
    uint64_t not_before_ms;

    /* the caller's, once done */
    PGresult *result;
};

/* Monotonic deadline of an operation; 0: none. timeout_ms 0: the store's default; negative: none. */
uint64_t dtq_store_deadline_ms(const struct dtq_store *store, int timeout_ms);

/* Index of a statement in the table. */
size_t dtq_statement_index(const struct dtq_statement *statement);

/* LISTEN or UNLISTEN "channel", to be freed with dtq_free; NULL when memory is short. */
char *dtq_store_listen_sql(const char *verb, const char *channel);

#endif
