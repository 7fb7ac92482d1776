/*
 * Getting a connection to PostgreSQL without blocking the I/O thread, and what PostgreSQL's errors mean to us.
 *
 * What it is for: libpq resolves names with a call that blocks for seconds when a name server is dead, which is just
 * when a database fails over; it reads password and service files; SCRAM and TLS cost milliseconds of CPU.  All of that
 * happens in a helper thread, which lives for one attempt to connect ("dial") and hands the finished connection over.
 * Ownership: a dial is shared between its thread and its owner; whoever is last frees it.  A connection that was taken
 * belongs to the taker (PQfinish).
 * Thread: dtq_pg_dial* from the owner's thread (the I/O thread).  The helper thread blocks all signals, and calls
 * nothing of the owner but dtq_loop_wakeup, never after dtq_pg_dial_abandon has returned.
 * Failure: DTQ_INVALID_ARGUMENT for a URL that libpq cannot read (the message never quotes it: it may hold a password),
 * DTQ_PG_CONNECT with PostgreSQL's message and SQLSTATE where it gave one.
 */
#ifndef DTQ_PG_H
#define DTQ_PG_H

#include <stdbool.h>

#include <libpq-fe.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_loop.h"

struct dtq_pg_dial;

enum dtq_code dtq_pg_check_url(const char *url, struct dtq_error *err) DTQ_MUST_CHECK;

/* Begin to connect.  application_name NULL: "dagster-taskiq" unless the URL or PGAPPNAME names one; else it wins over
 * both.  What the URL does not set is set so that a dead peer is noticed within seconds, GSS encryption is off, and
 * only a server that takes writes is accepted.  loop is woken when the attempt has ended. */
enum dtq_code dtq_pg_dial(struct dtq_loop *loop, const char *url, const char *application_name, int timeout_ms,
                          struct dtq_pg_dial **out, struct dtq_error *err) DTQ_MUST_CHECK;

/* True once the attempt has ended; the dial is freed then, and *conn is the connection (non-blocking, silent) or NULL,
 * with err filled. */
bool dtq_pg_dial_take(struct dtq_pg_dial *dial, PGconn **conn, struct dtq_error *err);

/* The attempt goes on by itself and its connection is closed when it ends.  NULL-safe. */
void dtq_pg_dial_abandon(struct dtq_pg_dial *dial);

/* Take in all that has arrived, for PQisBusy and PQnotifies, without blocking.  With TLS that is more than PQconsumeInput
 * takes once: what OpenSSL has decrypted no poll of the socket tells of.  False: the connection is lost; what arrived
 * before may still be read. */
bool dtq_pg_consume(PGconn *conn) DTQ_MUST_CHECK;

/* The code that a SQLSTATE means to us. */
enum dtq_code dtq_pg_classify(const char *sqlstate);

/* Fill err from a result that is an error; returns its code. */
enum dtq_code dtq_pg_result_error(const PGresult *result, struct dtq_error *err);

/* Fill err with code and the connection's last message. */
enum dtq_code dtq_pg_connection_error(const PGconn *conn, enum dtq_code code, struct dtq_error *err);

#endif
