/*
 * The module's state, and what its types share.
 *
 * What it is for: the binding translates and never decides; defaults and limits live in the core, Python passes None
 * for "default".
 * Ownership: strong references point downwards only: Operation -> Loop, client -> Loop, Beat -> Store and board.  The
 * one that points up is Loop.watched (operations that somebody waits for in an event loop); the garbage collector
 * sees it and drain ends it.  The core's clients, stores and beats are sources of their dtq_loop and end with it, so
 * each Python object of them keeps its Loop alive.
 * GIL: held in every function of the binding except inside Py_BEGIN_ALLOW_THREADS; the I/O thread never takes it.
 * Fork: in a forked child every method raises ForkedError; deallocation there touches nothing that the parent uses.
 */
#ifndef DTQ_BINDING_MODULE_H
#define DTQ_BINDING_MODULE_H

#include "compat.h"

#include <stdbool.h>

#include "dtq_beat.h"
#include "dtq_error.h"
#include "dtq_fence.h"
#include "dtq_loop.h"
#include "dtq_sqs.h"
#include "dtq_store.h"

struct loop_object;

struct module_state {
    PyTypeObject *operation_type, *event_type, *loop_type, *sqs_type, *store_type, *board_type, *beat_type;
    PyObject *error_classes;           /* number -> class; NULL until the first error */
    PyObject *bridge_wait;             /* dagster_taskiq._bridge.wait; NULL until the first await */
    PyObject *json_dumps, *json_loads; /* NULL until the first SqsClient.call */
    struct loop_object *loops;         /* all that live, borrowed: closed by the exit hook */
    bool exit_hook;                    /* registered with atexit */
};

struct loop_object {
    PyObject_HEAD PyObject *weakrefs;
    struct dtq_loop *loop;
    PyObject *watched; /* set of the operations whose op->user is (borrowed) the Operation; NULL once cleared */
    PyObject *kept;    /* list: boards that the core borrows for as long as the loop lives */
    PyObject *bridge;  /* the asyncio bridge's own; NULL until it is set */
    bool closed;
    struct loop_object *next, **link; /* in module_state.loops; link: what points here, NULL when in no list */
};

struct sqs_object {
    PyObject_HEAD PyObject *weakrefs;
    struct loop_object *loop; /* strong */
    struct dtq_sqs *client;   /* the loop's */
    PyObject *refresh;        /* callable, or NULL */
    int64_t expires_at_s;     /* of the credentials that the client has; 0 = never */
    bool has_credentials;
};

struct store_object {
    PyObject_HEAD struct loop_object *loop; /* strong */
    struct dtq_store *store;                /* the loop's */
};

struct board_object {
    PyObject_HEAD struct dtq_fence_board *board;
};

/* The state of the module that a type, or the type of self, belongs to; NULL with RuntimeError set at the end of an
 * interpreter, when objects may outlive their module.  No type of the module can be subclassed, so Py_TYPE is the
 * defining one. */
struct module_state *state_of_type(PyTypeObject *type);
struct module_state *state_of(PyObject *self);

/* Put value (its reference is taken over) into *slot, then let go of what was there. */
static inline void replace(PyObject **slot, PyObject *value)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

/* The end of a tp_dealloc: free the memory and give back the reference to the type. */
void object_free(PyObject *self);

/* ---- type_loop.c, type_operation.c, type_event.c ---- */

/* Take it out of module_state.loops.  Needs no state: at the end of an interpreter a type may have lost its module. */
void loop_unlink(struct loop_object *self);

/* 0, or -1 with ForkedError set. */
int loop_check_fork(struct loop_object *self);

/* Submit op and return a new Operation for it.  Takes over the caller's reference to op.  convert (borrowed, may be
 * NULL): applied to the result. */
PyObject *operation_submit(struct module_state *state, struct loop_object *loop, struct dtq_op *op, PyObject *convert);

/* A new Event; the core's event stays the caller's. */
PyObject *event_new(struct module_state *state, const struct dtq_event *event);

/* ---- results: type_sqs.c, type_store.c ---- */

PyObject *sqs_result(struct module_state *state, const struct dtq_sqs_op *op);
PyObject *store_result(const struct dtq_store_op *op);

/* ---- registration: each adds one type or the functions of its file; 0, or -1 with the indicator set ---- */

int add_operation_type(PyObject *module, struct module_state *state);
int add_event_type(PyObject *module, struct module_state *state);
int add_loop_type(PyObject *module, struct module_state *state);
int add_sqs_type(PyObject *module, struct module_state *state);
int add_store_type(PyObject *module, struct module_state *state);
int add_board_type(PyObject *module, struct module_state *state);
int add_beat_type(PyObject *module, struct module_state *state);
int add_store_functions(PyObject *module);
int add_fence_functions(PyObject *module);
int add_pages_functions(PyObject *module);
int add_payload_functions(PyObject *module);
int add_sigv4_functions(PyObject *module);

/* Make a heap type, add it to the module, keep it in *slot. */
int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot);

#endif
