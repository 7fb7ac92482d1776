#include "dtq_json_cursor.h"

#include <string.h>

#include "dtq_json_plain.h"

static void skip_space(struct dtq_json_cursor *cursor)
{
    while (*cursor->at == ' ' || *cursor->at == '\t' || *cursor->at == '\n' || *cursor->at == '\r')
        cursor->at++;
}

struct dtq_json_cursor dtq_json_cursor(char *text, size_t length)
{
    struct dtq_json_cursor cursor = {text, text + length};
    skip_space(&cursor);
    return cursor;
}

char dtq_json_peek(const struct dtq_json_cursor *cursor)
{
    return *cursor->at;
}

/* ---- strings ----------------------------------------------------------------------------------------------------- */

static unsigned hex4(const char *p)
{
    unsigned unit = 0;
    for (int i = 0; i < 4; i++)
        unit = unit * 16 + (unsigned)(p[i] <= '9' ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
    return unit;
}

static char *put_utf8(char *out, unsigned code)
{
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
    }
    else {
        if (code < 0x10000) {
            *out++ = (char)(0xe0 | code >> 12);
        }
        else {
            *out++ = (char)(0xf0 | code >> 18);
            *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        }
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *out++ = (char)(0x80 | (code & 0x3f));
    return out;
}

static char unescaped(char letter)
{
    switch (letter) {
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        return letter;
    }
}

/* The escape whose letter is at p, to *out, which is never beyond the backslash.  Returns what follows it. */
static char *unescape(char *p, char **out)
{
    if (*p != 'u') {
        *(*out)++ = unescaped(*p);
        return p + 1;
    }
    unsigned code = hex4(p + 1);
    p += 5;
    if (code >= 0xd800 && code <= 0xdbff) {
        code = 0x10000 + ((code & 0x3ff) << 10) + (hex4(p + 2) & 0x3ff);
        p += 6;
    }
    *out = put_utf8(*out, code);
    return p;
}

/* Plain bytes from *p to *out, which is before it or the same.  A whole word is copied where that overwrites nothing
 * that is still to be read. */
static void move_plain(char **p, char **out)
{
    size_t plain = dtq_plain_bytes((const unsigned char *)*p);
    if (*p - *out >= DTQ_PLAIN_BYTES)
        memcpy(*out, *p, DTQ_PLAIN_BYTES);
    else if (*p != *out)
        memmove(*out, *p, plain);
    *p += plain;
    *out += plain;
}

/* The string whose quote the cursor is at. */
static struct dtq_slice take_string(struct dtq_json_cursor *cursor)
{
    char *start = cursor->at + 1, *p = start, *out = start;
    for (;;) {
        if (cursor->end - p >= DTQ_PLAIN_BYTES)
            move_plain(&p, &out);
        if (*p == '"')
            break;
        if (*p == '\\')
            p = unescape(p + 1, &out);
        else
            *out++ = *p++;
    }
    *out = '\0';
    cursor->at = p + 1;
    return dtq_slice(start, (size_t)(out - start));
}

/* ---- walking ----------------------------------------------------------------------------------------------------- */

static bool enter(struct dtq_json_cursor *cursor, char bracket)
{
    if (*cursor->at != bracket)
        return false;
    cursor->at++;
    return true;
}

bool dtq_json_enter_object(struct dtq_json_cursor *cursor)
{
    return enter(cursor, '{');
}

bool dtq_json_enter_array(struct dtq_json_cursor *cursor)
{
    return enter(cursor, '[');
}

bool dtq_json_next_item(struct dtq_json_cursor *cursor)
{
    skip_space(cursor);
    if (*cursor->at == ']' || *cursor->at == '}') {
        cursor->at++;
        return false;
    }
    if (*cursor->at == ',') {
        cursor->at++;
        skip_space(cursor);
    }
    return true;
}

bool dtq_json_next_member(struct dtq_json_cursor *cursor, const char **key)
{
    if (!dtq_json_next_item(cursor))
        return false;
    *key = take_string(cursor).data;
    skip_space(cursor);
    cursor->at++; /* the colon */
    skip_space(cursor);
    return true;
}

bool dtq_json_take_string(struct dtq_json_cursor *cursor, struct dtq_slice *out)
{
    if (*cursor->at != '"') {
        dtq_json_skip(cursor);
        return false;
    }
    *out = take_string(cursor);
    return true;
}

void dtq_json_skip(struct dtq_json_cursor *cursor)
{
    size_t depth = 0;
    do {
        skip_space(cursor);
        char c = *cursor->at;
        if (c == '"') {
            take_string(cursor);
            continue;
        }
        if (c == '{' || c == '[')
            depth++;
        else if (c == '}' || c == ']')
            depth--;
        cursor->at++;
        if (c != '{' && c != '[' && c != '}' && c != ']' && c != ',' && c != ':')
            cursor->at += strcspn(cursor->at, ",:]} \t\n\r");
    } while (depth);
}
