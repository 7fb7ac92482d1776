#include "stub_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <check.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define CONNECTIONS_MAX 128
#define REQUESTS_MAX 4096
#define REQUEST_BYTES_MAX (4 * 1024 * 1024)

struct connection {
    struct stub_server *server;
    pthread_t thread;
    int fd;
    SSL *tls;
    char *text; /* what has been read and not used */
    size_t length;
};

struct stub_server {
    const struct stub_answer *script;
    size_t script_length;
    SSL_CTX *tls;
    int fd;
    char url[64];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping, let_go;
    size_t connection_count, request_count;
    struct connection connections[CONNECTIONS_MAX];
    char *requests[REQUESTS_MAX];
};

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

static ssize_t receive_some(struct connection *connection, char *data, size_t size)
{
    return connection->tls ? SSL_read(connection->tls, data, (int)size) : recv(connection->fd, data, size, 0);
}

static bool send_all(struct connection *connection, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = connection->tls ? SSL_write(connection->tls, data, (int)length)
                                       : send(connection->fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        data += sent;
        length -= (size_t)sent;
    }
    return true;
}

static void reset(struct connection *connection)
{
    struct linger at_once = {1, 0};
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static size_t body_length(const char *header)
{
    const char *field = strcasestr(header, "\r\ncontent-length:");
    return field ? strtoul(field + strlen("\r\ncontent-length:"), NULL, 10) : 0;
}

/* One request's text, NULL when the peer closes. */
static char *read_request(struct connection *connection)
{
    for (;;) {
        connection->text[connection->length] = '\0';
        char *end = strstr(connection->text, "\r\n\r\n");
        size_t wanted = end ? (size_t)(end + 4 - connection->text) + body_length(connection->text) : 0;
        if (end && connection->length >= wanted) {
            char *request = strndup(connection->text, wanted);
            memmove(connection->text, connection->text + wanted, connection->length - wanted);
            connection->length -= wanted;
            return request;
        }
        size_t room = REQUEST_BYTES_MAX - connection->length;
        ssize_t got = receive_some(connection, connection->text + connection->length, room);
        if (got <= 0)
            return NULL;
        connection->length += (size_t)got;
    }
}

/* The answer for this request; NULL when the server stops. */
static const struct stub_answer *next_answer(struct stub_server *server, char *request)
{
    pthread_mutex_lock(&server->lock);
    size_t index = server->request_count < REQUESTS_MAX ? server->request_count : REQUESTS_MAX - 1;
    free(server->requests[index]);
    server->requests[index] = request;
    server->request_count = index + 1;
    const struct stub_answer *answer =
        &server->script[index < server->script_length ? index : server->script_length - 1];
    pthread_cond_broadcast(&server->changed);
    while (answer->hold && !server->let_go && !server->stopping)
        pthread_cond_wait(&server->changed, &server->lock);
    if (server->stopping)
        answer = NULL;
    pthread_mutex_unlock(&server->lock);
    return answer;
}

/* False when the connection is to be closed. */
static bool send_answer(struct connection *connection, const struct stub_answer *answer)
{
    char header[1024];
    const char *body = answer->body ? answer->body : "";
    int status = answer->status ? answer->status : 200;
    snprintf(header, sizeof header, "HTTP/1.1 %d Some Reason\r\nContent-Length: %zu\r\n", status, strlen(body));
    switch (answer->fault) {
    case STUB_CLOSE:
        return false;
    case STUB_RAW:
        send_all(connection, body, strlen(body));
        return false;
    case STUB_CUT_HEADER:
        send_all(connection, header, strlen(header) - 5);
        return false;
    case STUB_RESET_IN_BODY:
        send_all(connection, header, strlen(header));
        send_all(connection, "\r\n", 2);
        send_all(connection, body, strlen(body) / 2);
        reset(connection);
        return false;
    default:
        break;
    }
    return send_all(connection, header, strlen(header)) &&
           (!answer->headers || send_all(connection, answer->headers, strlen(answer->headers))) &&
           send_all(connection, "\r\n", 2) && send_all(connection, body, strlen(body));
}

static void *serve(void *argument)
{
    struct connection *connection = argument;
    char *request;
    connection->text = malloc(REQUEST_BYTES_MAX + 1);
    if (!connection->tls || SSL_accept(connection->tls) == 1) {
        while ((request = read_request(connection))) {
            const struct stub_answer *answer = next_answer(connection->server, request);
            if (!answer || !send_answer(connection, answer))
                break;
        }
    }
    free(connection->text);
    SSL_free(connection->tls);
    pthread_mutex_lock(&connection->server->lock);
    close(connection->fd);
    connection->fd = -1;
    pthread_mutex_unlock(&connection->server->lock);
    return NULL;
}

/* ---- the listener ------------------------------------------------------------------------------------------------ */

static void *listen_on(void *argument)
{
    struct stub_server *server = argument;
    for (;;) {
        int fd = accept(server->fd, NULL, NULL);
        if (fd < 0)
            return NULL;
        pthread_mutex_lock(&server->lock);
        if (server->stopping || server->connection_count == CONNECTIONS_MAX) {
            close(fd);
        }
        else {
            struct connection *connection = &server->connections[server->connection_count++];
            int at_once = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
            connection->server = server;
            connection->fd = fd;
            if (server->tls) {
                connection->tls = SSL_new(server->tls);
                SSL_set_fd(connection->tls, fd);
            }
            pthread_create(&connection->thread, NULL, serve, connection);
        }
        pthread_mutex_unlock(&server->lock);
    }
}

static struct stub_server *start(const struct stub_answer *script, size_t count, SSL_CTX *tls)
{
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    struct stub_server *server = calloc(1, sizeof *server);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    server->script = script;
    server->script_length = count;
    server->tls = tls;
    server->fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_ge(server->fd, 0);
    ck_assert_int_eq(bind(server->fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(server->fd, CONNECTIONS_MAX), 0);
    ck_assert_int_eq(getsockname(server->fd, (struct sockaddr *)&address, &length), 0);
    snprintf(server->url, sizeof server->url, "%s://127.0.0.1:%d", tls ? "https" : "http", ntohs(address.sin_port));
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    ck_assert_int_eq(pthread_create(&server->thread, NULL, listen_on, server), 0);
    return server;
}

struct stub_server *stub_server_start(const struct stub_answer *script, size_t count)
{
    return start(script, count, NULL);
}

/* ---- TLS --------------------------------------------------------------------------------------------------------- */

static X509 *sign_certificate(EVP_PKEY *key)
{
    X509 *certificate = X509_new();
    X509_NAME *name = X509_get_subject_name(certificate);
    X509_EXTENSION *address = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"127.0.0.1", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_add_ext(certificate, address, -1);
    X509_EXTENSION_free(address);
    ck_assert_int_gt(X509_sign(certificate, key, EVP_sha256()), 0);
    return certificate;
}

struct stub_server *stub_server_start_tls(const struct stub_answer *script, size_t count, const char *certificate_path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = sign_certificate(key);
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    FILE *file = fopen(certificate_path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(PEM_write_X509(file, certificate), 1);
    fclose(file);
    ck_assert_int_eq(SSL_CTX_use_certificate(tls, certificate), 1);
    ck_assert_int_eq(SSL_CTX_use_PrivateKey(tls, key), 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return start(script, count, tls);
}

/* ---- for the tests ----------------------------------------------------------------------------------------------- */

void stub_server_stop(struct stub_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->stopping = true;
    pthread_cond_broadcast(&server->changed);
    for (size_t i = 0; i < server->connection_count; i++) {
        if (server->connections[i].fd >= 0)
            shutdown(server->connections[i].fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&server->lock);
    shutdown(server->fd, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->fd);
    for (size_t i = 0; i < server->connection_count; i++)
        pthread_join(server->connections[i].thread, NULL);
    for (size_t i = 0; i < server->request_count; i++)
        free(server->requests[i]);
    SSL_CTX_free(server->tls);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

const char *stub_server_url(const struct stub_server *server)
{
    return server->url;
}

void stub_server_wait_for(struct stub_server *server, size_t count)
{
    pthread_mutex_lock(&server->lock);
    while (server->request_count < count)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
}

size_t stub_server_requests(struct stub_server *server)
{
    pthread_mutex_lock(&server->lock);
    size_t count = server->request_count;
    pthread_mutex_unlock(&server->lock);
    return count;
}

size_t stub_server_connections(struct stub_server *server)
{
    pthread_mutex_lock(&server->lock);
    size_t count = server->connection_count;
    pthread_mutex_unlock(&server->lock);
    return count;
}

const char *stub_server_request(struct stub_server *server, size_t index)
{
    pthread_mutex_lock(&server->lock);
    ck_assert_uint_lt(index, server->request_count);
    const char *request = server->requests[index];
    pthread_mutex_unlock(&server->lock);
    return request;
}

void stub_server_let_go(struct stub_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->let_go = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}
