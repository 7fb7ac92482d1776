/*
 * The scan of a JSON text: RFC 8259 to the letter, without building anything and without recursion.
 */
#include "dtq_json.h"

#include <string.h>

#include "dtq_json_plain.h"
#include "dtq_limits.h"

#define NUMBER_BYTES_MAX 60 /* cJSON reads a number through a buffer of 64 */

struct scanner {
    const unsigned char *start, *at, *end;
    const char *why; /* what is wrong, once something is */
    int depth;
    bool in_object[DTQ_JSON_DEPTH_MAX];
};

size_t dtq_utf8_length(const unsigned char *p, size_t left)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t length;
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        length = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        length = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        length = 4;
    else
        return 0;
    if (left < length)
        return 0;
    /* The second byte's range rules out overlong forms, surrogates and what lies beyond U+10FFFF. */
    if (p[0] == 0xe0)
        low = 0xa0;
    else if (p[0] == 0xed)
        high = 0x9f;
    else if (p[0] == 0xf0)
        low = 0x90;
    else if (p[0] == 0xf4)
        high = 0x8f;
    if (p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++) {
        if (p[i] < 0x80 || p[i] > 0xbf)
            return 0;
    }
    return length;
}

bool dtq_is_text(struct dtq_slice bytes)
{
    const unsigned char *p = (const unsigned char *)bytes.data;
    size_t left = bytes.length;
    while (left) {
        size_t length = *p ? dtq_utf8_length(p, left) : 0;
        if (!length)
            return false;
        p += length;
        left -= length;
    }
    return true;
}

static bool fail(struct scanner *scan, const char *why)
{
    if (!scan->why)
        scan->why = why;
    return false;
}

static void skip_space(struct scanner *scan)
{
    while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\t' || *scan->at == '\n' || *scan->at == '\r'))
        scan->at++;
}

static bool scan_hex4(struct scanner *scan, unsigned *unit)
{
    *unit = 0;
    if (scan->end - scan->at < 4)
        return fail(scan, "an escape is cut short");
    for (int i = 0; i < 4; i++, scan->at++) {
        unsigned char c = *scan->at;
        if (c >= '0' && c <= '9')
            *unit = *unit * 16 + (unsigned)(c - '0');
        else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
            *unit = *unit * 16 + (unsigned)((c | 0x20) - 'a' + 10);
        else
            return fail(scan, "an escape is not hexadecimal");
    }
    return true;
}

/* After "\u". */
static bool scan_unicode_escape(struct scanner *scan)
{
    unsigned unit;
    if (!scan_hex4(scan, &unit))
        return false;
    if (unit == 0)
        return fail(scan, "a string holds NUL");
    if (unit >= 0xdc00 && unit <= 0xdfff)
        return fail(scan, "a surrogate is alone");
    if (unit < 0xd800 || unit > 0xdbff)
        return true;
    if (scan->end - scan->at < 2 || scan->at[0] != '\\' || scan->at[1] != 'u')
        return fail(scan, "a surrogate is alone");
    scan->at += 2;
    if (!scan_hex4(scan, &unit))
        return false;
    return (unit >= 0xdc00 && unit <= 0xdfff) || fail(scan, "a surrogate is alone");
}

/* After the backslash. */
static bool is_short_escape(unsigned char c)
{
    switch (c) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return true;
    default:
        return false;
    }
}

static bool scan_string(struct scanner *scan)
{
    if (scan->at == scan->end || *scan->at != '"')
        return fail(scan, "a string is expected");
    scan->at++;
    while (scan->at < scan->end) {
        if (scan->end - scan->at >= DTQ_PLAIN_BYTES) {
            size_t plain = dtq_plain_bytes(scan->at);
            scan->at += plain;
            if (plain == DTQ_PLAIN_BYTES)
                continue;
        }
        unsigned char c = *scan->at;
        if (c == '"') {
            scan->at++;
            return true;
        }
        if (c == '\\') {
            scan->at++;
            if (scan->at == scan->end)
                break;
            c = *scan->at++;
            if (c == 'u' ? !scan_unicode_escape(scan) : !is_short_escape(c))
                return fail(scan, "an escape is not one of JSON's");
        }
        else if (c < 0x20) {
            return fail(scan, c ? "a string holds a control character" : "a string holds NUL");
        }
        else if (c < 0x80) {
            scan->at++;
        }
        else {
            size_t length = dtq_utf8_length(scan->at, (size_t)(scan->end - scan->at));
            if (!length)
                return fail(scan, "a string is not UTF-8");
            scan->at += length;
        }
    }
    return fail(scan, "a string is not closed");
}

static size_t scan_digits(struct scanner *scan)
{
    const unsigned char *first = scan->at;
    while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
        scan->at++;
    return (size_t)(scan->at - first);
}

static bool scan_number(struct scanner *scan)
{
    const unsigned char *first = scan->at;
    if (*scan->at == '-')
        scan->at++;
    bool zero = scan->at < scan->end && *scan->at == '0';
    size_t digits = scan_digits(scan);
    if (digits == 0 || (zero && digits > 1))
        return fail(scan, "a number is not one of JSON's");
    if (scan->at < scan->end && *scan->at == '.') {
        scan->at++;
        if (scan_digits(scan) == 0)
            return fail(scan, "a number is not one of JSON's");
    }
    if (scan->at < scan->end && (*scan->at == 'e' || *scan->at == 'E')) {
        scan->at++;
        if (scan->at < scan->end && (*scan->at == '+' || *scan->at == '-'))
            scan->at++;
        if (scan_digits(scan) == 0)
            return fail(scan, "a number is not one of JSON's");
    }
    return scan->at - first <= NUMBER_BYTES_MAX || fail(scan, "a number has too many digits");
}

static bool scan_word(struct scanner *scan, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(scan->end - scan->at) < length || memcmp(scan->at, word, length) != 0)
        return fail(scan, "a value is expected");
    scan->at += length;
    return true;
}

/* "key": up to where the value begins. */
static bool scan_key(struct scanner *scan)
{
    if (!scan_string(scan))
        return false;
    skip_space(scan);
    if (scan->at == scan->end || *scan->at != ':')
        return fail(scan, "a colon is expected");
    scan->at++;
    skip_space(scan);
    return true;
}

/* A value up to its end; of a container only the opening, unless it is empty.  *opened tells. */
static bool scan_value(struct scanner *scan, bool *opened)
{
    *opened = false;
    if (scan->at == scan->end)
        return fail(scan, "the text ends too early");
    unsigned char c = *scan->at;
    if (c == '"')
        return scan_string(scan);
    if (c == 't')
        return scan_word(scan, "true");
    if (c == 'f')
        return scan_word(scan, "false");
    if (c == 'n')
        return scan_word(scan, "null");
    if (c == '-' || (c >= '0' && c <= '9'))
        return scan_number(scan);
    if (c != '{' && c != '[')
        return fail(scan, "a value is expected");
    scan->at++;
    skip_space(scan);
    if (scan->depth == DTQ_JSON_DEPTH_MAX)
        return fail(scan, "it is nested too deeply");
    if (scan->at < scan->end && *scan->at == (c == '{' ? '}' : ']')) {
        scan->at++;
        return true;
    }
    scan->in_object[scan->depth++] = c == '{';
    *opened = true;
    return c == '[' || scan_key(scan);
}

/* After a value: close what ends here; true with *more when another value follows. */
static bool scan_after_value(struct scanner *scan, bool *more)
{
    *more = false;
    while (scan->depth) {
        skip_space(scan);
        if (scan->at == scan->end)
            return fail(scan, "the text ends too early");
        bool in_object = scan->in_object[scan->depth - 1];
        unsigned char c = *scan->at++;
        if (c == ',') {
            skip_space(scan);
            *more = true;
            return !in_object || scan_key(scan);
        }
        if (c != (in_object ? '}' : ']')) {
            scan->at--;
            return fail(scan, "a comma or a closing bracket is expected");
        }
        scan->depth--;
    }
    return true;
}

static bool scan_text(struct scanner *scan)
{
    bool opened, more;
    skip_space(scan);
    do {
        if (!scan_value(scan, &opened))
            return false;
        more = opened;
        if (!opened && !scan_after_value(scan, &more))
            return false;
    } while (more);
    skip_space(scan);
    return scan->at == scan->end || fail(scan, "something follows its end");
}

enum dtq_code dtq_json_check(struct dtq_slice text, const char *what, struct dtq_error *err)
{
    struct scanner scan = {0};
    if (text.length == 0)
        return dtq_error_set(err, DTQ_PARSE, "%s is empty where JSON is expected", what);
    scan.start = scan.at = (const unsigned char *)text.data;
    scan.end = scan.start + text.length;
    if (!scan_text(&scan))
        return dtq_error_set(err, DTQ_PARSE, "%s is not JSON that can be used: %s, at byte %zu", what, scan.why,
                             (size_t)(scan.at - scan.start));
    return DTQ_OK;
}
