#include "store_fixture.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dtq_clock.h"

const char *sf_database_url(void)
{
    return getenv("DTQ_TEST_DATABASE_URL");
}

/* ---- a connection behind the store's back ------------------------------------------------------------------------ */

PGconn *sf_admin_open(void)
{
    PGconn *conn = PQconnectdb(sf_database_url());
    ck_assert_msg(PQstatus(conn) == CONNECTION_OK, "%s", PQerrorMessage(conn));
    return conn;
}

/* First value of the first row, "" when none. */
char *sf_admin_query(PGconn *conn, const char *sql, char out[256])
{
    PGresult *result = PQexec(conn, sql);
    ExecStatusType status = PQresultStatus(result);
    ck_assert_msg(status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK, "%s", PQerrorMessage(conn));
    snprintf(out, 256, "%s", PQntuples(result) ? PQgetvalue(result, 0, 0) : "");
    PQclear(result);
    return out;
}

void sf_admin(const char *sql)
{
    char value[256];
    PGconn *conn = sf_admin_open();
    sf_admin_query(conn, sql, value);
    PQfinish(conn);
}

/* ---- a store ----------------------------------------------------------------------------------------------------- */

void sf_open_url(struct store_fixture *f, const char *url, int operation_timeout_ms)
{
    struct dtq_error err;
    snprintf(f->name, sizeof f->name, "check-store-%d-%llu", (int)getpid(), (unsigned long long)dtq_clock_boot_ns());
    struct dtq_store_options options = {
        .url = url, .application_name = f->name, .operation_timeout_ms = operation_timeout_ms, .backoff_cap_ms = 100};
    ck_assert_int_eq(dtq_loop_new(&f->loop, &err), DTQ_OK);
    ck_assert_msg(dtq_store_new(f->loop, &options, &f->store, &err) == DTQ_OK, "%s", err.message);
}

void sf_open_store(struct store_fixture *f)
{
    sf_open_url(f, sf_database_url(), 0);
}

void sf_close_store(struct store_fixture *f)
{
    dtq_loop_destroy(f->loop);
}

struct dtq_store_op *sf_submit(struct store_fixture *f, struct dtq_store_op *op)
{
    struct dtq_error err;
    ck_assert_ptr_nonnull(op);
    ck_assert_int_eq(dtq_loop_submit(f->loop, (struct dtq_op *)op, &err), DTQ_OK);
    return op;
}

struct dtq_store_op *sf_start(struct store_fixture *f, const char *name, const char *const *values, int timeout_ms)
{
    struct dtq_error err;
    struct dtq_param params[16];
    const struct dtq_statement *statement = dtq_statement_find(name);
    ck_assert_ptr_nonnull(statement);
    for (size_t i = 0; i < strlen(statement->params); i++)
        params[i] = (struct dtq_param){values[i], values[i] ? strlen(values[i]) : 0};
    return sf_submit(f, dtq_store_run(f->store, statement, params, timeout_ms, &err));
}

enum dtq_code sf_wait_for(struct store_fixture *f, struct dtq_store_op *op)
{
    struct dtq_error err;
    ck_assert_msg(dtq_loop_wait(f->loop, (struct dtq_op *)op, SF_PATIENCE_MS, &err) == DTQ_OK, "%s", err.message);
    return ((struct dtq_op *)op)->error.code;
}

const char *sf_message(struct dtq_store_op *op)
{
    return ((struct dtq_op *)op)->error.message;
}

void sf_release(struct store_fixture *f, struct dtq_store_op *op)
{
    dtq_op_release(f->loop, (struct dtq_op *)op);
}

enum dtq_code sf_finish(struct store_fixture *f, struct dtq_store_op *op)
{
    enum dtq_code code = sf_wait_for(f, op);
    sf_release(f, op);
    return code;
}

const char *const sf_any_generation[] = {"0"};

/* One round trip. */
void sf_ping(struct store_fixture *f)
{
    struct dtq_store_op *op = sf_start(f, "claim_is_live", sf_any_generation, 0);
    ck_assert_msg(sf_wait_for(f, op) == DTQ_OK, "%s", sf_message(op));
    SF_ASSERT_VALUE(op, 0, 0, "f");
    sf_release(f, op);
}

/* The next event of that kind (others are dropped). */
struct dtq_event *sf_next_event(struct store_fixture *f, enum dtq_event_kind kind)
{
    uint64_t end_ms = dtq_clock_monotonic_ms() + SF_PATIENCE_MS;
    struct dtq_event *found = NULL;
    while (!found && dtq_clock_monotonic_ms() < end_ms) {
        for (struct dtq_op *op = dtq_loop_drain(f->loop), *next; op; op = next) {
            next = dtq_op_next(op);
            if (!found && op->op_class->kind == DTQ_OP_EVENT && ((struct dtq_event *)op)->kind == kind)
                found = (struct dtq_event *)op;
            else
                dtq_op_release(f->loop, op);
        }
        usleep(1000);
    }
    ck_assert_msg(found != NULL, "no event of kind %d", (int)kind);
    return found;
}

void sf_drop_event(struct store_fixture *f, struct dtq_event *event)
{
    dtq_op_release(f->loop, &event->op);
}

void sf_terminate_backend(struct store_fixture *f)
{
    char sql[256];
    snprintf(sql, sizeof sql,
             "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '%s'", f->name);
    sf_admin(sql);
}

#define MIGRATIONS TEST_DIR "/../../dagster_taskiq/sql/migrations"

static int is_migration(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length > 4 && strcmp(entry->d_name + length - 4, ".sql") == 0;
}

static void apply_file(PGconn *conn, const char *name)
{
    char path[4096], value[256], sql[65536];
    snprintf(path, sizeof path, MIGRATIONS "/%s", name);
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    size_t length = fread(sql, 1, sizeof sql - 1, file);
    fclose(file);
    sql[length] = '\0';
    sf_admin_query(conn, sql, value);
}

void sf_migrate(void)
{
    PGconn *conn = sf_admin_open();
    char value[256];
    sf_admin_query(conn, "SELECT to_regclass('dagster_taskiq_migrations')", value);
    if (!value[0]) {
        struct dirent **files = NULL;
        int count = scandir(MIGRATIONS, &files, is_migration, alphasort);
        ck_assert_int_gt(count, 0);
        for (int i = 0; i < count; i++) {
            apply_file(conn, files[i]->d_name);
            free(files[i]);
        }
        free(files);
    }
    PQfinish(conn);
}
