#include "dtq_sqs.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "dtq_alloc.h"
#include "dtq_limits.h"
#include "dtq_sqs_priv.h"
#include "dtq_uri.h"

#define CONNECT_TIMEOUT_MS 5000
#define REQUEST_TIMEOUT_MS 30000
#define REQUEST_TIMEOUT_MS_MAX (INT_MAX - 1000 * DTQ_SQS_WAIT_S_MAX) /* 24 days: a long poll gets its wait on top */
#define MAX_ATTEMPTS 5
#define BACKOFF_BASE_MS 100
#define BACKOFF_CAP_MS 5000
#define JOIN_WAIT_MS 100
#define URL_BYTES_MAX 2048

/* ---- options ----------------------------------------------------------------------------------------------------- */

static int or_default(int value, int default_value)
{
    return value > 0 ? value : default_value;
}

static enum dtq_code check_region(const char *region, struct dtq_error *err)
{
    if (!region || !region[0])
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "no AWS region: set AWS_REGION or give the region setting");
    if (strlen(region) > 63 || region[strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-")])
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "\"%.63s\" is not an AWS region", region);
    return DTQ_OK;
}

static enum dtq_code split_endpoint(struct dtq_sqs *client, const char *endpoint, struct dtq_error *err)
{
    struct dtq_buf text, origin, host;
    struct dtq_uri uri;
    dtq_buf_init(&text, URL_BYTES_MAX);
    dtq_buf_init(&origin, URL_BYTES_MAX);
    dtq_buf_init(&host, URL_BYTES_MAX);
    if (endpoint && endpoint[0])
        dtq_buf_add_str(&text, endpoint);
    else
        dtq_buf_addf(&text, "https://sqs.%s.amazonaws.com%s", client->region,
                     strncmp(client->region, "cn-", 3) == 0 ? ".cn" : "");
    enum dtq_code rc = dtq_buf_check(&text, err, "the endpoint");
    if (!rc && dtq_uri_split(dtq_buf_slice(&text), &uri, err) != DTQ_OK)
        rc = dtq_error_set(err, DTQ_INVALID_ARGUMENT,
                           "the SQS endpoint is not a URL like http://127.0.0.1:9324: check the setting endpoint_url, "
                           "AWS_ENDPOINT_URL_SQS and AWS_ENDPOINT_URL");
    if (!rc) {
        dtq_uri_add_origin(&uri, &origin);
        dtq_uri_add_host(&uri, &host);
        client->origin = dtq_buf_take(&origin, NULL);
        client->host = dtq_buf_take(&host, NULL);
        client->base_path = dtq_strndup(uri.path.length ? uri.path.data : "/", uri.path.length ? uri.path.length : 1);
        if (!client->origin || !client->host || !client->base_path)
            rc = dtq_error_no_memory(err);
    }
    dtq_buf_clean_up(&host);
    dtq_buf_clean_up(&origin);
    dtq_buf_clean_up(&text);
    return rc;
}

static enum dtq_code set_http(struct dtq_sqs *client, const struct dtq_sqs_options *options, struct dtq_error *err)
{
    const char *ca_file = options->insecure ? NULL : dtq_http_find_ca_file(options->ca_file);
    if (ca_file && access(ca_file, R_OK) != 0)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT,
                             "the CA file %.200s cannot be read: check the CA setting, AWS_CA_BUNDLE and SSL_CERT_FILE",
                             ca_file);
    client->ca_file = ca_file ? dtq_strdup(ca_file) : NULL;
    client->proxy = options->proxy ? dtq_strdup(options->proxy) : NULL;
    if ((ca_file && !client->ca_file) || (options->proxy && !client->proxy))
        return dtq_error_no_memory(err);
    client->http.ca_file = client->ca_file;
    client->http.proxy = client->proxy;
    client->http.insecure = options->insecure;
    client->http.connect_timeout_ms = or_default(options->connect_timeout_ms, CONNECT_TIMEOUT_MS);
    return DTQ_OK;
}

/* ---- the client -------------------------------------------------------------------------------------------------- */

static void destroy(struct dtq_sqs *client)
{
    while (client->idle) {
        struct dtq_sqs_exchange *exchange = client->idle;
        client->idle = exchange->next;
        dtq_sqs_exchange_destroy(exchange);
    }
    dtq_sigv4_key_cache_clean_up(&client->key_cache);
    dtq_creds_release(client->credentials);
    pthread_mutex_destroy(&client->credentials_lock);
    dtq_free(client->region);
    dtq_free(client->origin);
    dtq_free(client->host);
    dtq_free(client->base_path);
    dtq_free(client->ca_file);
    dtq_free(client->proxy);
    dtq_free(client);
}

void dtq_sqs_destroy_source(struct dtq_source *source, bool forked)
{
    if (!forked)
        destroy((struct dtq_sqs *)source);
}

enum dtq_code dtq_sqs_new(struct dtq_loop *loop, const struct dtq_sqs_options *options, struct dtq_creds *credentials,
                          struct dtq_sqs **out, struct dtq_error *err)
{
    *out = NULL;
    enum dtq_code rc = check_region(options->region, err);
    if (rc)
        return rc;
    struct dtq_sqs *client = dtq_calloc(1, sizeof *client);
    if (!client)
        return dtq_error_no_memory(err);
    client->source.source_class = &dtq_sqs_source_class;
    pthread_mutex_init(&client->credentials_lock, NULL);
    client->credentials = dtq_creds_acquire(credentials);
    client->retry.max_attempts = or_default(options->max_attempts, MAX_ATTEMPTS);
    client->retry.base_ms = or_default(options->backoff_base_ms, BACKOFF_BASE_MS);
    client->retry.cap_ms = or_default(options->backoff_cap_ms, BACKOFF_CAP_MS);
    client->request_timeout_ms = or_default(options->request_timeout_ms, REQUEST_TIMEOUT_MS);
    if (client->request_timeout_ms > REQUEST_TIMEOUT_MS_MAX)
        client->request_timeout_ms = REQUEST_TIMEOUT_MS_MAX;
    client->join_wait_ms = or_default(options->join_wait_ms, JOIN_WAIT_MS);
    client->owner_renews = options->owner_renews;
    client->region = dtq_strdup(options->region);
    if (!client->region)
        rc = dtq_error_no_memory(err);
    else
        rc = split_endpoint(client, options->endpoint, err);
    if (!rc)
        rc = set_http(client, options, err);
    if (!rc)
        rc = dtq_loop_add(loop, &client->source, err);
    if (rc)
        destroy(client);
    else
        *out = client;
    return rc;
}

struct dtq_source *dtq_sqs_source(struct dtq_sqs *client)
{
    return &client->source;
}

void dtq_sqs_get_stats(struct dtq_sqs *client, struct dtq_sqs_stats *stats)
{
    stats->requests = atomic_load_explicit(&client->requests, memory_order_relaxed);
    stats->retries = atomic_load_explicit(&client->retries, memory_order_relaxed);
    stats->throttled = atomic_load_explicit(&client->throttled, memory_order_relaxed);
    stats->failed = atomic_load_explicit(&client->failed, memory_order_relaxed);
    stats->connections = atomic_load_explicit(&client->connections, memory_order_relaxed);
    stats->bytes_sent = atomic_load_explicit(&client->bytes_sent, memory_order_relaxed);
    stats->bytes_received = atomic_load_explicit(&client->bytes_received, memory_order_relaxed);
}

/* ---- credentials ------------------------------------------------------------------------------------------------- */

void dtq_sqs_set_credentials(struct dtq_sqs *client, struct dtq_creds *credentials)
{
    struct dtq_creds *fresh = dtq_creds_acquire(credentials);
    pthread_mutex_lock(&client->credentials_lock);
    struct dtq_creds *old = client->credentials;
    client->credentials = fresh;
    atomic_store(&client->credentials_wanted, false);
    pthread_mutex_unlock(&client->credentials_lock);
    dtq_creds_release(old);
}

struct dtq_creds *dtq_sqs_credentials(struct dtq_sqs *client)
{
    pthread_mutex_lock(&client->credentials_lock);
    struct dtq_creds *credentials = dtq_creds_acquire(client->credentials);
    pthread_mutex_unlock(&client->credentials_lock);
    return credentials;
}

bool dtq_sqs_has_newer_credentials(struct dtq_sqs *client, const struct dtq_creds *expired)
{
    pthread_mutex_lock(&client->credentials_lock);
    bool has_newer = client->credentials && client->credentials != expired;
    pthread_mutex_unlock(&client->credentials_lock);
    return has_newer;
}

void dtq_sqs_want_credentials(struct dtq_sqs *client, const struct dtq_creds *expired)
{
    pthread_mutex_lock(&client->credentials_lock);
    if (client->credentials == expired)
        atomic_store(&client->credentials_wanted, true);
    pthread_mutex_unlock(&client->credentials_lock);
}

bool dtq_sqs_wants_credentials(const struct dtq_sqs *client)
{
    return atomic_load(&client->credentials_wanted);
}
