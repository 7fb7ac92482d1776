/*
 * The C clients of sqs_client.py.
 *
 *     sqs_client core|by-hand|floor ENDPOINT QUEUE-URL BODY-FILE
 *
 * core: src/core's SQS client, as a program in C uses it.  by-hand: libcurl's multi interface in a bare loop; each
 * request is built and signed, each answer parsed and its digests checked (sqs_by_hand.h).  floor: the same loop and
 * nothing else: requests that were built and signed once, answers that are read and not looked at.  For each line
 * "ACTION BATCH REQUESTS IN-FLIGHT" on standard input it says "SECONDS CPU-SECONDS" on standard output.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <curl/curl.h>

#include "sqs_by_hand.h"

#include "dtq_loop.h"
#include "dtq_sqs.h"
#include "dtq_sqs_wire.h"

#define IN_FLIGHT_MAX 24
#define BODY_BYTES_MAX (256 * 1024)
#define ANSWER_BYTES_MAX (8 * 1024 * 1024)
/* As long as AWS's own. */
#define HANDLE                                                                                                         \
    "AQEBzbVv8Qk4mT0uJ6LxgK9cR2dYwN1hS7fPqEaXoZiCtBvMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYwN1hS7fPqEaXoZiCtB"    \
    "vMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYwN1hS7fPqEaXoZiCtBvMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYw="

struct task {
    char action[16];
    int batch, requests, in_flight;
};

static const char *endpoint, *queue_url;
static char body[BODY_BYTES_MAX + 1];
static struct dtq_sqs_entry entries[DTQ_SQS_BATCH_MAX];
static const char *handles[DTQ_SQS_BATCH_MAX];

static void fail(const char *what)
{
    fprintf(stderr, "sqs_client: %s\n", what);
    exit(1);
}

static bool is(const struct task *task, const char *action)
{
    return strcmp(task->action, action) == 0;
}

/* ---- the core ---------------------------------------------------------------------------------------------------- */

static struct dtq_loop *loop;
static struct dtq_sqs *client;

static void start_core(void)
{
    struct dtq_error err;
    struct dtq_creds *credentials = dtq_creds_new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", NULL, 0);
    struct dtq_sqs_options options = {.region = "eu-central-1", .endpoint = endpoint};
    if (dtq_loop_new(&loop, &err) || dtq_sqs_new(loop, &options, credentials, &client, &err))
        fail(err.message);
    dtq_creds_release(credentials);
}

static void submit(const struct task *task)
{
    struct dtq_error err;
    struct dtq_sqs_op *op;
    if (is(task, "send"))
        op = dtq_sqs_send_batch(client, queue_url, entries, (size_t)task->batch, 0, &err);
    else if (is(task, "receive"))
        op = dtq_sqs_receive(client, queue_url, task->batch, 0, -1, 0, &err);
    else
        op = dtq_sqs_delete_batch(client, queue_url, handles, (size_t)task->batch, 0, &err);
    if (!op)
        fail(err.message);
    dtq_loop_watch(loop, (struct dtq_op *)op);
    if (dtq_loop_submit(loop, (struct dtq_op *)op, &err))
        fail(err.message);
}

/* Both references: the drain list's and the one of submit. */
static void finish(struct dtq_op *op, const struct task *task)
{
    struct dtq_sqs_op *sqs = (struct dtq_sqs_op *)op;
    if (op->error.code)
        fail(op->error.message);
    if (dtq_sqs_op_count(sqs) != (size_t)task->batch)
        fail("another number of results than was asked for");
    for (size_t i = 0; i < dtq_sqs_op_count(sqs); i++) {
        if (is(task, "receive") ? dtq_sqs_op_message(sqs, i)->damaged : !dtq_sqs_op_entry(sqs, i)->ok)
            fail("an entry failed");
    }
    dtq_op_release(loop, op);
    dtq_op_release(loop, op);
}

static void run_core(const struct task *task)
{
    struct pollfd ready = {.fd = dtq_loop_fd(loop), .events = POLLIN};
    int submitted = 0, done = 0;
    while (done < task->requests) {
        while (submitted < task->requests && submitted - done < task->in_flight) {
            submit(task);
            submitted++;
        }
        poll(&ready, 1, -1);
        for (struct dtq_op *op = dtq_loop_drain(loop), *next; op; op = next) {
            next = dtq_op_next(op);
            finish(op, task);
            done++;
        }
    }
}

/* ---- a bare loop of libcurl's ------------------------------------------------------------------------------------ */

static CURLM *multi;
static CURL *handles_of_curl[IN_FLIGHT_MAX];
static char answer[IN_FLIGHT_MAX][ANSWER_BYTES_MAX];
static size_t answer_length[IN_FLIGHT_MAX];
static struct by_hand_request requests[IN_FLIGHT_MAX]; /* by hand only */

static size_t take(char *data, size_t size, size_t count, void *context)
{
    size_t index = (size_t)((char (*)[ANSWER_BYTES_MAX])context - answer);
    if (size * count > ANSWER_BYTES_MAX - answer_length[index])
        return 0;
    memcpy(answer[index] + answer_length[index], data, size * count);
    answer_length[index] += size * count;
    return size * count;
}

static int index_of(CURL *easy)
{
    char *place = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &place);
    return (int)((size_t *)(void *)place - answer_length);
}

static void start_loop(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    multi = curl_multi_init();
    for (int i = 0; i < IN_FLIGHT_MAX; i++) {
        CURL *easy = handles_of_curl[i] = curl_easy_init();
        curl_easy_setopt(easy, CURLOPT_URL, queue_url);
        curl_easy_setopt(easy, CURLOPT_POST, 1L);
        curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
        curl_easy_setopt(easy, CURLOPT_WRITEDATA, answer + i);
        curl_easy_setopt(easy, CURLOPT_PRIVATE, (char *)&answer_length[i]);
    }
}

static void build(const struct task *task, struct dtq_buf *request)
{
    enum dtq_code rc;
    if (is(task, "send"))
        rc = dtq_sqs_wire_send_batch(queue_url, entries, (size_t)task->batch, request, NULL);
    else if (is(task, "receive"))
        rc = dtq_sqs_wire_receive(queue_url, task->batch, 0, -1, request, NULL);
    else
        rc = dtq_sqs_wire_delete_batch(queue_url, handles, (size_t)task->batch, request, NULL);
    if (rc)
        fail("the request could not be built");
}

static struct curl_slist *headers_of(const struct task *task)
{
    static const char *const fixed[] = {
        "Content-Type: application/x-amz-json-1.0",
        "X-Amz-Date: 20261123T220000Z",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/sqs/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date;x-amz-target, "
        "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        "Expect:",
        "Accept:",
    };
    struct curl_slist *list = NULL;
    list = curl_slist_append(list, is(task, "send")      ? "X-Amz-Target: AmazonSQS.SendMessageBatch"
                                   : is(task, "receive") ? "X-Amz-Target: AmazonSQS.ReceiveMessage"
                                                         : "X-Amz-Target: AmazonSQS.DeleteMessageBatch");
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        list = curl_slist_append(list, fixed[i]);
    return list;
}

/* Put what is finished back into idle; how many that were.  by_hand, if not NULL, has the answers checked. */
static int take_finished(CURL **idle, int *idle_count, const struct by_hand *by_hand)
{
    CURLMsg *message;
    int left = 0, count = 0;
    while ((message = curl_multi_info_read(multi, &left))) {
        CURL *easy = message->easy_handle;
        int index = index_of(easy);
        if (message->data.result || !answer_length[index])
            fail("a request failed");
        if (by_hand && !by_hand_check(by_hand, answer[index], answer_length[index]))
            fail("an answer is not whole");
        answer_length[index] = 0;
        curl_multi_remove_handle(multi, easy);
        idle[(*idle_count)++] = easy;
        count++;
    }
    return count;
}

static void set_request(CURL *easy, const char *text, size_t length, struct curl_slist *headers)
{
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, text);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, (long)length);
}

static void set_new_request(CURL *easy, const struct by_hand *by_hand)
{
    struct by_hand_request *request = &requests[index_of(easy)];
    by_hand_free(request);
    *request = by_hand_build(by_hand);
    set_request(easy, request->text, strlen(request->text), request->headers);
}

/* by_hand: NULL for the floor, whose requests stand already. */
static void run_loop(const struct task *task, const struct by_hand *by_hand)
{
    CURL *idle[IN_FLIGHT_MAX];
    int idle_count = task->in_flight, started = 0, done = 0, running = 0;
    memcpy(idle, handles_of_curl, sizeof idle);
    while (done < task->requests) {
        while (idle_count && started < task->requests) {
            CURL *easy = idle[--idle_count];
            if (by_hand)
                set_new_request(easy, by_hand);
            curl_multi_add_handle(multi, easy);
            started++;
        }
        curl_multi_perform(multi, &running);
        int finished = take_finished(idle, &idle_count, by_hand);
        if (!finished)
            curl_multi_poll(multi, NULL, 0, 1000, NULL);
        done += finished;
    }
}

static void run_floor(const struct task *task)
{
    struct dtq_buf request;
    dtq_buf_init(&request, SIZE_MAX / 2);
    build(task, &request);
    struct curl_slist *headers = headers_of(task);
    for (int i = 0; i < task->in_flight; i++)
        set_request(handles_of_curl[i], request.data, request.length, headers);
    run_loop(task, NULL);
    curl_slist_free_all(headers);
    dtq_buf_clean_up(&request);
}

static void run_by_hand(const struct task *task)
{
    const struct by_hand by_hand = {.action = task->action,
                                    .batch = task->batch,
                                    .queue_url = queue_url,
                                    .host = strstr(endpoint, "://") + 3,
                                    .body = body,
                                    .handle = HANDLE};
    run_loop(task, &by_hand);
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static double cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void read_body(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        fail(path);
    size_t length = fread(body, 1, BODY_BYTES_MAX, file);
    fclose(file);
    for (int i = 0; i < DTQ_SQS_BATCH_MAX; i++) {
        entries[i].body = dtq_slice(body, length);
        entries[i].delay_s = -1;
        handles[i] = HANDLE;
    }
}

int main(int count, char **arguments)
{
    struct task task;
    const char *mode = count == 5 ? arguments[1] : "";
    bool is_core = strcmp(mode, "core") == 0, is_by_hand = strcmp(mode, "by-hand") == 0;
    if (!is_core && !is_by_hand && strcmp(mode, "floor") != 0)
        fail("usage: sqs_client core|by-hand|floor ENDPOINT QUEUE-URL BODY-FILE");
    endpoint = arguments[2];
    queue_url = arguments[3];
    read_body(arguments[4]);
    if (is_core)
        start_core();
    else
        start_loop();
    while (scanf("%15s %d %d %d", task.action, &task.batch, &task.requests, &task.in_flight) == 4) {
        if (task.in_flight > IN_FLIGHT_MAX || task.batch > DTQ_SQS_BATCH_MAX)
            fail("too many");
        double wall_before = now(), cpu_before = cpu();
        if (is_core)
            run_core(&task);
        else if (is_by_hand)
            run_by_hand(&task);
        else
            run_floor(&task);
        printf("%.6f %.6f\n", now() - wall_before, cpu() - cpu_before);
        fflush(stdout);
    }
    return 0;
}
