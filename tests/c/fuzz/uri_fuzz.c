/*
 * Addresses from configuration and from the service: what comes apart goes together again to an address that comes
 * apart in the same way.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dtq_uri.h"

static void check_whole(const struct dtq_uri *uri)
{
    struct dtq_buf text, host, again;
    struct dtq_uri same;
    struct dtq_error err;
    dtq_buf_init(&text, 1 << 20);
    dtq_buf_init(&host, 1 << 20);
    dtq_buf_init(&again, 1 << 20);
    dtq_uri_add_origin(uri, &text);
    dtq_buf_add_slice(&text, uri->path);
    if (uri->query.length) {
        dtq_buf_add_char(&text, '?');
        dtq_buf_add_slice(&text, uri->query);
    }
    if (dtq_uri_split(dtq_buf_slice(&text), &same, &err) || same.secure != uri->secure || same.port != uri->port)
        abort();
    if (!dtq_slice_equal(same.path, uri->path) || !dtq_slice_equal(same.query, uri->query))
        abort();
    if (dtq_uri_add_host(uri, &host) || dtq_uri_add_host(&same, &again) || strcmp(host.data, again.data) != 0)
        abort();
    if (strpbrk(host.data, " \r\n\t@/?#"))
        abort();
    dtq_buf_clean_up(&again);
    dtq_buf_clean_up(&host);
    dtq_buf_clean_up(&text);
}

static void check_encoded(struct dtq_slice bytes)
{
    struct dtq_buf text;
    dtq_buf_init(&text, 1 << 20);
    if (dtq_uri_add_encoded(bytes, false, &text) || text.length < bytes.length || text.length > 3 * bytes.length)
        abort();
    dtq_buf_clean_up(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dtq_slice text = dtq_slice((const char *)data, size);
    struct dtq_uri uri;
    struct dtq_error err;
    if (dtq_uri_split(text, &uri, &err) == DTQ_OK)
        check_whole(&uri);
    check_encoded(text);
    return 0;
}
