/*
 * Beat: renews leases and visibilities from the core's thread.
 *
 * The core's beat belongs to the loop of its store, and borrows the board until that loop is destroyed; so the Loop
 * keeps the board.
 */
#include "module.h"

#include "convert.h"
#include "raise.h"

struct beat_object {
    PyObject_HEAD struct store_object *store; /* strong; keeps the loop */
    struct dtq_beat *beat;                    /* the loop's */
    int slots;                                /* of the board; 0 without one */
};

static PyObject *beat_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"store", "board", "sqs", NULL};
    struct module_state *state = state_of_type(type);
    struct dtq_beat_options options = {0};
    PyObject *store_object = NULL, *board = Py_None, *sqs = Py_None;
    struct dtq_error err;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$OO:Beat", names, state->store_type, &store_object,
                                               &board, &sqs))
        return NULL;
    struct store_object *store = (struct store_object *)store_object;
    if (board != Py_None && !PyObject_TypeCheck(board, state->board_type))
        return PyErr_Format(PyExc_TypeError, "board must be a FenceBoard");
    if (sqs != Py_None && !PyObject_TypeCheck(sqs, state->sqs_type))
        return PyErr_Format(PyExc_TypeError, "sqs must be an SqsClient");
    if (sqs != Py_None && ((struct sqs_object *)sqs)->loop != store->loop)
        return PyErr_Format(PyExc_ValueError, "store and sqs must have the same Loop");
    if (loop_check_fork(store->loop) < 0)
        return NULL;
    if (board != Py_None) {
        if (PyList_Append(store->loop->kept, board) < 0)
            return NULL;
        options.board = ((struct board_object *)board)->board;
    }
    if (sqs != Py_None)
        options.sqs = ((struct sqs_object *)sqs)->client;

    struct beat_object *self = (struct beat_object *)PyType_GenericAlloc(type, 0); /* new */
    if (!self)
        return NULL;
    self->store = (struct store_object *)Py_NewRef(store_object);
    self->slots = options.board ? dtq_fence_board_slots(options.board) : 0;
    if (dtq_beat_new(store->store, &options, &self->beat, &err)) {
        (void)raise_error(state, &err);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* The store is kept until deallocation: the core's beat lives in its loop.  Nothing else is held, so there is
 * nothing to clear. */
static int beat_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((struct beat_object *)object)->store);
    return 0;
}

static void beat_dealloc(PyObject *object)
{
    PyObject_GC_UnTrack(object);
    Py_XDECREF(((struct beat_object *)object)->store);
    object_free(object);
}

static PyObject *beat_add(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"run_id",         "step_key",   "attempt",     "generation", "ttl",
                            "margin",         "heartbeat",  "claimed_ns",  "slot",       "queue_url",
                            "receipt_handle", "visibility", "received_ns", NULL};
    struct beat_object *self = (struct beat_object *)object;
    struct dtq_beat_entry entry = {.slot = -1, .ttl_s = -1, .margin_s = -1, .heartbeat_s = -1};
    long long generation = 0;
    unsigned long long claimed_ns = 0, received_ns = 0;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ssiL|$dddKizziK:add", names, &entry.run_id, &entry.step_key,
                                     &entry.attempt, &generation, &entry.ttl_s, &entry.margin_s, &entry.heartbeat_s,
                                     &claimed_ns, &entry.slot, &entry.queue_url, &entry.receipt_handle, &entry.visibility_s,
                                     &received_ns) ||
        loop_check_fork(self->store->loop) < 0)
        return NULL;
    if (entry.ttl_s < 0 || entry.margin_s < 0 || entry.heartbeat_s < 0 || !claimed_ns)
        return PyErr_Format(PyExc_TypeError, "add() needs the keyword arguments 'ttl', 'margin', 'heartbeat' and "
                                             "'claimed_ns', none of them negative");
    if (entry.slot < -1 || entry.slot >= self->slots)
        return PyErr_Format(PyExc_IndexError, "the beat's board has no slot %d", entry.slot);
    entry.generation = generation;
    entry.claimed_boot_ns = claimed_ns;
    entry.received_boot_ns = received_ns;
    if (dtq_beat_add(self->beat, &entry, &err))
        return raise_error(state_of(object), &err);
    Py_RETURN_NONE;
}

static PyObject *generation_call(PyObject *object, PyObject *argument,
                                 void (*function)(struct dtq_beat *beat, int64_t generation))
{
    struct beat_object *self = (struct beat_object *)object;
    int64_t generation = 0;
    if (as_int64(argument, "generation", &generation) < 0 || loop_check_fork(self->store->loop) < 0)
        return NULL;
    function(self->beat, generation);
    Py_RETURN_NONE;
}

static PyObject *beat_remove(PyObject *object, PyObject *argument)
{
    return generation_call(object, argument, dtq_beat_remove);
}

static PyObject *beat_forget_message(PyObject *object, PyObject *argument)
{
    return generation_call(object, argument, dtq_beat_forget_message);
}

static PyMethodDef methods[] = {
    {"add", (PyCFunction)(void (*)(void))beat_add, METH_VARARGS | METH_KEYWORDS,
     "add($self, run_id, step_key, attempt, generation, *, ttl, margin, heartbeat, claimed_ns, slot=-1, queue_url=None, "
     "receipt_handle=None, "
     "visibility=0, received_ns=0)\n--\n\nRenew this claim from now on."},
    {"remove", beat_remove, METH_O, "remove($self, generation, /)\n--\n\nBegin no renewal for it any more."},
    {"forget_message", beat_forget_message, METH_O,
     "forget_message($self, generation, /)\n--\n\nKeep the lease, stop hiding the message."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Beat(store, *, board=None, sqs=None)\n--\n\nRenews leases and visibilities from the core's thread."},
    {Py_tp_new, beat_new},
    {Py_tp_dealloc, beat_dealloc},
    {Py_tp_traverse, beat_traverse},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.Beat",
    .basicsize = sizeof(struct beat_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_beat_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->beat_type);
}
