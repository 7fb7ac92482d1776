/*
 * Store: the idempotency store's connection.
 *
 * Statements are named; the types of their parameters and columns are in the core's table, and this file turns Python
 * values into PostgreSQL's text forms and back by that table.
 */
#include "module.h"

#include "convert.h"
#include "convert_pg.h"
#include "raise.h"

/* ---- construction
 * --------------------------------------------------------------------------------------------------- */

static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {
        "loop", "url", "application_name", "connect_timeout", "operation_timeout", "backoff_base", "backoff_cap", NULL};
    struct module_state *state = state_of_type(type);
    struct dtq_store_options options = {0};
    PyObject *loop = NULL;
    struct dtq_error err;
    if (!state ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!s|$zO&O&O&O&:Store", names, state->loop_type, &loop, &options.url,
                                     &options.application_name, convert_limit_ms, &options.connect_timeout_ms,
                                     convert_limit_ms, &options.operation_timeout_ms, convert_limit_ms,
                                     &options.backoff_base_ms, convert_limit_ms, &options.backoff_cap_ms) ||
        loop_check_fork((struct loop_object *)loop) < 0)
        return NULL;
    struct store_object *self = (struct store_object *)PyType_GenericAlloc(type, 0); /* new */
    if (!self)
        return NULL;
    self->loop = (struct loop_object *)Py_NewRef(loop);
    if (dtq_store_new(self->loop->loop, &options, &self->store, &err)) {
        (void)raise_error(state, &err);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* The loop is kept until deallocation: the core's store lives in it.  Nothing else is held, so there is nothing to
 * clear. */
static int store_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((struct store_object *)object)->loop);
    return 0;
}

static void store_dealloc(PyObject *object)
{
    PyObject_GC_UnTrack(object);
    Py_XDECREF(((struct store_object *)object)->loop);
    object_free(object);
}

/* ---- operations
 * ----------------------------------------------------------------------------------------------------- */

/* Steals op; NULL op raises err. */
static PyObject *submit(PyObject *object, struct dtq_store_op *op, PyObject *convert, const struct dtq_error *err)
{
    struct module_state *state = state_of(object);
    if (!op)
        return raise_error(state, err);
    return operation_submit(state, ((struct store_object *)object)->loop, (struct dtq_op *)op, convert);
}

static PyObject *store_run(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"statement", "params", "timeout", "convert", NULL};
    struct store_object *self = (struct store_object *)object;
    const char *name = NULL;
    PyObject *sequence = NULL, *convert = Py_None, *operation = NULL;
    int timeout_ms = 0;
    struct dtq_error err;
    struct pg_params params = {0};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|$O&O:run", names, &name, &sequence, convert_limit_ms,
                                     &timeout_ms, &convert) ||
        loop_check_fork(self->loop) < 0)
        return NULL;
    const struct dtq_statement *statement = dtq_statement_find(name);
    if (!statement)
        return PyErr_Format(PyExc_ValueError, "there is no statement '%s'", name);
    if (pg_params_init(&params, state_of(object), statement, sequence) == 0)
        operation = submit(object, dtq_store_run(self->store, statement, params.params, timeout_ms, &err),
                           convert == Py_None ? NULL : convert, &err);
    pg_params_clean_up(&params);
    return operation;
}

static PyObject *store_script(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sql", "timeout", NULL};
    struct store_object *self = (struct store_object *)object;
    const char *sql = NULL;
    int timeout_ms = 0;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|$O&:script", names, &sql, convert_limit_ms, &timeout_ms) ||
        loop_check_fork(self->loop) < 0)
        return NULL;
    return submit(object, dtq_store_script(self->store, dtq_slice_str(sql), timeout_ms, &err), NULL, &err);
}

typedef struct dtq_store_op *(*channel_fn)(struct dtq_store *store, const char *channel, int timeout_ms,
                                           struct dtq_error *err);

static PyObject *channel_operation(PyObject *object, PyObject *args, PyObject *kwargs, channel_fn function)
{
    static char *names[] = {"channel", "timeout", NULL};
    struct store_object *self = (struct store_object *)object;
    const char *channel = NULL;
    int timeout_ms = 0;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|$O&", names, &channel, convert_limit_ms, &timeout_ms) ||
        loop_check_fork(self->loop) < 0)
        return NULL;
    return submit(object, function(self->store, channel, timeout_ms, &err), NULL, &err);
}

static PyObject *store_listen(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return channel_operation(object, args, kwargs, dtq_store_listen);
}

static PyObject *store_unlisten(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return channel_operation(object, args, kwargs, dtq_store_unlisten);
}

/* ---- results
 * -------------------------------------------------------------------------------------------------------- */

static PyObject *row_tuple(const struct dtq_store_op *op, const char *columns, size_t row)
{
    Py_ssize_t count = (Py_ssize_t)strlen(columns);
    PyObject *tuple = PyTuple_New(count); /* new */
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *value = pg_value(columns[i], dtq_store_op_value(op, row, (size_t)i)); /* new */
        if (!value)
            Py_CLEAR(tuple);
        else
            (void)PyTuple_SetItem(tuple, i, value); /* steals */
    }
    return tuple;
}

PyObject *store_result(const struct dtq_store_op *op)
{
    const struct dtq_statement *statement = dtq_store_op_statement(op);
    if (!statement)
        Py_RETURN_NONE;
    PyObject *list = PyList_New(0); /* new */
    for (size_t i = 0; list && i < dtq_store_op_rows(op); i++) {
        PyObject *row = row_tuple(op, statement->columns, i); /* new */
        if (!row || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* ---- the type and its function
 * -------------------------------------------------------------------------------------- */

static PyObject *statements(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    size_t count = 0;
    const struct dtq_statement *table = dtq_statement_table(&count);
    PyObject *dict = PyDict_New(); /* new */
    for (size_t i = 0; dict && i < count; i++) {
        if (set_item(dict, table[i].name, Py_BuildValue("(sss)", table[i].params, table[i].columns, table[i].sql)) < 0)
            Py_CLEAR(dict);
    }
    return dict;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"run", KEYWORDS(store_run),
     "run($self, statement, params, *, timeout=None, convert=None)\n--\n\nRun a named statement."},
    {"script", KEYWORDS(store_script),
     "script($self, sql, *, timeout=None)\n--\n\nRun several statements in one transaction."},
    {"listen", KEYWORDS(store_listen),
     "listen($self, channel, *, timeout=None)\n--\n\nHave the channel's notifications come as events."},
    {"unlisten", KEYWORDS(store_unlisten), "unlisten($self, channel, *, timeout=None)\n--\n\nEnd listen()."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"loop", T_OBJECT_EX, offsetof(struct store_object, loop), READONLY, "the Loop that works for it"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Store(loop, url, *, application_name=None, connect_timeout=None, operation_timeout=None, backoff_base=None, "
     "backoff_cap=None)\n--\n\nThe idempotency store's connection."},
    {Py_tp_new, store_new},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_traverse, store_traverse},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.Store",
    .basicsize = sizeof(struct store_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"statements", statements, METH_NOARGS,
     "statements($module)\n--\n\nname -> (parameter types, column types, SQL) of every statement of the store."},
    {NULL, NULL, 0, NULL},
};

int add_store_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->store_type);
}

int add_store_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
