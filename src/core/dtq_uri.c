#include "dtq_uri.h"

#include <string.h>
#include <strings.h>

#define PORT_MAX 65535

static enum dtq_code bad(struct dtq_error *err, const char *why)
{
    return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "not a usable address: %s", why);
}

static bool is_alnum(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_unreserved(unsigned char c)
{
    return is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
}

/* What may stand in an address as it is sent: printable ASCII without the delimiters of RFC 3986's appendix C. */
static bool is_sendable(struct dtq_slice text)
{
    for (size_t i = 0; i < text.length; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c <= ' ' || c >= 0x7f || strchr("\"<>\\^`{|}", c))
            return false;
    }
    return true;
}

static bool take_prefix(struct dtq_slice *rest, const char *prefix)
{
    size_t length = strlen(prefix);
    if (rest->length < length || strncasecmp(rest->data, prefix, length) != 0)
        return false;
    *rest = dtq_slice(rest->data + length, rest->length - length);
    return true;
}

/* The bytes before the first of the stop characters; *rest goes on with it. */
static struct dtq_slice take_until(struct dtq_slice *rest, const char *stops)
{
    size_t length = 0;
    while (length < rest->length && !strchr(stops, rest->data[length]))
        length++;
    struct dtq_slice taken = dtq_slice(rest->data, length);
    *rest = dtq_slice(rest->data + length, rest->length - length);
    return taken;
}

static bool is_host_name(struct dtq_slice host)
{
    for (size_t i = 0; i < host.length; i++) {
        if (!is_unreserved((unsigned char)host.data[i]))
            return false;
    }
    return host.length > 0;
}

/* "[" hexadecimal digits, colons, dots "]": the resolver judges the rest. */
static bool is_ipv6_literal(struct dtq_slice host)
{
    if (host.length < 4 || host.data[0] != '[' || host.data[host.length - 1] != ']')
        return false;
    for (size_t i = 1; i + 1 < host.length; i++) {
        if (!strchr("0123456789abcdefABCDEF:.", host.data[i]))
            return false;
    }
    return true;
}

static enum dtq_code split_authority(struct dtq_slice authority, struct dtq_uri *out, struct dtq_error *err)
{
    if (memchr(authority.data, '@', authority.length))
        return bad(err, "it holds a user name");
    bool literal = authority.length && authority.data[0] == '[';
    if (literal) {
        out->host = take_until(&authority, "]");
        if (authority.length == 0)
            return bad(err, "a bracket is not closed");
        out->host.length++;
        authority = dtq_slice(authority.data + 1, authority.length - 1);
    }
    else {
        out->host = take_until(&authority, ":");
    }
    if (literal ? !is_ipv6_literal(out->host) : !is_host_name(out->host))
        return bad(err, "its host is missing or has a character that no host has");
    out->port = out->secure ? 443 : 80;
    if (authority.length == 0)
        return DTQ_OK;
    if (authority.data[0] != ':' || authority.length < 2)
        return bad(err, "its port is not a number");
    int port = 0;
    for (size_t i = 1; i < authority.length; i++) {
        if (authority.data[i] < '0' || authority.data[i] > '9')
            return bad(err, "its port is not a number");
        port = port * 10 + (authority.data[i] - '0');
        if (port > PORT_MAX)
            return bad(err, "its port is out of range");
    }
    if (port == 0)
        return bad(err, "its port is out of range");
    out->port = port;
    return DTQ_OK;
}

enum dtq_code dtq_uri_split(struct dtq_slice text, struct dtq_uri *out, struct dtq_error *err)
{
    struct dtq_slice rest = text;
    memset(out, 0, sizeof *out);
    if (take_prefix(&rest, "https://"))
        out->secure = true;
    else if (!take_prefix(&rest, "http://"))
        return bad(err, "it does not begin with http:// or https://");
    if (!is_sendable(rest))
        return bad(err, "it holds a character that must be percent-encoded");
    struct dtq_slice authority = take_until(&rest, "/?#");
    if (authority.length == 0)
        return bad(err, "it has no host");
    enum dtq_code rc = split_authority(authority, out, err);
    if (rc)
        return rc;
    out->path = take_until(&rest, "?#");
    if (rest.length && rest.data[0] == '?') {
        rest = dtq_slice(rest.data + 1, rest.length - 1);
        out->query = take_until(&rest, "#");
    }
    return rest.length ? bad(err, "it has a fragment") : DTQ_OK;
}

enum dtq_code dtq_uri_add_host(const struct dtq_uri *uri, struct dtq_buf *out)
{
    for (size_t i = 0; i < uri->host.length; i++) {
        char c = uri->host.data[i];
        dtq_buf_add_char(out, c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c);
    }
    return uri->port == (uri->secure ? 443 : 80) ? out->failed : dtq_buf_addf(out, ":%d", uri->port);
}

enum dtq_code dtq_uri_add_origin(const struct dtq_uri *uri, struct dtq_buf *out)
{
    dtq_buf_add_str(out, uri->secure ? "https://" : "http://");
    return dtq_uri_add_host(uri, out);
}

enum dtq_code dtq_uri_add_encoded(struct dtq_slice bytes, bool keep_slash, struct dtq_buf *out)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t plain = 0; /* where the run of bytes that stay as they are begins */
    for (size_t i = 0; i < bytes.length; i++) {
        unsigned char c = (unsigned char)bytes.data[i];
        if (is_unreserved(c) || (keep_slash && c == '/'))
            continue;
        char encoded[3] = {'%', digits[c >> 4], digits[c & 15]};
        dtq_buf_add(out, bytes.data + plain, i - plain);
        dtq_buf_add(out, encoded, sizeof encoded);
        plain = i + 1;
    }
    return plain < bytes.length ? dtq_buf_add(out, bytes.data + plain, bytes.length - plain) : out->failed;
}
