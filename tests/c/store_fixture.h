/*
 * A store on a real PostgreSQL for the suites, and a plain connection behind its back.
 *
 * The server is that of DTQ_TEST_DATABASE_URL, a libpq URI with a database of its own.
 */
#ifndef STORE_FIXTURE_H
#define STORE_FIXTURE_H

#include <check.h>
#include <libpq-fe.h>

#include "dtq_loop.h"
#include "dtq_store.h"

#define SF_PATIENCE_MS 30000

struct store_fixture {
    struct dtq_loop *loop;
    struct dtq_store *store;
    char name[64]; /* application_name: finds its backend */
};

extern const char *const sf_any_generation[1]; /* the parameter of claim_is_live */

const char *sf_database_url(void);
PGconn *sf_admin_open(void);
/* First value of the first row, "" when none. */
char *sf_admin_query(PGconn *conn, const char *sql, char out[256]);
void sf_admin(const char *sql);
void sf_open_url(struct store_fixture *f, const char *url, int operation_timeout_ms);
void sf_open_store(struct store_fixture *f);
void sf_close_store(struct store_fixture *f);
/* A statement of the table with text values (NULL: null), handed over. */
struct dtq_store_op *sf_start(struct store_fixture *f, const char *name, const char *const *values, int timeout_ms);
struct dtq_store_op *sf_submit(struct store_fixture *f, struct dtq_store_op *op);
enum dtq_code sf_wait_for(struct store_fixture *f, struct dtq_store_op *op);
/* As sf_wait_for, and released. */
enum dtq_code sf_finish(struct store_fixture *f, struct dtq_store_op *op);
/* The next event of that kind; others are dropped. */
struct dtq_event *sf_next_event(struct store_fixture *f, enum dtq_event_kind kind);
const char *sf_message(struct dtq_store_op *op);
void sf_release(struct store_fixture *f, struct dtq_store_op *op);
/* One round trip. */
void sf_ping(struct store_fixture *f);
void sf_drop_event(struct store_fixture *f, struct dtq_event *event);
void sf_terminate_backend(struct store_fixture *f);
/* Make the tables unless they are there. */
void sf_migrate(void);

#define SF_ASSERT_VALUE(op, row, column, text)                                                                         \
    do {                                                                                                               \
        struct dtq_slice value_ = dtq_store_op_value(op, row, column);                                                 \
        ck_assert_msg(dtq_slice_equal(value_, dtq_slice_str(text)), "%.*s, not %s", (int)value_.length,                \
                      value_.data ? value_.data : "", text);                                                           \
    } while (0)

#endif
