/*
 * What the files of the SQS client share:
 *   dtq_sqs.c           the client: its options, credentials and statistics
 *   dtq_sqs_op.c        constructors and results of operations
 *   dtq_sqs_source.c    the I/O thread: who goes on the wire when, retries, cancel, stop
 *   dtq_sqs_join.c      the I/O thread: deletes that travel in one request
 *   dtq_sqs_exchange.c  the I/O thread: one attempt: sign, send, judge the answer
 */
#ifndef DTQ_SQS_PRIV_H
#define DTQ_SQS_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtq_buf.h"
#include "dtq_creds.h"
#include "dtq_digest.h"
#include "dtq_http.h"
#include "dtq_loop.h"
#include "dtq_retry.h"
#include "dtq_sigv4.h"
#include "dtq_sqs.h"
#include "dtq_sqs_wire.h"

enum dtq_sqs_action { DTQ_SQS_SEND, DTQ_SQS_RECEIVE, DTQ_SQS_DELETE, DTQ_SQS_VISIBILITY, DTQ_SQS_CALL };

/* One place on the wire: an easy handle that is used again and again. */
struct dtq_sqs_exchange {
    struct dtq_transfer transfer; /* first: CURLOPT_PRIVATE points here */
    struct dtq_http http;
    struct dtq_buf authorization;
    struct dtq_creds *credentials;        /* that signed it */
    struct dtq_sqs_op *op;                /* one reference; its request is read until the transfer ends */
    bool detached;                        /* op is done: nobody waits for this poll */
    struct dtq_sqs_exchange *next, *prev; /* of busy or idle */
};

/* How an attempt ended. */
struct dtq_sqs_verdict {
    enum dtq_code code;
    int http_status;
    bool may_have_arrived; /* the request was, or may have been, served */
    bool clock_skew;
    bool expired_token;
    int64_t service_time_s; /* of the answer's Date; -1 when there is none */
};

struct dtq_sqs_op {
    struct dtq_op op;
    struct dtq_sqs *client;
    enum dtq_sqs_action action;
    char *target;          /* X-Amz-Target: "AmazonSQS.SendMessageBatch" */
    char *url;             /* endpoint and path */
    struct dtq_slice path; /* in url */
    char *queue_url;       /* as the caller gave it; NULL when none */
    struct dtq_buf request;
    int wait_s;
    size_t count;                                      /* entries of a batch */
    char digests[DTQ_SQS_BATCH_MAX][DTQ_MD5_HEX_SIZE]; /* of the bodies sent */
    /* result */
    struct dtq_sqs_answer answer;
    char *json;
    size_t json_length;
    /* I/O thread */
    struct dtq_sqs_op *next;           /* of the queue or of the list of those that wait for their next attempt */
    struct dtq_sqs_exchange *exchange; /* on the wire */
    bool internal;                     /* the client's own: nobody but the client knows of it */
    struct dtq_sqs_op *riders;         /* of a carrier, which is internal: whose entries it has, by next */
    struct dtq_sqs_op *carrier;        /* of a rider; once it is done it keeps a reference, for the result's texts */
    size_t first_entry;                /* of a rider in its carrier */
    bool clock_corrected, credentials_renewed;
    int attempts;
    uint64_t again_at_ms;
    uint64_t depart_at_ms; /* of a delete that waits for another one */
    struct dtq_error last; /* of the attempt before */
};

struct dtq_sqs_op_list {
    struct dtq_sqs_op *head, *tail;
};

struct dtq_sqs {
    struct dtq_source source;
    /* unchanging */
    char *region;
    char *origin;    /* "https://sqs.eu-central-1.amazonaws.com" */
    char *host;      /* as in the Host header */
    char *base_path; /* of requests without a queue URL */
    char *ca_file;
    char *proxy;
    struct dtq_http_settings http;
    struct dtq_retry_policy retry;
    int request_timeout_ms;
    int join_wait_ms;
    bool owner_renews;
    atomic_bool credentials_wanted;
    /* any thread */
    pthread_mutex_t credentials_lock;
    struct dtq_creds *credentials; /* under credentials_lock */
    atomic_uint_least64_t requests, retries, throttled, failed, connections, bytes_sent, bytes_received;
    /* I/O thread */
    int64_t clock_offset_s;
    struct dtq_sigv4_key_cache key_cache;
    struct dtq_sqs_op_list polls, calls; /* wait for a free place on the wire */
    struct dtq_sqs_op *later;            /* wait for their next attempt */
    struct dtq_sqs_op_list joining;      /* deletes that wait for one of their queue to leave the wire, as they came */
    struct dtq_sqs_exchange *busy, *idle;
    unsigned polls_on_wire, calls_on_wire, deletes_on_wire; /* deletes are calls */
};

/* ---- dtq_sqs.c ------------------------------------------------------------------------------------------------------
 */

/* The snapshot to sign with: a reference.  NULL when there are none. */
struct dtq_creds *dtq_sqs_credentials(struct dtq_sqs *client);
/* True when other ones than these, which have expired, were set meanwhile. */
bool dtq_sqs_has_newer_credentials(struct dtq_sqs *client, const struct dtq_creds *expired);
/* The owner is told that these have expired, unless it has set others meanwhile. */
void dtq_sqs_want_credentials(struct dtq_sqs *client, const struct dtq_creds *expired);
/* The source class's destroy. */
void dtq_sqs_destroy_source(struct dtq_source *source, bool forked);

/* ---- dtq_sqs_op.c ---------------------------------------------------------------------------------------------------
 */

/* Hide no longer what a detached poll brought.  An internal operation, with one reference; NULL when memory is short.
 */
struct dtq_sqs_op *dtq_sqs_hand_back(struct dtq_sqs *client, const char *queue_url,
                                     const struct dtq_sqs_answer *messages);

/* An empty DeleteMessageBatch of the client's own, with one reference; NULL when memory is short. */
struct dtq_sqs_op *dtq_sqs_carrier(struct dtq_sqs *client, const char *queue_url);

/* ---- dtq_sqs_join.c -------------------------------------------------------------------------------------------------
 */

/* True when op is a delete that now waits for another one of its queue to leave the wire. */
bool dtq_sqs_join(struct dtq_sqs *client, struct dtq_sqs_op *op);
/* A delete of this queue has left the wire: those that waited for it go to the calls. */
void dtq_sqs_depart(struct dtq_sqs *client, const char *queue_url);
/* Those that have waited long enough go to the calls too, with what else waits for the same. */
void dtq_sqs_depart_overdue(struct dtq_sqs *client, uint64_t now_ms);
/* The next one that waits, taken out; NULL when there is none. */
struct dtq_sqs_op *dtq_sqs_pop_joining(struct dtq_sqs *client);
/* The outcome of a carrier, to those that it still carries, each of which is given to finish. */
void dtq_sqs_set_down(struct dtq_sqs *client, struct dtq_sqs_op *carrier,
                      void (*finish)(struct dtq_sqs *client, struct dtq_sqs_op *op));
/* op ends early: it leaves its carrier or the wait.  *left: the carrier, when nobody else rides it, else NULL.  False
 * when it is in neither. */
bool dtq_sqs_leave(struct dtq_sqs *client, struct dtq_sqs_op *op, struct dtq_sqs_op **left);

void dtq_sqs_list_append(struct dtq_sqs_op_list *list, struct dtq_sqs_op *op);
bool dtq_sqs_list_remove(struct dtq_sqs_op_list *list, struct dtq_sqs_op *op);

/* ---- dtq_sqs_source.c -----------------------------------------------------------------------------------------------
 */

extern const struct dtq_source_class dtq_sqs_source_class;

/* ---- dtq_sqs_exchange.c ---------------------------------------------------------------------------------------------
 */

/* Sign op's request and put it on the wire.  The exchange takes a reference of op. */
enum dtq_code dtq_sqs_exchange_begin(struct dtq_sqs *client, struct dtq_sqs_op *op,
                                     struct dtq_error *err) DTQ_MUST_CHECK;
/* After the transfer: judge and read the answer into answer, or into op's JSON text when the action is a call. */
void dtq_sqs_exchange_judge(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange, CURLcode result,
                            struct dtq_sqs_answer *answer, struct dtq_sqs_verdict *verdict, struct dtq_error *err);
/* Give the place back, with the reference of op.  The easy handle is no longer in the CURLM. */
void dtq_sqs_exchange_end(struct dtq_sqs *client, struct dtq_sqs_exchange *exchange);
void dtq_sqs_exchange_destroy(struct dtq_sqs_exchange *exchange);

/* err, which says what happened, gets its context in front: what was asked of whom. */
void dtq_sqs_add_context(const struct dtq_sqs *client, const struct dtq_sqs_op *op, struct dtq_error *err);

#endif
