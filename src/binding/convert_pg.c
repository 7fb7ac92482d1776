#include "convert_pg.h"

#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "dtq_limits.h"
#include "raise.h"

#define NUMBER_CHARS 64 /* more than any int8 or float8 takes */

/* ---- parameters
 * ----------------------------------------------------------------------------------------------------- */

static bool is_array(char type)
{
    return type == 'T' || type == 'I' || type == 'F' || type == 'B';
}

static char element_type(char type)
{
    switch (type) {
    case 'T':
        return 't';
    case 'I':
        return 'i';
    case 'F':
        return 'f';
    default:
        return 'b';
    }
}

/* Add value's text to buf, and NUL-terminate it there. */
static int add_scalar(char type, PyObject *value, struct dtq_buf *buf)
{
    int64_t number = 0;
    double real = 0;
    char *digits = NULL;
    int truth = 0;

    switch (type) {
    case 'i':
        return as_int64(value, "an integer parameter", &number) < 0 ? -1
                                                                    : (int)dtq_buf_addf(buf, "%lld", (long long)number);
    case 'f':
        if (as_double(value, "a float parameter", &real) < 0)
            return -1;
        digits = PyOS_double_to_string(real, 'r', 0, 0, NULL);
        if (!digits)
            return -1;
        (void)dtq_buf_add_str(buf, digits);
        PyMem_Free(digits);
        return 0;
    case 'b':
        truth = PyObject_IsTrue(value);
        return truth < 0 ? -1 : (int)dtq_buf_add_char(buf, truth ? 't' : 'f');
    default:
        PyErr_Format(PyExc_SystemError, "a statement has the unknown type '%c'", type);
        return -1;
    }
}

/* One value that is not an array.  Texts stay where they are; buf takes the others. */
static int read_scalar(char type, PyObject *value, struct dtq_buf *buf, struct dtq_param *out)
{
    const char *text = NULL;
    if (value == Py_None)
        return 0;
    if (type == 't' || type == 'j') {
        if (as_text(value, "a text parameter", &text) < 0)
            return -1;
        *out = (struct dtq_param){text, strlen(text)};
        return 0;
    }
    if (add_scalar(type, value, buf) < 0)
        return -1;
    *out = (struct dtq_param){dtq_buf_str(buf), buf->length};
    return buf->failed ? (PyErr_NoMemory(), -1) : 0;
}

static int read_array(struct module_state *state, char type, PyObject *value, struct dtq_buf *buf,
                      struct dtq_param *out)
{
    struct dtq_param *items = NULL;
    struct dtq_buf *bufs = NULL;
    struct dtq_error err;
    int rc = -1;
    PyObject *values = PySequence_Tuple(value); /* new */
    if (!values)
        return -1;
    size_t count = (size_t)PyTuple_Size(values);
    items = PyMem_Calloc(count + 1, sizeof *items);
    bufs = PyMem_Calloc(count + 1, sizeof *bufs);
    if (!items || !bufs) {
        PyErr_NoMemory();
        goto cleanup;
    }
    for (size_t i = 0; i < count; i++) {
        dtq_buf_init(&bufs[i], NUMBER_CHARS);
        if (read_scalar(element_type(type), PyTuple_GetItem(values, (Py_ssize_t)i), &bufs[i], &items[i]) < 0)
            goto cleanup;
    }
    if (dtq_pg_array(items, count, buf, &err)) {
        (void)raise_error(state, &err);
        goto cleanup;
    }
    *out = (struct dtq_param){dtq_buf_str(buf), buf->length};
    rc = 0;

cleanup:
    for (size_t i = 0; bufs && i < count; i++)
        dtq_buf_clean_up(&bufs[i]);
    PyMem_Free(bufs);
    PyMem_Free(items);
    Py_DECREF(values);
    return rc;
}

int pg_params_init(struct pg_params *self, struct module_state *state, const struct dtq_statement *statement,
                   PyObject *sequence)
{
    size_t count = strlen(statement->params);
    self->values = PySequence_Tuple(sequence); /* new */
    if (!self->values)
        return -1;
    if ((size_t)PyTuple_Size(self->values) != count) {
        PyErr_Format(PyExc_ValueError, "statement '%s' has %zu parameters, not %zd", statement->name, count,
                     PyTuple_Size(self->values));
        return -1;
    }
    self->params = PyMem_Calloc(count + 1, sizeof *self->params);
    self->bufs = PyMem_Calloc(count + 1, sizeof *self->bufs);
    if (!self->params || !self->bufs) {
        PyErr_NoMemory();
        return -1;
    }
    for (self->count = 0; self->count < count; self->count++) {
        size_t i = self->count;
        char type = statement->params[i];
        PyObject *value = PyTuple_GetItem(self->values, (Py_ssize_t)i); /* borrowed */
        dtq_buf_init(&self->bufs[i], DTQ_PART_BYTES_MAX);
        int rc = is_array(type) && value != Py_None ? read_array(state, type, value, &self->bufs[i], &self->params[i])
                                                    : read_scalar(type, value, &self->bufs[i], &self->params[i]);
        if (rc < 0) {
            dtq_buf_clean_up(&self->bufs[i]);
            return -1;
        }
    }
    return 0;
}

void pg_params_clean_up(struct pg_params *self)
{
    for (size_t i = 0; i < self->count; i++)
        dtq_buf_clean_up(&self->bufs[i]);
    PyMem_Free(self->bufs);
    PyMem_Free(self->params);
    Py_XDECREF(self->values);
}

/* ---- results
 * -------------------------------------------------------------------------------------------------------- */

static PyObject *not_understood(struct dtq_slice text)
{
    PyObject *shown =
        PyUnicode_DecodeUTF8(text.data, (Py_ssize_t)(text.length < 40 ? text.length : 40), "replace"); /* new */
    if (shown)
        PyErr_Format(PyExc_ValueError, "PostgreSQL's %R is not of its column's type", shown);
    Py_XDECREF(shown);
    return NULL;
}

static PyObject *number_value(char type, struct dtq_slice text)
{
    char digits[NUMBER_CHARS], *end = NULL;
    if (text.length == 0 || text.length >= sizeof digits)
        return not_understood(text);
    memcpy(digits, text.data, text.length);
    digits[text.length] = '\0';
    if (type == 'i') {
        PyObject *value = PyLong_FromString(digits, &end, 10); /* new */
        if (value && *end)
            Py_CLEAR(value);
        return value ? value : not_understood(text);
    }
    double real = PyOS_string_to_double(digits, &end, NULL); /* without regard to the locale; knows Infinity and NaN */
    if ((real == -1.0 && PyErr_Occurred()) || *end) {
        PyErr_Clear();
        return not_understood(text);
    }
    return PyFloat_FromDouble(real);
}

static PyObject *scalar_value(char type, struct dtq_slice text)
{
    switch (type) {
    case 't':
    case 'j':
        return text_of(text);
    case 'i':
    case 'f':
        return number_value(type, text);
    default:
        return PyBool_FromLong(text.length == 1 && text.data[0] == 't');
    }
}

/* Read one element of array text at *at into buf, unescaped; *quoted tells a text "NULL" from NULL.  false when
 * malformed. */
static bool read_element(const char **at, const char *end, struct dtq_buf *buf, bool *quoted)
{
    const char *p = *at;
    dtq_buf_clear(buf);
    *quoted = p < end && *p == '"';
    if (*quoted)
        p++;
    while (p < end && (*quoted ? *p != '"' : *p != ',' && *p != '}')) {
        if (*p == '\\' && ++p == end)
            return false;
        (void)dtq_buf_add_char(buf, *p++);
    }
    if (*quoted && p++ >= end)
        return false;
    *at = p;
    return p < end && (*p == ',' || *p == '}');
}

/* {a,"b,c",NULL} of one dimension. */
static PyObject *array_value(char type, struct dtq_slice text)
{
    struct dtq_buf buf;
    bool quoted = false, good = text.length >= 2 && text.data[0] == '{';
    const char *at = text.data + 1, *end = text.data + text.length;
    PyObject *list = PyList_New(0); /* new */
    dtq_buf_init(&buf, text.length);
    if (good && *at == '}')
        good = at + 1 == end;
    else if (good) {
        do {
            good = read_element(&at, end, &buf, &quoted) && !buf.failed;
            if (!good || !list)
                break;
            bool null = !quoted && dtq_slice_equal(dtq_buf_slice(&buf), dtq_slice_str("NULL"));
            PyObject *item = null ? Py_NewRef(Py_None) : scalar_value(type, dtq_buf_slice(&buf)); /* new */
            if (!item || PyList_Append(list, item) < 0)
                Py_CLEAR(list);
            Py_XDECREF(item);
        } while (*at++ == ',');
        good = good && at == end;
    }
    dtq_buf_clean_up(&buf);
    if (list && !good) {
        Py_CLEAR(list);
        return not_understood(text);
    }
    return list;
}

PyObject *pg_value(char type, struct dtq_slice text)
{
    if (!text.data)
        Py_RETURN_NONE;
    return is_array(type) ? array_value(element_type(type), text) : scalar_value(type, text);
}
