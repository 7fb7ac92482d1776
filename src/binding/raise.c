#include "raise.h"

#include "convert.h"

/* Look the classes up: dagster_taskiq.errors first, builtins for the names that it does not define.  Keys are the
 * numbers. */
static PyObject *load_classes(void)
{
    unsigned count = 0;
    const struct dtq_error_info *table = dtq_error_table(&count);
    PyObject *errors = NULL, *builtins = NULL, *classes = NULL;

    errors = PyImport_ImportModule("dagster_taskiq.errors"); /* new */
    builtins = PyImport_ImportModule("builtins");            /* new */
    classes = PyDict_New();                                  /* new */
    if (!errors || !builtins || !classes)
        goto failed;
    for (unsigned i = 0; i < count; i++) {
        if (table[i].code == DTQ_OK)
            continue;
        PyObject *home = PyObject_HasAttrString(errors, table[i].python_class) ? errors : builtins;
        PyObject *found = PyObject_GetAttrString(home, table[i].python_class); /* new */
        PyObject *key = PyLong_FromLong((long)table[i].code);                  /* new */
        int rc = found && key ? PyDict_SetItem(classes, key, found) : -1;
        Py_XDECREF(found);
        Py_XDECREF(key);
        if (rc < 0)
            goto failed;
    }
    Py_DECREF(errors);
    Py_DECREF(builtins);
    return classes;

failed:
    Py_XDECREF(errors);
    Py_XDECREF(builtins);
    Py_XDECREF(classes);
    return NULL;
}

/* Borrowed; NULL with the indicator set. */
static PyObject *find_class(struct module_state *state, enum dtq_code code)
{
    if (!state->error_classes) {
        PyObject *classes = load_classes();
        if (!classes)
            return NULL;
        replace(&state->error_classes,
                classes); /* the import above may have run other Python code that came here too */
    }
    PyObject *key = PyLong_FromLong((long)code); /* new */
    if (!key)
        return NULL;
    PyObject *found = PyDict_GetItemWithError(state->error_classes, key); /* borrowed */
    Py_DECREF(key);
    if (!found && !PyErr_Occurred())
        PyErr_Format(PyExc_SystemError, "the core returned the unknown error code %d", (int)code);
    return found;
}

/* Steals value. */
static int set_attribute(PyObject *exception, const char *name, PyObject *value)
{
    int rc = value ? PyObject_SetAttrString(exception, name, value) : -1;
    Py_XDECREF(value);
    return rc;
}

static PyObject *word_or_none(const char *text)
{
    return message_or_none(text[0] ? text : NULL);
}

static PyObject *number_or_none(int number)
{
    if (!number)
        Py_RETURN_NONE;
    return PyLong_FromLong(number);
}

PyObject *raise_error(struct module_state *state, const struct dtq_error *err)
{
    PyObject *message = NULL, *exception = NULL;
    const struct dtq_error_info *info = dtq_error_info(err->code);
    PyObject *exception_class = state ? find_class(state, err->code) : NULL; /* borrowed */
    if (!exception_class || !info)
        return NULL;

    /* A message that was cut may end inside a character. */
    message = PyUnicode_DecodeUTF8(err->message, (Py_ssize_t)strlen(err->message), "ignore");  /* new */
    exception = message ? PyObject_CallFunctionObjArgs(exception_class, message, NULL) : NULL; /* new */
    if (!exception)
        goto cleanup;
    if (set_attribute(exception, "code", PyLong_FromLong((long)err->code)) < 0 ||
        set_attribute(exception, "name", PyUnicode_FromString(info->name)) < 0 ||
        set_attribute(exception, "retryable", PyBool_FromLong(info->retryable)) < 0 ||
        set_attribute(exception, "http_status", number_or_none(err->http_status)) < 0 ||
        set_attribute(exception, "system_errno", number_or_none(err->system_errno)) < 0 ||
        set_attribute(exception, "service_code", word_or_none(err->service_code)) < 0 ||
        set_attribute(exception, "sqlstate", word_or_none(err->sqlstate)) < 0)
        goto cleanup;
    PyErr_SetObject(exception_class, exception);

cleanup:
    Py_XDECREF(message);
    Py_XDECREF(exception);
    return NULL;
}

PyObject *raise_code(struct module_state *state, enum dtq_code code)
{
    struct dtq_error err;
    (void)dtq_error_set(&err, code, NULL);
    return raise_error(state, &err);
}

PyObject *raise_table(void)
{
    unsigned count = 0;
    const struct dtq_error_info *table = dtq_error_table(&count);
    PyObject *rows = PyTuple_New((Py_ssize_t)count); /* new */
    for (unsigned i = 0; rows && i < count; i++) {
        PyObject *row = Py_BuildValue("(sisNs)", table[i].name, (int)table[i].code, table[i].sentence,
                                      PyBool_FromLong(table[i].retryable), table[i].python_class); /* new */
        if (!row)
            Py_CLEAR(rows);
        else
            (void)PyTuple_SetItem(rows, (Py_ssize_t)i, row); /* steals */
    }
    return rows;
}
