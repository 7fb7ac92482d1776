/* Event: something that the core says of itself.  Immutable, holds strings only, so it needs no garbage collection. */
#include "module.h"

#include "convert.h"

struct event_object {
    PyObject_HEAD PyObject *kind, *channel, *payload; /* str; channel and payload may be None */
    long long generation;
};

static const char *kind_name(enum dtq_event_kind kind)
{
    switch (kind) {
    case DTQ_EVENT_NOTIFICATION:
        return "notification";
    case DTQ_EVENT_STORE_CONNECTED:
        return "store_connected";
    case DTQ_EVENT_STORE_LOST:
        return "store_lost";
    case DTQ_EVENT_LEASE_LOST:
        return "lease_lost";
    case DTQ_EVENT_CANCEL:
        return "cancel";
    case DTQ_EVENT_VISIBILITY_LOST:
        return "visibility_lost";
    }
    return "unknown";
}

PyObject *event_new(struct module_state *state, const struct dtq_event *event)
{
    struct event_object *self = (struct event_object *)PyType_GenericAlloc(state->event_type, 0); /* new */
    if (!self)
        return NULL;
    self->kind = PyUnicode_InternFromString(kind_name(event->kind)); /* new */
    self->channel = message_or_none(event->text);                    /* new */
    self->payload = message_or_none(event->detail);                  /* new */
    self->generation = (long long)event->generation;
    if (!self->kind || !self->channel || !self->payload)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void event_dealloc(PyObject *object)
{
    struct event_object *self = (struct event_object *)object;
    Py_XDECREF(self->kind);
    Py_XDECREF(self->channel);
    Py_XDECREF(self->payload);
    object_free(object);
}

static PyObject *event_repr(PyObject *object)
{
    struct event_object *self = (struct event_object *)object;
    return PyUnicode_FromFormat("<Event %U generation=%lld channel=%R payload=%R>", self->kind, self->generation,
                                self->channel, self->payload);
}

static PyMemberDef members[] = {
    {"kind", T_OBJECT, offsetof(struct event_object, kind), READONLY, "what it is"},
    {"generation", T_LONGLONG, offsetof(struct event_object, generation), READONLY,
     "of the claim it is about; 0 where it has no meaning"},
    {"channel", T_OBJECT, offsetof(struct event_object, channel), READONLY, "of a notification"},
    {"payload", T_OBJECT, offsetof(struct event_object, payload), READONLY, "of a notification"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Something nobody asked for at this moment: see kind."},
    {Py_tp_dealloc, event_dealloc},
    {Py_tp_repr, event_repr},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.Event",
    .basicsize = sizeof(struct event_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_event_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->event_type);
}
