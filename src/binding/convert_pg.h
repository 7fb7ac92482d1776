/*
 * Python values as PostgreSQL's text forms and back, by the type letters of a statement (dtq_store.h).
 *
 * GIL: held.  Failure: -1 or NULL with the indicator set.
 */
#ifndef DTQ_BINDING_CONVERT_PG_H
#define DTQ_BINDING_CONVERT_PG_H

#include "compat.h"

#include "dtq_buf.h"
#include "dtq_store.h"
#include "module.h"

/* The parameters of one call.  In place (zeroed, init/clean_up); clean_up is needed after a failed init too. */
struct pg_params {
    struct dtq_param *params; /* as many as the statement has */
    PyObject *values;         /* tuple: texts are views into it */
    struct dtq_buf *bufs;     /* of the values that are not a text */
    size_t count;
};

int pg_params_init(struct pg_params *self, struct module_state *state, const struct dtq_statement *statement,
                   PyObject *sequence);
void pg_params_clean_up(struct pg_params *self);

/* A new reference: None for SQL NULL, else what the letter says. */
PyObject *pg_value(char type, struct dtq_slice text);

#endif
