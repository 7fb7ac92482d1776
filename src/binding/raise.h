/*
 * Errors of the core as Python exceptions.
 *
 * What it is for: each row of dtq_error.def names a class of dagster_taskiq.errors (or a builtin); they are looked up
 * once per module state.
 * GIL: held.  Error indicator: clear before, set after.
 */
#ifndef DTQ_BINDING_RAISE_H
#define DTQ_BINDING_RAISE_H

#include "compat.h"

#include "dtq_error.h"
#include "module.h"

/* Set the exception for err and return NULL.  state NULL: leave the one that is set already. */
PyObject *raise_error(struct module_state *state, const struct dtq_error *err);

/* A new exception of the code's class with the code's own sentence; NULL and the indicator set when that fails. */
PyObject *raise_code(struct module_state *state, enum dtq_code code);

/* The table as a tuple for ERROR_TABLE: (name, number, sentence, retryable, class name). */
PyObject *raise_table(void);

#endif
