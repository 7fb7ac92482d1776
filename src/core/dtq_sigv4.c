#include "dtq_sigv4.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/crypto.h>

#include "dtq_alloc.h"
#include "dtq_digest.h"
#include "dtq_uri.h"

#define ALGORITHM "AWS4-HMAC-SHA256"
#define TEXT_BYTES_MAX (1024 * 1024)      /* a canonical request holds headers, path and query, never the body */
#define REQUEST_BYTES 768                 /* of a canonical request without a session token */
#define LAST_SECOND INT64_C(253402300799) /* 9999-12-31T23:59:59Z: years have four digits */
#define DAY_LENGTH 8

/* ---- path ------------------------------------------------------------------------------------------------------- */

/* The '/' before the last segment of what was added since start, or start itself. */
static size_t parent(const struct dtq_buf *out, size_t start)
{
    size_t at = out->length;
    while (at > start && out->data[at - 1] != '/')
        at--;
    return at > start ? at - 1 : start;
}

/* Segments without "." and "..", and without empty ones (RFC 3986, 5.2.4, and AWS's rule on slashes in a row).  A path
 * that ends in "/." or "/.." gets no slash at its end: so the services have it. */
static enum dtq_code add_normalized_path(struct dtq_slice path, struct dtq_buf *out)
{
    size_t start = out->length;
    size_t at = 0;
    while (at < path.length && !out->failed) {
        size_t end = at;
        while (end < path.length && path.data[end] != '/')
            end++;
        struct dtq_slice segment = dtq_slice(path.data + at, end - at);
        at = end + 1;
        if (dtq_slice_equal(segment, dtq_slice_str(".."))) {
            out->length = parent(out, start);
        }
        else if (segment.length && !dtq_slice_equal(segment, dtq_slice_str("."))) {
            dtq_buf_add_char(out, '/');
            dtq_uri_add_encoded(segment, false, out);
        }
    }
    bool slash = out->length == start || path.data[path.length - 1] == '/';
    return slash ? dtq_buf_add_char(out, '/') : out->failed;
}

static enum dtq_code add_path(const struct dtq_sigv4_request *request, struct dtq_buf *out)
{
    if (request->path.length == 0)
        return dtq_buf_add_char(out, '/');
    return request->normalize_path ? add_normalized_path(request->path, out) : dtq_buf_add_slice(out, request->path);
}

/* ---- query ------------------------------------------------------------------------------------------------------ */

struct pair {
    struct dtq_slice name, value;
};

static int compare_bytes(struct dtq_slice a, struct dtq_slice b)
{
    size_t shorter = a.length < b.length ? a.length : b.length;
    int order = shorter ? memcmp(a.data, b.data, shorter) : 0;
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int compare_pairs(const void *left, const void *right)
{
    const struct pair *a = left, *b = right;
    int order = compare_bytes(a->name, b->name);
    return order ? order : compare_bytes(a->value, b->value);
}

static void split_pair(struct dtq_slice text, struct pair *out)
{
    const char *equals = text.length ? memchr(text.data, '=', text.length) : NULL;
    size_t name = equals ? (size_t)(equals - text.data) : text.length;
    out->name = dtq_slice(text.data, name);
    out->value = equals ? dtq_slice(equals + 1, text.length - name - 1) : dtq_slice(NULL, 0);
}

/* Encode only what cannot have been sent as it stands: HTTP libraries do the same with a query handed to them raw. */
static enum dtq_code add_sendable(struct dtq_slice query, struct dtq_buf *out)
{
    for (size_t i = 0; i < query.length; i++) {
        unsigned char c = (unsigned char)query.data[i];
        if (c <= ' ' || c >= 0x7f)
            dtq_uri_add_encoded(dtq_slice(query.data + i, 1), false, out);
        else
            dtq_buf_add_char(out, (char)c);
    }
    return out->failed;
}

static enum dtq_code add_query(struct dtq_slice query, struct dtq_buf *out, struct dtq_error *err)
{
    struct dtq_buf sendable;
    struct pair *pairs = NULL;
    size_t count = 1, begin = 0, next = 0;
    enum dtq_code rc = DTQ_OK;
    if (query.length == 0)
        return DTQ_OK;
    dtq_buf_init(&sendable, TEXT_BYTES_MAX);
    add_sendable(query, &sendable);
    rc = dtq_buf_check(&sendable, err, "the query");
    if (rc)
        goto cleanup;
    for (size_t i = 0; i < sendable.length; i++)
        count += sendable.data[i] == '&';
    pairs = dtq_calloc(count, sizeof *pairs);
    if (!pairs) {
        rc = dtq_error_no_memory(err);
        goto cleanup;
    }
    for (size_t i = 0; i <= sendable.length; i++) {
        if (i < sendable.length && sendable.data[i] != '&')
            continue;
        split_pair(dtq_slice(sendable.data + begin, i - begin), &pairs[next++]);
        begin = i + 1;
    }
    qsort(pairs, count, sizeof *pairs, compare_pairs);
    for (size_t i = 0; i < count; i++) {
        if (i)
            dtq_buf_add_char(out, '&');
        dtq_buf_add_slice(out, pairs[i].name);
        dtq_buf_add_char(out, '=');
        dtq_buf_add_slice(out, pairs[i].value);
    }
cleanup:
    dtq_free(pairs);
    dtq_buf_clean_up(&sendable);
    return rc;
}

/* ---- headers ---------------------------------------------------------------------------------------------------- */

struct header_list {
    struct dtq_sigv4_header items[DTQ_SIGV4_HEADERS_MAX + 2];
    size_t count;
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

static int compare_names(struct dtq_slice a, struct dtq_slice b)
{
    size_t shorter = a.length < b.length ? a.length : b.length;
    for (size_t i = 0; i < shorter; i++) {
        int order = (unsigned char)lower(a.data[i]) - (unsigned char)lower(b.data[i]);
        if (order)
            return order;
    }
    return (a.length > b.length) - (a.length < b.length);
}

/* After those of the same name: their order counts. */
static void insert_header(struct header_list *list, struct dtq_slice name, struct dtq_slice value)
{
    size_t at = list->count++;
    while (at && compare_names(list->items[at - 1].name, name) > 0) {
        list->items[at] = list->items[at - 1];
        at--;
    }
    list->items[at].name = name;
    list->items[at].value = value;
}

static bool has_header(const struct header_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (compare_names(list->items[i].name, dtq_slice_str(name)) == 0)
            return true;
    }
    return false;
}

/* RFC 9110, 5.6.2: a token.  Anything else in a name would let the canonical text be read in two ways. */
static bool is_header_name(struct dtq_slice name)
{
    for (size_t i = 0; i < name.length; i++) {
        unsigned char c = (unsigned char)name.data[i];
        if (c <= ' ' || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c))
            return false;
    }
    return name.length > 0;
}

/* RFC 9110, 5.5.  A line end would begin a header that nobody has signed; values do not go on in further lines. */
static bool is_header_value(struct dtq_slice value)
{
    for (size_t i = 0; i < value.length; i++) {
        unsigned char c = (unsigned char)value.data[i];
        if ((c < ' ' && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static enum dtq_code sort_headers(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                                  const char *date, struct header_list *list, struct dtq_error *err)
{
    list->count = 0;
    if (request->header_count > DTQ_SIGV4_HEADERS_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "more than %d headers to sign", DTQ_SIGV4_HEADERS_MAX);
    for (size_t i = 0; i < request->header_count; i++) {
        if (!is_header_name(request->headers[i].name))
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a header's name has a character that no name has");
        if (!is_header_value(request->headers[i].value))
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT,
                                 "the value of the header %.*s has a control character in it, such as a line end",
                                 (int)(request->headers[i].name.length < 64 ? request->headers[i].name.length : 64),
                                 request->headers[i].name.data);
        insert_header(list, request->headers[i].name, request->headers[i].value);
    }
    if (!has_header(list, "host"))
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the headers to sign have no host");
    if (!has_header(list, "x-amz-date"))
        insert_header(list, dtq_slice_str("x-amz-date"), dtq_slice_str(date));
    if (creds->session_token && !has_header(list, "x-amz-security-token"))
        insert_header(list, dtq_slice_str("x-amz-security-token"), dtq_slice_str(creds->session_token));
    return DTQ_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

/* Without space at both ends, and with one space for each run of it. */
static void add_trimmed(struct dtq_slice value, struct dtq_buf *out)
{
    bool word_before = false;
    size_t at = 0;
    while (at < value.length) {
        size_t end = at;
        while (end < value.length && !is_space(value.data[end]))
            end++;
        if (end > at) {
            if (word_before)
                dtq_buf_add_char(out, ' ');
            dtq_buf_add(out, value.data + at, end - at);
            word_before = true;
        }
        at = end + 1;
    }
}

static void add_name(struct dtq_slice name, struct dtq_buf *out)
{
    for (size_t i = 0; i < name.length; i++)
        dtq_buf_add_char(out, lower(name.data[i]));
}

static void add_headers(const struct header_list *list, struct dtq_buf *out, struct dtq_buf *signed_headers)
{
    for (size_t i = 0; i < list->count; i++) {
        bool again = i && compare_names(list->items[i - 1].name, list->items[i].name) == 0;
        if (again) {
            dtq_buf_add_char(out, ',');
        }
        else {
            if (i) {
                dtq_buf_add_char(out, '\n');
                dtq_buf_add_char(signed_headers, ';');
            }
            add_name(list->items[i].name, out);
            add_name(list->items[i].name, signed_headers);
            dtq_buf_add_char(out, ':');
        }
        add_trimmed(list->items[i].value, out);
    }
    dtq_buf_add_char(out, '\n');
}

/* ---- stages ----------------------------------------------------------------------------------------------------- */

void dtq_sigv4_key_cache_clean_up(struct dtq_sigv4_key_cache *cache)
{
    OPENSSL_cleanse(cache, sizeof *cache);
}

static char *put_digits(char *at, int number, int count)
{
    for (int i = count - 1; i >= 0; i--, number /= 10)
        at[i] = (char)('0' + number % 10);
    return at + count;
}

void dtq_sigv4_date(int64_t time_s, char out[DTQ_SIGV4_DATE_SIZE])
{
    time_t time = (time_t)time_s;
    struct tm utc;
    char *at = out;
    if (time_s >= 0 && time_s <= LAST_SECOND && gmtime_r(&time, &utc)) {
        at = put_digits(at, utc.tm_year + 1900, 4);
        at = put_digits(at, utc.tm_mon + 1, 2);
        at = put_digits(at, utc.tm_mday, 2);
        *at++ = 'T';
        at = put_digits(at, utc.tm_hour, 2);
        at = put_digits(at, utc.tm_min, 2);
        at = put_digits(at, utc.tm_sec, 2);
        *at++ = 'Z';
    }
    *at = '\0';
}

static enum dtq_code scope_date(const struct dtq_sigv4_scope *scope, char date[DTQ_SIGV4_DATE_SIZE],
                                struct dtq_error *err)
{
    dtq_sigv4_date(scope->time_s, date);
    if (!date[0])
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the time to sign for is out of range");
    return DTQ_OK;
}

/* "20150830/us-east-1/service/aws4_request" */
static void add_scope(const char *date, const struct dtq_sigv4_scope *scope, struct dtq_buf *out)
{
    dtq_buf_add(out, date, DAY_LENGTH);
    dtq_buf_add_char(out, '/');
    dtq_buf_add_str(out, scope->region);
    dtq_buf_add_char(out, '/');
    dtq_buf_add_str(out, scope->service);
    dtq_buf_add_str(out, "/aws4_request");
}

static enum dtq_code canonical_request(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                                       const char *date, struct dtq_buf *out, struct dtq_buf *signed_headers,
                                       struct dtq_error *err)
{
    struct header_list headers;
    char body_digest[DTQ_SHA256_HEX_SIZE];
    if (!creds)
        return dtq_error_set(err, DTQ_CREDENTIALS, NULL);
    enum dtq_code rc = dtq_creds_check(creds, err);
    if (!rc)
        rc = sort_headers(request, creds, date, &headers, err);
    if (!rc)
        rc = dtq_sha256_hex(request->body, body_digest, err);
    if (rc)
        return rc;
    size_t names_start = signed_headers->length;
    dtq_buf_reserve(out, REQUEST_BYTES); /* most need no more */
    dtq_buf_add_slice(out, request->method);
    dtq_buf_add_char(out, '\n');
    add_path(request, out);
    dtq_buf_add_char(out, '\n');
    rc = add_query(request->query, out, err);
    if (rc)
        return rc;
    dtq_buf_add_char(out, '\n');
    add_headers(&headers, out, signed_headers);
    rc = dtq_buf_check(signed_headers, err, "the list of signed headers");
    if (rc)
        return rc;
    dtq_buf_add_char(out, '\n');
    dtq_buf_add(out, signed_headers->data + names_start, signed_headers->length - names_start);
    dtq_buf_add_char(out, '\n');
    dtq_buf_add(out, body_digest, DTQ_SHA256_HEX_SIZE - 1);
    return dtq_buf_check(out, err, "the canonical request");
}

enum dtq_code dtq_sigv4_canonical_request(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                                          const struct dtq_sigv4_scope *scope, struct dtq_buf *out,
                                          struct dtq_buf *signed_headers, struct dtq_error *err)
{
    char date[DTQ_SIGV4_DATE_SIZE];
    enum dtq_code rc = scope_date(scope, date, err);
    return rc ? rc : canonical_request(request, creds, date, out, signed_headers, err);
}

static enum dtq_code string_to_sign(struct dtq_slice canonical, const char *date, const struct dtq_sigv4_scope *scope,
                                    struct dtq_buf *out, struct dtq_error *err)
{
    char digest[DTQ_SHA256_HEX_SIZE];
    enum dtq_code rc = dtq_sha256_hex(canonical, digest, err);
    if (rc)
        return rc;
    dtq_buf_add_str(out, ALGORITHM "\n");
    dtq_buf_add_str(out, date);
    dtq_buf_add_char(out, '\n');
    add_scope(date, scope, out);
    dtq_buf_add_char(out, '\n');
    dtq_buf_add(out, digest, DTQ_SHA256_HEX_SIZE - 1);
    return dtq_buf_check(out, err, "the string to sign");
}

enum dtq_code dtq_sigv4_string_to_sign(struct dtq_slice canonical_request, const struct dtq_sigv4_scope *scope,
                                       struct dtq_buf *out, struct dtq_error *err)
{
    char date[DTQ_SIGV4_DATE_SIZE];
    enum dtq_code rc = scope_date(scope, date, err);
    return rc ? rc : string_to_sign(canonical_request, date, scope, out, err);
}

static enum dtq_code next_key(unsigned char key[DTQ_SHA256_SIZE], const char *text, struct dtq_error *err)
{
    unsigned char next[DTQ_SHA256_SIZE];
    enum dtq_code rc = dtq_hmac_sha256(dtq_slice((const char *)key, DTQ_SHA256_SIZE), dtq_slice_str(text), next, err);
    if (!rc)
        memcpy(key, next, DTQ_SHA256_SIZE);
    OPENSSL_cleanse(next, sizeof next);
    return rc;
}

static enum dtq_code derive_key(const char *secret, const char *day, const struct dtq_sigv4_scope *scope,
                                unsigned char key[DTQ_SHA256_SIZE], struct dtq_error *err)
{
    size_t size = strlen(secret) + sizeof "AWS4";
    char *first = dtq_malloc(size);
    if (!first)
        return dtq_error_no_memory(err);
    snprintf(first, size, "AWS4%s", secret);
    enum dtq_code rc = dtq_hmac_sha256(dtq_slice(first, size - 1), dtq_slice_str(day), key, err);
    dtq_free_secret(first, size);
    if (!rc)
        rc = next_key(key, scope->region, err);
    if (!rc)
        rc = next_key(key, scope->service, err);
    if (!rc)
        rc = next_key(key, "aws4_request", err);
    return rc;
}

/* "20150830/us-east-1/sqs", as the cache knows it; false when it is too long for the cache. */
static bool name_scope(const char *day, const struct dtq_sigv4_scope *scope, char *out, size_t size)
{
    size_t region = strlen(scope->region), service = strlen(scope->service);
    if (DAY_LENGTH + 1 + region + 1 + service + 1 > size)
        return false;
    memcpy(out, day, DAY_LENGTH);
    out[DAY_LENGTH] = '/';
    memcpy(out + DAY_LENGTH + 1, scope->region, region);
    out[DAY_LENGTH + 1 + region] = '/';
    memcpy(out + DAY_LENGTH + 1 + region + 1, scope->service, service + 1);
    return true;
}

static enum dtq_code cached_key(const struct dtq_creds *creds, const char *day, const struct dtq_sigv4_scope *scope,
                                struct dtq_sigv4_key_cache *cache, unsigned char key[DTQ_SHA256_SIZE],
                                struct dtq_error *err)
{
    char name[sizeof cache->scope];
    unsigned char digest[DTQ_SHA256_SIZE];
    if (!name_scope(day, scope, name, sizeof name))
        return derive_key(creds->secret_access_key, day, scope, key, err);
    enum dtq_code rc = dtq_sha256(dtq_slice_str(creds->secret_access_key), digest, err);
    if (rc)
        return rc;
    if (cache->valid && strcmp(cache->scope, name) == 0 && memcmp(cache->secret_digest, digest, sizeof digest) == 0) {
        memcpy(key, cache->key, sizeof cache->key);
        return DTQ_OK;
    }
    rc = derive_key(creds->secret_access_key, day, scope, key, err);
    if (rc)
        return rc;
    memcpy(cache->scope, name, sizeof name);
    memcpy(cache->secret_digest, digest, sizeof digest);
    memcpy(cache->key, key, sizeof cache->key);
    cache->valid = true;
    return DTQ_OK;
}

static enum dtq_code signature_of(struct dtq_slice string_to_sign, const struct dtq_creds *creds, const char *date,
                                  const struct dtq_sigv4_scope *scope, struct dtq_sigv4_key_cache *cache, char hex[65],
                                  struct dtq_error *err)
{
    unsigned char key[DTQ_SHA256_SIZE], signature[DTQ_SHA256_SIZE];
    char day[DAY_LENGTH + 1] = "";
    if (!creds)
        return dtq_error_set(err, DTQ_CREDENTIALS, NULL);
    memcpy(day, date, DAY_LENGTH);
    enum dtq_code rc = cache ? cached_key(creds, day, scope, cache, key, err)
                             : derive_key(creds->secret_access_key, day, scope, key, err);
    if (!rc)
        rc = dtq_hmac_sha256(dtq_slice((const char *)key, sizeof key), string_to_sign, signature, err);
    if (!rc)
        dtq_hex(signature, sizeof signature, hex);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}

enum dtq_code dtq_sigv4_signature(struct dtq_slice string_to_sign, const struct dtq_creds *creds,
                                  const struct dtq_sigv4_scope *scope, struct dtq_sigv4_key_cache *cache, char hex[65],
                                  struct dtq_error *err)
{
    char date[DTQ_SIGV4_DATE_SIZE];
    enum dtq_code rc = scope_date(scope, date, err);
    return rc ? rc : signature_of(string_to_sign, creds, date, scope, cache, hex, err);
}

enum dtq_code dtq_sigv4_sign(const struct dtq_sigv4_request *request, const struct dtq_creds *creds,
                             const struct dtq_sigv4_scope *scope, struct dtq_sigv4_key_cache *cache,
                             struct dtq_buf *authorization, char date[DTQ_SIGV4_DATE_SIZE], struct dtq_error *err)
{
    struct dtq_buf canonical, names, to_sign;
    char signature[DTQ_SHA256_HEX_SIZE];
    enum dtq_code rc = scope_date(scope, date, err);
    if (rc)
        return rc;
    dtq_buf_init(&canonical, TEXT_BYTES_MAX);
    dtq_buf_init(&names, TEXT_BYTES_MAX);
    dtq_buf_init(&to_sign, TEXT_BYTES_MAX);
    rc = canonical_request(request, creds, date, &canonical, &names, err);
    if (!rc)
        rc = string_to_sign(dtq_buf_slice(&canonical), date, scope, &to_sign, err);
    if (!rc)
        rc = signature_of(dtq_buf_slice(&to_sign), creds, date, scope, cache, signature, err);
    if (rc)
        goto cleanup;
    dtq_buf_add_str(authorization, ALGORITHM " Credential=");
    dtq_buf_add_str(authorization, creds->access_key_id);
    dtq_buf_add_char(authorization, '/');
    add_scope(date, scope, authorization);
    dtq_buf_add_str(authorization, ", SignedHeaders=");
    dtq_buf_add_slice(authorization, dtq_buf_slice(&names));
    dtq_buf_add_str(authorization, ", Signature=");
    dtq_buf_add_str(authorization, signature);
    rc = dtq_buf_check(authorization, err, "the Authorization header");
cleanup:
    dtq_buf_clean_up(&to_sign);
    dtq_buf_clean_up(&names);
    dtq_buf_clean_up(&canonical);
    return rc;
}
