/*
 * The SQS client: AWS JSON protocol 1.0 over HTTPS, signed with SigV4, on the I/O thread of a loop.
 *
 * Source: "Amazon SQS API Reference"; "AWS JSON 1.0 protocol" (Smithy).
 * What it is for: many concurrent requests (long polls beside sends) without a thread for each.
 * Ownership: the client is a source of its loop and is destroyed with it.  Constructors of operations copy all
 * arguments.
 * Thread: dtq_sqs_* from any thread.  Results may be read once the operation is done, and live as long as it does.
 * Retries: throttling, 5xx and transport errors, with capped exponential backoff and full jitter, within the
 * operation's deadline.  Judged by the parsed answer, never by the status alone: an answer cut inside its header looks
 * like 200 with an empty body to libcurl.  A receive is tried again only when its request cannot have been served: it
 * did not leave this process, or was refused.  Once it may have been served and the answer is lost, messages may be
 * hidden until their visibility ends, and the caller is told (DTQ_TRANSPORT, DTQ_RESPONSE, or DTQ_UNAVAILABLE for a
 * gateway's 502 or 504) instead of hiding more.  (libcurl before 7.80 cannot be kept from sending it again when a
 * connection that was used before closes without an answer.)  Sends may arrive twice; deletes and changes of visibility
 * are idempotent.
 * Clock skew: the client corrects its signing time from the Date of the service's answers when a request is refused for
 * it.
 * Joining: a delete of fewer than ten messages that finds one of its queue on the wire waits until that has left it, or
 * ten are together, or join_wait_ms are over, and travels with the others; each gets its own results.
 * Cancel, deadline, shutdown: a receive that is on the wire ends at once for its caller, but the poll itself is let
 * finish, and what it brings is handed back (visibility 0), because an abandoned poll hides the next message.  Other
 * requests are dropped by cancel and deadline, and finished by stop(graceful).  stop(forced) drops connections.
 */
#ifndef DTQ_SQS_H
#define DTQ_SQS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_creds.h"
#include "dtq_error.h"
#include "dtq_loop.h"
#include "dtq_slice.h"

struct dtq_sqs;

struct dtq_sqs_options {
    const char *region;     /* required, e.g. "eu-central-1" */
    const char *endpoint;   /* NULL: https://sqs.<region>.amazonaws.com (.cn for China); else a base URL, e.g.
                               http://127.0.0.1:9324.  Every request goes to the endpoint; only its path and its
                               QueueUrl come from the queue's URL */
    const char *ca_file;    /* NULL: the system's (found once, at start) */
    const char *proxy;      /* NULL: by the usual environment variables, as libcurl reads them */
    bool insecure;          /* true: no TLS verification; for tests only */
    int connect_timeout_ms; /* 0: 5000 */
    int request_timeout_ms; /* 0: 30000; a long poll gets its wait on top */
    int max_attempts;       /* 0: 5; 1: no retries */
    int backoff_base_ms;    /* 0: 100 */
    int backoff_cap_ms;     /* 0: 5000 */
    int join_wait_ms;       /* 0: 100; how long a delete waits for another one at most */
    /* The owner can fetch newer credentials: an operation that is refused because they have expired ends with
     * DTQ_EXPIRED, which a later one may not, and dtq_sqs_wants_credentials is true until newer ones are set. */
    bool owner_renews;
};

/* credentials may be NULL: a request that begins before they are set fails with DTQ_CREDENTIALS.  The client takes a
 * reference of its own, and adds itself to the loop.  DTQ_INVALID_ARGUMENT: region, endpoint or CA file; DTQ_CLOSED,
 * DTQ_FORKED, DTQ_TOO_LARGE: see dtq_loop_add. */
enum dtq_code dtq_sqs_new(struct dtq_loop *loop, const struct dtq_sqs_options *options, struct dtq_creds *credentials,
                          struct dtq_sqs **out, struct dtq_error *err) DTQ_MUST_CHECK;
void dtq_sqs_set_credentials(struct dtq_sqs *client, struct dtq_creds *credentials);
bool dtq_sqs_wants_credentials(const struct dtq_sqs *client);
struct dtq_source *dtq_sqs_source(struct dtq_sqs *client);

/* Counters since the start; any thread.  retries: libcurl's own too, where it tells of them (7.80). */
struct dtq_sqs_stats {
    uint64_t requests, retries, throttled, failed, connections, bytes_sent, bytes_received;
};
void dtq_sqs_get_stats(struct dtq_sqs *client, struct dtq_sqs_stats *stats);

/* ---- requests -----------------------------------------------------------------------------------------------------
 */

struct dtq_pair {
    const char *name;
    const char *value;
};

/* A message attribute of type String (the only type that this project sends). */
struct dtq_sqs_entry {     /* SendMessageBatch */
    struct dtq_slice body; /* UTF-8, at least one byte */
    int delay_s;           /* 0..900; -1: the queue's default (leave out) */
    const char *group_id;  /* NULL unless FIFO (or fair queue) */
    const char *deduplication_id;
    const struct dtq_pair *attributes;
    size_t attribute_count;
};

struct dtq_sqs_op; /* embeds struct dtq_op as its first member: (struct dtq_op *)op is allowed */

/* timeout_ms: 0 = the client's default for the whole operation with its retries: attempts * request_timeout bounded by
 * 60 s. Each returns NULL when memory is short or an argument is not valid (err tells). */
struct dtq_sqs_op *dtq_sqs_send_batch(struct dtq_sqs *client, const char *queue_url,
                                      const struct dtq_sqs_entry *entries, size_t count, int timeout_ms,
                                      struct dtq_error *err);
/* max_messages 1..10, wait_s 0..20, visibility_s -1 = the queue's.  Asks for all system attributes and all message
 * attributes. */
struct dtq_sqs_op *dtq_sqs_receive(struct dtq_sqs *client, const char *queue_url, int max_messages, int wait_s,
                                   int visibility_s, int timeout_ms, struct dtq_error *err);
struct dtq_sqs_op *dtq_sqs_delete_batch(struct dtq_sqs *client, const char *queue_url,
                                        const char *const *receipt_handles, size_t count, int timeout_ms,
                                        struct dtq_error *err);
struct dtq_sqs_op *dtq_sqs_visibility_batch(struct dtq_sqs *client, const char *queue_url,
                                            const char *const *receipt_handles, const int *visibility_s, size_t count,
                                            int timeout_ms, struct dtq_error *err);
/* Any action by name with its request as JSON text (already valid): CreateQueue, GetQueueUrl, GetQueueAttributes,
 * SetQueueAttributes, ListQueues, DeleteQueue, PurgeQueue, StartMessageMoveTask, SendMessage, DeleteMessage,
 * ChangeMessageVisibility …  The result is the JSON answer.  A request whose "QueueUrl" the signer needs for the path
 * gives it as queue_url too (else NULL). */
struct dtq_sqs_op *dtq_sqs_call(struct dtq_sqs *client, const char *action, const char *queue_url,
                                struct dtq_slice request_json, int timeout_ms, struct dtq_error *err);

/* ---- results ------------------------------------------------------------------------------------------------------
 */

enum dtq_sqs_result_kind { DTQ_SQS_RESULT_ENTRIES, DTQ_SQS_RESULT_MESSAGES, DTQ_SQS_RESULT_JSON };

struct dtq_sqs_entry_result { /* one for each entry of the request, in its order */
    bool ok;
    bool sender_fault;
    const char *code;       /* NULL when ok */
    const char *message;    /* NULL when ok or when the service gave none */
    const char *message_id; /* NULL unless a send that is ok */
};

struct dtq_sqs_message {
    const char *message_id;
    const char *receipt_handle;
    struct dtq_slice body;
    const struct dtq_pair *system_attributes; /* ApproximateReceiveCount, SentTimestamp, … */
    size_t system_attribute_count;
    const struct dtq_pair *attributes; /* String attributes */
    size_t attribute_count;
    bool damaged; /* MD5OfMessageBody does not match: the body must not be used */
};

enum dtq_sqs_result_kind dtq_sqs_op_kind(const struct dtq_sqs_op *op);
size_t dtq_sqs_op_count(const struct dtq_sqs_op *op);
const struct dtq_sqs_entry_result *dtq_sqs_op_entry(const struct dtq_sqs_op *op, size_t index);
const struct dtq_sqs_message *dtq_sqs_op_message(const struct dtq_sqs_op *op, size_t index);
struct dtq_slice dtq_sqs_op_json(const struct dtq_sqs_op *op);

#endif
