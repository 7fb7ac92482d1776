/* encode_step_task, decode_step_task, sha256_hex.  The work on bytes is done without the GIL; Python's strings stay
 * where they are meanwhile. */
#include "module.h"

#include "convert.h"
#include "dtq_alloc.h"
#include "dtq_digest.h"
#include "dtq_payload.h"
#include "raise.h"

/* ---- encoding
 * ------------------------------------------------------------------------------------------------------- */

/* An entry of "parts": a text, or (digest, length) of one that is stored elsewhere.  -1 on failure. */
static int read_part(PyObject *name, PyObject *value, struct dtq_part *part)
{
    const char *part_name = NULL, *text = NULL, *digest = NULL;
    Py_ssize_t length = 0;
    if (as_text(name, "a part's name", &part_name) < 0)
        return -1;
    part->name = (char *)part_name; /* encode borrows */
    if (PyUnicode_Check(value)) {
        if (as_text(value, "a part", &text) < 0)
            return -1;
        part->text = (char *)text;
        part->length = strlen(text);
        return 0;
    }
    if (!PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "a part must be str or (sha256 hex, bytes)");
        return -1;
    }
    if (!PyArg_ParseTuple(value, "sn;a part is (sha256 hex, bytes)", &digest, &length))
        return -1;
    if (strlen(digest) != DTQ_DIGEST_HEX_SIZE - 1 || length < 0) {
        PyErr_SetString(PyExc_ValueError, "a part's digest has 64 characters, and its length is not negative");
        return -1;
    }
    memcpy(part->digest, digest, DTQ_DIGEST_HEX_SIZE);
    part->length = (size_t)length;
    return 0;
}

/* Fill task with views into mapping's values; task->parts is freed with PyMem_Free.  -1 on failure. */
static int read_task(PyObject *mapping, PyObject *keep, struct dtq_step_task *task)
{
    enum {
        RUN_ID,
        STEP_KEY,
        ATTEMPT,
        JOB_NAME,
        QUEUE,
        CODE_LOCATION,
        LEASE_TTL,
        HEARTBEAT,
        VISIBILITY,
        SENT_AT,
        SETTINGS,
        PARTS,
        COUNT
    };
    struct field fields[COUNT] = {
        [RUN_ID] = {"run_id", true, NULL},         [STEP_KEY] = {"step_key", true, NULL},
        [ATTEMPT] = {"attempt", true, NULL},       [JOB_NAME] = {"job_name", true, NULL},
        [QUEUE] = {"queue", true, NULL},           [CODE_LOCATION] = {"code_location", true, NULL},
        [LEASE_TTL] = {"lease_ttl", true, NULL},   [HEARTBEAT] = {"heartbeat", true, NULL},
        [VISIBILITY] = {"visibility", true, NULL}, [SENT_AT] = {"sent_at", true, NULL},
        [SETTINGS] = {"settings", true, NULL},     [PARTS] = {"parts", true, NULL},
    };
    const struct {
        int field;
        char **out;
    } texts[] = {{RUN_ID, &task->run_id}, {STEP_KEY, &task->step_key},           {JOB_NAME, &task->job_name},
                 {QUEUE, &task->queue},   {CODE_LOCATION, &task->code_location}, {SETTINGS, &task->settings}};
    PyObject *dict = keep_as_dict(mapping, keep); /* borrowed */
    if (!dict || read_fields(dict, "a step task", fields, COUNT) < 0)
        return -1;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const char *text = NULL;
        if (as_text(fields[texts[i].field].value, fields[texts[i].field].name, &text) < 0)
            return -1;
        *texts[i].out = (char *)text; /* encode borrows */
    }
    task->version = DTQ_PAYLOAD_VERSION;
    if (as_int(fields[ATTEMPT].value, "attempt", &task->attempt) < 0 ||
        as_double(fields[LEASE_TTL].value, "lease_ttl", &task->lease_ttl_s) < 0 ||
        as_double(fields[HEARTBEAT].value, "heartbeat", &task->heartbeat_s) < 0 ||
        as_int(fields[VISIBILITY].value, "visibility", &task->visibility_s) < 0 ||
        as_double(fields[SENT_AT].value, "sent_at", &task->sent_at_s) < 0)
        return -1;

    PyObject *parts = keep_as_dict(fields[PARTS].value, keep); /* borrowed */
    PyObject *name = NULL, *value = NULL;
    Py_ssize_t position = 0;
    if (!parts)
        return -1;
    task->parts = PyMem_Calloc((size_t)PyDict_Size(parts) + 1, sizeof *task->parts);
    if (!task->parts) {
        PyErr_NoMemory();
        return -1;
    }
    while (PyDict_Next(parts, &position, &name, &value)) {
        if (read_part(name, value, &task->parts[task->part_count++]) < 0)
            return -1;
    }
    return 0;
}

static PyObject *encode_step_task(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"task", "task_id", "signing_key", NULL};
    PyObject *mapping = NULL, *signing_key = Py_None, *keep = NULL, *message = NULL;
    const char *task_id = NULL;
    struct dtq_step_task task = {0};
    struct dtq_payload_key key = {{NULL, 0}};
    char *text = NULL;
    size_t length = 0;
    struct dtq_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$sO:encode_step_task", names, &mapping, &task_id, &signing_key))
        return NULL;
    if (!task_id)
        return PyErr_Format(PyExc_TypeError, "encode_step_task() needs the keyword argument 'task_id'");
    keep = PyList_New(0); /* new */
    if (!keep || (signing_key != Py_None && as_slice(signing_key, "signing_key", &key.secret) < 0) ||
        read_task(mapping, keep, &task) < 0)
        goto cleanup;
    enum dtq_code rc = DTQ_OK;
    Py_BEGIN_ALLOW_THREADS;
    rc = dtq_payload_encode(&task, task_id, signing_key == Py_None ? NULL : &key, &text, &length, &err);
    Py_END_ALLOW_THREADS;
    message = rc ? raise_error(PyModule_GetState(module), &err) : PyBytes_FromStringAndSize(text, (Py_ssize_t)length);
    dtq_free(text);

cleanup:
    PyMem_Free(task.parts);
    Py_XDECREF(keep);
    return message;
}

/* ---- decoding
 * ------------------------------------------------------------------------------------------------------- */

static PyObject *parts_dict(const struct dtq_step_task *task)
{
    PyObject *dict = PyDict_New(); /* new */
    for (size_t i = 0; dict && i < task->part_count; i++) {
        const struct dtq_part *part = &task->parts[i];
        PyObject *value = part->text ? text_of(dtq_slice(part->text, part->length))
                                     : Py_BuildValue("(sn)", part->digest, (Py_ssize_t)part->length); /* new */
        if (set_item(dict, part->name, value) < 0)
            Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *task_dict(const struct dtq_step_task *task)
{
    PyObject *dict = PyDict_New(); /* new */
    if (!dict)
        return NULL;
    if (set_item(dict, "version", PyLong_FromLong(task->version)) < 0 ||
        set_item(dict, "run_id", text_or_none(task->run_id)) < 0 ||
        set_item(dict, "step_key", text_or_none(task->step_key)) < 0 ||
        set_item(dict, "attempt", PyLong_FromLong(task->attempt)) < 0 ||
        set_item(dict, "job_name", text_or_none(task->job_name)) < 0 ||
        set_item(dict, "queue", text_or_none(task->queue)) < 0 ||
        set_item(dict, "code_location", text_or_none(task->code_location)) < 0 ||
        set_item(dict, "lease_ttl", PyFloat_FromDouble(task->lease_ttl_s)) < 0 ||
        set_item(dict, "heartbeat", PyFloat_FromDouble(task->heartbeat_s)) < 0 ||
        set_item(dict, "visibility", PyLong_FromLong(task->visibility_s)) < 0 ||
        set_item(dict, "sent_at", PyFloat_FromDouble(task->sent_at_s)) < 0 ||
        set_item(dict, "settings", text_or_none(task->settings)) < 0 || set_item(dict, "parts", parts_dict(task)) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *decode_step_task(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"message", "signing_keys", NULL};
    PyObject *object = NULL, *sequence = NULL, *items = NULL, *result = NULL;
    struct dtq_slice message;
    struct dtq_payload_key *keys = NULL;
    struct dtq_step_task task = {0};
    size_t count = 0;
    struct dtq_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:decode_step_task", names, &object, &sequence) ||
        as_slice(object, "message", &message) < 0)
        return NULL;
    items = sequence ? PySequence_Tuple(sequence) : PyTuple_New(0); /* new */
    if (!items)
        return NULL;
    count = (size_t)PyTuple_Size(items);
    keys = PyMem_Calloc(count + 1, sizeof *keys);
    if (!keys) {
        PyErr_NoMemory();
        goto cleanup;
    }
    for (size_t i = 0; i < count; i++) {
        if (as_slice(PyTuple_GetItem(items, (Py_ssize_t)i), "a signing key", &keys[i].secret) < 0)
            goto cleanup;
    }
    enum dtq_code rc = DTQ_OK;
    Py_BEGIN_ALLOW_THREADS;
    rc = dtq_payload_decode(message, keys, count, &task, &err);
    Py_END_ALLOW_THREADS;
    if (rc)
        (void)raise_error(PyModule_GetState(module), &err);
    else {
        result = task_dict(&task);
        dtq_step_task_clean_up(&task);
    }

cleanup:
    PyMem_Free(keys);
    Py_DECREF(items);
    return result;
}

static PyObject *sha256_hex(PyObject *module, PyObject *argument)
{
    struct dtq_slice text;
    char hex[DTQ_SHA256_HEX_SIZE];
    struct dtq_error err;
    enum dtq_code rc = DTQ_OK;
    if (as_slice(argument, "text", &text) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    rc = dtq_sha256_hex(text, hex, &err);
    Py_END_ALLOW_THREADS;
    return rc ? raise_error(PyModule_GetState(module), &err) : PyUnicode_FromString(hex);
}

static PyMethodDef functions[] = {
    {"encode_step_task", (PyCFunction)(void (*)(void))encode_step_task, METH_VARARGS | METH_KEYWORDS,
     "encode_step_task($module, task, *, task_id, signing_key=None)\n--\n\nThe TaskIQ message of a step task."},
    {"decode_step_task", (PyCFunction)(void (*)(void))decode_step_task, METH_VARARGS | METH_KEYWORDS,
     "decode_step_task($module, message, *, signing_keys=())\n--\n\nThe inverse of encode_step_task."},
    {"sha256_hex", sha256_hex, METH_O, "sha256_hex($module, text, /)\n--\n\nSHA-256 in lower-case hex."},
    {NULL, NULL, 0, NULL},
};

int add_payload_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
