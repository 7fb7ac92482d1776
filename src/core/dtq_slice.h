/*
 * A view of bytes that somebody else owns.  Not NUL-terminated.  Valid as long as its owner says.
 */
#ifndef DTQ_SLICE_H
#define DTQ_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct dtq_slice {
    const char *data; /* may be NULL when length is 0 */
    size_t length;
};

static inline struct dtq_slice dtq_slice(const char *data, size_t length)
{
    struct dtq_slice slice = {data, length};
    return slice;
}

/* NULL gives the empty slice. */
static inline struct dtq_slice dtq_slice_str(const char *text)
{
    return dtq_slice(text, text ? strlen(text) : 0);
}

static inline bool dtq_slice_equal(struct dtq_slice a, struct dtq_slice b)
{
    return a.length == b.length && (a.length == 0 || memcmp(a.data, b.data, a.length) == 0);
}

#endif
