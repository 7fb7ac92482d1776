/* Pages of memory around a fork: see dtq_pages.h.  Lists of pages are bytes objects, opaque to Python. */
#include "module.h"

#include <string.h>

#include "dtq_pages.h"
#include "raise.h"

#define LIST_MAX (1 << 20) /* bytes of a list of pages: 65,536 ranges */

static PyObject *as_list(PyObject *module, struct dtq_buf *list, enum dtq_code code, const struct dtq_error *err)
{
    PyObject *bytes = code ? raise_error(PyModule_GetState(module), err)
                           : PyBytes_FromStringAndSize(list->data, (Py_ssize_t)list->length);
    dtq_buf_clean_up(list);
    return bytes;
}

/* Ranges of a list, which is aligned as bytes objects are.  -1 with an exception for what is no list. */
static int as_ranges(PyObject *argument, const struct dtq_page_range **ranges, size_t *count)
{
    char *data = NULL;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(argument, &data, &size) < 0)
        return -1;
    if ((size_t)size % sizeof **ranges != 0) {
        PyErr_SetString(PyExc_ValueError, "this is no list of pages");
        return -1;
    }
    *ranges = (const struct dtq_page_range *)(const void *)data;
    *count = (size_t)size / sizeof **ranges;
    return 0;
}

static PyObject *own_pages(PyObject *module, PyObject *unused)
{
    struct dtq_error err;
    struct dtq_buf list;
    (void)unused;
    dtq_buf_init(&list, LIST_MAX);
    enum dtq_code code = dtq_pages_own(&list, &err);
    return as_list(module, &list, code, &err);
}

static PyObject *present_pages(PyObject *module, PyObject *argument)
{
    const struct dtq_page_range *ranges = NULL;
    size_t count = 0;
    struct dtq_error err;
    struct dtq_buf list;
    if (as_ranges(argument, &ranges, &count) < 0)
        return NULL;
    dtq_buf_init(&list, LIST_MAX);
    enum dtq_code code = dtq_pages_present(ranges, count, &list, &err);
    return as_list(module, &list, code, &err);
}

static PyObject *populate_pages(PyObject *module, PyObject *argument)
{
    const struct dtq_page_range *ranges = NULL;
    size_t count = 0;
    (void)module;
    if (as_ranges(argument, &ranges, &count) < 0)
        return NULL;
    return PyLong_FromSize_t(dtq_pages_populate(ranges, count));
}

static PyObject *collapse_pages(PyObject *module, PyObject *argument)
{
    struct dtq_error err;
    size_t collapsed = 0;
    size_t max = PyLong_AsSize_t(argument);
    if (max == (size_t)-1 && PyErr_Occurred())
        return NULL;
    if (dtq_pages_collapse(max, &collapsed, &err))
        return raise_error(PyModule_GetState(module), &err);
    return PyLong_FromSize_t(collapsed);
}

static PyMethodDef functions[] = {
    {"own_pages", own_pages, METH_NOARGS,
     "own_pages($module)\n--\n\nThe pages of memory that this process shares with no other one."},
    {"present_pages", present_pages, METH_O,
     "present_pages($module, pages, /)\n--\n\nThose pages that this process has in memory."},
    {"populate_pages", populate_pages, METH_O,
     "populate_pages($module, pages, /)\n--\n\nCopy these pages now; returns how many ranges were refused."},
    {"collapse_pages", collapse_pages, METH_O,
     "collapse_pages($module, max, /)\n--\n\nMove memory into huge pages; returns how many bytes are in such now."},
    {NULL, NULL, 0, NULL},
};

int add_pages_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
