/* The heartbeat against a real PostgreSQL (DTQ_TEST_DATABASE_URL) and a scripted SQS. */
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>

#include "check_alloc.h"
#include "dtq_beat.h"
#include "dtq_clock.h"
#include "store_fixture.h"
#include "stub_server.h"

#define S 1000000000ull
#define SLOT 0
#define TTL_S 60.0
#define MARGIN_S 10.0

static struct store_fixture f;
static struct dtq_fence_board *board;
static struct dtq_beat *beat;
static struct dtq_error err;
static char run_id[64];
static uint64_t claimed_ns;
static int64_t generation;
static PGconn *conn;

/* ---- a run with a claim ------------------------------------------------------------------------------------------ */

static char *look(const char *column, char value[256])
{
    char sql[256];
    snprintf(sql, sizeof sql, "SELECT %s FROM dagster_taskiq_steps WHERE run_id = '%s'", column, run_id);
    return sf_admin_query(conn, sql, value);
}

static void change(const char *assignments)
{
    char sql[256], value[256];
    snprintf(sql, sizeof sql, "UPDATE dagster_taskiq_steps SET %s WHERE run_id = '%s'", assignments, run_id);
    sf_admin_query(conn, sql, value);
}

static int64_t claim(void)
{
    char run_generation[32], attempts[] = "{1}", keys[] = "{\"a \\\"b\\\\c\\\"\"}", queues[] = "{q}";
    snprintf(run_id, sizeof run_id, "b%d-%" PRIu64, (int)getpid(), dtq_clock_boot_ns());
    const char *begin[] = {run_id, "nonce", "30"};
    struct dtq_store_op *op = sf_start(&f, "begin_run", begin, 0);
    ck_assert_msg(sf_wait_for(&f, op) == DTQ_OK, "%s", sf_message(op));
    snprintf(run_generation, sizeof run_generation, "%s", dtq_store_op_value(op, 0, 1).data);
    sf_release(&f, op);
    const char *enqueue[] = {run_id, run_generation, "nonce", keys, attempts, queues};
    ck_assert_int_eq(sf_finish(&f, sf_start(&f, "enqueue", enqueue, 0)), DTQ_OK);
    claimed_ns = dtq_clock_boot_ns();
    const char *take[] = {run_id, "a \"b\\c\"", "1", "w", "n", "60", "h", "b", "m", "1"};
    op = sf_start(&f, "claim", take, 0);
    ck_assert_msg(sf_wait_for(&f, op) == DTQ_OK, "%s", sf_message(op));
    SF_ASSERT_VALUE(op, 0, 0, "claimed");
    int64_t given = strtoll(dtq_store_op_value(op, 0, 1).data, NULL, 10);
    sf_release(&f, op);
    return given;
}

static struct dtq_beat_entry entry(void)
{
    struct dtq_beat_entry given = {.run_id = run_id,
                                   .step_key = "a \"b\\c\"",
                                   .attempt = 1,
                                   .generation = generation,
                                   .ttl_s = TTL_S,
                                   .margin_s = MARGIN_S,
                                   .heartbeat_s = 0.05,
                                   .claimed_boot_ns = claimed_ns,
                                   .slot = SLOT};
    return given;
}

static void add(struct dtq_beat_entry given)
{
    ck_assert_msg(dtq_beat_add(beat, &given, &err) == DTQ_OK, "%s", err.message);
}

static void make_beat(struct dtq_sqs *sqs)
{
    struct dtq_beat_options options = {.board = board, .sqs = sqs};
    ck_assert_msg(dtq_beat_new(f.store, &options, &beat, &err) == DTQ_OK, "%s", err.message);
}

static void set_up(void)
{
    conn = sf_admin_open();
    ck_assert_int_eq(dtq_fence_board_new(2, &board, &err), DTQ_OK);
    sf_open_store(&f);
    generation = claim();
}

static void tear_down(void)
{
    sf_close_store(&f);
    dtq_fence_board_destroy(board);
    PQfinish(conn);
}

static uint64_t board_deadline_ns(void)
{
    return dtq_fence_deadline_ns(dtq_fence_board_fd(board), SLOT, generation);
}

static uint64_t first_deadline_ns(void)
{
    return claimed_ns + (uint64_t)(TTL_S - MARGIN_S) * S;
}

static void wait_for_extension(uint64_t beyond_ns)
{
    uint64_t end_ms = dtq_clock_monotonic_ms() + SF_PATIENCE_MS;
    while (board_deadline_ns() <= beyond_ns) {
        ck_assert_msg(dtq_clock_monotonic_ms() < end_ms, "the deadline does not move");
        usleep(1000);
    }
}

static void assert_event(enum dtq_event_kind kind)
{
    struct dtq_event *event = sf_next_event(&f, kind);
    ck_assert_int_eq(event->generation, generation);
    sf_drop_event(&f, event);
}

/* ---- leases ------------------------------------------------------------------------------------------------------ */

START_TEST(a_beat_renews_the_lease_and_moves_the_deadline)
{
    char before[256], after[256];
    make_beat(NULL);
    look("lease", before);
    add(entry());
    ck_assert_uint_ge(board_deadline_ns(), first_deadline_ns());
    uint64_t asked_ns = dtq_clock_boot_ns();
    wait_for_extension(first_deadline_ns());
    ck_assert_uint_le(board_deadline_ns(), dtq_clock_boot_ns() + (uint64_t)(TTL_S - MARGIN_S) * S);
    ck_assert_uint_ge(board_deadline_ns(), asked_ns);
    ck_assert_str_ne(look("lease", after), before);
}
END_TEST

/* Runs where such a locale is installed. */
START_TEST(a_locale_with_a_comma_shortens_no_lease)
{
    char first_run[64], value[256];
    struct dtq_beat_entry first = entry();
    memcpy(first_run, run_id, sizeof first_run);
    first.run_id = first_run;
    generation = claim();
    struct dtq_beat_entry second = entry();
    second.slot = 1 - SLOT;
    first.ttl_s = second.ttl_s = 1000.5;
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8"))
        return;
    make_beat(NULL);
    add(second);
    add(first);
    uint64_t end_ms = dtq_clock_monotonic_ms() + SF_PATIENCE_MS;
    while (strcmp(look("lease > clock_timestamp() + interval '900 s'", value), "t") != 0)
        ck_assert_msg(dtq_clock_monotonic_ms() < end_ms, "the lease is not what was asked for");
    setlocale(LC_NUMERIC, "C");
}
END_TEST

START_TEST(a_removed_entry_is_not_renewed)
{
    make_beat(NULL);
    add(entry());
    wait_for_extension(first_deadline_ns());
    dtq_beat_remove(beat, generation);
    dtq_beat_remove(beat, 12345);
    sf_ping(&f); /* behind a renewal that was under way */
    sf_ping(&f);
    char before[256], after[256];
    look("lease", before);
    struct dtq_beat_entry again = entry();
    again.run_id = "another run";
    again.generation = generation + 1000000;
    add(again);
    struct dtq_event *event = sf_next_event(&f, DTQ_EVENT_LEASE_LOST); /* beats have gone on */
    ck_assert_int_eq(event->generation, generation + 1000000);
    sf_drop_event(&f, event);
    ck_assert_str_eq(look("lease", after), before);
}
END_TEST

START_TEST(a_row_that_was_taken_away_is_told)
{
    make_beat(NULL);
    add(entry());
    wait_for_extension(first_deadline_ns());
    change("state = 'lost', finished_at = now(), reason = 'test'");
    assert_event(DTQ_EVENT_LEASE_LOST);
    add(entry()); /* it is out: the same one can be added */
    assert_event(DTQ_EVENT_LEASE_LOST);
}
END_TEST

START_TEST(a_requested_cancellation_is_told_once)
{
    make_beat(NULL);
    add(entry());
    change("cancel_requested = true");
    assert_event(DTQ_EVENT_CANCEL);
    uint64_t deadline_ns = board_deadline_ns();
    wait_for_extension(deadline_ns);
    wait_for_extension(board_deadline_ns());
    change("state = 'lost', finished_at = now(), reason = 'test'");
    int told = 0;
    for (bool lost = false; !lost;) {
        for (struct dtq_op *op = dtq_loop_drain(f.loop), *next; op; op = next) {
            next = dtq_op_next(op);
            told += ((struct dtq_event *)op)->kind == DTQ_EVENT_CANCEL;
            lost = lost || ((struct dtq_event *)op)->kind == DTQ_EVENT_LEASE_LOST;
            dtq_op_release(f.loop, op);
        }
        usleep(1000);
    }
    ck_assert_int_eq(told, 0);
}
END_TEST

START_TEST(a_lease_that_cannot_be_renewed_is_lost_at_the_local_deadline)
{
    char value[256];
    make_beat(NULL);
    sf_admin_query(conn, "BEGIN", value);
    look("step_key", value);
    change("reason = NULL"); /* holds the row */
    struct dtq_beat_entry given = entry();
    given.ttl_s = MARGIN_S + 1;
    given.claimed_boot_ns = dtq_clock_boot_ns();
    uint64_t deadline_ns = given.claimed_boot_ns + S;
    add(given);
    ck_assert_uint_eq(board_deadline_ns(), deadline_ns);
    assert_event(DTQ_EVENT_LEASE_LOST);
    ck_assert_uint_ge(dtq_clock_boot_ns(), deadline_ns);
    ck_assert_uint_eq(board_deadline_ns(), deadline_ns);
    sf_admin_query(conn, "COMMIT", value);
}
END_TEST

START_TEST(a_lost_connection_costs_no_lease)
{
    make_beat(NULL);
    add(entry());
    wait_for_extension(first_deadline_ns());
    sf_terminate_backend(&f);
    uint64_t deadline_ns = board_deadline_ns();
    wait_for_extension(deadline_ns);
    wait_for_extension(board_deadline_ns());
}
END_TEST

START_TEST(bad_entries_are_refused)
{
    make_beat(NULL);
    struct dtq_beat_entry given = entry();
    given.margin_s = -1;
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
    given = entry();
    given.ttl_s = MARGIN_S;
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
    given = entry();
    given.heartbeat_s = 0;
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
    given = entry();
    given.ttl_s = 2e10;
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
    given = entry();
    given.heartbeat_s = INFINITY;
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
    given = entry();
    given.heartbeat_s = 100;
    add(given);
    ck_assert_int_eq(dtq_beat_add(beat, &given, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

static enum dtq_code add_and_remove(void *context)
{
    (void)context;
    struct dtq_beat_entry given = entry();
    given.heartbeat_s = 1000; /* no beat meanwhile */
    err.code = DTQ_OK;
    enum dtq_code rc = dtq_beat_add(beat, &given, &err);
    dtq_beat_remove(beat, generation);
    return rc;
}

START_TEST(memory_may_be_short)
{
    make_beat(NULL);
    run_with_failing_allocations(add_and_remove, NULL);
}
END_TEST

/* ---- visibilities ------------------------------------------------------------------------------------------------ */

static struct dtq_sqs *open_sqs(struct stub_server *server)
{
    struct dtq_sqs *sqs;
    struct dtq_creds *creds = dtq_creds_new("AKID", "secret", NULL, 0);
    struct dtq_sqs_options options = {
        .region = "eu-central-1", .endpoint = stub_server_url(server), .backoff_base_ms = 1, .backoff_cap_ms = 2};
    ck_assert_int_eq(dtq_sqs_new(f.loop, &options, creds, &sqs, &err), DTQ_OK);
    dtq_creds_release(creds);
    return sqs;
}

static struct dtq_beat_entry hidden_entry(char queue_url[256], struct stub_server *server)
{
    struct dtq_beat_entry given = entry();
    snprintf(queue_url, 256, "%s/1/q", stub_server_url(server));
    given.queue_url = queue_url;
    given.receipt_handle = "the-handle";
    given.visibility_s = 30;
    given.received_boot_ns = dtq_clock_boot_ns() - 11 * S; /* a third has passed */
    return given;
}

static void assert_contains(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) != NULL, "no %s in %s", part, text);
}

START_TEST(a_visibility_is_renewed_when_a_third_has_passed)
{
    char queue_url[256];
    static const struct stub_answer script[] = {{.status = 500},
                                                {.body = "{\"Successful\":[{\"Id\":\"0\"}],\"Failed\":[]}"}};
    struct stub_server *server = stub_server_start(script, 2);
    make_beat(open_sqs(server));
    add(hidden_entry(queue_url, server));
    stub_server_wait_for(server, 2);
    assert_contains(stub_server_request(server, 1), "AmazonSQS.ChangeMessageVisibilityBatch");
    assert_contains(stub_server_request(server, 1), "the-handle");
    assert_contains(stub_server_request(server, 1), "\"VisibilityTimeout\":30");
    wait_for_extension(board_deadline_ns());
    wait_for_extension(board_deadline_ns());
    wait_for_extension(board_deadline_ns());
    ck_assert_uint_eq(stub_server_requests(server), 2); /* not again at every beat */
    sf_close_store(&f);
    sf_open_store(&f); /* for the end of the test */
    stub_server_stop(server);
}
END_TEST

START_TEST(a_void_receipt_handle_is_told_and_the_lease_goes_on)
{
    char queue_url[256];
    static const struct stub_answer script[] = {
        {.body = "{\"Failed\":[{\"Id\":\"0\",\"SenderFault\":true,\"Code\":\"ReceiptHandleIsInvalid\"}]}"}};
    struct stub_server *server = stub_server_start(script, 1);
    make_beat(open_sqs(server));
    add(hidden_entry(queue_url, server));
    assert_event(DTQ_EVENT_VISIBILITY_LOST);
    wait_for_extension(board_deadline_ns());
    wait_for_extension(board_deadline_ns());
    ck_assert_uint_eq(stub_server_requests(server), 1);
    sf_close_store(&f);
    sf_open_store(&f);
    stub_server_stop(server);
}
END_TEST

START_TEST(twelve_hours_end_the_hiding)
{
    char queue_url[256];
    static const struct stub_answer script[] = {{.body = "{}"}};
    struct stub_server *server = stub_server_start(script, 1);
    make_beat(open_sqs(server));
    struct dtq_beat_entry given = hidden_entry(queue_url, server);
    uint64_t boot_ns = dtq_clock_boot_ns();
    given.received_boot_ns = boot_ns - (43200 - 20) * S; /* wraps where the machine is younger: as the clock would */
    add(given);
    assert_event(DTQ_EVENT_VISIBILITY_LOST);
    ck_assert_uint_eq(stub_server_requests(server), 0);
    sf_close_store(&f);
    sf_open_store(&f);
    stub_server_stop(server);
}
END_TEST

START_TEST(a_forgotten_message_is_not_hidden_any_more)
{
    char queue_url[256];
    static const struct stub_answer script[] = {{.body = "{}"}};
    struct stub_server *server = stub_server_start(script, 1);
    make_beat(open_sqs(server));
    struct dtq_beat_entry given = hidden_entry(queue_url, server);
    given.heartbeat_s = 0.5;
    add(given);
    dtq_beat_forget_message(beat, generation);
    dtq_beat_forget_message(beat, 12345);
    wait_for_extension(board_deadline_ns());
    wait_for_extension(board_deadline_ns());
    ck_assert_uint_eq(stub_server_requests(server), 0);
    sf_close_store(&f);
    sf_open_store(&f);
    stub_server_stop(server);
}
END_TEST

START_TEST(more_than_ten_messages_take_several_requests)
{
    enum { COUNT = 12 };
    char queue_url[256], handle[32];
    static const struct stub_answer script[] = {{.status = 400, .body = "{\"__type\":\"x#Nothing\"}"}};
    struct stub_server *server = stub_server_start(script, 1);
    make_beat(open_sqs(server));
    struct dtq_beat_entry given = hidden_entry(queue_url, server);
    given.heartbeat_s = 0.3;
    given.slot = -1;
    for (int i = 0; i < COUNT; i++) {
        snprintf(handle, sizeof handle, "handle-%02d", i);
        given.receipt_handle = handle;
        given.generation = generation + i;
        add(given);
    }
    stub_server_wait_for(server, 2);
    int found = 0;
    for (int i = 0; i < COUNT; i++) {
        snprintf(handle, sizeof handle, "handle-%02d", i);
        for (size_t r = 0; r < 2; r++)
            found += strstr(stub_server_request(server, r), handle) != NULL;
    }
    ck_assert_int_eq(found, COUNT);
    sf_close_store(&f);
    sf_open_store(&f);
    stub_server_stop(server);
}
END_TEST

Suite *beat_suite(void)
{
    Suite *suite = suite_create("beat");
    if (!sf_database_url()) {
        fprintf(stderr, "\n*** DTQ_TEST_DATABASE_URL is not set: the heartbeat is NOT tested ***\n\n");
        return suite;
    }
    TCase *tcase = tcase_create("beat");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, sf_migrate, NULL);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, a_beat_renews_the_lease_and_moves_the_deadline);
    tcase_add_test(tcase, a_locale_with_a_comma_shortens_no_lease);
    tcase_add_test(tcase, a_removed_entry_is_not_renewed);
    tcase_add_test(tcase, a_row_that_was_taken_away_is_told);
    tcase_add_test(tcase, a_requested_cancellation_is_told_once);
    tcase_add_test(tcase, a_lease_that_cannot_be_renewed_is_lost_at_the_local_deadline);
    tcase_add_test(tcase, a_lost_connection_costs_no_lease);
    tcase_add_test(tcase, bad_entries_are_refused);
    tcase_add_test(tcase, a_visibility_is_renewed_when_a_third_has_passed);
    tcase_add_test(tcase, a_void_receipt_handle_is_told_and_the_lease_goes_on);
    tcase_add_test(tcase, twelve_hours_end_the_hiding);
    tcase_add_test(tcase, a_forgotten_message_is_not_hidden_any_more);
    tcase_add_test(tcase, more_than_ten_messages_take_several_requests);
    tcase_add_test(tcase, memory_may_be_short);
    suite_add_tcase(suite, tcase);
    return suite;
}
