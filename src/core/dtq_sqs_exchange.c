/* One attempt of the SQS client on the wire (dtq_sqs_priv.h).  Runs on the I/O thread. */
#include "dtq_sqs_priv.h"

#include <stdio.h>
#include <string.h>

#include "dtq_alloc.h"
#include "dtq_clock.h"
#include "dtq_json.h"

#define AUTHORIZATION_BYTES_MAX 4096
#define NO_CREDENTIALS                                                                                                 \
    "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones), " \
    "or give the client credentials"

/* ---- places on the wire ------------------------------------------------------------------------------------------ */

void dtq_sqs_exchange_destroy(struct dtq_sqs_exchange *exchange)
{
    dtq_http_clean_up(&exchange->http);
    dtq_buf_clean_up(&exchange->authorization);
    dtq_free(exchange);
}

/* NULL on failure. */
static struct dtq_sqs_exchange *take_exchange(struct dtq_sqs *client, struct dtq_error *err)
{
    struct dtq_sqs_exchange *exchange = client->idle;
    if (exchange) {
        client->idle = exchange->next;
    }
    else {
        exchange = dtq_calloc(1, sizeof *exchange);
        if (!exchange) {
            dtq_error_no_memory(err);
            return NULL;
        }
        exchange->transfer.source = &client->source;
        dtq_buf_init(&exchange->authorization, AUTHORIZATION_BYTES_MAX);
        if (dtq_http_init(&exchange->http, &client->http, &exchange->transfer, err) != DTQ_OK) {
            dtq_free(exchange);
            return NULL;
        }
    }
    exchange->prev = NULL;
    exchange->next = client->busy;
    if (client->busy)
        client->busy->prev = exchange;
    client->busy = exchange;
    return exchange;
}

void dtq_sqs_exchange_end(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange)
{
    struct dtq_sqs_op *op = exchange->op;
    if (exchange->prev)
        exchange->prev->next = exchange->next;
    else
        client->busy = exchange->next;
    if (exchange->next)
        exchange->next->prev = exchange->prev;
    exchange->next = client->idle;
    client->idle = exchange;
    dtq_creds_release(exchange->credentials);
    exchange->credentials = NULL;
    exchange->detached = false;
    exchange->op = NULL;
    if (op) {
        op->exchange = NULL;
        dtq_op_release(client->source.loop, &op->op);
    }
}

/* ---- begin ------------------------------------------------------------------------------------------------------- */

static struct dtq_sigv4_header header(const char *name, struct dtq_slice value)
{
    struct dtq_sigv4_header pair = {dtq_slice_str(name), value};
    return pair;
}

static enum dtq_code sign_and_prepare(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange, struct dtq_sqs_op *op,
                                      struct dtq_error *err)
{
    struct dtq_sigv4_header headers[DTQ_HTTP_HEADERS_MAX] = {
        header("Content-Type", dtq_slice_str("application/x-amz-json-1.0")),
        header("Host", dtq_slice_str(client->host)),
        header("X-Amz-Target", dtq_slice_str(op->target)),
    };
    size_t count = 3;
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_sigv4_request request = {
        .method = dtq_slice_str("POST"),
        .path = op->path,
        .headers = headers,
        .header_count = count,
        .body = dtq_buf_slice(&op->request),
        .normalize_path = true,
    };
    struct dtq_sigv4_scope scope = {
        .region = client->region,
        .service = "sqs",
        .time_s = dtq_clock_wall_s() + client->clock_offset_s,
    };
    dtq_buf_clear(&exchange->authorization);
    enum dtq_code rc = dtq_sigv4_sign(&request, exchange->credentials, &scope, &client->key_cache,
                                      &exchange->authorization, date, err);
    if (rc)
        return rc;
    headers[count++] = header("X-Amz-Date", dtq_slice_str(date));
    if (exchange->credentials->session_token)
        headers[count++] = header("X-Amz-Security-Token", dtq_slice_str(exchange->credentials->session_token));
    headers[count++] = header("Authorization", dtq_buf_slice(&exchange->authorization));
    const struct dtq_http_request sent = {
        .url = op->url,
        .headers = headers,
        .header_count = count,
        .body = request.body,
        .timeout_ms = client->request_timeout_ms + op->wait_s * 1000,
        .once = op->action == DTQ_SQS_RECEIVE, /* what its lost answer hides comes back later */
    };
    return dtq_http_prepare(&exchange->http, &sent, err);
}

enum dtq_code dtq_sqs_exchange_begin(struct dtq_sqs *client, struct dtq_sqs_op *op, struct dtq_error *err)
{
    struct dtq_creds *credentials = dtq_sqs_credentials(client);
    if (!credentials)
        return dtq_error_set(err, DTQ_CREDENTIALS, NO_CREDENTIALS);
    struct dtq_sqs_exchange *exchange = take_exchange(client, err);
    if (!exchange) {
        dtq_creds_release(credentials);
        return err->code;
    }
    exchange->credentials = credentials;
    enum dtq_code rc = sign_and_prepare(client, exchange, op, err);
    if (!rc && curl_multi_add_handle(dtq_loop_multi(client->source.loop), exchange->http.easy) != CURLM_OK)
        rc = dtq_error_no_memory(err);
    if (rc) {
        dtq_sqs_exchange_end(client, exchange);
        return rc;
    }
    dtq_op_acquire(client->source.loop, &op->op);
    exchange->op = op;
    op->exchange = exchange;
    atomic_fetch_add_explicit(&client->requests, 1, memory_order_relaxed);
    return DTQ_OK;
}

/* ---- judge ------------------------------------------------------------------------------------------------------- */

void dtq_sqs_add_context(const struct dtq_sqs *client, const struct dtq_sqs_op *op, struct dtq_error *err)
{
    char text[sizeof err->message];
    const char *action = op->target + strlen("AmazonSQS.");
    const char *place = op->queue_url ? op->queue_url : client->origin;
    bool names_endpoint = strncmp(place, client->origin, strlen(client->origin)) == 0;
    memcpy(text, err->message, sizeof text);
    snprintf(err->message, sizeof err->message, "%.40s of %.110s%s%.60s: %.160s", action, place,
             names_endpoint ? "" : " at ", names_endpoint ? "" : client->origin, text);
}

static void set_refused(const struct dtq_sqs *client, int status, const struct dtq_sqs_refusal *refusal,
                        struct dtq_error *err)
{
    const char *colon = refusal->message[0] ? ": " : "";
    const char *type = refusal->type[0] ? refusal->type : "an error without a type";
    if (refusal->clock_skew)
        dtq_error_set(err, refusal->code, "%s%s%.100s; check this host's clock", type, colon, refusal->message);
    else if (refusal->code == DTQ_CREDENTIALS)
        dtq_error_set(err, refusal->code,
                      "%s%s%.50s; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN", type, colon,
                      refusal->message);
    else if (refusal->code == DTQ_QUEUE_MISSING)
        dtq_error_set(err, refusal->code, "the queue does not exist in region %s (%s)", client->region, type);
    else
        dtq_error_set(err, refusal->code, "HTTP %d, %s%s%s", status, type, colon, refusal->message);
    err->http_status = status;
    snprintf(err->service_code, sizeof err->service_code, "%s", refusal->type);
}

static enum dtq_code read_json(struct dtq_sqs_exchange *exchange, struct dtq_error *err)
{
    struct dtq_buf *body = &exchange->http.body;
    struct dtq_sqs_op *op = exchange->op;
    if (!body->length) /* actions without a result */
        dtq_buf_add_str(body, "{}");
    enum dtq_code rc = dtq_buf_check(body, err, "the answer");
    if (!rc && dtq_json_check(dtq_buf_slice(body), "the service's answer", err) != DTQ_OK)
        rc = err->code = DTQ_RESPONSE;
    if (!rc && !exchange->detached)
        op->json = dtq_buf_take(body, &op->json_length);
    return rc;
}

static enum dtq_code read_answer(struct dtq_sqs_exchange *exchange, bool is_whole, struct dtq_sqs_answer *answer,
                                 struct dtq_error *err)
{
    struct dtq_sqs_op *op = exchange->op;
    struct dtq_slice body = dtq_buf_slice(&exchange->http.body);
    if (!is_whole)
        return dtq_error_set(err, DTQ_RESPONSE, "the answer is empty");
    switch (op->action) {
    case DTQ_SQS_CALL:
        return read_json(exchange, err);
    case DTQ_SQS_RECEIVE:
        return dtq_sqs_wire_read_messages(body, answer, err);
    case DTQ_SQS_SEND:
        return dtq_sqs_wire_read_batch(body, op->count, (const char(*)[DTQ_MD5_HEX_SIZE])op->digests, answer, err);
    default:
        return dtq_sqs_wire_read_batch(body, op->count, NULL, answer, err);
    }
}

static void count(struct dtq_sqs *client, const struct dtq_http_outcome *outcome, enum dtq_code code)
{
    atomic_fetch_add_explicit(&client->bytes_sent, outcome->bytes_sent, memory_order_relaxed);
    atomic_fetch_add_explicit(&client->bytes_received, outcome->bytes_received, memory_order_relaxed);
    if (outcome->repeats)
        atomic_fetch_add_explicit(&client->retries, outcome->repeats, memory_order_relaxed);
    if (outcome->connections)
        atomic_fetch_add_explicit(&client->connections, outcome->connections, memory_order_relaxed);
    if (code == DTQ_THROTTLED)
        atomic_fetch_add_explicit(&client->throttled, 1, memory_order_relaxed);
}

void dtq_sqs_exchange_judge(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange, CURLcode result,
                            struct dtq_sqs_answer *answer, struct dtq_sqs_verdict *verdict, struct dtq_error *err)
{
    struct dtq_http_outcome outcome;
    struct dtq_sqs_refusal refusal;
    memset(verdict, 0, sizeof *verdict);
    verdict->service_time_s = -1;
    enum dtq_code rc = dtq_http_outcome(&exchange->http, result, &outcome, err);
    verdict->may_have_arrived = outcome.may_have_arrived;
    if (!rc && outcome.status >= 200 && outcome.status < 300) {
        rc = read_answer(exchange, outcome.body_is_whole, answer, err);
        if (rc && err)
            err->http_status = outcome.status;
    }
    else if (!rc) {
        dtq_sqs_wire_read_refusal(outcome.status, dtq_buf_slice(&exchange->http.body), outcome.query_error, &refusal);
        set_refused(client, outcome.status, &refusal, err);
        rc = refusal.code;
        /* A refused request was not served.  A gateway does not know: it had a bad answer or none (502), or gave up
         * waiting for one (504). */
        verdict->may_have_arrived = outcome.status == 502 || outcome.status == 504;
        verdict->clock_skew = refusal.clock_skew;
        verdict->expired_token = refusal.expired_token;
        if (outcome.date[0])
            verdict->service_time_s = (int64_t)curl_getdate(outcome.date, NULL);
    }
    verdict->code = rc;
    count(client, &outcome, rc);
}
