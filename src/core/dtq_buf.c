#include "dtq_buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "dtq_alloc.h"

#define FIRST_CAPACITY 256

void dtq_buf_init(struct dtq_buf *buf, size_t cap)
{
    memset(buf, 0, sizeof *buf);
    buf->cap = cap;
}

void dtq_buf_clean_up(struct dtq_buf *buf)
{
    dtq_free(buf->data);
    buf->data = NULL;
    buf->length = buf->capacity = 0;
}

void dtq_buf_clear(struct dtq_buf *buf)
{
    buf->length = 0;
    buf->failed = DTQ_OK;
    if (buf->data)
        buf->data[0] = '\0';
}

static enum dtq_code fail(struct dtq_buf *buf, enum dtq_code code)
{
    dtq_buf_clean_up(buf);
    buf->failed = code;
    return code;
}

/* To a capacity of at least needed bytes, the NUL counted. */
static enum dtq_code grow(struct dtq_buf *buf, size_t needed)
{
    size_t capacity = buf->capacity ? buf->capacity : FIRST_CAPACITY;
    while (capacity < needed)
        capacity = capacity > buf->cap ? needed : capacity * 2;
    char *data = dtq_realloc(buf->data, capacity);
    if (!data)
        return fail(buf, DTQ_NO_MEMORY);
    data[buf->length] = '\0';
    buf->data = data;
    buf->capacity = capacity;
    return DTQ_OK;
}

enum dtq_code dtq_buf_reserve(struct dtq_buf *buf, size_t extra)
{
    if (buf->failed)
        return buf->failed;
    if (extra > buf->cap - buf->length)
        return fail(buf, DTQ_TOO_LARGE);
    size_t needed = buf->length + extra + 1;
    return needed <= buf->capacity ? DTQ_OK : grow(buf, needed);
}

char *dtq_buf_open(struct dtq_buf *buf, size_t extra)
{
    size_t needed = buf->length + extra + 1;
    if (buf->failed || (needed > buf->capacity && grow(buf, needed)))
        return NULL;
    return buf->data + buf->length;
}

enum dtq_code dtq_buf_close(struct dtq_buf *buf, size_t written)
{
    if (written > buf->cap - buf->length)
        return fail(buf, DTQ_TOO_LARGE);
    buf->length += written;
    buf->data[buf->length] = '\0';
    return DTQ_OK;
}

enum dtq_code dtq_buf_add(struct dtq_buf *buf, const void *data, size_t length)
{
    enum dtq_code rc = dtq_buf_reserve(buf, length);
    if (rc)
        return rc;
    if (length)
        memcpy(buf->data + buf->length, data, length);
    buf->length += length;
    buf->data[buf->length] = '\0';
    return DTQ_OK;
}

enum dtq_code dtq_buf_add_str(struct dtq_buf *buf, const char *text)
{
    return dtq_buf_add(buf, text, strlen(text));
}

enum dtq_code dtq_buf_add_slice(struct dtq_buf *buf, struct dtq_slice slice)
{
    return dtq_buf_add(buf, slice.data, slice.length);
}

enum dtq_code dtq_buf_add_char(struct dtq_buf *buf, char c)
{
    return dtq_buf_add(buf, &c, 1);
}

enum dtq_code dtq_buf_addf(struct dtq_buf *buf, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    enum dtq_code rc = length < 0 ? fail(buf, DTQ_INVALID_ARGUMENT) : dtq_buf_reserve(buf, (size_t)length);
    if (!rc) {
        vsnprintf(buf->data + buf->length, (size_t)length + 1, format, again);
        buf->length += (size_t)length;
    }
    va_end(again);
    return rc;
}

const char *dtq_buf_str(const struct dtq_buf *buf)
{
    return buf->data ? buf->data : "";
}

struct dtq_slice dtq_buf_slice(const struct dtq_buf *buf)
{
    return dtq_slice(buf->data, buf->length);
}

char *dtq_buf_take(struct dtq_buf *buf, size_t *length)
{
    if (dtq_buf_reserve(buf, 0))
        return NULL;
    char *data = buf->data;
    if (length)
        *length = buf->length;
    buf->data = NULL;
    buf->length = buf->capacity = 0;
    return data;
}

enum dtq_code dtq_buf_check(const struct dtq_buf *buf, struct dtq_error *err, const char *what)
{
    if (buf->failed == DTQ_TOO_LARGE)
        return dtq_error_set(err, DTQ_TOO_LARGE, "%s is larger than %zu bytes", what, buf->cap);
    if (buf->failed)
        return dtq_error_set(err, buf->failed, NULL);
    return DTQ_OK;
}
