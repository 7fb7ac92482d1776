/*
 * JSON in and out.
 *
 * What it is for: the one door to cJSON for texts from outside (SQS answers, step payloads), and the emitters of the
 * texts that we send.
 * Reading: a text is scanned against RFC 8259 before cJSON sees it, because cJSON lets pass what must not pass: bad
 * UTF-8, lone surrogates, control characters in strings, NUL (which would cut a string short), numbers in forms that
 * JSON does not know. Nesting is bounded by DTQ_JSON_DEPTH_MAX, the size by the caller.
 * Ownership: dtq_json_parse returns a tree that the caller frees with dtq_json_free; getters lend pieces of it.
 * Thread: any; one tree is used by one thread at a time.
 * Failure: DTQ_PARSE, DTQ_TOO_LARGE, DTQ_NO_MEMORY; *out is NULL then.  Messages name the key, never a value.
 */
#ifndef DTQ_JSON_H
#define DTQ_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_error.h"
#include "dtq_slice.h"

struct cJSON;

/* Integers beyond this lose digits in JSON readers that hold numbers as doubles: the getter refuses them. */
#define DTQ_JSON_INT_MAX INT64_C(9007199254740991)

/* what: the name of the text for the error message. */
enum dtq_code dtq_json_parse(struct dtq_slice text, size_t max_bytes, const char *what, struct cJSON **out,
                             struct dtq_error *err) DTQ_MUST_CHECK;
void dtq_json_free(struct cJSON *tree); /* NULL-safe */

/* The scan alone: DTQ_OK when dtq_json_parse would take the text. */
enum dtq_code dtq_json_check(struct dtq_slice text, const char *what, struct dtq_error *err) DTQ_MUST_CHECK;

/* True when the bytes are UTF-8 by RFC 3629 (no surrogates, no overlong forms) without NUL. */
bool dtq_is_text(struct dtq_slice bytes);
/* The length of the UTF-8 sequence at p (left > 0 bytes are there), NUL included; 0 when it is not one. */
size_t dtq_utf8_length(const unsigned char *p, size_t left);

/* ---- reading a tree ------------------------------------------------------------------------------------------- */

/* Each takes the object that holds the key.  get: the key must be there; find: *out is left as it was when the key is
 * missing or null.  Both refuse a value of another type. */
enum dtq_code dtq_json_get_object(const struct cJSON *object, const char *key, const struct cJSON **out,
                                  struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_get_array(const struct cJSON *object, const char *key, const struct cJSON **out,
                                 struct dtq_error *err) DTQ_MUST_CHECK;
/* The slice is NUL-terminated and lives as long as the tree. */
enum dtq_code dtq_json_get_string(const struct cJSON *object, const char *key, struct dtq_slice *out,
                                  struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_get_int(const struct cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out,
                               struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_get_double(const struct cJSON *object, const char *key, double *out,
                                  struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_get_bool(const struct cJSON *object, const char *key, bool *out,
                                struct dtq_error *err) DTQ_MUST_CHECK;

enum dtq_code dtq_json_find_object(const struct cJSON *object, const char *key, const struct cJSON **out,
                                   struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_find_array(const struct cJSON *object, const char *key, const struct cJSON **out,
                                  struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_find_string(const struct cJSON *object, const char *key, struct dtq_slice *out,
                                   struct dtq_error *err) DTQ_MUST_CHECK;
enum dtq_code dtq_json_find_bool(const struct cJSON *object, const char *key, bool *out,
                                 struct dtq_error *err) DTQ_MUST_CHECK;

bool dtq_json_is_object(const struct cJSON *item);
bool dtq_json_as_string(const struct cJSON *item, struct dtq_slice *out); /* false when it is not a string */

/* Members of an object or items of an array, one after the other: for (item = first(x); item; item = next(item)). */
const struct cJSON *dtq_json_first(const struct cJSON *container);
const struct cJSON *dtq_json_next(const struct cJSON *item);
const char *dtq_json_key(const struct cJSON *member);
size_t dtq_json_count(const struct cJSON *container);

/* Every member has one of the names (at most 32 of them), and none comes twice. */
enum dtq_code dtq_json_only_keys(const struct cJSON *object, const char *const *names, size_t count,
                                 struct dtq_error *err) DTQ_MUST_CHECK;

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* A string with its quotes.  Bytes that are not text (dtq_is_text) make the buffer fail with DTQ_INVALID_ARGUMENT. What
 * SQS does not allow in a message body (control characters, U+FFFE, U+FFFF) is escaped. */
enum dtq_code dtq_json_write_string(struct dtq_buf *buf, struct dtq_slice text);
enum dtq_code dtq_json_write_str(struct dtq_buf *buf, const char *text);
/* "key": for a key of our own, which needs no escape. */
enum dtq_code dtq_json_write_key(struct dtq_buf *buf, const char *key);
enum dtq_code dtq_json_write_int(struct dtq_buf *buf, int64_t number);
/* The shortest text that reads back as the same double, whatever the locale; not finite: DTQ_INVALID_ARGUMENT. */
enum dtq_code dtq_json_write_double(struct dtq_buf *buf, double number);

#endif
