/*
 * Random bytes, names and waits.
 *
 * Source of randomness: OpenSSL's RAND_bytes, which reseeds in a forked child.
 * Thread: any.
 * Failure: DTQ_SYSTEM when the system has no randomness to give.
 */
#ifndef DTQ_RAND_H
#define DTQ_RAND_H

#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"

#define DTQ_UUID_HEX_SIZE 33

enum dtq_code dtq_random_bytes(void *out, size_t size, struct dtq_error *err) DTQ_MUST_CHECK;

/* A version 4 UUID (RFC 4122) as 32 lower-case hex characters and a NUL. */
enum dtq_code dtq_random_uuid_hex(char out[DTQ_UUID_HEX_SIZE], struct dtq_error *err) DTQ_MUST_CHECK;

/* Full jitter: evenly from 0 to max_ms, both included.  Without randomness, max_ms: a wait must not fail. */
uint64_t dtq_jitter_ms(uint64_t max_ms);

#endif
