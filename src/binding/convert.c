#include "convert.h"

#include <limits.h>
#include <math.h>
#include <string.h>

/* ---- times
 * ---------------------------------------------------------------------------------------------------------- */

static int milliseconds(PyObject *object, bool zero, int *out)
{
    if (object == Py_None)
        return 1;
    double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred())
        return 0;
    if (isnan(seconds) || seconds < 0 || (seconds == 0 && !zero)) {
        PyErr_SetString(PyExc_ValueError, zero ? "a time must not be negative" : "a time must be more than 0");
        return 0;
    }
    *out = seconds >= INT_MAX / 1000 ? INT_MAX : (int)ceil(seconds * 1000);
    return 1;
}

int convert_wait_ms(PyObject *object, void *out)
{
    return milliseconds(object, true, out);
}

int convert_limit_ms(PyObject *object, void *out)
{
    return milliseconds(object, false, out);
}

/* ---- single values
 * -------------------------------------------------------------------------------------------------- */

int as_text(PyObject *object, const char *what, const char **out)
{
    Py_ssize_t length = 0;
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be str", what);
        return -1;
    }
    *out = PyUnicode_AsUTF8AndSize(object, &length);
    if (!*out)
        return -1;
    if (memchr(*out, '\0', (size_t)length)) {
        PyErr_Format(PyExc_ValueError, "%s must not hold NUL", what);
        return -1;
    }
    return 0;
}

int as_optional_text(PyObject *object, const char *what, const char **out)
{
    *out = NULL;
    return object && object != Py_None ? as_text(object, what, out) : 0;
}

int as_slice(PyObject *object, const char *what, struct dtq_slice *out)
{
    Py_ssize_t length = 0;
    const char *data = NULL;
    if (PyUnicode_Check(object))
        data = PyUnicode_AsUTF8AndSize(object, &length);
    else if (PyBytes_Check(object)) {
        char *bytes = NULL;
        data = PyBytes_AsStringAndSize(object, &bytes, &length) < 0 ? NULL : bytes;
    }
    else
        PyErr_Format(PyExc_TypeError, "%s must be bytes or str", what);
    if (!data)
        return -1;
    *out = dtq_slice(data, (size_t)length);
    return 0;
}

int as_int64(PyObject *object, const char *what, int64_t *out)
{
    long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s must be int", what);
        return -1;
    }
    *out = value;
    return 0;
}

int as_int(PyObject *object, const char *what, int *out)
{
    int64_t value = 0;
    if (as_int64(object, what, &value) < 0)
        return -1;
    if (value < INT_MIN || value > INT_MAX) {
        PyErr_Format(PyExc_OverflowError, "%s is out of range", what);
        return -1;
    }
    *out = (int)value;
    return 0;
}

int as_double(PyObject *object, const char *what, double *out)
{
    *out = PyFloat_AsDouble(object);
    if (*out == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s must be a number", what);
        return -1;
    }
    return 0;
}

PyObject *text_or_none(const char *text)
{
    if (!text)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), NULL);
}

PyObject *message_or_none(const char *text)
{
    if (!text)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

PyObject *text_of(struct dtq_slice slice)
{
    return PyUnicode_DecodeUTF8(slice.length ? slice.data : "", (Py_ssize_t)slice.length, NULL);
}

PyObject *bytes_of(struct dtq_slice slice)
{
    return PyBytes_FromStringAndSize(slice.length ? slice.data : "", (Py_ssize_t)slice.length);
}

int set_item(PyObject *dict, const char *name, PyObject *value)
{
    int rc = value ? PyDict_SetItemString(dict, name, value) : -1;
    Py_XDECREF(value);
    return rc;
}

/* ---- mappings
 * ------------------------------------------------------------------------------------------------------- */

PyObject *keep_as_dict(PyObject *mapping, PyObject *keep)
{
    PyObject *dict = PyDict_New(); /* new */
    int rc = dict ? 0 : -1;
    if (rc == 0 && mapping != Py_None)
        rc = PyDict_Update(dict, mapping);
    if (rc == 0)
        rc = PyList_Append(keep, dict);
    Py_XDECREF(dict);
    return rc < 0 ? NULL : dict;
}

/* NULL when none of them has this name. */
static struct field *find_field(PyObject *key, struct field *fields, size_t count)
{
    for (size_t i = 0; PyUnicode_Check(key) && i < count; i++) {
        if (PyUnicode_CompareWithASCIIString(key, fields[i].name) == 0)
            return &fields[i];
    }
    return NULL;
}

/* By the keys that are there, which are often fewer than the fields, and without making strings of their names. */
int read_fields(PyObject *dict, const char *what, struct field *fields, size_t count)
{
    Py_ssize_t position = 0;
    PyObject *key = NULL, *value = NULL, *unknown = NULL; /* borrowed */
    for (size_t i = 0; i < count; i++)
        fields[i].value = NULL;
    while (PyDict_Next(dict, &position, &key, &value)) {
        struct field *field = find_field(key, fields, count);
        if (field)
            field->value = value;
        else
            unknown = key;
    }
    for (size_t i = 0; i < count; i++) {
        if (fields[i].required && !fields[i].value) {
            PyErr_Format(PyExc_TypeError, "%s lacks the key '%s'", what, fields[i].name);
            return -1;
        }
    }
    if (unknown) {
        PyErr_Format(PyExc_TypeError, "%s has the unknown key %R", what, unknown);
        return -1;
    }
    return 0;
}
