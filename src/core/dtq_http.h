/*
 * One POST on one easy handle, to be used again and again.
 *
 * What it is for: all of libcurl's options in one place.  Knows neither threads nor SQS: its owner signs, adds the
 * handle to a CURLM, and asks for the outcome when it is finished.
 * Trust: TLS verification is on unless settings.insecure; redirects are not followed; only http and https.
 * CA certificates: one file, found once (dtq_http_find_ca_file).  libcurl's default CAPATH is switched off, because
 * with it libcurl does not cache the parsed certificates and each new connection costs 24 ms of CPU.
 * Ownership: in place (init/clean_up).  URL, headers and body of prepare are borrowed until the transfer has ended.
 * Thread: one at a time.
 * Failure: DTQ_NO_MEMORY; of init also DTQ_UNSUPPORTED (libcurl refuses a setting); of prepare DTQ_INVALID_ARGUMENT
 * (more headers than DTQ_HTTP_HEADERS_MAX) and DTQ_TOO_LARGE (their text); of an outcome DTQ_TRANSPORT, DTQ_TLS and
 * DTQ_TOO_LARGE.
 * Limits: the answer's header and body are capped (dtq_limits.h).
 */
#ifndef DTQ_HTTP_H
#define DTQ_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <curl/curl.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_error.h"
#include "dtq_sigv4.h"
#include "dtq_slice.h"

#define DTQ_HTTP_HEADERS_MAX 8

struct dtq_http_settings {
    const char *ca_file; /* NULL: libcurl's own defaults */
    const char *proxy;   /* NULL: by the environment */
    bool insecure;
    int connect_timeout_ms;
};

struct dtq_http {
    CURL *easy;
    struct dtq_buf body; /* of the answer */
    /* own */
    struct dtq_buf header_lines;
    struct curl_slist header_nodes[DTQ_HTTP_HEADERS_MAX + 2];
    bool once;              /* of the transfer at hand: see dtq_http_request */
    bool cut_off;           /* libcurl was about to send it a second time */
    unsigned transmissions; /* that libcurl began; 0 before 7.80, which does not tell */
    long bytes_before;      /* sent before the first of them, to a proxy */
    size_t header_bytes;    /* of the answer */
    bool header_complete;
    char date[64];
    char query_error[128];
    char coding[16]; /* Transfer-Encoding: libcurl sees to it that a chunked body is whole */
    char curl_message[CURL_ERROR_SIZE];
};

/* headers: exactly those that were signed, and Authorization.  At most DTQ_HTTP_HEADERS_MAX. */
struct dtq_http_request {
    const char *url;
    const struct dtq_sigv4_header *headers;
    size_t header_count;
    struct dtq_slice body;
    int timeout_ms;
    /* libcurl sends a request again by itself when a connection that was used before closes without an answer.  True:
     * not when bytes of it had left; the transfer ends with DTQ_TRANSPORT then.  libcurl before 7.80 sends it anyway.
     */
    bool once;
};

/* What came of a transfer, beside the body. */
struct dtq_http_outcome {
    int status;
    const char *date;        /* the answer's Date, "" when there is none; valid until the next prepare */
    const char *query_error; /* x-amzn-query-error, "" when there is none */
    bool body_is_whole;      /* false for an empty body that nothing declares to be empty */
    bool may_have_arrived;   /* bytes of the request left this process, and no proxy refused to connect for it */
    uint64_t bytes_sent;
    uint64_t bytes_received;
    unsigned connections; /* that had to be opened */
    unsigned repeats;     /* by libcurl itself; 0 before 7.80, which does not tell */
};

/* The settings' own file, else what AWS_CA_BUNDLE or SSL_CERT_FILE names, else libcurl's, else a well-known place.  The
 * answer lives as long as the settings, the environment and the program; NULL when there is none. */
const char *dtq_http_find_ca_file(const char *ca_file);

/* transfer: becomes CURLOPT_PRIVATE. */
enum dtq_code dtq_http_init(struct dtq_http *http, const struct dtq_http_settings *settings, void *transfer,
                            struct dtq_error *err) DTQ_MUST_CHECK;
void dtq_http_clean_up(struct dtq_http *http);

enum dtq_code dtq_http_prepare(struct dtq_http *http, const struct dtq_http_request *request,
                               struct dtq_error *err) DTQ_MUST_CHECK;

/* After the transfer has ended with result.  DTQ_OK: there is an answer with a complete header, whatever its status. */
enum dtq_code dtq_http_outcome(struct dtq_http *http, CURLcode result, struct dtq_http_outcome *out,
                               struct dtq_error *err) DTQ_MUST_CHECK;

#endif
