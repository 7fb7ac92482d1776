/*
 * Loop: the I/O thread, seen from Python.
 *
 * Python is woken through one descriptor and takes everything that is ready with one drain().  An Operation that is
 * watched is kept in `watched` until drain hands it out, and the core's op points back at it (op->user, borrowed). At
 * interpreter exit the loops that are still open are closed by an atexit hook: the I/O thread must not run into the C
 * library's own clean-up.
 */
#include "module.h"

#include "convert.h"
#include "raise.h"

int loop_check_fork(struct loop_object *self)
{
    struct dtq_error err;
    if (dtq_loop_check_fork(self->loop, &err)) {
        (void)raise_error(state_of((PyObject *)self), &err);
        return -1;
    }
    return 0;
}

static void link_loop(struct module_state *state, struct loop_object *self)
{
    self->next = state->loops;
    self->link = &state->loops;
    if (self->next)
        self->next->link = &self->next;
    state->loops = self;
}

void loop_unlink(struct loop_object *self)
{
    if (!self->link)
        return;
    *self->link = self->next;
    if (self->next)
        self->next->link = self->link;
    self->next = NULL;
    self->link = NULL;
}

static void close_loop(struct loop_object *self, int timeout_ms)
{
    self->closed = true;
    Py_BEGIN_ALLOW_THREADS;
    dtq_loop_close(self->loop, timeout_ms);
    Py_END_ALLOW_THREADS;
}

static PyObject *close_all(PyObject *module, PyObject *unused)
{
    (void)unused;
    struct module_state *state = PyModule_GetState(module);
    struct dtq_error err;
    while (state->loops) {
        struct loop_object *self = state->loops;
        Py_INCREF(self);
        loop_unlink(self);
        if (!dtq_loop_check_fork(self->loop, &err))
            close_loop(self, 0);
        Py_DECREF(self);
    }
    Py_RETURN_NONE;
}

static PyMethodDef exit_method = {"_close_all", close_all, METH_NOARGS, "Close every Loop that is still open."};

static int register_exit_hook(PyTypeObject *type, struct module_state *state)
{
    if (state->exit_hook)
        return 0;
    PyObject *module = PyType_GetModule(type);                                             /* borrowed */
    PyObject *hook = module ? PyCFunction_NewEx(&exit_method, module, NULL) : NULL;        /* new */
    PyObject *atexit = hook ? PyImport_ImportModule("atexit") : NULL;                      /* new */
    PyObject *result = atexit ? PyObject_CallMethod(atexit, "register", "O", hook) : NULL; /* new */
    Py_XDECREF(atexit);
    Py_XDECREF(hook);
    if (!result)
        return -1;
    Py_DECREF(result);
    state->exit_hook = true;
    return 0;
}

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    struct module_state *state = state_of_type(type);
    struct dtq_error err;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, ":Loop", names) || register_exit_hook(type, state) < 0)
        return NULL;
    struct loop_object *self = (struct loop_object *)PyType_GenericAlloc(type, 0); /* new */
    if (!self)
        return NULL;
    self->watched = PySet_New(NULL); /* new */
    self->kept = PyList_New(0);      /* new */
    if (!self->watched || !self->kept)
        goto failed;
    enum dtq_code rc = DTQ_OK;
    Py_BEGIN_ALLOW_THREADS;
    rc = dtq_loop_new(&self->loop, &err);
    Py_END_ALLOW_THREADS;
    if (rc) {
        (void)raise_error(state, &err);
        goto failed;
    }
    link_loop(state, self);
    return (PyObject *)self;

failed:
    Py_DECREF(self);
    return NULL;
}

static int loop_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct loop_object *self = (struct loop_object *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->watched);
    Py_VISIT(self->kept);
    Py_VISIT(self->bridge);
    return 0;
}

/* The boards in `kept` hold no references, and the core uses them until the loop is destroyed: they stay. */
static int loop_clear(PyObject *object)
{
    struct loop_object *self = (struct loop_object *)object;
    Py_CLEAR(self->watched);
    Py_CLEAR(self->bridge);
    return 0;
}

static void loop_dealloc(PyObject *object)
{
    struct loop_object *self = (struct loop_object *)object;
    PyObject_GC_UnTrack(object);
    if (self->weakrefs)
        PyObject_ClearWeakRefs(object);
    loop_unlink(self);
    (void)loop_clear(object);
    struct dtq_loop *loop = self->loop;
    self->loop = NULL;
    Py_BEGIN_ALLOW_THREADS;
    dtq_loop_destroy(loop);
    Py_END_ALLOW_THREADS;
    Py_CLEAR(self->kept);
    object_free(object);
}

static PyObject *loop_fileno(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct loop_object *self = (struct loop_object *)object;
    if (loop_check_fork(self) < 0)
        return NULL;
    return PyLong_FromLong(dtq_loop_fd(self->loop));
}

/* Append what op is to list; 0, or -1 with the indicator set. */
static int append_drained(struct module_state *state, struct loop_object *self, struct dtq_op *op, PyObject *list)
{
    PyObject *item = NULL;
    if (op->op_class->kind == DTQ_OP_EVENT)
        item = event_new(state, (const struct dtq_event *)op); /* new */
    else if (op->user)
        item = Py_NewRef((PyObject *)op->user); /* new */
    else
        return 0; /* its Operation is gone: nobody waits */
    if (!item)
        return -1;
    int rc = PyList_Append(list, item);
    if (op->user && self->watched && PySet_Discard(self->watched, item) < 0)
        rc = -1;
    op->user = NULL;
    Py_DECREF(item);
    return rc;
}

static PyObject *loop_drain(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct loop_object *self = (struct loop_object *)object;
    struct module_state *state = state_of(object);
    if (!state || loop_check_fork(self) < 0)
        return NULL;
    PyObject *list = PyList_New(0); /* new */
    if (!list)
        return NULL;
    struct dtq_op *op = dtq_loop_drain(self->loop);
    while (op) {
        struct dtq_op *next = dtq_op_next(op);
        /* The others must not wait for ever because one cannot be handed out. */
        if (append_drained(state, self, op, list) < 0)
            PyErr_WriteUnraisable(object);
        dtq_op_release(self->loop, op);
        op = next;
    }
    return list;
}

static PyObject *loop_close(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", NULL};
    struct loop_object *self = (struct loop_object *)object;
    int timeout_ms = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:close", names, convert_wait_ms, &timeout_ms))
        return NULL;
    if (loop_check_fork(self) < 0)
        return NULL;
    close_loop(self, timeout_ms);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fileno", loop_fileno, METH_NOARGS,
     "fileno($self)\n--\n\nA descriptor that is readable while drain() has something."},
    {"drain", loop_drain, METH_NOARGS,
     "drain($self)\n--\n\nTake what is ready: watched operations that are done, and events."},
    {"close", (PyCFunction)(void (*)(void))loop_close, METH_VARARGS | METH_KEYWORDS,
     "close($self, timeout=0.0)\n--\n\nStop; outstanding long polls may finish within timeout seconds."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"closed", T_BOOL, offsetof(struct loop_object, closed), READONLY, "whether close() was called"},
    {"_bridge", T_OBJECT, offsetof(struct loop_object, bridge), 0, "the asyncio bridge's own"},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct loop_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Loop()\n--\n\nOne I/O thread for any number of clients."},
    {Py_tp_new, loop_new},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.Loop",
    .basicsize = sizeof(struct loop_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_loop_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->loop_type);
}
