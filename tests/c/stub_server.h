/*
 * An HTTP server with a script, on a loopback port, for faults that no emulator gives.
 *
 * What it is for: the n-th request gets the n-th answer of the script; requests after its end get the last one again.
 * Ownership: the answers are borrowed until stop.
 * Thread: one for the listener and one for each connection; the functions below may be called from any other.
 * Failure: whatever cannot be set up fails the test.
 */
#ifndef STUB_SERVER_H
#define STUB_SERVER_H

#include <stdbool.h>
#include <stddef.h>

enum stub_fault {
    STUB_WHOLE,         /* no fault */
    STUB_RESET_IN_BODY, /* half of the body, then a reset */
    STUB_CUT_HEADER,    /* closes inside the header */
    STUB_CLOSE,         /* closes without an answer */
    STUB_RAW,           /* body is all that is sent; then closes */
};

struct stub_answer {
    int status;          /* 0: 200 */
    const char *headers; /* further ones, each with its CRLF; NULL: none */
    const char *body;    /* NULL: empty */
    enum stub_fault fault;
    bool hold; /* not before stub_server_let_go */
};

struct stub_server;

struct stub_server *stub_server_start(const struct stub_answer *script, size_t count);
/* With TLS and a certificate for 127.0.0.1 that it signs itself and writes to certificate_path. */
struct stub_server *stub_server_start_tls(const struct stub_answer *script, size_t count, const char *certificate_path);
void stub_server_stop(struct stub_server *server);

/* "http://127.0.0.1:<port>" or https. */
const char *stub_server_url(const struct stub_server *server);
/* Blocks until count requests have arrived. */
void stub_server_wait_for(struct stub_server *server, size_t count);
size_t stub_server_requests(struct stub_server *server);
size_t stub_server_connections(struct stub_server *server);
/* The whole text of the index-th request; lives until stop. */
const char *stub_server_request(struct stub_server *server, size_t index);
/* Answers that are held, now and later, go out. */
void stub_server_let_go(struct stub_server *server);

#endif
