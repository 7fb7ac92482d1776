/*
 * HTTP and HTTPS addresses.
 *
 * What it is for: endpoints and queue URLs come apart here, and the Host text that is signed and sent is made here, by
 * one rule.
 * Source: RFC 3986.
 * Ownership: the slices of a split address point into the text that was split.
 * Thread: any.
 * Failure: DTQ_INVALID_ARGUMENT (not http/https, no host, user information, a fragment, a bad port, a byte that no
 * address may hold).  Messages do not repeat the address: it may hold a password.
 */
#ifndef DTQ_URI_H
#define DTQ_URI_H

#include <stdbool.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_error.h"
#include "dtq_slice.h"

struct dtq_uri {
    bool secure;            /* https */
    struct dtq_slice host;  /* as written; an IPv6 address with its brackets */
    int port;               /* the scheme's own when none is written */
    struct dtq_slice path;  /* as written, from its '/' on; "" when there is none */
    struct dtq_slice query; /* without '?' */
};

enum dtq_code dtq_uri_split(struct dtq_slice text, struct dtq_uri *out, struct dtq_error *err) DTQ_MUST_CHECK;

/* The value of the Host header: lower-case host, and ":port" unless the port is the scheme's own. */
enum dtq_code dtq_uri_add_host(const struct dtq_uri *uri, struct dtq_buf *out);
/* "scheme://" and the Host text. */
enum dtq_code dtq_uri_add_origin(const struct dtq_uri *uri, struct dtq_buf *out);

/* Percent-encode every byte that is not unreserved (RFC 3986, 2.3), with upper-case hex; '/' stays when keep_slash. */
enum dtq_code dtq_uri_add_encoded(struct dtq_slice bytes, bool keep_slash, struct dtq_buf *out);

#endif
