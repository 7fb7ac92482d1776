/*
 * Digests and comparison of secrets.
 *
 * What it is for: SHA-256 and HMAC-SHA256 (request signing, payload signing, content addresses) and MD5 (what SQS
 * gives for bodies).
 * Ownership: inputs are borrowed for the call.
 * Thread: any.
 * Failure: DTQ_UNSUPPORTED where this OpenSSL does not offer the algorithm (MD5 under FIPS), or has no memory for it;
 * DTQ_INVALID_ARGUMENT for a key of more than INT_MAX bytes.
 */
#ifndef DTQ_DIGEST_H
#define DTQ_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_slice.h"

#define DTQ_SHA256_SIZE 32
#define DTQ_MD5_SIZE 16
#define DTQ_SHA256_HEX_SIZE (2 * DTQ_SHA256_SIZE + 1)
#define DTQ_MD5_HEX_SIZE (2 * DTQ_MD5_SIZE + 1)

enum dtq_code dtq_sha256(struct dtq_slice data, unsigned char out[DTQ_SHA256_SIZE],
                         struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_sha256_hex(struct dtq_slice data, char out[DTQ_SHA256_HEX_SIZE],
                             struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_hmac_sha256(struct dtq_slice key, struct dtq_slice data, unsigned char out[DTQ_SHA256_SIZE],
                              struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_md5_hex(struct dtq_slice data, char out[DTQ_MD5_HEX_SIZE], struct dtq_error *err) DTQ_MUST_CHECK;

/* Lower-case hex of size bytes, and a NUL: out has room for 2 * size + 1. */
void dtq_hex(const unsigned char *bytes, size_t size, char *out);

/* True for exactly length characters 0-9 a-f. */
bool dtq_is_lower_hex(const char *text, size_t length);

/* The time that it takes does not depend on the content, only on the lengths. */
bool dtq_equal_constant_time(struct dtq_slice a, struct dtq_slice b);

#endif
