/* FenceBoard, and the functions that a step process calls to be fenced.  The board holds no Python object, so it
 * needs no garbage collection. */
#include "module.h"

#include "convert.h"
#include "dtq_clock.h"
#include "raise.h"

static PyObject *board_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slots", NULL};
    struct module_state *state = state_of_type(type);
    int slots = 0;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:FenceBoard", names, &slots))
        return NULL;
    struct board_object *self = (struct board_object *)PyType_GenericAlloc(type, 0); /* new */
    if (!self)
        return NULL;
    if (dtq_fence_board_new(slots, &self->board, &err)) {
        (void)raise_error(state, &err);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void board_dealloc(PyObject *object)
{
    dtq_fence_board_destroy(((struct board_object *)object)->board);
    object_free(object);
}

static PyObject *board_fileno(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(dtq_fence_board_fd(((struct board_object *)object)->board));
}

static PyObject *board_slots(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLong(dtq_fence_board_slots(((struct board_object *)object)->board));
}

/* 0, or -1 with IndexError set: the core writes where it is told to. */
static int check_slot(struct board_object *self, int slot)
{
    if (slot >= 0 && slot < dtq_fence_board_slots(self->board))
        return 0;
    PyErr_SetString(PyExc_IndexError, "the board has no such slot");
    return -1;
}

static PyObject *board_set(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slot", "generation", "deadline_ns", NULL};
    struct board_object *self = (struct board_object *)object;
    int slot = 0;
    long long generation = 0;
    unsigned long long deadline_ns = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iLK:set", names, &slot, &generation, &deadline_ns) ||
        check_slot(self, slot) < 0)
        return NULL;
    dtq_fence_set(self->board, slot, generation, deadline_ns);
    Py_RETURN_NONE;
}

static PyObject *board_clear(PyObject *object, PyObject *argument)
{
    struct board_object *self = (struct board_object *)object;
    int slot = 0;
    if (as_int(argument, "slot", &slot) < 0 || check_slot(self, slot) < 0)
        return NULL;
    dtq_fence_clear(self->board, slot);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fileno", board_fileno, METH_NOARGS,
     "fileno($self)\n--\n\nThe descriptor of the shared memory; it is inheritable."},
    {"set", (PyCFunction)(void (*)(void))board_set, METH_VARARGS | METH_KEYWORDS,
     "set($self, slot, generation, deadline_ns)\n--\n\nGive the slot to generation with its first deadline."},
    {"clear", board_clear, METH_O, "clear($self, slot, /)\n--\n\nMake the slot free."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"slots", board_slots, NULL, "how many it has", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "FenceBoard(slots)\n--\n\nDeadlines of step processes in shared memory."},
    {Py_tp_new, board_new},
    {Py_tp_dealloc, board_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.FenceBoard",
    .basicsize = sizeof(struct board_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_board_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->board_type);
}

/* ---- functions
 * ------------------------------------------------------------------------------------------------------ */

static PyObject *boot_ns(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(dtq_clock_boot_ns());
}

static PyObject *fence_arm(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "slot", "generation", NULL};
    int fd = -1, slot = -1;
    long long generation = 0;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiL:fence_arm", names, &fd, &slot, &generation))
        return NULL;
    if (dtq_fence_arm(fd, slot, generation, &err))
        return raise_error(PyModule_GetState(module), &err);
    Py_RETURN_NONE;
}

static PyObject *fence_deadline_ns(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"fd", "slot", "generation", NULL};
    int fd = -1, slot = -1;
    long long generation = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiL:fence_deadline_ns", names, &fd, &slot, &generation))
        return NULL;
    return PyLong_FromUnsignedLongLong(dtq_fence_deadline_ns(fd, slot, generation));
}

static PyObject *die_with_parent(PyObject *module, PyObject *argument)
{
    int expected_parent = 0;
    struct dtq_error err;
    if (as_int(argument, "expected_parent", &expected_parent) < 0)
        return NULL;
    if (dtq_fence_die_with_parent(expected_parent, &err))
        return raise_error(PyModule_GetState(module), &err);
    Py_RETURN_NONE;
}

static PyObject *outlive_parent(PyObject *module, PyObject *unused)
{
    struct dtq_error err;
    (void)unused;
    if (dtq_fence_outlive_parent(&err))
        return raise_error(PyModule_GetState(module), &err);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"boot_ns", boot_ns, METH_NOARGS, "boot_ns($module)\n--\n\nThe clock of fence deadlines, in nanoseconds."},
    {"fence_arm", (PyCFunction)(void (*)(void))fence_arm, METH_VARARGS | METH_KEYWORDS,
     "fence_arm($module, fd, slot, generation)\n--\n\nHave the kernel kill this process at the slot's deadline."},
    {"fence_deadline_ns", (PyCFunction)(void (*)(void))fence_deadline_ns, METH_VARARGS | METH_KEYWORDS,
     "fence_deadline_ns($module, fd, slot, generation)\n--\n\nThe deadline of the slot, 0 when there is none."},
    {"die_with_parent", die_with_parent, METH_O,
     "die_with_parent($module, expected_parent, /)\n--\n\nHave the kernel kill this process when its parent dies."},
    {"outlive_parent", outlive_parent, METH_NOARGS, "outlive_parent($module)\n--\n\nTake die_with_parent back."},
    {NULL, NULL, 0, NULL},
};

int add_fence_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
