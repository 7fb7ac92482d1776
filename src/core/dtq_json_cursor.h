/*
 * A walk through a JSON text that builds nothing.
 *
 * What it is for: answers of SQS, of which ten messages would otherwise become some three hundred small allocations.
 * Ownership: the text is the caller's, can be written to, and has a NUL after its end.  Strings are unescaped where
 * they stand and end with a NUL: they live as long as the text does, which is no JSON any more where the cursor has
 * been.  So each text is walked once.
 * Thread: one at a time.
 * Failure: none.  Only a text that dtq_json_check took may be walked, and a walk takes every value once, in order: it
 * enters it, reads it as a string, or skips it.
 */
#ifndef DTQ_JSON_CURSOR_H
#define DTQ_JSON_CURSOR_H

#include <stdbool.h>
#include <stddef.h>

#include "dtq_slice.h"

struct dtq_json_cursor {
    char *at; /* where the next value, comma or closing bracket is */
    char *end;
};

struct dtq_json_cursor dtq_json_cursor(char *text, size_t length);

/* What the next value begins with: one of {["-tfn or a digit. */
char dtq_json_peek(const struct dtq_json_cursor *cursor);

/* True when the next value is an object (or array), which has then been entered: its members (items) come by next. */
bool dtq_json_enter_object(struct dtq_json_cursor *cursor);
bool dtq_json_enter_array(struct dtq_json_cursor *cursor);
/* True when there is one more, whose value is next; false when the container has been left. */
bool dtq_json_next_member(struct dtq_json_cursor *cursor, const char **key);
bool dtq_json_next_item(struct dtq_json_cursor *cursor);

/* True for a string, which is then in *out, NUL-terminated; any other value is skipped. */
bool dtq_json_take_string(struct dtq_json_cursor *cursor, struct dtq_slice *out);
void dtq_json_skip(struct dtq_json_cursor *cursor);

#endif
