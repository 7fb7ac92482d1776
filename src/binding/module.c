#include "module.h"

#include <stdlib.h>

#include "raise.h"

struct module_state *state_of_type(PyTypeObject *type)
{
    struct module_state *state = PyType_GetModuleState(type);
    if (state && state->operation_type)
        return state;
    PyErr_Clear();
    PyErr_SetString(PyExc_RuntimeError, "dagster_taskiq._core is gone: the interpreter ends");
    return NULL;
}

struct module_state *state_of(PyObject *self)
{
    return state_of_type(Py_TYPE(self));
}

void object_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot)
{
    *slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL); /* new, the state's */
    return *slot ? PyModule_AddType(module, *slot) : -1;
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *table = raise_table(); /* new */
    int rc = table ? PyModule_AddObjectRef(module, "ERROR_TABLE", table) : -1;
    Py_XDECREF(table);
    if (rc < 0 || add_operation_type(module, state) < 0 || add_event_type(module, state) < 0 ||
        add_loop_type(module, state) < 0 || add_sqs_type(module, state) < 0 || add_store_type(module, state) < 0 ||
        add_board_type(module, state) < 0 || add_beat_type(module, state) < 0)
        return -1;
    if (add_store_functions(module) < 0 || add_fence_functions(module) < 0 || add_pages_functions(module) < 0 ||
        add_payload_functions(module) < 0 || add_sigv4_functions(module) < 0)
        return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->operation_type);
    Py_VISIT(state->event_type);
    Py_VISIT(state->loop_type);
    Py_VISIT(state->sqs_type);
    Py_VISIT(state->store_type);
    Py_VISIT(state->board_type);
    Py_VISIT(state->beat_type);
    Py_VISIT(state->error_classes);
    Py_VISIT(state->bridge_wait);
    Py_VISIT(state->json_dumps);
    Py_VISIT(state->json_loads);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->operation_type);
    Py_CLEAR(state->event_type);
    Py_CLEAR(state->loop_type);
    Py_CLEAR(state->sqs_type);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->board_type);
    Py_CLEAR(state->beat_type);
    Py_CLEAR(state->error_classes);
    Py_CLEAR(state->bridge_wait);
    Py_CLEAR(state->json_dumps);
    Py_CLEAR(state->json_loads);
    while (state->loops)
        loop_unlink(state->loops);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot slots_before_312[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef_Slot slots_since_312[] = {
    {Py_mod_exec, module_exec},
    {COMPAT_SLOT_INTERPRETERS, COMPAT_PER_INTERPRETER_GIL},
    {0, NULL},
};

/* Python writes its own index into a definition, hence not const; nothing of ours is kept in them. */
#define MODULE_DEF(module_slots)                                                                                       \
    {                                                                                                                  \
        PyModuleDef_HEAD_INIT,                                                                                         \
            .m_name = "dagster_taskiq._core",                                                                          \
            .m_doc = "SQS client, idempotency store, heartbeat, fence, payload and signing in C; see _core.pyi.",      \
            .m_size = sizeof(struct module_state), .m_slots = module_slots, .m_traverse = module_traverse,             \
            .m_clear = module_clear, .m_free = module_free,                                                            \
    }
static struct PyModuleDef def_before_312 = MODULE_DEF(slots_before_312);
static struct PyModuleDef def_since_312 = MODULE_DEF(slots_since_312);

PyMODINIT_FUNC PyInit__core(void)
{
    char *rest = NULL;
    long major = strtol(Py_GetVersion(), &rest, 10);
    long minor = *rest == '.' ? strtol(rest + 1, NULL, 10) : 0;
    bool interpreters = major > 3 || (major == 3 && minor >= 12);
    return PyModuleDef_Init(interpreters ? &def_since_312 : &def_before_312);
}
