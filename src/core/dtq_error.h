/*
 * The core's one error type.
 *
 * What it is for: every function of the core that can fail returns an enum dtq_code (0 = ok) and, when it fails,
 * fills a struct dtq_error that the caller owns.  No thread-local state, no allocation: setting an error cannot fail.
 * Ownership: the struct is a plain value; copy it freely.
 * Thread: any; one struct is used by one thread at a time.
 * Secrets: messages never hold credentials, signing keys, passwords or message bodies.
 */
#ifndef DTQ_ERROR_H
#define DTQ_ERROR_H

#include <stdbool.h>

#include "dtq_attr.h"

enum dtq_code {
#define DTQ_ERROR(code, number, name, retryable, python, sentence) DTQ_##code = (number),
#include "dtq_error.def"
#undef DTQ_ERROR
};

struct dtq_error {
    enum dtq_code code;
    int http_status;       /* 0 when no HTTP answer was seen */
    int system_errno;      /* 0 when no system call is to blame */
    char sqlstate[6];      /* "" when PostgreSQL is not to blame */
    char service_code[64]; /* AWS's error type without its prefix, or "" */
    char message[384];     /* one sentence in UTF-8, NUL-terminated, truncated when it must be */
};

/* One row of dtq_error.def.  NULL for a number that is not in the table. */
struct dtq_error_info {
    enum dtq_code code;
    const char *name;
    const char *sentence;
    const char *python_class;
    bool retryable;
};

const struct dtq_error_info *dtq_error_info(enum dtq_code code);

/* Every row, for the binding; *count is set. */
const struct dtq_error_info *dtq_error_table(unsigned *count);

void dtq_error_clear(struct dtq_error *err);

/* Set code and message (NULL format: the code's own sentence), clear the rest, return code.  err may be NULL. */
enum dtq_code dtq_error_set(struct dtq_error *err, enum dtq_code code, const char *format, ...) DTQ_PRINTF(3, 4);

/* As dtq_error_set with DTQ_SYSTEM; appends strerror(number) to the message. */
enum dtq_code dtq_error_set_errno(struct dtq_error *err, int number, const char *format, ...) DTQ_PRINTF(3, 4);

/* DTQ_NO_MEMORY with its own sentence. */
enum dtq_code dtq_error_no_memory(struct dtq_error *err);

#endif
