/*
 * Operation: a request on its way.
 *
 * Owns one reference to the dtq_op, and the Loop, which must outlive it.  The op is given back at deallocation and
 * never earlier, so a thread that blocks in result() may rely on it.  Results are made anew at each call: nothing is
 * shared between callers.
 * Why result() waits in slices: CPython runs signal handlers only when the main thread comes
 * back to it, and a condition variable is not interrupted by a signal (that thread may not even be the one that gets
 * it).  A slice is short against a person's patience, long against its cost.
 */
#include "module.h"

#include "convert.h"
#include "dtq_clock.h"
#include "raise.h"

#define WAIT_SLICE_MS 50

struct operation_object {
    PyObject_HEAD struct loop_object *loop; /* strong */
    struct dtq_op *op;                      /* one reference */
    PyObject *convert;                      /* callable, or NULL */
    bool watched;
};

static void drop_op(struct operation_object *self)
{
    if (self->op) {
        self->op->user = NULL; /* the core may hold the op longer than this object lives */
        dtq_op_release(self->loop->loop, self->op);
        self->op = NULL;
    }
}

PyObject *operation_submit(struct module_state *state, struct loop_object *loop, struct dtq_op *op, PyObject *convert)
{
    struct dtq_error err;
    struct operation_object *self = NULL;
    if (state)
        self = (struct operation_object *)PyType_GenericAlloc(state->operation_type, 0); /* new */
    if (!self) {
        dtq_op_release(loop->loop, op);
        return NULL;
    }
    Py_INCREF(loop);
    self->loop = loop;
    self->op = op;
    Py_XINCREF(convert);
    self->convert = convert;
    if (dtq_loop_submit(loop->loop, op, &err)) {
        Py_DECREF(self);
        return raise_error(state, &err);
    }
    return (PyObject *)self;
}

static int operation_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct operation_object *self = (struct operation_object *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->loop);
    Py_VISIT(self->convert);
    return 0;
}

/* The loop is kept: the op needs it.  Every cycle through it also passes Loop.watched or convert, which are cleared. */
static int operation_clear(PyObject *object)
{
    struct operation_object *self = (struct operation_object *)object;
    Py_CLEAR(self->convert);
    return 0;
}

static void operation_dealloc(PyObject *object)
{
    struct operation_object *self = (struct operation_object *)object;
    PyObject_GC_UnTrack(object);
    drop_op(self);
    (void)operation_clear(object);
    Py_XDECREF(self->loop);
    object_free(object);
}

static PyObject *operation_done(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct operation_object *self = (struct operation_object *)object;
    if (loop_check_fork(self->loop) < 0)
        return NULL;
    return PyBool_FromLong(dtq_op_is_done(self->loop->loop, self->op));
}

/* 0 once done; -1 with OperationTimeoutError, a signal handler's exception or another error set. */
static int wait_done(struct operation_object *self, int timeout_ms)
{
    struct module_state *state = state_of((PyObject *)self);
    uint64_t deadline_ms = timeout_ms < 0 ? UINT64_MAX : dtq_clock_monotonic_ms() + (uint64_t)timeout_ms;
    struct dtq_error err;

    for (;;) {
        uint64_t now_ms = dtq_clock_monotonic_ms();
        uint64_t left_ms = now_ms < deadline_ms ? deadline_ms - now_ms : 0;
        int slice_ms = left_ms < WAIT_SLICE_MS ? (int)left_ms : WAIT_SLICE_MS;
        enum dtq_code rc = DTQ_OK;
        Py_BEGIN_ALLOW_THREADS;
        rc = dtq_loop_wait(self->loop->loop, self->op, slice_ms, &err);
        Py_END_ALLOW_THREADS;
        if (rc == DTQ_OK)
            return 0;
        if (rc == DTQ_TIMEOUT && left_ms > (uint64_t)slice_ms) {
            if (PyErr_CheckSignals() < 0)
                return -1;
            continue;
        }
        if (rc == DTQ_TIMEOUT)
            dtq_error_set(&err, DTQ_TIMEOUT, "the operation was not done after %d ms", timeout_ms); /* not a slice's */
        (void)raise_error(state, &err);
        return -1;
    }
}

static PyObject *operation_result(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", NULL};
    struct operation_object *self = (struct operation_object *)object;
    struct module_state *state = state_of(object);
    int timeout_ms = -1;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:result", names, convert_wait_ms, &timeout_ms))
        return NULL;
    if (loop_check_fork(self->loop) < 0 || wait_done(self, timeout_ms) < 0)
        return NULL;
    if (self->op->error.code)
        return raise_error(state, &self->op->error);

    PyObject *value = self->op->op_class->kind == DTQ_OP_SQS
                          ? sqs_result(state, (const struct dtq_sqs_op *)self->op)
                          : store_result((const struct dtq_store_op *)self->op); /* new */
    if (!value || !self->convert)
        return value;
    PyObject *converted = PyObject_CallFunctionObjArgs(self->convert, value, NULL); /* new */
    Py_DECREF(value);
    return converted;
}

static PyObject *operation_cancel(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct operation_object *self = (struct operation_object *)object;
    if (loop_check_fork(self->loop) < 0)
        return NULL;
    dtq_loop_cancel(self->loop->loop, self->op);
    Py_RETURN_NONE;
}

static PyObject *operation_watch(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct operation_object *self = (struct operation_object *)object;
    if (loop_check_fork(self->loop) < 0)
        return NULL;
    if (self->watched || !self->loop->watched)
        Py_RETURN_NONE;
    if (PySet_Add(self->loop->watched, object) < 0)
        return NULL;
    self->watched = true;
    self->op->user = object; /* borrowed: Loop.watched keeps it until drain takes it out */
    dtq_loop_watch(self->loop->loop, self->op);
    Py_RETURN_NONE;
}

static PyObject *operation_await(PyObject *object)
{
    struct module_state *state = state_of(object);
    if (!state)
        return NULL;
    if (!state->bridge_wait) {
        PyObject *bridge = PyImport_ImportModule("dagster_taskiq._bridge");      /* new */
        PyObject *wait = bridge ? PyObject_GetAttrString(bridge, "wait") : NULL; /* new */
        Py_XDECREF(bridge);
        if (!wait)
            return NULL;
        replace(&state->bridge_wait, wait);
    }
    PyObject *coroutine = PyObject_CallFunctionObjArgs(state->bridge_wait, object, NULL); /* new */
    if (!coroutine)
        return NULL;
    unaryfunc awaiter = (unaryfunc)PyType_GetSlot(Py_TYPE(coroutine), Py_am_await);
    PyObject *iterator =
        awaiter ? awaiter(coroutine) : PyErr_Format(PyExc_TypeError, "the bridge gave nothing to await"); /* new */
    Py_DECREF(coroutine);
    return iterator;
}

static PyObject *operation_loop(PyObject *object, void *closure)
{
    (void)closure;
    return Py_NewRef((PyObject *)((struct operation_object *)object)->loop);
}

static PyMethodDef methods[] = {
    {"done", operation_done, METH_NOARGS, "done($self)\n--\n\nWhether the result is there."},
    {"result", (PyCFunction)(void (*)(void))operation_result, METH_VARARGS | METH_KEYWORDS,
     "result($self, timeout=None)\n--\n\nBlock, without the GIL, until done; timeout in seconds."},
    {"cancel", operation_cancel, METH_NOARGS, "cancel($self)\n--\n\nAsk the core to end it early."},
    {"watch", operation_watch, METH_NOARGS, "watch($self)\n--\n\nPut it into Loop.drain() when it is done."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "See PEP 585."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"loop", operation_loop, NULL, "the Loop that works on it", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A request on its way: await it, or block with result()."},
    {Py_tp_dealloc, operation_dealloc},
    {Py_tp_traverse, operation_traverse},
    {Py_tp_clear, operation_clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {Py_am_await, operation_await},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.Operation",
    .basicsize = sizeof(struct operation_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_operation_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->operation_type);
}
