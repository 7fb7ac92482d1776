#include "dtq_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct dtq_error_info table[] = {
#define DTQ_ERROR(code, number, name, retryable, python, sentence)                                                     \
    {DTQ_##code, name, sentence, python, (retryable) != 0},
#include "dtq_error.def"
#undef DTQ_ERROR
};

const struct dtq_error_info *dtq_error_table(unsigned *count)
{
    *count = (unsigned)(sizeof table / sizeof table[0]);
    return table;
}

const struct dtq_error_info *dtq_error_info(enum dtq_code code)
{
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].code == code)
            return &table[i];
    }
    return NULL;
}

void dtq_error_clear(struct dtq_error *err)
{
    if (err)
        memset(err, 0, sizeof *err);
}

static void set_message(struct dtq_error *err, enum dtq_code code, const char *format, va_list args)
{
    dtq_error_clear(err);
    err->code = code;
    if (format) {
        vsnprintf(err->message, sizeof err->message, format, args);
    }
    else {
        const struct dtq_error_info *info = dtq_error_info(code);
        snprintf(err->message, sizeof err->message, "%s", info ? info->sentence : "unknown error");
    }
}

enum dtq_code dtq_error_set(struct dtq_error *err, enum dtq_code code, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        set_message(err, code, format, args);
        va_end(args);
    }
    return code;
}

/* strerror_r comes in two shapes; strerror is not thread-safe everywhere.  The GNU shape may ignore the buffer. */
static const char *errno_text(int number, char *buffer, size_t size)
{
#if defined(__GLIBC__) && defined(_GNU_SOURCE)
    return strerror_r(number, buffer, size);
#else
    if (strerror_r(number, buffer, size) != 0)
        snprintf(buffer, size, "errno %d", number);
    return buffer;
#endif
}

enum dtq_code dtq_error_set_errno(struct dtq_error *err, int number, const char *format, ...)
{
    if (err) {
        char reason[128];
        va_list args;
        va_start(args, format);
        set_message(err, DTQ_SYSTEM, format, args);
        va_end(args);
        err->system_errno = number;
        size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, ": %s", errno_text(number, reason, sizeof reason));
    }
    return DTQ_SYSTEM;
}

enum dtq_code dtq_error_no_memory(struct dtq_error *err)
{
    return dtq_error_set(err, DTQ_NO_MEMORY, NULL);
}
