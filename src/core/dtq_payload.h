/*
 * The step payload: OpExecutionTask <-> bytes.
 *
 * What it is for: the one message that an executor sends for a step attempt.  It travels inside a message that TaskIQ's
 * own JSON formatter reads: {"task_id", "task_name", "labels", "labels_types", "args", "kwargs": {"task": "<text>",
 * "signature": "<hex>"}}.  "task" is the JSON text of the OpExecutionTask as a string, so that the signature covers
 * exact bytes: it is the HMAC-SHA256 of that text, and it survives when TaskIQ writes the message anew with other white
 * space or another order of keys.  Only "task_name" and "kwargs" are looked at when decoding; nothing else in the
 * message is signed.
 * Ownership: decode returns a task that owns everything in it; encode borrows the task.
 * Thread: any.
 * Failure: DTQ_PARSE, DTQ_TOO_LARGE, DTQ_VERSION, DTQ_UNSIGNED, DTQ_SIGNATURE, DTQ_NO_MEMORY, and DTQ_INVALID_ARGUMENT
 * for a task that must not be encoded or an empty key; nothing is returned then.
 * Limits: dtq_limits.h (bytes, depth, parts); UTF-8 is checked; NUL is refused; keys that are not known are refused (a
 * newer version says so by its number).
 */
#ifndef DTQ_PAYLOAD_H
#define DTQ_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_slice.h"

#define DTQ_PAYLOAD_VERSION 1
#define DTQ_PAYLOAD_TASK_NAME "dagster_taskiq.execute_step"
#define DTQ_DIGEST_HEX_SIZE 65

/* A large or repeated piece of JSON text: inline, or the SHA-256 under which PostgreSQL holds it. */
struct dtq_part {
    char *name;                       /* "job_origin", "instance_ref", "known_state", …; no two of the same name */
    char *text;                       /* inline text, or NULL */
    size_t length;                    /* bytes of the text, also when it is stored elsewhere */
    char digest[DTQ_DIGEST_HEX_SIZE]; /* lower-case hex of the text when text is NULL, else "" */
};

struct dtq_step_task {
    int version; /* DTQ_PAYLOAD_VERSION */
    char *run_id;
    char *step_key;
    int attempt; /* Dagster's: 1 is the first */
    char *job_name;
    char *queue;
    char *code_location; /* what a worker serves it by; "" = the only one */
    double lease_ttl_s;  /* how long a claim holds without renewal; more than 0 */
    double heartbeat_s;  /* how often a worker renews it; more than 0 */
    int visibility_s;    /* how long a delivery stays hidden between renewals; 0 to 43200 */
    double sent_at_s;    /* wall clock of the sender; shown to people, never compared with a lease */
    char *settings;      /* JSON object text with further per-step settings ("{}" when none) */
    struct dtq_part *parts;
    size_t part_count;
};

struct dtq_payload_key {
    struct dtq_slice secret; /* at least one byte */
};

void dtq_step_task_clean_up(struct dtq_step_task *task);

/* The complete TaskIQ message.  task_id: of the TaskIQ message.  key NULL: unsigned.  *out is freed with dtq_free. */
enum dtq_code dtq_payload_encode(const struct dtq_step_task *task, const char *task_id,
                                 const struct dtq_payload_key *key, char **out, size_t *out_length,
                                 struct dtq_error *err) DTQ_MUST_CHECK;

/* keys: any of them may have signed (rotation); count 0: a signature is not looked at. */
enum dtq_code dtq_payload_decode(struct dtq_slice message, const struct dtq_payload_key *keys, size_t key_count,
                                 struct dtq_step_task *out, struct dtq_error *err) DTQ_MUST_CHECK;

#endif
