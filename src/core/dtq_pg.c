/*
 * DESIGN
 *
 * A dial tries PQconnectStartParams and PQconnectPoll first: only there can the verbosity be set before the attempt,
 * and only the verbose message tells the SQLSTATE of a refused connection.  PQconnectPoll never gives up on an address
 * that does not answer, though; when the time is over, PQconnectdbParams is tried, which walks over all addresses and
 * hosts with a time limit for each.  Both may block in getaddrinfo: that is why this is a thread of its own.
 *
 * An owner that no longer wants the connection detaches the thread: it could not interrupt getaddrinfo, and must not
 * wait for it.
 */
#include "dtq_pg.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ssl.h>

#include "dtq_alloc.h"
#include "dtq_clock.h"

#define DEFAULT_APPLICATION_NAME "dagster-taskiq"
#define LOOK_MS 200 /* how often a waiting dial looks whether it is still wanted */
#define PARAMS_MAX 16

struct dtq_pg_dial {
    pthread_mutex_t lock;
    pthread_t thread;      /* the owner's: joined when it has ended, detached when it is abandoned */
    struct dtq_loop *loop; /* borrowed while wanted */
    char *url;
    char *application_name; /* NULL: by default */
    int timeout_ms;

    /* under the lock */
    bool wanted;
    bool ended;
    PGconn *conn;
    struct dtq_error error;
};

struct params {
    const char *keywords[PARAMS_MAX + 1];
    const char *values[PARAMS_MAX + 1];
    int count;
};

/* ---- errors ------------------------------------------------------------------------------------------------------ */

/* First match wins; a prefix of two characters is a whole class.  Source: "PostgreSQL Error Codes" (PostgreSQL
 * documentation, appendix A). */
static const struct {
    const char *prefix;
    enum dtq_code code;
} classes[] = {
    {"08", DTQ_PG_LOST},         /* connection exception */
    {"57P05", DTQ_PG_LOST},      /* idle_session_timeout */
    {"57P04", DTQ_PG_CONNECT},   /* database_dropped */
    {"57P", DTQ_PG_LOST},        /* admin_shutdown, crash_shutdown, cannot_connect_now */
    {"25006", DTQ_PG_READ_ONLY}, /* read_only_sql_transaction: the server became a standby */
    {"40", DTQ_PG_TRANSIENT},    /* transaction rollback: serialization_failure, deadlock_detected */
    {"53", DTQ_PG_TRANSIENT},    /* insufficient resources */
    {"55P03", DTQ_PG_TRANSIENT}, /* lock_not_available */
    {"57014", DTQ_PG_TRANSIENT}, /* query_canceled: statement_timeout */
    {"26000", DTQ_PG_TRANSIENT}, /* invalid_sql_statement_name: not prepared on this connection after all */
    {"42P05", DTQ_PG_TRANSIENT}, /* duplicate_prepared_statement: prepared on it already */
    {"28", DTQ_PG_CONNECT},      /* invalid authorization */
    {"3D000", DTQ_PG_CONNECT},   /* invalid_catalog_name: no such database */
    {"42P01", DTQ_PG_SCHEMA},    /* undefined_table */
    {"42703", DTQ_PG_SCHEMA},    /* undefined_column */
    {"3F000", DTQ_PG_SCHEMA},    /* invalid_schema_name */
};

enum dtq_code dtq_pg_classify(const char *sqlstate)
{
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        if (strncmp(sqlstate, classes[i].prefix, strlen(classes[i].prefix)) == 0)
            return classes[i].code;
    }
    return DTQ_PG_STATEMENT;
}

/* libpq ends its messages with a newline and may add further lines (hints, places in its source). */
static int first_line(const char *message)
{
    return (int)strcspn(message, "\n");
}

enum dtq_code dtq_pg_result_error(const PGresult *result, struct dtq_error *err)
{
    const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    if (!message)
        message = PQresultErrorMessage(result);
    /* Without one the error is libpq's own, and that is a broken connection. */
    enum dtq_code code = sqlstate ? dtq_pg_classify(sqlstate) : DTQ_PG_LOST;
    dtq_error_set(err, code, "%.*s", first_line(message), message);
    if (err && sqlstate)
        snprintf(err->sqlstate, sizeof err->sqlstate, "%s", sqlstate);
    return code;
}

/* "FATAL:  28P01: password …" with PQERRORS_VERBOSE; the severity may be in another language. */
static bool find_sqlstate(const char *message, char sqlstate[6])
{
    const char *colon = strstr(message, ":  ");
    if (!colon || strspn(colon + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 || colon[8] != ':')
        return false;
    memcpy(sqlstate, colon + 3, 5);
    sqlstate[5] = '\0';
    return true;
}

enum dtq_code dtq_pg_connection_error(const PGconn *conn, enum dtq_code code, struct dtq_error *err)
{
    const char *message = PQerrorMessage(conn);
    dtq_error_set(err, code, "%.*s", first_line(message), message[0] ? message : "the connection was closed");
    if (err)
        find_sqlstate(message, err->sqlstate);
    return code;
}

enum dtq_code dtq_pg_check_url(const char *url, struct dtq_error *err)
{
    char *reason = NULL;
    PQconninfoOption *options = PQconninfoParse(url, &reason);
    PQconninfoFree(options);
    PQfreemem(reason);
    if (!options)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the database URL is not one that libpq can read");
    return DTQ_OK;
}

/* ---- a connection ------------------------------------------------------------------------------------------------ */

/* A record may have 16 KiB (RFC 8446, 5.1), of which libpq takes what its buffer has room for. */
static bool holds_decrypted(PGconn *conn)
{
    SSL *tls = PQsslInUse(conn) ? PQsslStruct(conn, "OpenSSL") : NULL;
    return tls && SSL_pending(tls) > 0;
}

bool dtq_pg_consume(PGconn *conn)
{
    do {
        if (!PQconsumeInput(conn))
            return false;
    } while (holds_decrypted(conn));
    return true;
}

/* ---- the helper thread ------------------------------------------------------------------------------------------- */

static void ignore_notice(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

static void add_param(struct params *params, const char *keyword, const char *value)
{
    params->keywords[params->count] = keyword;
    params->values[params->count] = value;
    params->count++;
    params->keywords[params->count] = params->values[params->count] = NULL;
}

/* What stands before dbname is a default, what stands after it wins over the URL. */
static void collect_params(struct params *params, const struct dtq_pg_dial *dial, const char *connect_timeout)
{
    params->count = 0;
    add_param(params, "gssencmode", "disable");
    add_param(params, "keepalives_idle", "10");
    add_param(params, "keepalives_interval", "5");
    add_param(params, "keepalives_count", "3");
    add_param(params, "tcp_user_timeout", "20000");
    add_param(params, "target_session_attrs", "read-write");
    add_param(params, "connect_timeout", connect_timeout);
    add_param(params, "fallback_application_name", DEFAULT_APPLICATION_NAME);
    add_param(params, "dbname", dial->url);
    if (dial->application_name)
        add_param(params, "application_name", dial->application_name);
    add_param(params, "client_encoding", "UTF8");
}

static bool is_wanted(struct dtq_pg_dial *dial)
{
    pthread_mutex_lock(&dial->lock);
    bool wanted = dial->wanted;
    pthread_mutex_unlock(&dial->lock);
    return wanted;
}

/* Returns the state it ended in; READING or WRITING when the time is over or nobody wants it any more. */
static PostgresPollingStatusType poll_connect(struct dtq_pg_dial *dial, PGconn *conn)
{
    uint64_t end_ms = dtq_clock_monotonic_ms() + (uint64_t)dial->timeout_ms;
    PostgresPollingStatusType state = PGRES_POLLING_WRITING;
    while (state == PGRES_POLLING_READING || state == PGRES_POLLING_WRITING) {
        if (dtq_clock_monotonic_ms() >= end_ms || !is_wanted(dial))
            break;
        struct pollfd wait = {PQsocket(conn), state == PGRES_POLLING_READING ? POLLIN : POLLOUT, 0};
        if (poll(&wait, 1, LOOK_MS) > 0)
            state = PQconnectPoll(conn);
    }
    return state;
}

static PGconn *connect_now(struct dtq_pg_dial *dial)
{
    char seconds[16];
    struct params params;
    snprintf(seconds, sizeof seconds, "%d", dial->timeout_ms / 1000 + (dial->timeout_ms % 1000 != 0));
    collect_params(&params, dial, seconds);
    PGconn *conn = PQconnectStartParams(params.keywords, params.values, 1);
    if (!conn || PQstatus(conn) == CONNECTION_BAD)
        return conn;
    PQsetErrorVerbosity(conn, PQERRORS_VERBOSE);
    PQsetNoticeReceiver(conn, ignore_notice, NULL);
    PostgresPollingStatusType state = poll_connect(dial, conn);
    if (state == PGRES_POLLING_OK || state == PGRES_POLLING_FAILED || !is_wanted(dial))
        return conn;
    PQfinish(conn);
    return PQconnectdbParams(params.keywords, params.values, 1);
}

static void set_up(PGconn *conn)
{
    PQsetErrorVerbosity(conn, PQERRORS_DEFAULT);
    PQsetNoticeReceiver(conn, ignore_notice, NULL);
}

static void free_dial(struct dtq_pg_dial *dial)
{
    if (dial->conn)
        PQfinish(dial->conn);
    pthread_mutex_destroy(&dial->lock);
    if (dial->url)
        dtq_free_secret(dial->url, strlen(dial->url));
    dtq_free(dial->application_name);
    dtq_free(dial);
}

static void *dial_main(void *argument)
{
    struct dtq_pg_dial *dial = argument;
    struct dtq_error error = {0};
    PGconn *conn = connect_now(dial);
    if (!conn)
        dtq_error_no_memory(&error);
    else if (PQstatus(conn) != CONNECTION_OK) {
        dtq_pg_connection_error(conn, DTQ_PG_CONNECT, &error);
        PQfinish(conn);
        conn = NULL;
    }
    else if (PQsetnonblocking(conn, 1) != 0) {
        dtq_error_set(&error, DTQ_PG_CONNECT, "the connection could not be made non-blocking");
        PQfinish(conn);
        conn = NULL;
    }
    if (conn)
        set_up(conn);
    pthread_mutex_lock(&dial->lock);
    bool wanted = dial->wanted;
    dial->ended = true;
    dial->conn = conn;
    dial->error = error;
    if (wanted)
        dtq_loop_wakeup(dial->loop);
    pthread_mutex_unlock(&dial->lock);
    if (!wanted)
        free_dial(dial);
    return NULL;
}

/* ---- its owner --------------------------------------------------------------------------------------------------- */

static int start_thread(struct dtq_pg_dial *dial)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&dial->thread, NULL, dial_main, dial);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

enum dtq_code dtq_pg_dial(struct dtq_loop *loop, const char *url, const char *application_name, int timeout_ms,
                          struct dtq_pg_dial **out, struct dtq_error *err)
{
    *out = NULL;
    struct dtq_pg_dial *dial = dtq_calloc(1, sizeof *dial);
    if (!dial)
        return dtq_error_no_memory(err);
    enum dtq_code rc = DTQ_OK;
    pthread_mutex_init(&dial->lock, NULL);
    dial->loop = loop;
    dial->timeout_ms = timeout_ms;
    dial->wanted = true;
    dial->url = dtq_strdup(url);
    dial->application_name = application_name ? dtq_strdup(application_name) : NULL;
    if (!dial->url || (application_name && !dial->application_name)) {
        rc = dtq_error_no_memory(err);
        goto cleanup;
    }
    int failed = start_thread(dial);
    if (failed) {
        rc = dtq_error_set_errno(err, failed, "the thread that connects to PostgreSQL could not be started");
        goto cleanup;
    }
    *out = dial;
cleanup:
    if (rc)
        free_dial(dial);
    return rc;
}

bool dtq_pg_dial_take(struct dtq_pg_dial *dial, PGconn **conn, struct dtq_error *err)
{
    pthread_mutex_lock(&dial->lock);
    bool ended = dial->ended;
    pthread_mutex_unlock(&dial->lock);
    if (!ended)
        return false;
    pthread_join(dial->thread, NULL); /* all it had left to do was to return */
    *conn = dial->conn;
    *err = dial->error;
    dial->conn = NULL;
    free_dial(dial);
    return true;
}

void dtq_pg_dial_abandon(struct dtq_pg_dial *dial)
{
    if (!dial)
        return;
    pthread_t thread = dial->thread;
    pthread_mutex_lock(&dial->lock);
    bool ended = dial->ended;
    dial->wanted = false;
    pthread_mutex_unlock(&dial->lock);
    if (ended) {
        pthread_join(thread, NULL);
        free_dial(dial);
    }
    else
        pthread_detach(thread); /* dial may be gone by now */
}
