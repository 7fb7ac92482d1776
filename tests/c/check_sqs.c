/*
 * The SQS client against a scripted server (faults) and against an emulator (the whole surface).
 *
 * The emulator's address is in DTQ_TEST_SQS_ENDPOINT; without it those cases say that they were skipped.
 */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <check.h>
#include <curl/curl.h>

#include "check_alloc.h"
#include "dtq_clock.h"
#include "dtq_json.h"
#include "dtq_rand.h"
#include "dtq_sqs.h"
#include "stub_server.h"

#define EMPTY_HANDED "{\"Messages\":[]}"
#define ONE_MESSAGE                                                                                                    \
    "{\"Messages\":[{\"MessageId\":\"m1\",\"ReceiptHandle\":\"h1\","                                                   \
    "\"MD5OfBody\":\"900150983cd24fb0d6963f7d28e17f72\",\"Body\":\"abc\"}]}"
#define SENT_ONE "{\"Successful\":[{\"Id\":\"0\",\"MessageId\":\"m1\"}]}"
#define DONE_ONE "{\"Successful\":[{\"Id\":\"0\"}]}"
#define REFUSED(type) "{\"__type\":\"com.amazonaws.sqs#" type "\",\"message\":\"said so\"}"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct stub_server *server;
static struct dtq_loop *loop;
static struct dtq_sqs *client;
static struct dtq_error err;
static char queue_url[256];

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static struct dtq_sqs_options quick_options(const char *endpoint)
{
    struct dtq_sqs_options options = {
        .region = "eu-central-1",
        .endpoint = endpoint,
        .backoff_base_ms = 1,
        .backoff_cap_ms = 2,
        .join_wait_ms = 3600 * 1000, /* the tests say when they depart */
    };
    return options;
}

static void make_client(const struct dtq_sqs_options *options)
{
    struct dtq_creds *creds = dtq_creds_new("AKID", "secret", NULL, 0);
    ck_assert_int_eq(dtq_loop_new(&loop, &err), DTQ_OK);
    ck_assert_int_eq(dtq_sqs_new(loop, options, creds, &client, &err), DTQ_OK);
    dtq_creds_release(creds);
}

static void start_with(const struct stub_answer *script, size_t count)
{
    server = stub_server_start(script, count);
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    snprintf(queue_url, sizeof queue_url, "%s/123456789012/steps", stub_server_url(server));
    make_client(&options);
}

static void set_up(void)
{
    unsetenv("http_proxy");
    unsetenv("https_proxy");
    unsetenv("ALL_PROXY");
    unsetenv("all_proxy");
    server = NULL;
    loop = NULL;
    client = NULL;
}

static void tear_down(void)
{
    dtq_loop_destroy(loop);
    if (server)
        stub_server_stop(server);
}

static struct dtq_sqs_op *submit(struct dtq_sqs_op *op)
{
    ck_assert_msg(op != NULL, "%s", err.message);
    ck_assert_int_eq(dtq_loop_submit(loop, (struct dtq_op *)op, &err), DTQ_OK);
    return op;
}

static const struct dtq_error *wait_for(struct dtq_sqs_op *op)
{
    struct dtq_op *base = (struct dtq_op *)op;
    ck_assert_int_eq(dtq_loop_wait(loop, base, -1, &err), DTQ_OK);
    return &base->error;
}

static void wait_ok(struct dtq_sqs_op *op)
{
    const struct dtq_error *error = wait_for(op);
    ck_assert_msg(error->code == DTQ_OK, "%d: %s", error->code, error->message);
}

static void release(struct dtq_sqs_op *op)
{
    dtq_op_release(loop, (struct dtq_op *)op);
}

static struct dtq_sqs_op *send_text(const char *text)
{
    struct dtq_sqs_entry entry = {.body = dtq_slice_str(text), .delay_s = -1};
    return submit(dtq_sqs_send_batch(client, queue_url, &entry, 1, 0, &err));
}

static struct dtq_sqs_op *receive(int wait_s)
{
    return submit(dtq_sqs_receive(client, queue_url, 10, wait_s, -1, 0, &err));
}

static struct dtq_sqs_stats stats(void)
{
    struct dtq_sqs_stats now;
    dtq_sqs_get_stats(client, &now);
    return now;
}

static void assert_contains(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) != NULL, "\"%s\" is not in: %s", part, text);
}

/* ---- requests and answers ---------------------------------------------------------------------------------------- */

START_TEST(a_request_is_what_it_should_be)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("hello");
    wait_ok(op);
    ck_assert_int_eq(dtq_sqs_op_kind(op), DTQ_SQS_RESULT_ENTRIES);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 1);
    ck_assert(dtq_sqs_op_entry(op, 0)->ok);
    ck_assert_str_eq(dtq_sqs_op_entry(op, 0)->message_id, "m1");
    release(op);
    const char *request = stub_server_request(server, 0);
    assert_contains(request, "POST /123456789012/steps HTTP/1.1\r\n");
    assert_contains(request, "\r\nX-Amz-Target: AmazonSQS.SendMessageBatch\r\n");
    assert_contains(request, "\r\nContent-Type: application/x-amz-json-1.0\r\n");
    assert_contains(request, "\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKID/");
    assert_contains(request, "/eu-central-1/sqs/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target");
    assert_contains(request, "\"MessageBody\":\"hello\"");
    ck_assert_ptr_null(strstr(request, "Expect:"));
    ck_assert_ptr_null(strstr(request, "Accept:"));
    char host[128];
    snprintf(host, sizeof host, "\r\nHost: %s\r\n", stub_server_url(server) + strlen("http://"));
    assert_contains(request, host);
}
END_TEST

START_TEST(connections_are_used_again)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    start_with(script, COUNT(script));
    for (int i = 0; i < 20; i++) {
        struct dtq_sqs_op *op = send_text("hello");
        wait_ok(op);
        release(op);
    }
    ck_assert_uint_eq(stub_server_connections(server), 1);
    struct dtq_sqs_stats now = stats();
    ck_assert_uint_eq(now.requests, 20);
    ck_assert_uint_eq(now.connections, 1);
    ck_assert_uint_eq(now.retries, 0);
    ck_assert_uint_gt(now.bytes_sent, 20 * 200);
    ck_assert_uint_gt(now.bytes_received, 20 * strlen(SENT_ONE));
}
END_TEST

START_TEST(a_session_token_is_sent_and_signed)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    start_with(script, COUNT(script));
    struct dtq_creds *creds = dtq_creds_new("TEMP", "secret", "the-token", 0);
    dtq_sqs_set_credentials(client, creds);
    dtq_creds_release(creds);
    struct dtq_sqs_op *op = send_text("hello");
    wait_ok(op);
    release(op);
    assert_contains(stub_server_request(server, 0), "\r\nX-Amz-Security-Token: the-token\r\n");
    assert_contains(stub_server_request(server, 0), "x-amz-security-token");
}
END_TEST

START_TEST(messages_arrive_and_damaged_ones_are_marked)
{
    static const struct stub_answer script[] = {
        {.body = "{\"Messages\":[{\"MessageId\":\"m1\",\"ReceiptHandle\":\"h1\","
                 "\"MD5OfBody\":\"900150983cd24fb0d6963f7d28e17f72\",\"Body\":\"abc\"},"
                 "{\"MessageId\":\"m2\",\"ReceiptHandle\":\"h2\",\"MD5OfBody\":\"900150983cd24fb0d6963f7d28e17f72\","
                 "\"Body\":\"abx\"}]}"},
    };
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = receive(20);
    wait_ok(op);
    ck_assert_int_eq(dtq_sqs_op_kind(op), DTQ_SQS_RESULT_MESSAGES);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 2);
    ck_assert(!dtq_sqs_op_message(op, 0)->damaged);
    ck_assert(dtq_sqs_op_message(op, 1)->damaged);
    release(op);
    assert_contains(stub_server_request(server, 0), "\"WaitTimeSeconds\":20");
}
END_TEST

START_TEST(any_action_can_be_called)
{
    static const struct stub_answer script[] = {{.body = "{\"QueueUrl\":\"http://q\"}"}, {.body = NULL}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op =
        submit(dtq_sqs_call(client, "GetQueueUrl", NULL, dtq_slice_str("{\"QueueName\":\"q\"}"), 0, &err));
    wait_ok(op);
    ck_assert_int_eq(dtq_sqs_op_kind(op), DTQ_SQS_RESULT_JSON);
    ck_assert(dtq_slice_equal(dtq_sqs_op_json(op), dtq_slice_str("{\"QueueUrl\":\"http://q\"}")));
    release(op);
    assert_contains(stub_server_request(server, 0), "POST / HTTP/1.1\r\n");
    op = submit(dtq_sqs_call(client, "PurgeQueue", queue_url, dtq_slice_str("{}"), 0, &err));
    wait_ok(op);
    ck_assert(dtq_slice_equal(dtq_sqs_op_json(op), dtq_slice_str("{}")));
    release(op);
}
END_TEST

START_TEST(arguments_are_checked)
{
    const char *handle = "h";
    const int too_long = 43201;
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    start_with(script, COUNT(script));
    ck_assert_ptr_null(dtq_sqs_send_batch(client, queue_url, &entry, 0, 0, &err));
    ck_assert_int_eq(err.code, DTQ_INVALID_ARGUMENT);
    ck_assert_ptr_null(dtq_sqs_send_batch(client, "steps", &entry, 1, 0, &err));
    ck_assert_int_eq(err.code, DTQ_INVALID_ARGUMENT);
    assert_contains(err.message, "\"steps\" is not a queue URL");
    ck_assert_ptr_null(dtq_sqs_send_batch(client, NULL, &entry, 1, 0, &err));
    ck_assert_ptr_null(dtq_sqs_receive(client, queue_url, 11, 0, -1, 0, &err));
    ck_assert_ptr_null(dtq_sqs_receive(client, queue_url, 1, 0, -1, -5, &err));
    ck_assert_ptr_null(dtq_sqs_delete_batch(client, queue_url, &handle, 11, 0, &err));
    ck_assert_ptr_null(dtq_sqs_visibility_batch(client, queue_url, &handle, &too_long, 1, 0, &err));
    ck_assert_ptr_null(dtq_sqs_call(client, "Get Queue", NULL, dtq_slice_str("{}"), 0, &err));
    ck_assert_ptr_null(dtq_sqs_call(client, "GetQueueUrl", NULL, dtq_slice_str("{"), 0, &err));
    ck_assert_int_eq(dtq_sqs_source(client)->source_class != NULL, 1);
}
END_TEST

START_TEST(options_are_checked)
{
    struct dtq_sqs *made = NULL;
    ck_assert_int_eq(dtq_loop_new(&loop, &err), DTQ_OK);
    struct dtq_sqs_options options = quick_options("http://127.0.0.1:1");
    options.region = "";
    ck_assert_int_eq(dtq_sqs_new(loop, &options, NULL, &made, &err), DTQ_INVALID_ARGUMENT);
    assert_contains(err.message, "AWS_REGION");
    options.region = "eu/../x";
    ck_assert_int_eq(dtq_sqs_new(loop, &options, NULL, &made, &err), DTQ_INVALID_ARGUMENT);
    options = quick_options("127.0.0.1");
    ck_assert_int_eq(dtq_sqs_new(loop, &options, NULL, &made, &err), DTQ_INVALID_ARGUMENT);
    assert_contains(err.message, "AWS_ENDPOINT_URL_SQS");
    options = quick_options("http://127.0.0.1:1");
    options.ca_file = "/nowhere/ca.pem";
    ck_assert_int_eq(dtq_sqs_new(loop, &options, NULL, &made, &err), DTQ_INVALID_ARGUMENT);
    assert_contains(err.message, "/nowhere/ca.pem");
    ck_assert_ptr_null(made);
    dtq_loop_close(loop, 0);
    options.ca_file = NULL;
    ck_assert_int_eq(dtq_sqs_new(loop, &options, NULL, &made, &err), DTQ_CLOSED);
}
END_TEST

/* ---- faults ------------------------------------------------------------------------------------------------------ */

struct fault_case {
    struct stub_answer first;
    bool receive_retries; /* nothing can have been hidden */
    enum dtq_code code;   /* of a receive that is not tried again */
};

static const struct fault_case faults[] = {
    {{.status = 503, .body = "busy"}, true, DTQ_OK},
    {{.status = 500, .body = REFUSED("InternalFailure")}, true, DTQ_OK},
    {{.status = 400, .body = REFUSED("ThrottlingException")}, true, DTQ_OK},
    {{.status = 429}, true, DTQ_OK},
    {{.status = 502}, false, DTQ_UNAVAILABLE},
    {{.status = 504}, false, DTQ_UNAVAILABLE},
    {{.body = ONE_MESSAGE, .fault = STUB_RESET_IN_BODY}, false, DTQ_TRANSPORT},
    {{.body = ONE_MESSAGE, .fault = STUB_CUT_HEADER}, false, DTQ_TRANSPORT},
    {{.fault = STUB_CLOSE}, false, DTQ_TRANSPORT},
    {{.body = "220 smtp ready\r\n", .fault = STUB_RAW}, false, DTQ_TRANSPORT},
    {{.body = "<html>welcome</html>"}, false, DTQ_RESPONSE},
    {{.body = "{\"Messages\":[{\"Body\":"}, false, DTQ_RESPONSE},
    {{.body = NULL}, false, DTQ_RESPONSE},
    {{.body = "HTTP/1.1 200 OK\r\n\r\n", .fault = STUB_RAW}, false, DTQ_RESPONSE},
};

START_TEST(a_send_is_tried_again_after_a_fault)
{
    const struct stub_answer script[] = {faults[_i].first, {.body = SENT_ONE}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    wait_ok(op);
    ck_assert(dtq_sqs_op_entry(op, 0)->ok);
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 2);
    ck_assert_uint_eq(stats().retries, 1);
    ck_assert_uint_eq(stats().failed, 0);
}
END_TEST

START_TEST(a_receive_is_tried_again_only_when_nothing_can_be_hidden)
{
    const struct stub_answer script[] = {faults[_i].first, {.body = ONE_MESSAGE}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = receive(1);
    const struct dtq_error *error = wait_for(op);
    ck_assert_msg(error->code == faults[_i].code, "%d: %s", error->code, error->message);
    ck_assert_uint_eq(dtq_sqs_op_count(op), faults[_i].receive_retries ? 1 : 0);
    if (error->code)
        assert_contains(error->message, "ReceiveMessage of http://127.0.0.1:");
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), faults[_i].receive_retries ? 2 : 1);
    ck_assert_uint_eq(stats().failed, faults[_i].receive_retries ? 0 : 1);
}
END_TEST

#if LIBCURL_VERSION_NUM >= 0x075000
/* libcurl repeats by itself what it sent on a connection that was used before. */
START_TEST(a_receive_whose_old_connection_closes_is_not_repeated)
{
    static const struct stub_answer script[] = {{.body = EMPTY_HANDED}, {.fault = STUB_CLOSE}, {.body = ONE_MESSAGE}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = receive(0);
    wait_ok(op);
    release(op);
    op = receive(0);
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_TRANSPORT);
    assert_contains(error->message, "the connection closed without an answer");
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 2);
    ck_assert_uint_eq(stats().retries, 0);
    ck_assert_uint_eq(stats().failed, 1);
    op = receive(0);
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 1);
    release(op);
}
END_TEST

START_TEST(a_send_whose_old_connection_closes_is_repeated_and_counted)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}, {.fault = STUB_CLOSE}, {.body = SENT_ONE}};
    start_with(script, COUNT(script));
    for (int i = 0; i < 2; i++) {
        struct dtq_sqs_op *op = send_text("x");
        wait_ok(op);
        release(op);
    }
    ck_assert_uint_eq(stub_server_requests(server), 3);
    ck_assert_uint_eq(stats().requests, 2);
    ck_assert_uint_eq(stats().retries, 1);
}
END_TEST
#endif

START_TEST(attempts_end)
{
    static const struct stub_answer script[] = {{.status = 400, .body = REFUSED("RequestThrottled")}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_THROTTLED);
    ck_assert_int_eq(error->http_status, 400);
    ck_assert_str_eq(error->service_code, "RequestThrottled");
    assert_contains(error->message, "said so");
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 5);
    ck_assert_uint_eq(stats().throttled, 5);
    ck_assert_uint_eq(stats().retries, 4);
}
END_TEST

START_TEST(a_refusal_is_not_tried_again)
{
    static const struct stub_answer script[] = {
        {.status = 400,
         .headers = "x-amzn-query-error: AWS.SimpleQueueService.NonExistentQueue;Sender\r\n",
         .body = REFUSED("QueueDoesNotExist")},
        {.status = 403, .body = REFUSED("InvalidClientTokenId")},
        {.status = 400, .body = REFUSED("InvalidMessageContents")},
    };
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = receive(0);
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_QUEUE_MISSING);
    assert_contains(error->message, queue_url);
    assert_contains(error->message, "eu-central-1");
    release(op);
    op = send_text("x");
    error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_CREDENTIALS);
    assert_contains(error->message, "AWS_SECRET_ACCESS_KEY");
    release(op);
    op = send_text("x");
    ck_assert_int_eq(wait_for(op)->code, DTQ_SERVICE);
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 3);
}
END_TEST

START_TEST(an_unreachable_endpoint_is_named)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    server = stub_server_start(script, 1);
    char url[64];
    snprintf(url, sizeof url, "%s", stub_server_url(server));
    stub_server_stop(server);
    server = NULL;
    struct dtq_sqs_options options = quick_options(url);
    options.max_attempts = 3;
    make_client(&options);
    snprintf(queue_url, sizeof queue_url, "https://sqs.eu-central-1.amazonaws.com/1/steps");
    struct dtq_sqs_op *op = receive(20);
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_TRANSPORT);
    assert_contains(error->message, url);
    assert_contains(error->message, queue_url);
    release(op);
    ck_assert_uint_eq(stats().requests, 3);
}
END_TEST

START_TEST(a_header_without_end_is_refused)
{
    static char headers[100 * 1024];
    size_t used = (size_t)snprintf(headers, sizeof headers, "HTTP/1.1 200 OK\r\n");
    while (used < sizeof headers - 100)
        used +=
            (size_t)snprintf(headers + used, sizeof headers - used, "X-Pad: 0123456789012345678901234567890123\r\n");
    const struct stub_answer script[] = {{.body = headers, .fault = STUB_RAW}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    ck_assert_int_eq(wait_for(op)->code, DTQ_TOO_LARGE);
    release(op);
}
END_TEST

START_TEST(a_slow_answer_meets_the_deadline)
{
    static const struct stub_answer script[] = {{.status = 503}, {.body = SENT_ONE, .hold = true}};
    start_with(script, COUNT(script));
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    struct dtq_sqs_op *op = submit(dtq_sqs_send_batch(client, queue_url, &entry, 1, 100, &err));
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_TIMEOUT);
    assert_contains(error->message, "SendMessageBatch of");
    release(op);
}
END_TEST

START_TEST(one_slow_attempt_is_given_up_for_another)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE, .hold = true}, {.body = SENT_ONE}};
    server = stub_server_start(script, 2);
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.request_timeout_ms = 200;
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    make_client(&options);
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    struct dtq_sqs_op *op = submit(dtq_sqs_send_batch(client, queue_url, &entry, 1, 30000, &err));
    wait_ok(op);
    release(op);
}
END_TEST

START_TEST(a_request_may_take_for_ever)
{
    static const struct stub_answer script[] = {{.body = ONE_MESSAGE}};
    server = stub_server_start(script, 1);
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.request_timeout_ms = INT_MAX; /* as the binding gives infinity */
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    make_client(&options);
    struct dtq_sqs_op *op = receive(20);
    wait_ok(op);
    release(op);
}
END_TEST

/* ---- clock and credentials --------------------------------------------------------------------------------------- */

START_TEST(a_wrong_clock_is_corrected_once)
{
    static const struct stub_answer script[] = {
        {.status = 403, .headers = "Date: Sun, 30 Aug 2015 12:36:00 GMT\r\n", .body = REFUSED("RequestTimeTooSkewed")},
        {.body = SENT_ONE},
        {.body = SENT_ONE},
        {.status = 403,
         .headers = "Date: Mon, 31 Aug 2015 12:36:00 GMT\r\n",
         .body =
             "{\"__type\":\"InvalidSignatureException\",\"message\":\"Signature expired: a is now earlier than b\"}"},
    };
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op;
    for (int i = 0; i < 2; i++) {
        op = send_text("x");
        wait_ok(op);
        release(op);
    }
    assert_contains(stub_server_request(server, 1), "X-Amz-Date: 20150830T1236");
    assert_contains(stub_server_request(server, 2), "X-Amz-Date: 20150830T1236");
    op = send_text("x");
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_CREDENTIALS);
    assert_contains(error->message, "clock");
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 5);
    assert_contains(stub_server_request(server, 4), "X-Amz-Date: 20150831T1236");
}
END_TEST

START_TEST(without_credentials_nothing_is_sent)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    start_with(script, COUNT(script));
    dtq_sqs_set_credentials(client, NULL);
    struct dtq_sqs_op *op = send_text("x");
    const struct dtq_error *error = wait_for(op);
    ck_assert_int_eq(error->code, DTQ_CREDENTIALS);
    assert_contains(error->message, "AWS_ACCESS_KEY_ID");
    assert_contains(error->message, "AWS_SESSION_TOKEN");
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 0);
}
END_TEST

START_TEST(credentials_that_were_set_meanwhile_are_tried)
{
    static const struct stub_answer script[] = {{.status = 403, .body = REFUSED("ExpiredTokenException"), .hold = true},
                                                {.body = SENT_ONE}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    stub_server_wait_for(server, 1);
    struct dtq_creds *fresh = dtq_creds_new("FRESH", "secret", "token", 0);
    dtq_sqs_set_credentials(client, fresh);
    dtq_creds_release(fresh);
    stub_server_let_go(server);
    wait_ok(op);
    release(op);
    assert_contains(stub_server_request(server, 0), "Credential=AKID/");
    assert_contains(stub_server_request(server, 1), "Credential=FRESH/");
}
END_TEST

START_TEST(expired_credentials_that_nobody_renews_end_a_request)
{
    static const struct stub_answer script[] = {{.status = 403, .body = REFUSED("ExpiredTokenException")}};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    ck_assert_int_eq(wait_for(op)->code, DTQ_CREDENTIALS);
    release(op);
    ck_assert(!dtq_sqs_wants_credentials(client));
    ck_assert_uint_eq(stub_server_requests(server), 1);
}
END_TEST

START_TEST(an_owner_that_renews_is_told_of_expired_credentials)
{
    static const struct stub_answer script[] = {{.status = 403, .body = REFUSED("ExpiredTokenException")},
                                                {.body = SENT_ONE}};
    server = stub_server_start(script, COUNT(script));
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.owner_renews = true;
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    ck_assert_int_eq(dtq_loop_new(&loop, &err), DTQ_OK);
    struct dtq_creds *old = dtq_creds_new("OLD", "secret", "token", dtq_clock_wall_s() + 3600);
    ck_assert_int_eq(dtq_sqs_new(loop, &options, old, &client, &err), DTQ_OK);
    dtq_creds_release(old);
    ck_assert(!dtq_sqs_wants_credentials(client));
    struct dtq_sqs_op *op = send_text("x");
    ck_assert_int_eq(wait_for(op)->code, DTQ_EXPIRED);
    release(op);
    ck_assert(dtq_sqs_wants_credentials(client));
    struct dtq_creds *fresh = dtq_creds_new("FRESH", "secret", "token", dtq_clock_wall_s() + 3600);
    dtq_sqs_set_credentials(client, fresh);
    dtq_creds_release(fresh);
    ck_assert(!dtq_sqs_wants_credentials(client));
    op = send_text("x");
    wait_ok(op);
    release(op);
    dtq_loop_close(loop, 1000);
    assert_contains(stub_server_request(server, 1), "Credential=FRESH/");
}
END_TEST

/* ---- cancel and stop --------------------------------------------------------------------------------------------- */

static const struct stub_answer held_poll[] = {{.body = ONE_MESSAGE, .hold = true}, {.body = DONE_ONE}};

static void assert_handed_back(void)
{
    stub_server_wait_for(server, 2);
    const char *request = stub_server_request(server, 1);
    assert_contains(request, "X-Amz-Target: AmazonSQS.ChangeMessageVisibilityBatch\r\n");
    assert_contains(request, "{\"Id\":\"0\",\"ReceiptHandle\":\"h1\",\"VisibilityTimeout\":0}");
}

START_TEST(what_a_cancelled_poll_brings_is_handed_back)
{
    start_with(held_poll, COUNT(held_poll));
    struct dtq_sqs_op *op = receive(20);
    stub_server_wait_for(server, 1);
    dtq_loop_cancel(loop, (struct dtq_op *)op);
    ck_assert_int_eq(wait_for(op)->code, DTQ_CANCELLED);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 0);
    release(op);
    stub_server_let_go(server);
    assert_handed_back();
}
END_TEST

START_TEST(what_an_overdue_poll_brings_is_handed_back)
{
    start_with(held_poll, COUNT(held_poll));
    struct dtq_sqs_op *op = submit(dtq_sqs_receive(client, queue_url, 1, 20, -1, 50, &err));
    stub_server_wait_for(server, 1);
    ck_assert_int_eq(wait_for(op)->code, DTQ_TIMEOUT);
    release(op);
    stub_server_let_go(server);
    assert_handed_back();
}
END_TEST

static void *close_patiently(void *argument)
{
    dtq_loop_close(argument, 3600 * 1000);
    return NULL;
}

START_TEST(what_a_poll_brings_during_a_graceful_stop_is_handed_back)
{
    pthread_t closer;
    start_with(held_poll, COUNT(held_poll));
    struct dtq_sqs_op *op = receive(20);
    stub_server_wait_for(server, 1);
    ck_assert_int_eq(pthread_create(&closer, NULL, close_patiently, loop), 0);
    ck_assert_int_eq(wait_for(op)->code, DTQ_CLOSED);
    release(op);
    stub_server_let_go(server);
    pthread_join(closer, NULL);
    ck_assert_uint_eq(stub_server_requests(server), 2);
    assert_handed_back();
}
END_TEST

START_TEST(a_send_is_finished_by_a_graceful_stop)
{
    static const struct stub_answer script[] = {{.status = 503, .hold = true}, {.body = SENT_ONE}};
    pthread_t closer;
    start_with(script, COUNT(script));
    struct dtq_sqs_op *op = send_text("x");
    stub_server_wait_for(server, 1);
    ck_assert_int_eq(pthread_create(&closer, NULL, close_patiently, loop), 0);
    stub_server_let_go(server);
    pthread_join(closer, NULL);
    wait_ok(op);
    release(op);
}
END_TEST

START_TEST(a_forced_stop_drops_everything)
{
    static const struct stub_answer script[] = {{.hold = true}};
    struct dtq_sqs_op *ops[60];
    start_with(script, COUNT(script));
    for (int i = 0; i < 60; i++)
        ops[i] = i % 2 ? receive(20) : send_text("x");
    stub_server_wait_for(server, 40); /* the rest waits for a place */
    dtq_loop_cancel(loop, (struct dtq_op *)ops[1]);
    dtq_loop_cancel(loop, (struct dtq_op *)ops[2]);
    dtq_loop_close(loop, 0);
    for (int i = 0; i < 60; i++) {
        enum dtq_code code = wait_for(ops[i])->code;
        ck_assert(code == DTQ_CLOSED || ((i == 1 || i == 2) && code == DTQ_CANCELLED));
        release(ops[i]);
    }
}
END_TEST

START_TEST(sends_do_not_wait_behind_polls)
{
    static struct stub_answer script[41];
    struct dtq_sqs_op *polls[40];
    for (int i = 0; i < 40; i++)
        script[i] = (struct stub_answer){.body = EMPTY_HANDED, .hold = true};
    script[32].hold = false; /* what comes after 32 polls is the send */
    script[32].body = SENT_ONE;
    script[40] = (struct stub_answer){.body = EMPTY_HANDED};
    start_with(script, COUNT(script));
    for (int i = 0; i < 40; i++)
        polls[i] = receive(20);
    stub_server_wait_for(server, 32);
    struct dtq_sqs_op *op = send_text("x");
    wait_ok(op);
    release(op);
    stub_server_let_go(server);
    for (int i = 0; i < 40; i++) {
        wait_ok(polls[i]);
        release(polls[i]);
    }
}
END_TEST

START_TEST(waiting_operations_can_be_cancelled)
{
    static const struct stub_answer script[] = {{.hold = true}};
    struct dtq_sqs_op *ops[40];
    start_with(script, COUNT(script));
    for (int i = 0; i < 40; i++)
        ops[i] = send_text("x");
    stub_server_wait_for(server, 24);
    for (int i = 39; i >= 0; i--)
        dtq_loop_cancel(loop, (struct dtq_op *)ops[i]);
    for (int i = 0; i < 40; i++) {
        ck_assert_int_eq(wait_for(ops[i])->code, DTQ_CANCELLED);
        release(ops[i]);
    }
}
END_TEST

START_TEST(an_operation_between_attempts_can_be_cancelled)
{
    static const struct stub_answer script[] = {{.status = 503}};
    server = stub_server_start(script, 1);
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.backoff_base_ms = options.backoff_cap_ms = 3600 * 1000;
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    make_client(&options);
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    struct dtq_sqs_op *first = submit(dtq_sqs_send_batch(client, queue_url, &entry, 1, 2000000000, &err));
    struct dtq_sqs_op *second = submit(dtq_sqs_send_batch(client, queue_url, &entry, 1, 2000000000, &err));
    stub_server_wait_for(server, 2);
    while (stats().bytes_received == 0)
        usleep(100);
    dtq_loop_cancel(loop, (struct dtq_op *)first);
    ck_assert_int_eq(wait_for(first)->code, DTQ_CANCELLED);
    dtq_loop_close(loop, 0);
    ck_assert_int_eq(wait_for(second)->code, DTQ_CLOSED);
    release(first);
    release(second);
}
END_TEST

/* ---- deletes that travel together -------------------------------------------------------------------------------- */

#define DONE_TEN                                                                                                       \
    "{\"Successful\":[{\"Id\":\"0\"},{\"Id\":\"1\"},{\"Id\":\"2\"},{\"Id\":\"3\"},{\"Id\":\"4\"},{\"Id\":\"5\"},"      \
    "{\"Id\":\"6\"},{\"Id\":\"7\"},{\"Id\":\"8\"},{\"Id\":\"9\"}]}"

static struct dtq_sqs_op *delete_from(const char *url, const char *handle)
{
    return submit(dtq_sqs_delete_batch(client, url, &handle, 1, 0, &err));
}

/* What was submitted before is where it waits when this returns. */
static void settle(void)
{
    struct dtq_sqs_op *op = send_text("x");
    wait_ok(op);
    release(op);
}

/* The request's entries are deletes of these receipt handles, in this order. */
static void assert_deletes(size_t index, const char *const *handles, size_t count)
{
    const char *at = stub_server_request(server, index);
    assert_contains(at, "X-Amz-Target: AmazonSQS.DeleteMessageBatch\r\n");
    at = strstr(at, "\"Entries\":[");
    ck_assert_ptr_nonnull(at);
    char wanted[1024] = "\"Entries\":[", entry[128];
    for (size_t i = 0; i < count; i++) {
        snprintf(entry, sizeof entry, "%s{\"Id\":\"%zu\",\"ReceiptHandle\":\"%s\"}", i ? "," : "", i, handles[i]);
        strcat(wanted, entry);
    }
    strcat(wanted, "]}");
    ck_assert_str_eq(at, wanted);
}

START_TEST(deletes_that_meet_travel_together)
{
    static const struct stub_answer script[] = {
        {.body = DONE_ONE, .hold = true},
        {.body = SENT_ONE},
        {.body =
             "{\"Successful\":[{\"Id\":\"2\"},{\"Id\":\"0\"}],"
             "\"Failed\":[{\"Id\":\"1\",\"Code\":\"ReceiptHandleIsInvalid\",\"Message\":\"no\",\"SenderFault\":true}]}"},
    };
    const char *two[] = {"c{\"Id\":\"", "d"};
    start_with(script, COUNT(script));
    struct dtq_sqs_op *first = delete_from(queue_url, "a");
    stub_server_wait_for(server, 1);
    struct dtq_sqs_op *second = delete_from(queue_url, "b");
    struct dtq_sqs_op *third = submit(dtq_sqs_delete_batch(client, queue_url, two, 2, 0, &err));
    settle();
    ck_assert(!dtq_op_is_done(loop, (struct dtq_op *)second));
    stub_server_let_go(server);
    wait_ok(first);
    wait_ok(second);
    wait_ok(third);
    ck_assert_uint_eq(stub_server_requests(server), 3);
    static const char *const handles[] = {"b", "c{\\\"Id\\\":\\\"", "d"};
    assert_deletes(2, handles, 3);
    ck_assert_uint_eq(dtq_sqs_op_count(second), 1);
    ck_assert(dtq_sqs_op_entry(second, 0)->ok);
    release(first);
    release(second);
    ck_assert_uint_eq(dtq_sqs_op_count(third), 2); /* whose texts outlive its fellow */
    ck_assert_str_eq(dtq_sqs_op_entry(third, 0)->code, "ReceiptHandleIsInvalid");
    ck_assert_str_eq(dtq_sqs_op_entry(third, 0)->message, "no");
    ck_assert(dtq_sqs_op_entry(third, 0)->sender_fault);
    ck_assert(dtq_sqs_op_entry(third, 1)->ok);
    release(third);
    ck_assert_uint_eq(stats().requests, 3);
    ck_assert_uint_eq(stats().failed, 0);
}
END_TEST

START_TEST(ten_deletes_wait_for_nobody)
{
    static const struct stub_answer script[] = {{.body = DONE_ONE, .hold = true}, {.body = DONE_TEN}};
    static const char *const handles[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    struct dtq_sqs_op *ops[10];
    start_with(script, COUNT(script));
    struct dtq_sqs_op *first = delete_from(queue_url, "a");
    stub_server_wait_for(server, 1);
    for (int i = 0; i < 10; i++)
        ops[i] = delete_from(queue_url, handles[i]);
    for (int i = 0; i < 10; i++) {
        wait_ok(ops[i]);
        ck_assert(dtq_sqs_op_entry(ops[i], 0)->ok);
        release(ops[i]);
    }
    assert_deletes(1, handles, 10);
    ck_assert(!dtq_op_is_done(loop, (struct dtq_op *)first));
    struct dtq_sqs_op *whole = submit(dtq_sqs_delete_batch(client, queue_url, handles, 10, 0, &err));
    wait_ok(whole);
    release(whole);
    stub_server_let_go(server);
    wait_ok(first);
    release(first);
}
END_TEST

START_TEST(deletes_wait_for_their_own_queue_only)
{
    static const struct stub_answer script[] = {{.body = DONE_ONE, .hold = true}, {.body = DONE_ONE}};
    char other_url[sizeof queue_url + 2];
    start_with(script, COUNT(script));
    snprintf(other_url, sizeof other_url, "%s-2", queue_url);
    struct dtq_sqs_op *first = delete_from(queue_url, "a");
    stub_server_wait_for(server, 1);
    struct dtq_sqs_op *waiting = delete_from(queue_url, "b");
    struct dtq_sqs_op *other = delete_from(other_url, "c");
    wait_ok(other);
    ck_assert(!dtq_op_is_done(loop, (struct dtq_op *)waiting));
    stub_server_let_go(server);
    wait_ok(waiting);
    wait_ok(first);
    release(first);
    release(waiting);
    release(other);
}
END_TEST

/* Twelve behind one that hangs: ten and two, and one that comes later waits for none of them. */
START_TEST(a_delete_that_hangs_does_not_hold_up_the_others)
{
    static const struct stub_answer script[] = {{.body = DONE_ONE, .hold = true}, {.body = DONE_TEN}};
    static const char *const handle = "b";
    struct dtq_sqs_op *ops[13];
    server = stub_server_start(script, COUNT(script));
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.join_wait_ms = 20;
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    make_client(&options);
    struct dtq_sqs_op *first = delete_from(queue_url, "a");
    stub_server_wait_for(server, 1);
    for (int i = 0; i < 13; i++) {
        if (i == 12) { /* the others are done */
            for (int done = 0; done < 12; done++)
                wait_ok(ops[done]);
        }
        ops[i] = submit(dtq_sqs_delete_batch(client, queue_url, &handle, 1, 10000, &err));
    }
    wait_ok(ops[12]);
    ck_assert(!dtq_op_is_done(loop, (struct dtq_op *)first));
    for (int i = 0; i < 13; i++) {
        ck_assert(dtq_sqs_op_entry(ops[i], 0)->ok);
        release(ops[i]);
    }
    stub_server_let_go(server);
    wait_ok(first);
    release(first);
}
END_TEST

/* The first one's end makes the others depart, whatever end that is. */
static struct dtq_sqs_op *start_riders(const struct stub_answer *script, size_t count, struct dtq_sqs_op **riders)
{
    start_with(script, count);
    struct dtq_sqs_op *first = delete_from(queue_url, "a");
    stub_server_wait_for(server, 1);
    riders[0] = delete_from(queue_url, "b");
    riders[1] = delete_from(queue_url, "c");
    settle();
    return first;
}

START_TEST(a_delete_can_leave_the_others)
{
    static const struct stub_answer script[] = {
        {.hold = true}, {.body = SENT_ONE}, {.body = DONE_TEN, .hold = true}, {.hold = true}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    struct dtq_sqs_op *waiting = delete_from(queue_url, "d");
    dtq_loop_cancel(loop, (struct dtq_op *)waiting);
    ck_assert_int_eq(wait_for(waiting)->code, DTQ_CANCELLED);
    dtq_loop_cancel(loop, (struct dtq_op *)first);
    ck_assert_int_eq(wait_for(first)->code, DTQ_CANCELLED);
    stub_server_wait_for(server, 3);
    static const char *const handles[] = {"b", "c"};
    assert_deletes(2, handles, 2);
    dtq_loop_cancel(loop, (struct dtq_op *)riders[0]);
    ck_assert_int_eq(wait_for(riders[0])->code, DTQ_CANCELLED);
    ck_assert_uint_eq(dtq_sqs_op_count(riders[0]), 0);
    struct dtq_sqs_op *overdue = submit(dtq_sqs_delete_batch(client, queue_url, handles, 1, 20, &err));
    ck_assert_int_eq(wait_for(overdue)->code, DTQ_TIMEOUT);
    stub_server_let_go(server);
    wait_ok(riders[1]);
    ck_assert(dtq_sqs_op_entry(riders[1], 0)->ok);
    release(first);
    release(waiting);
    release(overdue);
    release(riders[0]);
    release(riders[1]);
}
END_TEST

START_TEST(a_request_that_nobody_waits_for_is_dropped)
{
    static const struct stub_answer script[] = {{.hold = true}, {.body = SENT_ONE}, {.hold = true}, {.body = DONE_ONE}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    dtq_loop_cancel(loop, (struct dtq_op *)first);
    stub_server_wait_for(server, 3);
    struct dtq_sqs_op *next = delete_from(queue_url, "d");
    dtq_loop_cancel(loop, (struct dtq_op *)riders[0]);
    dtq_loop_cancel(loop, (struct dtq_op *)riders[1]);
    wait_ok(next); /* nothing is on the wire any more that it would have to wait for */
    ck_assert_int_eq(wait_for(riders[0])->code, DTQ_CANCELLED);
    ck_assert_int_eq(wait_for(riders[1])->code, DTQ_CANCELLED);
    release(first);
    release(next);
    release(riders[0]);
    release(riders[1]);
}
END_TEST

START_TEST(deletes_are_tried_again_together)
{
    static const struct stub_answer script[] = {
        {.body = DONE_ONE, .hold = true}, {.body = SENT_ONE}, {.status = 503}, {.body = DONE_TEN}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    stub_server_let_go(server);
    wait_ok(riders[0]);
    wait_ok(riders[1]);
    ck_assert_uint_eq(stub_server_requests(server), 4);
    ck_assert_uint_eq(stats().retries, 1);
    release(first);
    release(riders[0]);
    release(riders[1]);
}
END_TEST

START_TEST(a_refusal_is_told_to_each)
{
    static const struct stub_answer script[] = {
        {.body = DONE_ONE, .hold = true}, {.body = SENT_ONE}, {.status = 400, .body = REFUSED("QueueDoesNotExist")}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    stub_server_let_go(server);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(wait_for(riders[i])->code, DTQ_QUEUE_MISSING);
        assert_contains(wait_for(riders[i])->message, "DeleteMessageBatch of ");
        ck_assert_uint_eq(dtq_sqs_op_count(riders[i]), 0);
        release(riders[i]);
    }
    ck_assert_uint_eq(stats().failed, 2);
    release(first);
}
END_TEST

START_TEST(a_stop_finds_every_delete)
{
    static const struct stub_answer script[] = {{.hold = true}, {.body = SENT_ONE}, {.hold = true}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    if (_i) { /* on the wire, and one that waits for them */
        dtq_loop_cancel(loop, (struct dtq_op *)first);
        stub_server_wait_for(server, 3);
    }
    struct dtq_sqs_op *waiting = delete_from(queue_url, "d");
    dtq_loop_close(loop, 0);
    ck_assert_int_eq(wait_for(first)->code, _i ? DTQ_CANCELLED : DTQ_CLOSED);
    ck_assert_int_eq(wait_for(riders[0])->code, DTQ_CLOSED);
    ck_assert_int_eq(wait_for(riders[1])->code, DTQ_CLOSED);
    ck_assert_int_eq(wait_for(waiting)->code, DTQ_CLOSED);
    release(first);
    release(waiting);
    release(riders[0]);
    release(riders[1]);
}
END_TEST

START_TEST(a_graceful_stop_lets_them_travel)
{
    static const struct stub_answer script[] = {
        {.body = DONE_ONE, .hold = true}, {.body = SENT_ONE}, {.body = DONE_TEN}};
    pthread_t closer;
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    ck_assert_int_eq(pthread_create(&closer, NULL, close_patiently, loop), 0);
    stub_server_let_go(server);
    pthread_join(closer, NULL);
    wait_ok(first);
    wait_ok(riders[0]);
    wait_ok(riders[1]);
    release(first);
    release(riders[0]);
    release(riders[1]);
}
END_TEST

#ifdef DTQ_ALLOC_FAILABLE
#define RIDERS_ALLOCATIONS 16 /* more than their journey takes */

/* Without memory for what would carry them, each goes alone; without memory for that, each is told. */
START_TEST(riders_survive_failing_allocations)
{
    static const struct stub_answer script[] = {
        {.body = DONE_ONE, .hold = true}, {.body = SENT_ONE}, {.body = DONE_TEN}};
    struct dtq_sqs_op *riders[2];
    struct dtq_sqs_op *first = start_riders(script, COUNT(script), riders);
    dtq_alloc_fail_at((unsigned long)_i + 1);
    stub_server_let_go(server);
    for (int i = 0; i < 2; i++) {
        enum dtq_code code = wait_for(riders[i])->code;
        ck_assert(code == DTQ_NO_MEMORY || (code == DTQ_OK && dtq_sqs_op_entry(riders[i], 0)->ok));
        release(riders[i]);
    }
    wait_for(first);
    dtq_alloc_fail_at(0);
    release(first);
}
END_TEST
#endif

/* ---- ways to the service ----------------------------------------------------------------------------------------- */

START_TEST(a_proxy_is_used)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    server = stub_server_start(script, 1);
    struct dtq_sqs_options options = quick_options("http://sqs.example.test");
    options.proxy = stub_server_url(server);
    make_client(&options);
    snprintf(queue_url, sizeof queue_url, "http://sqs.example.test/1/q");
    struct dtq_sqs_op *op = send_text("x");
    wait_ok(op);
    release(op);
    assert_contains(stub_server_request(server, 0), "POST http://sqs.example.test/1/q HTTP/1.1\r\n");
    assert_contains(stub_server_request(server, 0), "\r\nHost: sqs.example.test\r\n");
}
END_TEST

START_TEST(a_receive_is_tried_again_when_a_proxy_refuses_to_connect)
{
    static const struct stub_answer script[] = {{.status = 502}};
    server = stub_server_start(script, 1);
    struct dtq_sqs_options options = quick_options("https://sqs.example.test");
    options.proxy = stub_server_url(server);
    options.max_attempts = 3;
    make_client(&options);
    snprintf(queue_url, sizeof queue_url, "https://sqs.example.test/1/q");
    struct dtq_sqs_op *op = receive(0);
    ck_assert_int_eq(wait_for(op)->code, DTQ_TRANSPORT);
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 3);
    assert_contains(stub_server_request(server, 0), "CONNECT sqs.example.test:443 HTTP/1.1\r\n");
}
END_TEST

START_TEST(the_environment_names_a_proxy)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    server = stub_server_start(script, 1);
    setenv("http_proxy", stub_server_url(server), 1);
    struct dtq_sqs_options options = quick_options("http://sqs.example.test");
    make_client(&options);
    snprintf(queue_url, sizeof queue_url, "http://sqs.example.test/1/q");
    struct dtq_sqs_op *op = send_text("x");
    wait_ok(op);
    release(op);
    ck_assert_uint_eq(stub_server_requests(server), 1);
}
END_TEST

/* ca_file and insecure as given; the outcome of one send. */
static enum dtq_code send_over_tls(bool trusts, bool insecure)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    char path[64];
    snprintf(path, sizeof path, "/tmp/check_sqs_%ld.pem", (long)getpid());
    server = stub_server_start_tls(script, 1, path);
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.ca_file = trusts ? path : NULL;
    options.insecure = insecure;
    options.connect_timeout_ms = 60000; /* a checker slows the handshake down */
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    make_client(&options);
    struct dtq_sqs_op *op = send_text("x");
    enum dtq_code code = wait_for(op)->code;
    release(op);
    unlink(path);
    return code;
}

START_TEST(an_unknown_certificate_is_refused)
{
    ck_assert_int_eq(send_over_tls(false, false), DTQ_TLS);
    ck_assert_uint_eq(stats().requests, 1);
    ck_assert_uint_eq(stub_server_requests(server), 0);
}
END_TEST

START_TEST(a_ca_file_makes_it_known)
{
    ck_assert_int_eq(send_over_tls(true, false), DTQ_OK);
}
END_TEST

START_TEST(verification_can_be_switched_off)
{
    ck_assert_int_eq(send_over_tls(false, true), DTQ_OK);
}
END_TEST

/* ---- threads and memory ------------------------------------------------------------------------------------------ */

#define SENDERS 4
#define SENDS 100

/* Leaves the first error in *argument, which is for the main thread to check: Check gives up a case with longjmp, which
 * no other thread can. */
static void *send_many(void *argument)
{
    struct dtq_error *first = argument;
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    dtq_error_clear(first);
    for (int i = 0; i < SENDS && !first->code; i++) {
        struct dtq_op *op = (struct dtq_op *)dtq_sqs_send_batch(client, queue_url, &entry, 1, 0, first);
        if (op && !dtq_loop_submit(loop, op, first) && !dtq_loop_wait(loop, op, -1, first))
            *first = op->error;
        dtq_op_release(loop, op);
    }
    return NULL;
}

START_TEST(many_threads_send_while_credentials_change)
{
    static const struct stub_answer script[] = {{.body = SENT_ONE}};
    pthread_t senders[SENDERS];
    struct dtq_error errors[SENDERS];
    start_with(script, COUNT(script));
    for (int i = 0; i < SENDERS; i++)
        ck_assert_int_eq(pthread_create(&senders[i], NULL, send_many, &errors[i]), 0);
    /* Each change waits for an answer, so that no thread starves where only one runs at a time (memcheck). */
    for (int i = 0; i < SENDS; i++) {
        struct dtq_creds *creds = dtq_creds_new("OTHER", "secret2", "token", 0);
        dtq_sqs_set_credentials(client, creds);
        dtq_creds_release(creds);
        struct dtq_sqs_op *op = send_text("x");
        wait_ok(op);
        release(op);
    }
    for (int i = 0; i < SENDERS; i++) {
        pthread_join(senders[i], NULL);
        ck_assert_msg(!errors[i].code, "thread %d: %s", i, errors[i].message);
    }
    ck_assert_uint_eq(stats().requests, (SENDERS + 1) * SENDS);
    ck_assert_uint_le(stub_server_connections(server), SENDERS + 1);
}
END_TEST

/* Each of our allocations fails in turn, on both threads; whatever then goes wrong must be said and cleaned up. */
static enum dtq_code send_and_receive(void *context)
{
    (void)context;
    struct dtq_error mine;
    struct dtq_sqs_entry entry = {.body = dtq_slice_str("x"), .delay_s = -1};
    struct dtq_sqs_op *ops[2] = {NULL, NULL};
    struct dtq_loop *own = NULL;
    struct dtq_sqs *sqs = NULL;
    struct dtq_sqs_options options = quick_options(stub_server_url(server));
    options.max_attempts = 1;
    struct dtq_creds *creds = dtq_creds_new("AKID", "secret", NULL, 0);
    enum dtq_code rc = creds ? dtq_loop_new(&own, &mine) : DTQ_NO_MEMORY;
    if (!rc)
        rc = dtq_sqs_new(own, &options, creds, &sqs, &mine);
    for (int i = 0; !rc && i < 2; i++) {
        ops[i] = i ? dtq_sqs_receive(sqs, queue_url, 1, 0, -1, 0, &mine)
                   : dtq_sqs_send_batch(sqs, queue_url, &entry, 1, 0, &mine);
        rc = ops[i] ? dtq_loop_submit(own, (struct dtq_op *)ops[i], &mine) : mine.code;
        if (!rc)
            rc = dtq_loop_wait(own, (struct dtq_op *)ops[i], -1, &mine);
        if (!rc)
            rc = ((struct dtq_op *)ops[i])->error.code;
    }
    for (int i = 0; i < 2; i++)
        dtq_op_release(own, (struct dtq_op *)ops[i]);
    dtq_loop_destroy(own);
    dtq_creds_release(creds);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    static const struct stub_answer script[] = {
        {.body = "{\"Successful\":[{\"Id\":\"0\",\"MessageId\":\"m1\"}],\"Messages\":[]}"}};
    server = stub_server_start(script, 1);
    snprintf(queue_url, sizeof queue_url, "%s/1/q", stub_server_url(server));
    run_with_failing_allocations(send_and_receive, NULL);
}
END_TEST

/* ---- an emulator ------------------------------------------------------------------------------------------------- */

static bool emulator_is_there(void)
{
    const char *endpoint = getenv("DTQ_TEST_SQS_ENDPOINT");
    if (!endpoint) {
        fprintf(stderr, "SKIPPED: %s: DTQ_TEST_SQS_ENDPOINT is not set\n", tcase_name());
        return false;
    }
    struct dtq_sqs_options options = quick_options(endpoint);
    make_client(&options);
    return true;
}

/* The answer to an action, parsed; freed by the caller. */
static struct cJSON *call(const char *action, const char *url, const char *request)
{
    struct cJSON *tree = NULL;
    struct dtq_sqs_op *op = submit(dtq_sqs_call(client, action, url, dtq_slice_str(request), 0, &err));
    wait_ok(op);
    ck_assert_int_eq(dtq_json_parse(dtq_sqs_op_json(op), 1 << 20, "answer", &tree, &err), DTQ_OK);
    release(op);
    return tree;
}

static void call_and_forget(const char *action, const char *url, const char *format, const char *value)
{
    char request[1024];
    snprintf(request, sizeof request, format, value);
    dtq_json_free(call(action, url, request));
}

static void make_queue(const char *attributes, char *url, size_t url_size, char *name, size_t name_size)
{
    char random[DTQ_UUID_HEX_SIZE], request[1024];
    struct dtq_slice text;
    ck_assert_int_eq(dtq_random_uuid_hex(random, &err), DTQ_OK);
    snprintf(name, name_size, "check-%s", random);
    snprintf(request, sizeof request, "{\"QueueName\":\"%s\",\"Attributes\":%s}", name, attributes);
    struct cJSON *answer = call("CreateQueue", NULL, request);
    ck_assert_int_eq(dtq_json_get_string(answer, "QueueUrl", &text, &err), DTQ_OK);
    snprintf(url, url_size, "%s", text.data);
    dtq_json_free(answer);
}

static const char *system_attribute(const struct dtq_sqs_message *message, const char *name)
{
    for (size_t i = 0; i < message->system_attribute_count; i++) {
        if (strcmp(message->system_attributes[i].name, name) == 0)
            return message->system_attributes[i].value;
    }
    return "";
}

static void send_ten(void)
{
    static const struct dtq_pair attributes[] = {{"reason", "a \xc3\xa4 reason"}};
    struct dtq_sqs_entry entries[10];
    char bodies[10][32];
    memset(entries, 0, sizeof entries);
    for (int i = 0; i < 10; i++) {
        snprintf(bodies[i], sizeof bodies[i], "{\"n\":%d,\"t\":\"\xc3\xa4\"}", i);
        entries[i].body = dtq_slice_str(bodies[i]);
        entries[i].delay_s = -1;
        entries[i].attributes = attributes;
        entries[i].attribute_count = 1;
    }
    struct dtq_sqs_op *op = submit(dtq_sqs_send_batch(client, queue_url, entries, 10, 0, &err));
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 10);
    for (int i = 0; i < 10; i++) {
        ck_assert_msg(dtq_sqs_op_entry(op, (size_t)i)->ok, "%s", dtq_sqs_op_entry(op, (size_t)i)->code);
        ck_assert_ptr_nonnull(dtq_sqs_op_entry(op, (size_t)i)->message_id);
    }
    release(op);
}

/* Receives ten, each with what it was sent with; returns the operation. */
static struct dtq_sqs_op *receive_ten(void)
{
    struct dtq_sqs_op *op = receive(5);
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 10);
    for (size_t i = 0; i < 10; i++) {
        const struct dtq_sqs_message *message = dtq_sqs_op_message(op, i);
        ck_assert(!message->damaged);
        ck_assert_int_eq(strncmp(message->body.data, "{\"n\":", 5), 0);
        ck_assert_uint_eq(message->attribute_count, 1);
        ck_assert_str_eq(message->attributes[0].value, "a \xc3\xa4 reason");
        ck_assert_str_ne(system_attribute(message, "ApproximateReceiveCount"), "");
        ck_assert_str_ne(system_attribute(message, "SentTimestamp"), "");
    }
    return op;
}

static size_t take_handles(const struct dtq_sqs_op *op, const char *handles[10])
{
    for (size_t i = 0; i < dtq_sqs_op_count(op); i++)
        handles[i] = dtq_sqs_op_message(op, i)->receipt_handle;
    return dtq_sqs_op_count(op);
}

START_TEST(emulator_messages_travel)
{
    char name[64];
    const char *handles[10];
    const int zeros[10] = {0};
    if (!emulator_is_there())
        return;
    make_queue("{\"VisibilityTimeout\":\"300\"}", queue_url, sizeof queue_url, name, sizeof name);
    send_ten();
    struct dtq_sqs_op *first = receive_ten();
    size_t count = take_handles(first, handles);
    struct dtq_sqs_op *back = submit(dtq_sqs_visibility_batch(client, queue_url, handles, zeros, count, 0, &err));
    wait_ok(back);
    for (size_t i = 0; i < count; i++)
        ck_assert(dtq_sqs_op_entry(back, i)->ok);
    release(back);
    release(first);
    struct dtq_sqs_op *again = receive_ten();
    ck_assert_str_eq(system_attribute(dtq_sqs_op_message(again, 0), "ApproximateReceiveCount"), "2");
    count = take_handles(again, handles);
    handles[9] = "not-a-handle";
    struct dtq_sqs_op *removed = submit(dtq_sqs_delete_batch(client, queue_url, handles, count, 0, &err));
    wait_ok(removed);
    for (size_t i = 0; i < 9; i++)
        ck_assert(dtq_sqs_op_entry(removed, i)->ok);
    ck_assert(!dtq_sqs_op_entry(removed, 9)->ok);
    ck_assert_ptr_nonnull(dtq_sqs_op_entry(removed, 9)->code);
    release(removed);
    release(again);
    call_and_forget("DeleteQueue", queue_url, "{\"QueueUrl\":\"%s\"}", queue_url);
}
END_TEST

START_TEST(emulator_queues_are_managed)
{
    char name[64], request[1024];
    struct dtq_slice text;
    const struct cJSON *attributes;
    if (!emulator_is_there())
        return;
    make_queue("{}", queue_url, sizeof queue_url, name, sizeof name);
    snprintf(request, sizeof request, "{\"QueueName\":\"%s\"}", name);
    struct cJSON *answer = call("GetQueueUrl", NULL, request);
    ck_assert_int_eq(dtq_json_get_string(answer, "QueueUrl", &text, &err), DTQ_OK);
    ck_assert_str_eq(text.data, queue_url);
    dtq_json_free(answer);
    call_and_forget("SetQueueAttributes", queue_url,
                    "{\"QueueUrl\":\"%s\",\"Attributes\":{\"VisibilityTimeout\":\"77\"}}", queue_url);
    snprintf(request, sizeof request, "{\"QueueUrl\":\"%s\",\"AttributeNames\":[\"All\"]}", queue_url);
    answer = call("GetQueueAttributes", queue_url, request);
    ck_assert_int_eq(dtq_json_get_object(answer, "Attributes", &attributes, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(attributes, "VisibilityTimeout", &text, &err), DTQ_OK);
    ck_assert_str_eq(text.data, "77");
    dtq_json_free(answer);
    call_and_forget("ListQueues", NULL, "{\"QueueNamePrefix\":\"%s\"}", name);
    send_ten();
    call_and_forget("PurgeQueue", queue_url, "{\"QueueUrl\":\"%s\"}", queue_url);
    call_and_forget("SendMessage", queue_url, "{\"QueueUrl\":\"%s\",\"MessageBody\":\"one\"}", queue_url);
    struct dtq_sqs_op *op = receive(5);
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 1);
    const char *handle = dtq_sqs_op_message(op, 0)->receipt_handle;
    snprintf(request, sizeof request, "{\"QueueUrl\":\"%s\",\"ReceiptHandle\":\"%%s\",\"VisibilityTimeout\":60}",
             queue_url);
    call_and_forget("ChangeMessageVisibility", queue_url, request, handle);
    snprintf(request, sizeof request, "{\"QueueUrl\":\"%s\",\"ReceiptHandle\":\"%%s\"}", queue_url);
    call_and_forget("DeleteMessage", queue_url, request, handle);
    release(op);
    call_and_forget("DeleteQueue", queue_url, "{\"QueueUrl\":\"%s\"}", queue_url);
    op = receive(0);
    ck_assert_int_eq(wait_for(op)->code, DTQ_QUEUE_MISSING);
    release(op);
}
END_TEST

/* A queue and its dead-letter queue: what was received once too often lies there, and can be moved back. */
START_TEST(emulator_dead_letters_are_moved)
{
    char name[64], dead_name[64], dead_url[256], source_url[256], arn[256], request[1024];
    struct dtq_slice text;
    const struct cJSON *attributes;
    if (!emulator_is_there())
        return;
    make_queue("{}", dead_url, sizeof dead_url, dead_name, sizeof dead_name);
    snprintf(request, sizeof request, "{\"QueueUrl\":\"%s\",\"AttributeNames\":[\"QueueArn\"]}", dead_url);
    struct cJSON *answer = call("GetQueueAttributes", dead_url, request);
    ck_assert_int_eq(dtq_json_get_object(answer, "Attributes", &attributes, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(attributes, "QueueArn", &text, &err), DTQ_OK);
    snprintf(arn, sizeof arn, "%s", text.data);
    dtq_json_free(answer);
    snprintf(request, sizeof request,
             "{\"VisibilityTimeout\":\"0\",\"RedrivePolicy\":\"{\\\"deadLetterTargetArn\\\":\\\"%s\\\","
             "\\\"maxReceiveCount\\\":1}\"}",
             arn);
    make_queue(request, source_url, sizeof source_url, name, sizeof name);
    snprintf(queue_url, sizeof queue_url, "%s", source_url);
    struct dtq_sqs_op *op = send_text("poison");
    wait_ok(op);
    release(op);
    for (int i = 0; i < 2; i++) {
        op = receive(1);
        wait_ok(op);
        ck_assert_uint_eq(dtq_sqs_op_count(op), i == 0 ? 1 : 0);
        release(op);
    }
    snprintf(request, sizeof request, "{\"SourceArn\":\"%s\"}", arn);
    struct dtq_sqs_op *move =
        submit(dtq_sqs_call(client, "StartMessageMoveTask", NULL, dtq_slice_str(request), 0, &err));
    wait_for(move); /* moto does not know every action; the dead-letter queue itself is looked at below */
    bool moved = wait_for(move)->code == DTQ_OK;
    ck_assert(moved || wait_for(move)->code == DTQ_SERVICE || wait_for(move)->code == DTQ_UNAVAILABLE);
    release(move);
    snprintf(queue_url, sizeof queue_url, "%s", moved ? source_url : dead_url);
    op = receive(10);
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 1);
    ck_assert(dtq_slice_equal(dtq_sqs_op_message(op, 0)->body, dtq_slice_str("poison")));
    release(op);
    call_and_forget("DeleteQueue", source_url, "{\"QueueUrl\":\"%s\"}", source_url);
    call_and_forget("DeleteQueue", dead_url, "{\"QueueUrl\":\"%s\"}", dead_url);
}
END_TEST

START_TEST(emulator_gets_back_what_a_cancelled_poll_brings)
{
    char name[64];
    if (!emulator_is_there())
        return;
    make_queue("{\"VisibilityTimeout\":\"300\"}", queue_url, sizeof queue_url, name, sizeof name);
    struct dtq_sqs_op *poll = receive(20);
    while (stats().requests < 2) /* the poll is on the wire */
        usleep(1000);
    dtq_loop_cancel(loop, (struct dtq_op *)poll);
    ck_assert_int_eq(wait_for(poll)->code, DTQ_CANCELLED);
    release(poll);
    struct dtq_sqs_op *op = send_text("for nobody");
    wait_ok(op);
    release(op);
    op = receive(20);
    wait_ok(op);
    ck_assert_uint_eq(dtq_sqs_op_count(op), 1);
    ck_assert(dtq_slice_equal(dtq_sqs_op_message(op, 0)->body, dtq_slice_str("for nobody")));
    release(op);
    call_and_forget("DeleteQueue", queue_url, "{\"QueueUrl\":\"%s\"}", queue_url);
}
END_TEST

static TCase *new_case(Suite *suite, const char *name)
{
    TCase *tcase = tcase_create(name);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    suite_add_tcase(suite, tcase);
    return tcase;
}

Suite *sqs_suite(void)
{
    Suite *suite = suite_create("sqs");
    TCase *requests = new_case(suite, "requests");
    tcase_add_test(requests, a_request_is_what_it_should_be);
    tcase_add_test(requests, connections_are_used_again);
    tcase_add_test(requests, a_session_token_is_sent_and_signed);
    tcase_add_test(requests, messages_arrive_and_damaged_ones_are_marked);
    tcase_add_test(requests, any_action_can_be_called);
    tcase_add_test(requests, arguments_are_checked);
    tcase_add_test(requests, options_are_checked);
    TCase *fault = new_case(suite, "faults");
    tcase_add_loop_test(fault, a_send_is_tried_again_after_a_fault, 0, (int)COUNT(faults));
    tcase_add_loop_test(fault, a_receive_is_tried_again_only_when_nothing_can_be_hidden, 0, (int)COUNT(faults));
#if LIBCURL_VERSION_NUM >= 0x075000
    tcase_add_test(fault, a_receive_whose_old_connection_closes_is_not_repeated);
    tcase_add_test(fault, a_send_whose_old_connection_closes_is_repeated_and_counted);
#endif
    tcase_add_test(fault, attempts_end);
    tcase_add_test(fault, a_refusal_is_not_tried_again);
    tcase_add_test(fault, an_unreachable_endpoint_is_named);
    tcase_add_test(fault, a_header_without_end_is_refused);
    tcase_add_test(fault, a_slow_answer_meets_the_deadline);
    tcase_add_test(fault, one_slow_attempt_is_given_up_for_another);
    tcase_add_test(fault, a_request_may_take_for_ever);
    TCase *trust = new_case(suite, "clock and credentials");
    tcase_add_test(trust, a_wrong_clock_is_corrected_once);
    tcase_add_test(trust, without_credentials_nothing_is_sent);
    tcase_add_test(trust, credentials_that_were_set_meanwhile_are_tried);
    tcase_add_test(trust, expired_credentials_that_nobody_renews_end_a_request);
    tcase_add_test(trust, an_owner_that_renews_is_told_of_expired_credentials);
    TCase *stop = new_case(suite, "cancel and stop");
    tcase_add_test(stop, what_a_cancelled_poll_brings_is_handed_back);
    tcase_add_test(stop, what_an_overdue_poll_brings_is_handed_back);
    tcase_add_test(stop, what_a_poll_brings_during_a_graceful_stop_is_handed_back);
    tcase_add_test(stop, a_send_is_finished_by_a_graceful_stop);
    tcase_add_test(stop, a_forced_stop_drops_everything);
    tcase_add_test(stop, sends_do_not_wait_behind_polls);
    tcase_add_test(stop, waiting_operations_can_be_cancelled);
    tcase_add_test(stop, an_operation_between_attempts_can_be_cancelled);
    TCase *together = new_case(suite, "together");
    tcase_add_test(together, deletes_that_meet_travel_together);
    tcase_add_test(together, ten_deletes_wait_for_nobody);
    tcase_add_test(together, deletes_wait_for_their_own_queue_only);
    tcase_add_test(together, a_delete_that_hangs_does_not_hold_up_the_others);
    tcase_add_test(together, a_delete_can_leave_the_others);
    tcase_add_test(together, a_request_that_nobody_waits_for_is_dropped);
    tcase_add_test(together, deletes_are_tried_again_together);
    tcase_add_test(together, a_refusal_is_told_to_each);
    tcase_add_loop_test(together, a_stop_finds_every_delete, 0, 2);
    tcase_add_test(together, a_graceful_stop_lets_them_travel);
#ifdef DTQ_ALLOC_FAILABLE
    tcase_add_loop_test(together, riders_survive_failing_allocations, 0, RIDERS_ALLOCATIONS);
#endif
    TCase *ways = new_case(suite, "ways to the service");
    tcase_add_test(ways, a_proxy_is_used);
    tcase_add_test(ways, a_receive_is_tried_again_when_a_proxy_refuses_to_connect);
    tcase_add_test(ways, the_environment_names_a_proxy);
    tcase_add_test(ways, an_unknown_certificate_is_refused);
    tcase_add_test(ways, a_ca_file_makes_it_known);
    tcase_add_test(ways, verification_can_be_switched_off);
    TCase *threads = new_case(suite, "threads and memory");
    tcase_add_test(threads, many_threads_send_while_credentials_change);
    tcase_add_test(threads, survives_failing_allocations);
    TCase *emulator = new_case(suite, "emulator");
    tcase_add_test(emulator, emulator_messages_travel);
    tcase_add_test(emulator, emulator_queues_are_managed);
    tcase_add_test(emulator, emulator_dead_letters_are_moved);
    tcase_add_test(emulator, emulator_gets_back_what_a_cancelled_poll_brings);
    return suite;
}
