/*
 * AWS credentials.
 *
 * What it is for: an immutable, counted snapshot of one set of credentials, so that a request signs with one consistent
 * set while another thread puts newer ones in place.
 * Ownership: acquire/release; the strings live as long as the snapshot and are wiped when it goes.
 * Thread: any (atomic count).
 * Failure: NULL when memory is short; DTQ_CREDENTIALS from dtq_creds_check.
 */
#ifndef DTQ_CREDS_H
#define DTQ_CREDS_H

#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"

struct dtq_creds {
    const char *access_key_id;
    const char *secret_access_key;
    const char *session_token; /* NULL when there is none */
    int64_t expires_at_s;      /* wall clock, seconds since 1970; 0 = never */
    /* own */
    int references;
};

/* An empty session token counts as none. */
struct dtq_creds *dtq_creds_new(const char *access_key_id, const char *secret_access_key, const char *session_token,
                                int64_t expires_at_s);
/* DTQ_CREDENTIALS when one of them has a control character, as the line end of a file that holds it: the message names
 * it, and does not show it. */
enum dtq_code dtq_creds_check(const struct dtq_creds *creds, struct dtq_error *err) DTQ_MUST_CHECK;
struct dtq_creds *dtq_creds_acquire(struct dtq_creds *creds); /* NULL-safe */
void dtq_creds_release(struct dtq_creds *creds);              /* NULL-safe */

#endif
