/*
 * A growable byte buffer with a cap.
 *
 * What it is for: all growing bytes of the core.
 * Ownership: in place (init/clean_up); dtq_buf_take moves the bytes out to the caller, who frees them with dtq_free.
 * Thread: one at a time.
 * Failure: DTQ_NO_MEMORY or DTQ_TOO_LARGE (the cap).  A buffer that failed once is empty and stays failed: later adds
 * return the same code, so a builder may add many pieces and look at the last code only.
 * Content: always followed by a NUL that is not counted; may hold NULs itself.
 */
#ifndef DTQ_BUF_H
#define DTQ_BUF_H

#include <stddef.h>

#include "dtq_attr.h"
#include "dtq_error.h"
#include "dtq_slice.h"

struct dtq_buf {
    char *data; /* NULL until the first add */
    size_t length;
    size_t capacity;
    size_t cap;
    enum dtq_code failed;
};

/* cap: the most bytes it may ever hold, the NUL not counted. */
void dtq_buf_init(struct dtq_buf *buf, size_t cap);
void dtq_buf_clean_up(struct dtq_buf *buf);
void dtq_buf_clear(struct dtq_buf *buf); /* empty and not failed; keeps its memory */

enum dtq_code dtq_buf_add(struct dtq_buf *buf, const void *data, size_t length);
enum dtq_code dtq_buf_add_str(struct dtq_buf *buf, const char *text);
enum dtq_code dtq_buf_add_slice(struct dtq_buf *buf, struct dtq_slice slice);
enum dtq_code dtq_buf_add_char(struct dtq_buf *buf, char c);
enum dtq_code dtq_buf_addf(struct dtq_buf *buf, const char *format, ...) DTQ_PRINTF(2, 3);

/* Make room for extra more bytes without adding any. */
enum dtq_code dtq_buf_reserve(struct dtq_buf *buf, size_t extra);

/* For a writer that knows only afterwards how much it wrote: room for extra bytes at the end, whatever the cap (NULL
 * when the buffer has failed or memory is short), then what was written of them, which the cap may refuse. */
char *dtq_buf_open(struct dtq_buf *buf, size_t extra);
enum dtq_code dtq_buf_close(struct dtq_buf *buf, size_t written);

/* The content as a NUL-terminated string; "" when empty.  Valid until the next change. */
const char *dtq_buf_str(const struct dtq_buf *buf);
struct dtq_slice dtq_buf_slice(const struct dtq_buf *buf);

/* Move the bytes out (NUL-terminated); the buffer is empty afterwards.  NULL when it failed or memory is short. */
char *dtq_buf_take(struct dtq_buf *buf, size_t *length);

/* Turn a failed buffer into an error; DTQ_OK when it has not failed. */
enum dtq_code dtq_buf_check(const struct dtq_buf *buf, struct dtq_error *err, const char *what) DTQ_MUST_CHECK;

#endif
