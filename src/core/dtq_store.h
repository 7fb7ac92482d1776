/*
 * The idempotency store: the protocol's moves on PostgreSQL, on the I/O thread of a loop.
 *
 * What it is for: each move of the state table (dtq_store_sql.h) is one prepared statement with all its guards; zero
 * rows is an answer.
 * Ownership: the store is a source of its loop and is destroyed with it.  Constructors copy all arguments.
 * Thread: dtq_store_* from any thread; results may be read once the operation is done, and live as long as it does.
 * Connection: one, in pipeline mode, opened at the first operation, reopened with backoff and full jitter as long as
 * there is work or a channel to listen to.  Connecting, name resolution included, happens outside the I/O thread.
 * Every move may be sent again after a lost connection: each is written so that the second time gives the first one's
 * answer.
 * Operations wait for a connection until their deadline; a refusal (password, no such database) ends them at once.
 * An operation that is past its deadline and holds up the pipeline takes the connection with it after some seconds.
 * Failure: DTQ_PG_*; error.sqlstate holds PostgreSQL's code.
 */
#ifndef DTQ_STORE_H
#define DTQ_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_loop.h"
#include "dtq_slice.h"

struct dtq_store;

struct dtq_store_options {
    const char *url;              /* a libpq URI or key=value string; sslmode and all else as libpq reads it */
    const char *application_name; /* NULL: "dagster-taskiq" (unless the URL names one) */
    int connect_timeout_ms;       /* 0: 10000 */
    int operation_timeout_ms;     /* 0: 30000: default deadline of an operation, reconnects included */
    int backoff_base_ms;          /* 0: 50 */
    int backoff_cap_ms;           /* 0: 2000 */
};

enum dtq_code dtq_store_new(struct dtq_loop *loop, const struct dtq_store_options *options, struct dtq_store **out,
                            struct dtq_error *err) DTQ_MUST_CHECK;
struct dtq_source *dtq_store_source(struct dtq_store *store);

/* LISTEN on channel now and after every reconnect; each notification is a DTQ_EVENT_NOTIFICATION.  The operation is
 * done once PostgreSQL has confirmed; one that is cancelled before may listen all the same. */
struct dtq_store_op *dtq_store_listen(struct dtq_store *store, const char *channel, int timeout_ms,
                                      struct dtq_error *err);
struct dtq_store_op *dtq_store_unlisten(struct dtq_store *store, const char *channel, int timeout_ms,
                                        struct dtq_error *err);

/* ---- moves ------------------------------------------------------------------------------------------------------- */

/* Types of parameters and columns, one letter each in a statement's signature:
 *   t text, i int8, f float8, b bool, j json text; T I F B arrays of them.  Upper case is an array. */
struct dtq_statement {
    const char *name;    /* "claim" */
    const char *params;  /* "ttit…" */
    const char *columns; /* of the rows that come back */
    const char *sql;
};

/* The table of dtq_store_sql.h; NULL for a name that is not in it. */
const struct dtq_statement *dtq_statement_find(const char *name);
const struct dtq_statement *dtq_statement_table(size_t *count);

/* One parameter as libpq's text form; NULL data = SQL NULL. */
struct dtq_param {
    const char *data;
    size_t length;
};

/* params: as many as the statement has. */
struct dtq_store_op *dtq_store_run(struct dtq_store *store, const struct dtq_statement *statement,
                                   const struct dtq_param *params, int timeout_ms, struct dtq_error *err);

/* A script of several statements (a migration), as one simple query in a transaction of its own. No result.  Not sent
 * again when the connection is lost under it: DTQ_PG_LOST. */
struct dtq_store_op *dtq_store_script(struct dtq_store *store, struct dtq_slice sql, int timeout_ms,
                                      struct dtq_error *err);

/* PostgreSQL array text of items (a NULL data item is NULL), into out. */
struct dtq_buf;
enum dtq_code dtq_pg_array(const struct dtq_param *items, size_t count, struct dtq_buf *out,
                           struct dtq_error *err) DTQ_MUST_CHECK;

/* ---- results ----------------------------------------------------------------------------------------------------- */

size_t dtq_store_op_rows(const struct dtq_store_op *op);
const struct dtq_statement *dtq_store_op_statement(const struct dtq_store_op *op); /* NULL for listen and scripts */
/* The text form of a value; data NULL = SQL NULL. */
struct dtq_slice dtq_store_op_value(const struct dtq_store_op *op, size_t row, size_t column);

#endif
