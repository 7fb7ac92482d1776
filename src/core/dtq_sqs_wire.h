/*
 * SQS's requests and answers as JSON texts: AWS JSON protocol 1.0.
 *
 * Source: "Amazon SQS API Reference"; "AWS JSON 1.0 protocol" (Smithy).
 * What it is for: everything about SQS's wire that needs no network, so that it can be tested and fuzzed alone.
 * Ownership: builders add to a buffer of the caller.  An answer owns everything in it; its strings live until clean_up.
 * Thread: any; one answer is used by one thread at a time.
 * Failure: builders: DTQ_INVALID_ARGUMENT, DTQ_TOO_LARGE, DTQ_NO_MEMORY.  Readers: DTQ_RESPONSE for whatever the
 * service should not have said, DTQ_NO_MEMORY. Limits: ten entries or messages; bodies and attributes of one send
 * together DTQ_SQS_MESSAGE_BYTES_MAX.
 */
#ifndef DTQ_SQS_WIRE_H
#define DTQ_SQS_WIRE_H

#include <stdbool.h>
#include <stddef.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_digest.h"
#include "dtq_error.h"
#include "dtq_limits.h"
#include "dtq_slice.h"
#include "dtq_sqs.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

enum dtq_code dtq_sqs_wire_send_batch(const char *queue_url, const struct dtq_sqs_entry *entries, size_t count,
                                      struct dtq_buf *out, struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_sqs_wire_receive(const char *queue_url, int max_messages, int wait_s, int visibility_s,
                                   struct dtq_buf *out, struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_sqs_wire_delete_batch(const char *queue_url, const char *const *receipt_handles, size_t count,
                                        struct dtq_buf *out, struct dtq_error *err) DTQ_MUST_CHECK;
/* out, a request of delete_batch with count entries, gets those of another of the same queue behind its own. */
enum dtq_code dtq_sqs_wire_join(struct dtq_slice request, size_t count, struct dtq_buf *out,
                                struct dtq_error *err) DTQ_MUST_CHECK;
/* visibility_s: one for each receipt handle. */
enum dtq_code dtq_sqs_wire_visibility_batch(const char *queue_url, const char *const *receipt_handles,
                                            const int *visibility_s, size_t count, struct dtq_buf *out,
                                            struct dtq_error *err) DTQ_MUST_CHECK;

/* ---- answers ----------------------------------------------------------------------------------------------------- */

struct dtq_sqs_answer {
    size_t count;
    struct dtq_sqs_entry_result entries[DTQ_SQS_BATCH_MAX];
    struct dtq_sqs_message messages[DTQ_SQS_BATCH_MAX];
    /* own */
    char *text; /* a copy of the answer's, in which all strings are */
    struct dtq_pair *pairs;
};

/* Of a zeroed or filled answer; leaves it zeroed. */
void dtq_sqs_answer_clean_up(struct dtq_sqs_answer *answer);

/* The answer to a batch of count entries.  digests: the MD5 of each body sent ("" = not known), or NULL when nothing
 * was sent.  An entry that is in neither list, or whose digest differs, has failed. */
enum dtq_code dtq_sqs_wire_read_batch(struct dtq_slice body, size_t count, const char (*digests)[DTQ_MD5_HEX_SIZE],
                                      struct dtq_sqs_answer *out, struct dtq_error *err) DTQ_MUST_CHECK;
/* The answer to ReceiveMessage. */
enum dtq_code dtq_sqs_wire_read_messages(struct dtq_slice body, struct dtq_sqs_answer *out,
                                         struct dtq_error *err) DTQ_MUST_CHECK;

/* The MD5 of a body as SQS gives it; "" where this system offers no MD5 (FIPS): then nothing is compared. */
void dtq_sqs_wire_digest(struct dtq_slice body, char out[DTQ_MD5_HEX_SIZE]);

/* What the service says when it refuses a request. */
struct dtq_sqs_refusal {
    enum dtq_code code;
    char type[64];      /* AWS's error type without its prefix, "" when there is none */
    char message[256];  /* "" when there is none */
    bool clock_skew;    /* the signing time is to blame */
    bool expired_token; /* newer credentials may help */
};

/* query_error: the x-amzn-query-error header, "" when there is none.  Cannot fail: a body that says nothing leaves the
 * status. */
void dtq_sqs_wire_read_refusal(int http_status, struct dtq_slice body, const char *query_error,
                               struct dtq_sqs_refusal *out);

#endif
