#include "dtq_http.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dtq_limits.h"

#define KEEP_BODY_BYTES 262144          /* a larger buffer is not kept between transfers */
#define REQUEST_HEADER_BYTES_MAX 131072 /* session tokens are long */
#define KEEPALIVE_S 60L

const char *dtq_http_find_ca_file(const char *ca_file)
{
    static const char *const places[] = {
        "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Ubuntu, Arch */
        "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora, RHEL, Amazon Linux */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* RHEL 7 */
        "/etc/ssl/ca-bundle.pem",                            /* openSUSE */
        "/etc/ssl/cert.pem",                                 /* macOS, Alpine, BSD */
    };
    static const char *const variables[] = {"AWS_CA_BUNDLE", "SSL_CERT_FILE"};
    if (ca_file)
        return ca_file;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        const char *file = getenv(variables[i]);
        if (file && *file)
            return file;
    }
#if LIBCURL_VERSION_NUM >= 0x074600
    const curl_version_info_data *version = curl_version_info(CURLVERSION_NOW);
    if (version->age >= CURLVERSION_SEVENTH && version->cainfo && access(version->cainfo, R_OK) == 0)
        return version->cainfo;
#endif
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (access(places[i], R_OK) == 0)
            return places[i];
    }
    return NULL;
}

/* ---- callbacks --------------------------------------------------------------------------------------------------- */

static size_t take_body(char *data, size_t size, size_t count, void *context)
{
    struct dtq_http *http = context;
    return dtq_buf_add(&http->body, data, size * count) == DTQ_OK ? size * count : 0;
}

/* Copy the value of "Name: value\r\n" into out when the line has this name. */
static void take_value(struct dtq_slice line, const char *name, char *out, size_t out_size)
{
    size_t name_length = strlen(name);
    if (line.length <= name_length || line.data[name_length] != ':' || strncasecmp(line.data, name, name_length) != 0)
        return;
    const char *value = line.data + name_length + 1, *end = line.data + line.length;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' '))
        end--;
    size_t length = (size_t)(end - value) < out_size ? (size_t)(end - value) : out_size - 1;
    memcpy(out, value, length);
    out[length] = '\0';
}

/* Every line comes here, those of a proxy's answer or of a 100 too: a status line starts afresh. */
static size_t take_header(char *data, size_t size, size_t count, void *context)
{
    struct dtq_http *http = context;
    struct dtq_slice line = {data, size * count};
    if (line.length > DTQ_HTTP_HEADER_BYTES_MAX - http->header_bytes)
        return 0;
    http->header_bytes += line.length;
    if (line.length >= 5 && memcmp(data, "HTTP/", 5) == 0) {
        http->header_complete = false;
        http->date[0] = http->query_error[0] = http->coding[0] = '\0';
    }
    else if (line.length <= 2 && (data[0] == '\r' || data[0] == '\n')) {
        http->header_complete = true;
    }
    take_value(line, "date", http->date, sizeof http->date);
    take_value(line, "x-amzn-query-error", http->query_error, sizeof http->query_error);
    take_value(line, "transfer-encoding", http->coding, sizeof http->coding);
    return line.length;
}

/* libcurl's own sockets would be inherited by whatever the process executes. */
static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    (void)context;
    (void)purpose;
#ifdef SOCK_CLOEXEC
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
#else
    int fd = socket(address->family, address->socktype, address->protocol);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
#endif
}

#if LIBCURL_VERSION_NUM >= 0x075000
/* The connection is there, and the request is about to go out.  A second time: the connection before was an old one and
 * closed without an answer, which does not tell whether the request was served. */
static int before_request(void *context, char *peer, char *own, int peer_port, int own_port)
{
    struct dtq_http *http = context;
    long sent = 0;
    (void)peer;
    (void)own;
    (void)peer_port;
    (void)own_port;
    curl_easy_getinfo(http->easy, CURLINFO_REQUEST_SIZE, &sent);
    if (!http->transmissions)
        http->bytes_before = sent;
    http->cut_off = http->once && sent > http->bytes_before;
    if (http->cut_off)
        return CURL_PREREQFUNC_ABORT;
    http->transmissions++;
    return CURL_PREREQFUNC_OK;
}
#endif

/* ---- the handle -------------------------------------------------------------------------------------------------- */

static CURLcode set_protocols(CURL *easy)
{
#if LIBCURL_VERSION_NUM >= 0x075500
    return curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    return curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

/* Without this, taking a handle away while its host name is still being resolved waits for the name server. */
static void set_quick_exit(CURL *easy)
{
#if LIBCURL_VERSION_NUM >= 0x075700
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#else
    (void)easy;
#endif
}

static void watch_transmissions(struct dtq_http *http)
{
#if LIBCURL_VERSION_NUM >= 0x075000
    curl_easy_setopt(http->easy, CURLOPT_PREREQFUNCTION, before_request);
    curl_easy_setopt(http->easy, CURLOPT_PREREQDATA, http);
#else
    (void)http;
#endif
}

static CURLcode set_tls(CURL *easy, const struct dtq_http_settings *settings)
{
    CURLcode rc = curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (!rc)
        rc = curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, settings->insecure ? 0L : 1L);
    if (!rc)
        rc = curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, settings->insecure ? 0L : 2L);
    if (!rc && settings->ca_file) {
        curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
        rc = curl_easy_setopt(easy, CURLOPT_CAINFO, settings->ca_file);
    }
    return rc;
}

static CURLcode set_options(struct dtq_http *http, const struct dtq_http_settings *settings, void *transfer)
{
    CURL *easy = http->easy;
    CURLcode rc = set_protocols(easy);
    if (!rc)
        rc = set_tls(easy, settings);
    if (!rc && settings->proxy)
        rc = curl_easy_setopt(easy, CURLOPT_PROXY, settings->proxy);
    if (!rc)
        rc = curl_easy_setopt(easy, CURLOPT_USERAGENT, "dagster-taskiq");
    set_quick_exit(easy);
    watch_transmissions(http);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L); /* what was signed is what is sent */
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, KEEPALIVE_S);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, KEEPALIVE_S);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)settings->connect_timeout_ms);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, http->curl_message);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, http);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, http);
    return rc;
}

enum dtq_code dtq_http_init(struct dtq_http *http, const struct dtq_http_settings *settings, void *transfer,
                            struct dtq_error *err)
{
    memset(http, 0, sizeof *http);
    dtq_buf_init(&http->body, DTQ_HTTP_BODY_BYTES_MAX);
    dtq_buf_init(&http->header_lines, REQUEST_HEADER_BYTES_MAX);
    http->easy = curl_easy_init();
    if (!http->easy)
        return dtq_error_no_memory(err);
    CURLcode rc = set_options(http, settings, transfer);
    if (rc) {
        dtq_http_clean_up(http);
        if (rc == CURLE_OUT_OF_MEMORY)
            return dtq_error_no_memory(err);
        return dtq_error_set(err, DTQ_UNSUPPORTED, "libcurl refuses a setting: %s", curl_easy_strerror(rc));
    }
    return DTQ_OK;
}

void dtq_http_clean_up(struct dtq_http *http)
{
    if (http->easy)
        curl_easy_cleanup(http->easy);
    http->easy = NULL;
    dtq_buf_clean_up(&http->header_lines);
    dtq_buf_clean_up(&http->body);
}

/* ---- one transfer ------------------------------------------------------------------------------------------------ */

/* libcurl only reads the list, so its nodes and texts live in http and cost no allocation once the buffer has grown. */
static enum dtq_code set_headers(struct dtq_http *http, const struct dtq_sigv4_header *headers, size_t count,
                                 struct dtq_error *err)
{
    static const char *const removed[] = {"Expect:", "Accept:"}; /* libcurl would add them, unsigned */
    size_t starts[DTQ_HTTP_HEADERS_MAX + 2];
    if (count > DTQ_HTTP_HEADERS_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "more than %d request headers", DTQ_HTTP_HEADERS_MAX);
    dtq_buf_clear(&http->header_lines);
    for (size_t i = 0; i < count; i++) {
        starts[i] = http->header_lines.length;
        dtq_buf_add_slice(&http->header_lines, headers[i].name);
        dtq_buf_add_str(&http->header_lines, ": ");
        dtq_buf_add_slice(&http->header_lines, headers[i].value);
        dtq_buf_add_char(&http->header_lines, '\0');
    }
    for (size_t i = 0; i < sizeof removed / sizeof removed[0]; i++) {
        starts[count++] = http->header_lines.length;
        dtq_buf_add(&http->header_lines, removed[i], strlen(removed[i]) + 1);
    }
    enum dtq_code rc = dtq_buf_check(&http->header_lines, err, "the request's header");
    if (rc)
        return rc;
    struct curl_slist *nodes = http->header_nodes;
    for (size_t i = 0; i < count; i++) {
        nodes[i].data = http->header_lines.data + starts[i];
        nodes[i].next = i + 1 < count ? &nodes[i + 1] : NULL;
    }
    curl_easy_setopt(http->easy, CURLOPT_HTTPHEADER, nodes);
    return DTQ_OK;
}

enum dtq_code dtq_http_prepare(struct dtq_http *http, const struct dtq_http_request *request, struct dtq_error *err)
{
    if (http->body.capacity > KEEP_BODY_BYTES)
        dtq_buf_clean_up(&http->body);
    dtq_buf_clear(&http->body);
    http->header_bytes = 0;
    http->header_complete = false;
    http->once = request->once;
    http->cut_off = false;
    http->transmissions = 0;
    http->date[0] = http->query_error[0] = http->coding[0] = http->curl_message[0] = '\0';
    enum dtq_code rc = set_headers(http, request->headers, request->header_count, err);
    if (rc)
        return rc;
    if (curl_easy_setopt(http->easy, CURLOPT_URL, request->url) != CURLE_OK)
        return dtq_error_no_memory(err);
    curl_easy_setopt(http->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body.length);
    curl_easy_setopt(http->easy, CURLOPT_POSTFIELDS, request->body.length ? request->body.data : "");
    curl_easy_setopt(http->easy, CURLOPT_TIMEOUT_MS, (long)request->timeout_ms);
    return DTQ_OK;
}

static enum dtq_code code_of(CURLcode result, const struct dtq_http *http)
{
    switch (result) {
    case CURLE_OUT_OF_MEMORY:
        return DTQ_NO_MEMORY;
    case CURLE_WRITE_ERROR:
        return http->body.failed ? http->body.failed : DTQ_TOO_LARGE;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_ISSUER_ERROR:
        return DTQ_TLS;
    default:
        return DTQ_TRANSPORT;
    }
}

static void measure(struct dtq_http *http, struct dtq_http_outcome *out)
{
    long status = 0, connect_status = 0, connections = 0, request_bytes = 0, header_bytes = 0;
    curl_off_t uploaded = 0, downloaded = 0;
    curl_easy_getinfo(http->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(http->easy, CURLINFO_HTTP_CONNECTCODE, &connect_status);
    curl_easy_getinfo(http->easy, CURLINFO_NUM_CONNECTS, &connections);
    curl_easy_getinfo(http->easy, CURLINFO_REQUEST_SIZE, &request_bytes);
    curl_easy_getinfo(http->easy, CURLINFO_HEADER_SIZE, &header_bytes);
    curl_easy_getinfo(http->easy, CURLINFO_SIZE_UPLOAD_T, &uploaded);
    curl_easy_getinfo(http->easy, CURLINFO_SIZE_DOWNLOAD_T, &downloaded);
    out->status = (int)status;
    out->connections = (unsigned)connections;
    out->bytes_sent = (uint64_t)request_bytes + (uint64_t)uploaded;
    out->bytes_received = (uint64_t)header_bytes + (uint64_t)downloaded;
    /* The bytes of a proxy's CONNECT are among them.  When it refuses they are all, unless libcurl had sent the request
     * on an older connection before. */
    bool refused = !status && connect_status && connect_status / 100 != 2 && !http->transmissions;
    out->may_have_arrived = request_bytes > 0 && !refused;
    out->repeats = http->transmissions > 1 ? http->transmissions - 1 : 0;
}

enum dtq_code dtq_http_outcome(struct dtq_http *http, CURLcode result, struct dtq_http_outcome *out,
                               struct dtq_error *err)
{
    curl_off_t declared = -1;
    memset(out, 0, sizeof *out);
    measure(http, out);
    out->date = http->date;
    out->query_error = http->query_error;
    if (http->cut_off)
        return dtq_error_set(err, DTQ_TRANSPORT, "the connection closed without an answer");
    if (result != CURLE_OK) {
        enum dtq_code rc = code_of(result, http);
        const char *reason = http->curl_message[0] ? http->curl_message : curl_easy_strerror(result);
        dtq_error_set(err, rc, "%s", rc == DTQ_TOO_LARGE ? "the answer is too large" : reason);
        err->http_status = out->status;
        return rc;
    }
    /* An answer that ends inside its header is a success to libcurl. */
    if (!http->header_complete)
        return dtq_error_set(err, DTQ_TRANSPORT, "the connection closed inside the answer's header");
    curl_easy_getinfo(http->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &declared);
    out->body_is_whole = http->body.length > 0 || declared == 0 || http->coding[0] || out->status == 204;
    return DTQ_OK;
}
