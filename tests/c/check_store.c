/*
 * The store's connection against a real PostgreSQL: moves, order, notifications, and everything that may happen to a
 * connection.  The protocol's moves themselves are tested from Python (tests/store).
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <check.h>

#include "check_alloc.h"
#include "dtq_buf.h"
#include "dtq_clock.h"
#include "dtq_pg.h"
#include "store_fixture.h"

/* ---- without a server -------------------------------------------------------------------------------------------- */

START_TEST(sqlstates_are_classified)
{
    static const struct {
        const char *sqlstate;
        enum dtq_code code;
    } cases[] = {
        {"08006", DTQ_PG_LOST},      {"57P01", DTQ_PG_LOST},      {"57P02", DTQ_PG_LOST},
        {"57P03", DTQ_PG_LOST},      {"25006", DTQ_PG_READ_ONLY}, {"40001", DTQ_PG_TRANSIENT},
        {"40P01", DTQ_PG_TRANSIENT}, {"53300", DTQ_PG_TRANSIENT}, {"57014", DTQ_PG_TRANSIENT},
        {"42P01", DTQ_PG_SCHEMA},    {"28P01", DTQ_PG_CONNECT},   {"3D000", DTQ_PG_CONNECT},
        {"23514", DTQ_PG_STATEMENT}, {"42601", DTQ_PG_STATEMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        ck_assert_int_eq(dtq_pg_classify(cases[i].sqlstate), cases[i].code);
}
END_TEST

START_TEST(arrays_are_quoted)
{
    static const struct dtq_param items[] = {{"a", 1}, {"", 0}, {NULL, 0}, {"q\"b\\c,{}", 8}, {"NULL", 4}};
    struct dtq_buf out;
    struct dtq_error err;
    dtq_buf_init(&out, 1000);
    ck_assert_int_eq(dtq_pg_array(items, 5, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out), "{\"a\",\"\",NULL,\"q\\\"b\\\\c,{}\",\"NULL\"}");
    dtq_buf_clear(&out);
    ck_assert_int_eq(dtq_pg_array(NULL, 0, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out), "{}");
    dtq_buf_clean_up(&out);
    dtq_buf_init(&out, 4);
    ck_assert_int_eq(dtq_pg_array(items, 5, &out, &err), DTQ_TOO_LARGE);
    dtq_buf_clean_up(&out);
}
END_TEST

START_TEST(statements_have_signatures)
{
    size_t count;
    const struct dtq_statement *table = dtq_statement_table(&count);
    ck_assert_uint_gt(count, 20);
    for (size_t i = 0; i < count; i++) {
        char marker[24];
        size_t params = strlen(table[i].params);
        ck_assert_ptr_eq(dtq_statement_find(table[i].name), &table[i]);
        for (size_t n = 1; n <= params; n++) {
            snprintf(marker, sizeof marker, "$%zu", n);
            ck_assert_msg(strstr(table[i].sql, marker) != NULL, "%s has no %s", table[i].name, marker);
        }
        snprintf(marker, sizeof marker, "$%zu", params + 1);
        ck_assert_msg(strstr(table[i].sql, marker) == NULL, "%s has %s", table[i].name, marker);
        ck_assert_uint_eq(strspn(table[i].params, "tifbjTIFB"), params);
        ck_assert_uint_eq(strspn(table[i].columns, "tifbjTIFB"), strlen(table[i].columns));
    }
    ck_assert_ptr_null(dtq_statement_find("nothing"));
}
END_TEST

START_TEST(a_bad_url_is_refused_without_its_password)
{
    struct dtq_loop *loop;
    struct dtq_store *store;
    struct dtq_error err;
    struct dtq_store_options options = {.url = "nonsense secret://u:secret@h"};
    ck_assert_int_eq(dtq_loop_new(&loop, &err), DTQ_OK);
    ck_assert_int_eq(dtq_store_new(loop, &options, &store, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_ptr_null(strstr(err.message, "secret"));
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(a_nul_in_a_parameter_is_refused)
{
    struct store_fixture f;
    struct dtq_error err;
    static const struct dtq_param params[] = {{"1\0", 2}};
    sf_open_url(&f, "postgresql://127.0.0.1:9/x", 0);
    ck_assert_ptr_null(dtq_store_run(f.store, dtq_statement_find("claim_is_live"), params, 0, &err));
    ck_assert_int_eq(err.code, DTQ_INVALID_ARGUMENT);
    ck_assert_ptr_null(dtq_store_script(f.store, dtq_slice("a\0b", 3), 0, &err));
    ck_assert_int_eq(err.code, DTQ_INVALID_ARGUMENT);
    ck_assert_ptr_null(dtq_store_listen(f.store, "", 0, &err));
    ck_assert_ptr_null(
        dtq_store_listen(f.store, "0123456789012345678901234567890123456789012345678901234567890123", 0, &err));
    sf_close_store(&f);
}
END_TEST

START_TEST(nobody_listens)
{
    struct store_fixture f;
    sf_open_url(&f, "postgresql://127.0.0.1:9/x", 3000);
    struct dtq_store_op *op = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    ck_assert_int_eq(sf_wait_for(&f, op), DTQ_PG_CONNECT);
    ck_assert_ptr_nonnull(strstr(sf_message(op), "no connection to PostgreSQL in time"));
    sf_release(&f, op);
    sf_close_store(&f);
}
END_TEST

/* A listening socket that nobody accepts from: the handshake hangs. */
static int silent_server(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, length), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    getsockname(fd, (struct sockaddr *)&address, &length);
    *port = ntohs(address.sin_port);
    return fd;
}

START_TEST(close_does_not_wait_for_a_silent_server)
{
    struct store_fixture f;
    int port, fd = silent_server(&port);
    char url[128];
    snprintf(url, sizeof url, "postgresql://u:p@127.0.0.1:%d/x", port);
    sf_open_url(&f, url, 0);
    struct dtq_store_op *op = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    int accepted = accept(fd, (struct sockaddr *)&peer, &length); /* now the dial is under way */
    ck_assert_int_ge(accepted, 0);
    dtq_loop_close(f.loop, 0);
    ck_assert_int_eq(((struct dtq_op *)op)->error.code, DTQ_CLOSED);
    sf_release(&f, op);
    sf_close_store(&f);
    close(accepted);
    close(fd);
}
END_TEST

START_TEST(an_operation_that_waits_for_a_connection_can_be_cancelled)
{
    struct store_fixture f;
    sf_open_url(&f, "postgresql://127.0.0.1:9/x", 0);
    struct dtq_store_op *first = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    struct dtq_store_op *second = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    dtq_loop_cancel(f.loop, (struct dtq_op *)second);
    ck_assert_int_eq(sf_finish(&f, second), DTQ_CANCELLED);
    dtq_loop_cancel(f.loop, (struct dtq_op *)first);
    ck_assert_int_eq(sf_finish(&f, first), DTQ_CANCELLED);
    sf_close_store(&f);
}
END_TEST

static enum dtq_code make_things(void *context)
{
    (void)context;
    struct dtq_error err = {0};
    struct dtq_loop *loop = NULL;
    struct dtq_store *store = NULL;
    struct dtq_store_op *run = NULL, *listen = NULL, *script = NULL;
    static const struct dtq_param params[] = {{"1", 1}};
    struct dtq_store_options options = {.url = "postgresql://127.0.0.1:9/x", .application_name = "name"};
    if (dtq_loop_new(&loop, &err) || dtq_store_new(loop, &options, &store, &err))
        goto cleanup;
    run = dtq_store_run(store, dtq_statement_find("claim_is_live"), params, 0, &err);
    if (run)
        listen = dtq_store_listen(store, "channel", 0, &err);
    if (listen)
        script = dtq_store_script(store, dtq_slice_str("SELECT 1"), 0, &err);
cleanup:
    dtq_op_release(loop, (struct dtq_op *)run);
    dtq_op_release(loop, (struct dtq_op *)listen);
    dtq_op_release(loop, (struct dtq_op *)script);
    dtq_loop_destroy(loop);
    return err.code;
}

START_TEST(memory_may_be_short)
{
    run_with_failing_allocations(make_things, NULL);
}
END_TEST

/* ---- with a server ----------------------------------------------------------------------------------------------- */

START_TEST(a_statement_gives_its_rows)
{
    struct store_fixture f;
    sf_open_store(&f);
    char run_id[80];
    snprintf(run_id, sizeof run_id, "c-%s", f.name);
    const char *begin[] = {run_id, "nonce", "30"};
    struct dtq_store_op *op = sf_start(&f, "begin_run", begin, 0);
    ck_assert_msg(sf_wait_for(&f, op) == DTQ_OK, "%s", sf_message(op));
    ck_assert_uint_eq(dtq_store_op_rows(op), 1);
    ck_assert_str_eq(dtq_store_op_statement(op)->name, "begin_run");
    SF_ASSERT_VALUE(op, 0, 0, run_id);
    SF_ASSERT_VALUE(op, 0, 2, "active");
    ck_assert_ptr_null(dtq_store_op_value(op, 0, 3).data);
    ck_assert_ptr_null(dtq_store_op_value(op, 7, 0).data);
    sf_release(&f, op);
    const char *get[] = {"none"};
    op = sf_start(&f, "get_run", get, 0);
    ck_assert_int_eq(sf_wait_for(&f, op), DTQ_OK);
    ck_assert_uint_eq(dtq_store_op_rows(op), 0);
    sf_release(&f, op);
    sf_close_store(&f);
}
END_TEST

START_TEST(many_operations_in_one_pipeline)
{
    enum { COUNT = 1000 };
    struct store_fixture f;
    struct dtq_store_op *ops[COUNT];
    sf_open_store(&f);
    for (int i = 0; i < COUNT; i++)
        ops[i] = sf_start(&f, i % 2 ? "claim_is_live" : "get_run", sf_any_generation, 0);
    for (int i = 0; i < COUNT; i++) {
        ck_assert_int_eq(sf_wait_for(&f, ops[i]), DTQ_OK);
        ck_assert_uint_eq(dtq_store_op_rows(ops[i]), i % 2);
        sf_release(&f, ops[i]);
    }
    sf_close_store(&f);
}
END_TEST

START_TEST(a_failing_statement_takes_no_other_with_it)
{
    struct store_fixture f;
    sf_open_store(&f);
    const char *bad[] = {"not a number"};
    struct dtq_store_op *ops[6];
    for (int i = 0; i < 6; i++)
        ops[i] = sf_start(&f, "claim_is_live", i % 2 ? bad : sf_any_generation, 0);
    for (int i = 0; i < 6; i++) {
        ck_assert_int_eq(sf_wait_for(&f, ops[i]), i % 2 ? DTQ_PG_STATEMENT : DTQ_OK);
        ck_assert_str_eq(((struct dtq_op *)ops[i])->error.sqlstate, i % 2 ? "22P02" : "");
        sf_release(&f, ops[i]);
    }
    sf_close_store(&f);
}
END_TEST

START_TEST(notifications_become_events)
{
    struct store_fixture f;
    struct dtq_error err;
    sf_open_store(&f);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, dtq_store_listen(f.store, "odd \"channel\"", 0, &err))), DTQ_OK);
    sf_admin("NOTIFY \"odd \"\"channel\"\"\", 'hello'");
    struct dtq_event *event = sf_next_event(&f, DTQ_EVENT_NOTIFICATION);
    ck_assert_str_eq(event->text, "odd \"channel\"");
    ck_assert_str_eq(event->detail, "hello");
    sf_drop_event(&f, event);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, dtq_store_unlisten(f.store, "odd \"channel\"", 0, &err))), DTQ_OK);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, dtq_store_listen(f.store, "other", 0, &err))), DTQ_OK);
    sf_admin("NOTIFY \"odd \"\"channel\"\"\", 'no'; NOTIFY other, 'yes'");
    event = sf_next_event(&f, DTQ_EVENT_NOTIFICATION);
    ck_assert_str_eq(event->detail, "yes");
    sf_drop_event(&f, event);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_lost_connection_listens_again)
{
    struct store_fixture f;
    struct dtq_error err;
    sf_open_store(&f);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, dtq_store_listen(f.store, "kept", 0, &err))), DTQ_OK);
    sf_drop_event(&f, sf_next_event(&f, DTQ_EVENT_STORE_CONNECTED));
    sf_terminate_backend(&f);
    sf_drop_event(&f, sf_next_event(&f, DTQ_EVENT_STORE_LOST));
    sf_drop_event(&f, sf_next_event(&f, DTQ_EVENT_STORE_CONNECTED)); /* by itself: a channel is work */
    sf_admin("NOTIFY kept, 'again'");
    struct dtq_event *event = sf_next_event(&f, DTQ_EVENT_NOTIFICATION);
    ck_assert_str_eq(event->detail, "again");
    sf_drop_event(&f, event);
    sf_close_store(&f);
}
END_TEST

/* Waits until the store's backend waits for a lock. */
static void wait_until_blocked(PGconn *conn, struct store_fixture *f)
{
    char sql[256], value[256];
    snprintf(sql, sizeof sql,
             "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s' AND wait_event_type = 'Lock'",
             f->name);
    do
        sf_admin_query(conn, sql, value);
    while (strcmp(value, "1") != 0);
}

/* begin_run of a row that somebody holds. */
static struct dtq_store_op *blocked_move(struct store_fixture *f, PGconn *holder, const char *run_id, int timeout_ms)
{
    char sql[256], value[256];
    const char *first[] = {run_id, "nonce", "30"};
    ck_assert_int_eq(sf_finish(f, sf_start(f, "begin_run", first, 0)), DTQ_OK);
    sf_admin_query(holder, "BEGIN", value);
    snprintf(sql, sizeof sql, "SELECT run_id FROM dagster_taskiq_runs WHERE run_id = '%s' FOR UPDATE", run_id);
    sf_admin_query(holder, sql, value);
    struct dtq_store_op *op = sf_start(f, "begin_run", first, timeout_ms);
    wait_until_blocked(holder, f);
    return op;
}

START_TEST(a_move_in_flight_survives_the_loss_of_its_backend)
{
    struct store_fixture f;
    char value[256], run_id[80];
    sf_open_store(&f);
    PGconn *holder = sf_admin_open();
    snprintf(run_id, sizeof run_id, "l-%s", f.name);
    struct dtq_store_op *move = blocked_move(&f, holder, run_id, 0);
    struct dtq_store_op *behind = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    sf_terminate_backend(&f);
    sf_drop_event(&f, sf_next_event(&f, DTQ_EVENT_STORE_LOST));
    sf_admin_query(holder, "COMMIT", value);
    ck_assert_msg(sf_wait_for(&f, move) == DTQ_OK, "%s", sf_message(move));
    SF_ASSERT_VALUE(move, 0, 0, run_id);
    ck_assert_ptr_null(dtq_store_op_value(move, 0, 3).data); /* the same nonce: not taken over */
    sf_release(&f, move);
    ck_assert_int_eq(sf_finish(&f, behind), DTQ_OK);
    PQfinish(holder);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_cancelled_move_leaves_the_pipeline_in_order)
{
    struct store_fixture f;
    char value[256], run_id[80];
    sf_open_store(&f);
    PGconn *holder = sf_admin_open();
    snprintf(run_id, sizeof run_id, "x-%s", f.name);
    struct dtq_store_op *move = blocked_move(&f, holder, run_id, 0);
    const char *get[] = {run_id};
    struct dtq_store_op *behind = sf_start(&f, "get_run", get, 0);
    dtq_loop_cancel(f.loop, (struct dtq_op *)move);
    ck_assert_int_eq(sf_finish(&f, move), DTQ_CANCELLED);
    sf_admin_query(holder, "COMMIT", value);
    ck_assert_int_eq(sf_wait_for(&f, behind), DTQ_OK);
    SF_ASSERT_VALUE(behind, 0, 0, run_id);
    sf_release(&f, behind);
    PQfinish(holder);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_server_that_does_not_answer_is_given_up)
{
    struct store_fixture f;
    char value[256], run_id[80];
    sf_open_store(&f);
    PGconn *holder = sf_admin_open();
    snprintf(run_id, sizeof run_id, "s-%s", f.name);
    struct dtq_store_op *move = blocked_move(&f, holder, run_id, 100);
    struct dtq_store_op *behind = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    ck_assert_int_eq(sf_finish(&f, move), DTQ_TIMEOUT);
    ck_assert_int_eq(sf_finish(&f, behind), DTQ_OK); /* over another connection: the lock is still held */
    sf_drop_event(&f, sf_next_event(&f, DTQ_EVENT_STORE_LOST));
    sf_admin_query(holder, "COMMIT", value);
    PQfinish(holder);
    sf_close_store(&f);
}
END_TEST

START_TEST(scripts_run_alone_and_whole)
{
    struct store_fixture f;
    struct dtq_error err;
    static const char good[] = "CREATE TEMP TABLE t (n int); INSERT INTO t VALUES (1); SELECT n FROM t";
    static const char bad[] = "INSERT INTO t VALUES (2); SELECT 1/0; INSERT INTO t VALUES (3)";
    static const char look[] = "DO $$ BEGIN IF (SELECT count(*) FROM t) <> 1 THEN RAISE 'rows'; END IF; END $$";
    sf_open_store(&f);
    struct dtq_store_op *before = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    struct dtq_store_op *first = sf_submit(&f, dtq_store_script(f.store, dtq_slice_str(good), 0, &err));
    struct dtq_store_op *between = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    struct dtq_store_op *second = sf_submit(&f, dtq_store_script(f.store, dtq_slice_str(bad), 0, &err));
    struct dtq_store_op *third = sf_submit(&f, dtq_store_script(f.store, dtq_slice_str(look), 0, &err));
    ck_assert_int_eq(sf_finish(&f, before), DTQ_OK);
    ck_assert_int_eq(sf_finish(&f, first), DTQ_OK);
    ck_assert_int_eq(sf_finish(&f, between), DTQ_OK);
    ck_assert_int_eq(sf_wait_for(&f, second), DTQ_PG_STATEMENT);
    ck_assert_str_eq(((struct dtq_op *)second)->error.sqlstate, "22012");
    sf_release(&f, second);
    ck_assert_int_eq(sf_finish(&f, third), DTQ_OK);
    sf_ping(&f);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_script_that_is_cut_off_is_not_sent_again)
{
    struct store_fixture f;
    struct dtq_error err;
    sf_open_store(&f);
    PGconn *holder = sf_admin_open();
    char value[256];
    sf_admin_query(holder, "SELECT pg_advisory_lock(4711)", value);
    struct dtq_store_op *script =
        sf_submit(&f, dtq_store_script(f.store, dtq_slice_str("SELECT pg_advisory_lock(4711)"), 0, &err));
    wait_until_blocked(holder, &f);
    sf_terminate_backend(&f);
    ck_assert_int_eq(sf_finish(&f, script), DTQ_PG_LOST);
    sf_ping(&f);
    PQfinish(holder);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_deadlock_is_tried_again)
{
    struct store_fixture f;
    struct dtq_error err;
    sf_open_store(&f);
    /* A trigger that fails the first two times. */
    ck_assert_int_eq(
        sf_finish(&f, sf_submit(&f, dtq_store_script(
                                        f.store,
                                        dtq_slice_str(
                                            "CREATE SEQUENCE IF NOT EXISTS check_tries; "
                                            "SELECT setval('check_tries', 1, false); "
                                            "CREATE OR REPLACE FUNCTION check_fail() RETURNS trigger AS $$ BEGIN "
                                            "IF NEW.identity = 'deadlock' AND nextval('check_tries') < 3 THEN "
                                            "RAISE 'once more' USING ERRCODE = '40P01'; END IF; RETURN NEW; END $$ "
                                            "LANGUAGE plpgsql; CREATE OR REPLACE TRIGGER check_fail BEFORE INSERT ON "
                                            "dagster_taskiq_workers FOR EACH ROW EXECUTE FUNCTION check_fail()"),
                                        0, &err))),
        DTQ_OK);
    const char *worker[] = {"deadlock", "n", "h", "1", "7", "b", "{}", "1", "60"};
    struct dtq_store_op *op = sf_start(&f, "register_worker", worker, 0);
    ck_assert_msg(sf_wait_for(&f, op) == DTQ_OK, "%s", sf_message(op));
    sf_release(&f, op);
    sf_admin("DROP TRIGGER check_fail ON dagster_taskiq_workers; DROP FUNCTION check_fail; DROP SEQUENCE check_tries; "
             "DELETE FROM dagster_taskiq_workers WHERE identity = 'deadlock'");
    sf_close_store(&f);
}
END_TEST

/* As by a pooler that gives the session to somebody else. */
START_TEST(statements_that_the_server_has_forgotten_are_prepared_again)
{
    enum { COUNT = 4 };
    struct store_fixture f;
    struct dtq_error err;
    struct dtq_store_op *ops[COUNT];
    sf_open_store(&f);
    const char *get[] = {"none"};
    ck_assert_int_eq(sf_finish(&f, sf_start(&f, "get_run", get, 0)), DTQ_OK);
    struct dtq_store_op *script = dtq_store_script(f.store, dtq_slice_str("DISCARD ALL"), 0, &err);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, script)), DTQ_OK);
    for (int i = 0; i < COUNT; i++)
        ops[i] = sf_start(&f, "get_run", get, 0);
    for (int i = 0; i < COUNT; i++) {
        ck_assert_msg(sf_wait_for(&f, ops[i]) == DTQ_OK, "%s", sf_message(ops[i]));
        sf_release(&f, ops[i]);
    }
    sf_close_store(&f);
}
END_TEST

START_TEST(an_unlisten_ends_a_listen_that_waits_for_the_connection)
{
    struct store_fixture f;
    struct dtq_error err;
    sf_open_store(&f);
    struct dtq_store_op *listen = sf_submit(&f, dtq_store_listen(f.store, "unwanted", 0, &err));
    struct dtq_store_op *unlisten = sf_submit(&f, dtq_store_unlisten(f.store, "unwanted", 0, &err));
    ck_assert_int_eq(sf_finish(&f, listen), DTQ_OK);
    ck_assert_int_eq(sf_finish(&f, unlisten), DTQ_OK);
    ck_assert_int_eq(sf_finish(&f, sf_submit(&f, dtq_store_listen(f.store, "wanted", 0, &err))), DTQ_OK);
    sf_admin("NOTIFY unwanted, 'no'; NOTIFY wanted, 'yes'");
    struct dtq_event *event = sf_next_event(&f, DTQ_EVENT_NOTIFICATION);
    ck_assert_str_eq(event->detail, "yes");
    sf_drop_event(&f, event);
    sf_close_store(&f);
}
END_TEST

/* The URL with another option or another host. */
static char *changed_url(const char *before, const char *after, char out[512])
{
    const char *at = strchr(sf_database_url(), '@');
    ck_assert_ptr_nonnull(at);
    snprintf(out, 512, "%.*s%s%s%s", (int)(at + 1 - sf_database_url()), sf_database_url(), before, at + 1, after);
    return out;
}

START_TEST(several_hosts_are_tried)
{
    struct store_fixture f;
    char url[512];
    int port, fd = silent_server(&port);
    close(fd); /* its port refuses now */
    char before[64];
    snprintf(before, sizeof before, "127.0.0.1:%d,", port);
    sf_open_url(&f, changed_url(before, "", url), 0);
    sf_ping(&f);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_silent_host_is_passed_over)
{
    struct store_fixture f;
    char url[512], before[64];
    int port, fd = silent_server(&port);
    snprintf(before, sizeof before, "127.0.0.1:%d,", port);
    changed_url(before, "?connect_timeout=2", url);
    struct dtq_error err;
    snprintf(f.name, sizeof f.name, "silent");
    struct dtq_store_options options = {.url = url, .connect_timeout_ms = 1000};
    ck_assert_int_eq(dtq_loop_new(&f.loop, &err), DTQ_OK);
    ck_assert_int_eq(dtq_store_new(f.loop, &options, &f.store, &err), DTQ_OK);
    sf_ping(&f);
    sf_close_store(&f);
    close(fd);
}
END_TEST

START_TEST(a_wrong_password_is_told_at_once)
{
    struct store_fixture f;
    char url[512];
    const char *at = strchr(sf_database_url(), '@');
    snprintf(url, sizeof url, "postgresql://nobody:wrong%s", at);
    sf_open_url(&f, url, 0);
    uint64_t begun_ms = dtq_clock_monotonic_ms();
    struct dtq_store_op *op = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    ck_assert_int_eq(sf_wait_for(&f, op), DTQ_PG_CONNECT);
    ck_assert_str_eq(((struct dtq_op *)op)->error.sqlstate, "28P01");
    ck_assert_uint_lt(dtq_clock_monotonic_ms() - begun_ms, 25000); /* not the operation's 30 s */
    sf_release(&f, op);
    sf_close_store(&f);
}
END_TEST

START_TEST(missing_tables_are_named)
{
    struct store_fixture f;
    char url[512];
    sf_open_url(&f, changed_url("", "?options=-csearch_path%3Dpg_catalog", url), 0);
    struct dtq_store_op *ops[2];
    for (int i = 0; i < 2; i++)
        ops[i] = sf_start(&f, "get_run", sf_any_generation, 0);
    ck_assert_int_eq(sf_wait_for(&f, ops[0]), DTQ_PG_SCHEMA);
    ck_assert_int_eq(sf_wait_for(&f, ops[1]), DTQ_PG_SCHEMA);
    sf_release(&f, ops[0]);
    sf_release(&f, ops[1]);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_graceful_close_lets_moves_finish)
{
    struct store_fixture f;
    sf_open_store(&f);
    sf_ping(&f);
    struct dtq_store_op *ops[20];
    for (int i = 0; i < 20; i++)
        ops[i] = sf_start(&f, "claim_is_live", sf_any_generation, 0);
    dtq_loop_close(f.loop, SF_PATIENCE_MS);
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(sf_finish(&f, ops[i]), DTQ_OK);
    sf_close_store(&f);
}
END_TEST

START_TEST(a_forked_child_lets_go_of_the_socket_and_leaves_the_connection_alone)
{
    struct store_fixture f;
    int answer[2], status = 0;
    char refused = 0;
    sf_open_store(&f);
    sf_ping(&f);
    ck_assert_int_eq(pipe(answer), 0);
    pid_t child = fork();
    if (child == 0) {
        struct dtq_error err;
        struct dtq_store_op *op = dtq_store_run(f.store, dtq_statement_find("list_workers"), NULL, 0, &err);
        refused = op && dtq_loop_submit(f.loop, (struct dtq_op *)op, &err) == DTQ_FORKED;
        dtq_loop_destroy(f.loop);
        if (write(answer[1], &refused, 1) == 1)
            kill(getpid(), SIGKILL); /* an exit would make a leak checker complain of what is left alone on purpose */
        _exit(1);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq((int)read(answer[0], &refused, 1), 1);
    ck_assert_int_eq(refused, 1);
    close(answer[0]);
    close(answer[1]);
    sf_ping(&f);
    sf_close_store(&f);
}
END_TEST

/* An allocation that fails on the I/O thread costs an operation or a connection, never more. */
START_TEST(memory_may_be_short_on_the_io_thread)
{
#ifdef DTQ_ALLOC_FAILABLE
    for (unsigned long n = 1, seen = n; seen >= n; n++) {
        struct store_fixture f;
        struct dtq_error err;
        sf_open_store(&f);
        struct dtq_store_op *listen = dtq_store_listen(f.store, "c", 0, &err);
        struct dtq_store_op *script = dtq_store_script(f.store, dtq_slice_str("SELECT 1"), 0, &err);
        static const struct dtq_param params[] = {{"1", 1}};
        struct dtq_store_op *run = dtq_store_run(f.store, dtq_statement_find("claim_is_live"), params, 0, &err);
        dtq_alloc_fail_at(n);
        sf_submit(&f, listen);
        sf_submit(&f, script);
        sf_submit(&f, run);
        enum dtq_code codes[] = {sf_finish(&f, listen), sf_finish(&f, script), sf_finish(&f, run)};
        seen = dtq_alloc_count();
        dtq_alloc_fail_at(0);
        for (int i = 0; i < 3; i++)
            ck_assert_msg(codes[i] == DTQ_OK || codes[i] == DTQ_NO_MEMORY || codes[i] == DTQ_PG_LOST,
                          "allocation %lu failed and operation %d ended with %d", n, i, (int)codes[i]);
        sf_ping(&f);
        sf_close_store(&f);
    }
#endif
}
END_TEST

Suite *store_suite(void)
{
    Suite *suite = suite_create("store");
    TCase *alone = tcase_create("without a server");
    tcase_set_timeout(alone, 60);
    tcase_add_test(alone, sqlstates_are_classified);
    tcase_add_test(alone, arrays_are_quoted);
    tcase_add_test(alone, statements_have_signatures);
    tcase_add_test(alone, a_bad_url_is_refused_without_its_password);
    tcase_add_test(alone, a_nul_in_a_parameter_is_refused);
    tcase_add_test(alone, nobody_listens);
    tcase_add_test(alone, close_does_not_wait_for_a_silent_server);
    tcase_add_test(alone, an_operation_that_waits_for_a_connection_can_be_cancelled);
    tcase_add_test(alone, memory_may_be_short);
    suite_add_tcase(suite, alone);
    if (!sf_database_url()) {
        fprintf(stderr, "\n*** DTQ_TEST_DATABASE_URL is not set: the store is NOT tested against PostgreSQL ***\n\n");
        return suite;
    }
    TCase *server = tcase_create("with PostgreSQL");
    tcase_set_timeout(server, 120);
    tcase_add_unchecked_fixture(server, sf_migrate, NULL);
    tcase_add_test(server, a_statement_gives_its_rows);
    tcase_add_test(server, many_operations_in_one_pipeline);
    tcase_add_test(server, a_failing_statement_takes_no_other_with_it);
    tcase_add_test(server, notifications_become_events);
    tcase_add_test(server, a_lost_connection_listens_again);
    tcase_add_test(server, a_move_in_flight_survives_the_loss_of_its_backend);
    tcase_add_test(server, a_cancelled_move_leaves_the_pipeline_in_order);
    tcase_add_test(server, a_server_that_does_not_answer_is_given_up);
    tcase_add_test(server, scripts_run_alone_and_whole);
    tcase_add_test(server, a_script_that_is_cut_off_is_not_sent_again);
    tcase_add_test(server, a_deadlock_is_tried_again);
    tcase_add_test(server, statements_that_the_server_has_forgotten_are_prepared_again);
    tcase_add_test(server, an_unlisten_ends_a_listen_that_waits_for_the_connection);
    tcase_add_test(server, several_hosts_are_tried);
    tcase_add_test(server, a_silent_host_is_passed_over);
    tcase_add_test(server, a_wrong_password_is_told_at_once);
    tcase_add_test(server, missing_tables_are_named);
    tcase_add_test(server, a_graceful_close_lets_moves_finish);
    tcase_add_test(server, a_forked_child_lets_go_of_the_socket_and_leaves_the_connection_alone);
    tcase_add_test(server, memory_may_be_short_on_the_io_thread);
    suite_add_tcase(suite, server);
    return suite;
}
