/*
 * Python objects as the core's plain values, and back.
 *
 * GIL: held.  Failure: 0 (or NULL) as PyArg's converters do it, with the indicator set; the functions that say so
 * return -1.
 * Ownership: texts and slices are views into the Python object and live as long as it does.
 */
#ifndef DTQ_BINDING_CONVERT_H
#define DTQ_BINDING_CONVERT_H

#include "compat.h"

#include <stdbool.h>
#include <stdint.h>

#include "dtq_slice.h"

/* ---- converters for PyArg's O& ---- */

/* int *: seconds to milliseconds, rounded up; None leaves the value as it is. */
int convert_wait_ms(PyObject *object, void *out);  /* 0 is allowed */
int convert_limit_ms(PyObject *object, void *out); /* must be more than 0, which means "default" to the core */

/* ---- single values; -1 on failure ---- */

/* str without NUL as UTF-8.  what: names it in errors. */
int as_text(PyObject *object, const char *what, const char **out);
/* The same, or None (or no object) as NULL. */
int as_optional_text(PyObject *object, const char *what, const char **out);
/* bytes, or str as UTF-8. */
int as_slice(PyObject *object, const char *what, struct dtq_slice *out);
int as_int(PyObject *object, const char *what, int *out);
int as_int64(PyObject *object, const char *what, int64_t *out);
int as_double(PyObject *object, const char *what, double *out);

/* NULL gives None. */
PyObject *text_or_none(const char *text);
/* The same for what PostgreSQL or libpq has written for people: in its own encoding perhaps, or cut within a character. */
PyObject *message_or_none(const char *text);
PyObject *text_of(struct dtq_slice slice);
PyObject *bytes_of(struct dtq_slice slice);

/* dict[name] = value; steals value, NULL is a failure that is already set.  -1 on failure. */
int set_item(PyObject *dict, const char *name, PyObject *value);

/* ---- mappings with known keys ---- */

struct field {
    const char *name;
    bool required;
    PyObject *value; /* borrowed from the dict; NULL when absent */
};

/* A copy of mapping (None: empty) as a dict, put into the list keep so that views into it stay valid.  Borrowed;
 * NULL on failure. */
PyObject *keep_as_dict(PyObject *mapping, PyObject *keep);

/* Fill fields from dict; TypeError for a missing or an unknown key.  -1 on failure. */
int read_fields(PyObject *dict, const char *what, struct field *fields, size_t count);

#endif
