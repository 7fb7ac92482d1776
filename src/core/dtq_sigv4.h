/*
 * AWS Signature Version 4, header form, as pure stages.
 *
 * Source: "Signature Version 4 signing process" (AWS General Reference / IAM User Guide).
 * What it is for: sign exactly what is sent.  The caller builds the list of headers once, has it signed, and hands the
 * same list to libcurl.
 * Ownership: all inputs are borrowed for the call; outputs are added to buffers of the caller.
 * Thread: any; the key cache belongs to one thread at a time.
 * Failure: DTQ_NO_MEMORY, DTQ_TOO_LARGE (a text does not fit its buffer), DTQ_UNSUPPORTED (see dtq_digest.h),
 * DTQ_CREDENTIALS (none, or such as cannot be sent: dtq_creds_check), DTQ_INVALID_ARGUMENT (no host header, more than
 * DTQ_SIGV4_HEADERS_MAX headers, a header that cannot be sent: a name that is none, or a control character other than
 * TAB in a value; a time outside the years 1970 to 9999).
 */
#ifndef DTQ_SIGV4_H
#define DTQ_SIGV4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_creds.h"
#include "dtq_error.h"
#include "dtq_slice.h"

#define DTQ_SIGV4_HEADERS_MAX 62

struct dtq_sigv4_header {
    struct dtq_slice name;
    struct dtq_slice value;
};

struct dtq_sigv4_request {
    struct dtq_slice method;
    struct dtq_slice path;  /* as sent, encoded once; "" counts as "/" */
    struct dtq_slice query; /* as sent, without '?': its pairs are sorted, their encoding is left as it is */
    /* All to be signed; host among them.  x-amz-date and x-amz-security-token are added by the signer when they are not
     * there. */
    const struct dtq_sigv4_header *headers;
    size_t header_count;
    struct dtq_slice body;
    bool normalize_path; /* true for every service but S3 */
};

struct dtq_sigv4_scope {
    const char *region;
    const char *service;
    int64_t time_s; /* wall clock, injected */
};

/* Derived keys are good for a day, region, service and secret: the cache spares four HMACs a request.
 * Zero-initialised; clean_up wipes it. */
struct dtq_sigv4_key_cache {
    bool valid;
    char scope[128];
    unsigned char secret_digest[32];
    unsigned char key[32];
};
void dtq_sigv4_key_cache_clean_up(struct dtq_sigv4_key_cache *cache);

#define DTQ_SIGV4_DATE_SIZE 17 /* "20150830T123600Z" and a NUL */
/* "" for a time that has no such text. */
void dtq_sigv4_date(int64_t time_s, char out[DTQ_SIGV4_DATE_SIZE]);

/* The stages; each adds its text to its buffer.  A session token is signed: SQS wants it so. */
enum dtq_code dtq_sigv4_canonical_request(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                                          const struct dtq_sigv4_scope *scope, struct dtq_buf *out,
                                          struct dtq_buf *signed_headers, struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_sigv4_string_to_sign(struct dtq_slice canonical_request, const struct dtq_sigv4_scope *scope,
                                       struct dtq_buf *out, struct dtq_error *err) DTQ_MUST_CHECK;
/* cache may be NULL. */
enum dtq_code dtq_sigv4_signature(struct dtq_slice string_to_sign, const struct dtq_creds *creds,
                                  const struct dtq_sigv4_scope *scope, struct dtq_sigv4_key_cache *cache, char hex[65],
                                  struct dtq_error *err) DTQ_MUST_CHECK;

/* All stages: the value of the Authorization header into authorization, and the x-amz-date that goes with it.
 * cache may be NULL. */
enum dtq_code dtq_sigv4_sign(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                             const struct dtq_sigv4_scope *scope, struct dtq_sigv4_key_cache *cache,
                             struct dtq_buf *authorization, char date[DTQ_SIGV4_DATE_SIZE],
                             struct dtq_error *err) DTQ_MUST_CHECK;

#endif
