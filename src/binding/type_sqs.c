/*
 * SqsClient: requests to SQS.
 *
 * The core's client belongs to the loop.  Credentials are renewed here, at the call of an operation and with the GIL,
 * because the core's I/O thread never touches Python.
 */
#include "module.h"

#include "convert.h"
#include "dtq_clock.h"
#include "dtq_creds.h"
#include "dtq_limits.h"
#include "raise.h"

#define REFRESH_BEFORE_S 300

/* ---- credentials
 * ---------------------------------------------------------------------------------------------------- */

/* Those that cannot be sent are refused here, so that the next call asks refresh again: 0, or -1 with the indicator set.
 */
static int put_credentials(struct sqs_object *self, const char *key_id, const char *secret, const char *token,
                           int64_t expires_at_s)
{
    struct module_state *state = state_of((PyObject *)self);
    struct dtq_error err;
    struct dtq_creds *creds = dtq_creds_new(key_id, secret, token, expires_at_s);
    if (!creds) {
        PyErr_NoMemory();
        return -1;
    }
    if (!state || dtq_creds_check(creds, &err) != DTQ_OK) {
        dtq_creds_release(creds);
        if (state)
            (void)raise_error(state, &err);
        return -1;
    }
    dtq_sqs_set_credentials(self->client, creds);
    dtq_creds_release(creds);
    self->has_credentials = true;
    self->expires_at_s = expires_at_s;
    return 0;
}

/* Ask `refresh` for newer credentials when they are missing, refused or about to expire; 0, or -1 with its exception set. */
static int refresh_credentials(struct sqs_object *self)
{
    const char *key_id = NULL, *secret = NULL, *token = NULL;
    long long expires_at_s = 0;
    bool is_far_off = !self->expires_at_s || self->expires_at_s - dtq_clock_wall_s() > REFRESH_BEFORE_S;
    bool are_good = self->has_credentials && is_far_off && !dtq_sqs_wants_credentials(self->client);
    if (!self->refresh || are_good)
        return 0;
    PyObject *fresh = PyObject_CallFunctionObjArgs(self->refresh, NULL); /* new */
    if (!fresh)
        return -1;
    int rc = -1;
    if (!PyTuple_Check(fresh))
        PyErr_SetString(PyExc_TypeError,
                        "refresh must return (access key id, secret access key, session token or None, expiry)");
    else if (PyArg_ParseTuple(fresh, "sszL:refresh", &key_id, &secret, &token, &expires_at_s))
        rc = put_credentials(self, key_id, secret, token, expires_at_s);
    Py_DECREF(fresh);
    return rc;
}

/* ---- construction
 * --------------------------------------------------------------------------------------------------- */

/* Make the core's client: 0, or -1 with the indicator set. */
static int open_client(struct sqs_object *self, struct module_state *state, const struct dtq_sqs_options *options)
{
    struct dtq_error err;
    enum dtq_code rc = DTQ_OK;
    Py_BEGIN_ALLOW_THREADS; /* it may read the file of certificates */
    rc = dtq_sqs_new(self->loop->loop, options, NULL, &self->client, &err);
    Py_END_ALLOW_THREADS;
    if (rc) {
        (void)raise_error(state, &err);
        return -1;
    }
    return 0;
}

static PyObject *sqs_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop",
                            "region",
                            "endpoint",
                            "access_key_id",
                            "secret_access_key",
                            "session_token",
                            "expires_at",
                            "refresh",
                            "ca_file",
                            "proxy",
                            "insecure",
                            "connect_timeout",
                            "request_timeout",
                            "max_attempts",
                            "backoff_base",
                            "backoff_cap",
                            NULL};
    struct module_state *state = state_of_type(type);
    struct dtq_sqs_options options = {0};
    const char *key_id = NULL, *secret = NULL, *token = NULL;
    PyObject *loop = NULL, *refresh = Py_None, *max_attempts = Py_None;
    long long expires_at_s = 0;
    int insecure = 0;

    if (!state ||
        !PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!|$szzzzLOzzpO&O&OO&O&:SqsClient", names, state->loop_type, &loop, &options.region,
            &options.endpoint, &key_id, &secret, &token, &expires_at_s, &refresh, &options.ca_file, &options.proxy,
            &insecure, convert_limit_ms, &options.connect_timeout_ms, convert_limit_ms, &options.request_timeout_ms,
            &max_attempts, convert_limit_ms, &options.backoff_base_ms, convert_limit_ms, &options.backoff_cap_ms))
        return NULL;
    if (!options.region)
        return PyErr_Format(PyExc_TypeError, "SqsClient() needs the keyword argument 'region'");
    if (!key_id != !secret)
        return PyErr_Format(PyExc_ValueError, "access_key_id and secret_access_key go together");
    if (refresh != Py_None && !PyCallable_Check(refresh))
        return PyErr_Format(PyExc_TypeError, "refresh must be callable");
    if (max_attempts != Py_None && as_int(max_attempts, "max_attempts", &options.max_attempts) < 0)
        return NULL;
    options.insecure = insecure != 0;
    options.owner_renews = refresh != Py_None;
    if (loop_check_fork((struct loop_object *)loop) < 0)
        return NULL;

    struct sqs_object *self = (struct sqs_object *)PyType_GenericAlloc(type, 0); /* new */
    if (!self)
        return NULL;
    self->loop = (struct loop_object *)Py_NewRef(loop);
    if (refresh != Py_None)
        self->refresh = Py_NewRef(refresh);
    if (open_client(self, state, &options) < 0 ||
        (key_id && put_credentials(self, key_id, secret, token, expires_at_s) < 0))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int sqs_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct sqs_object *self = (struct sqs_object *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->loop);
    Py_VISIT(self->refresh);
    return 0;
}

/* The loop is kept: the core's client lives in it. */
static int sqs_clear(PyObject *object)
{
    Py_CLEAR(((struct sqs_object *)object)->refresh);
    return 0;
}

static void sqs_dealloc(PyObject *object)
{
    struct sqs_object *self = (struct sqs_object *)object;
    PyObject_GC_UnTrack(object);
    if (self->weakrefs)
        PyObject_ClearWeakRefs(object);
    (void)sqs_clear(object);
    Py_XDECREF(self->loop);
    object_free(object);
}

/* ---- requests
 * ------------------------------------------------------------------------------------------------------- */

/* What every request does before it is made: 0, or -1 with the indicator set. */
static int prepare(PyObject *object)
{
    struct sqs_object *self = (struct sqs_object *)object;
    return loop_check_fork(self->loop) < 0 ? -1 : refresh_credentials(self);
}

/* Steals op; NULL op raises err. */
static PyObject *submit(PyObject *object, struct dtq_sqs_op *op, const struct dtq_error *err)
{
    struct module_state *state = state_of(object);
    if (!op)
        return raise_error(state, err);
    return operation_submit(state, ((struct sqs_object *)object)->loop, (struct dtq_op *)op, NULL);
}

/* Fill entry from mapping; *attributes is a new array that the caller frees with PyMem_Free.  -1 on failure. */
static int read_entry(PyObject *mapping, PyObject *keep, struct dtq_sqs_entry *entry, struct dtq_pair **attributes)
{
    enum { BODY, DELAY, GROUP, DEDUPLICATION, ATTRIBUTES, COUNT };
    struct field fields[COUNT] = {
        [BODY] = {"body", true, NULL},
        [DELAY] = {"delay", false, NULL},
        [GROUP] = {"group_id", false, NULL},
        [DEDUPLICATION] = {"deduplication_id", false, NULL},
        [ATTRIBUTES] = {"attributes", false, NULL},
    };
    PyObject *dict = keep_as_dict(mapping, keep); /* borrowed */
    if (!dict || read_fields(dict, "an entry", fields, COUNT) < 0)
        return -1;
    entry->delay_s = -1;
    if (as_slice(fields[BODY].value, "body", &entry->body) < 0 ||
        (fields[DELAY].value && fields[DELAY].value != Py_None &&
         as_int(fields[DELAY].value, "delay", &entry->delay_s) < 0) ||
        as_optional_text(fields[GROUP].value, "group_id", &entry->group_id) < 0 ||
        as_optional_text(fields[DEDUPLICATION].value, "deduplication_id", &entry->deduplication_id) < 0)
        return -1;
    if (!fields[ATTRIBUTES].value || fields[ATTRIBUTES].value == Py_None)
        return 0;

    PyObject *pairs = keep_as_dict(fields[ATTRIBUTES].value, keep); /* borrowed */
    PyObject *name = NULL, *value = NULL;
    Py_ssize_t position = 0;
    if (!pairs)
        return -1;
    *attributes = PyMem_Calloc((size_t)PyDict_Size(pairs) + 1, sizeof **attributes);
    if (!*attributes) {
        PyErr_NoMemory();
        return -1;
    }
    while (PyDict_Next(pairs, &position, &name, &value)) {
        struct dtq_pair *pair = *attributes + entry->attribute_count++;
        if (as_text(name, "an attribute's name", &pair->name) < 0 ||
            as_text(value, "an attribute's value", &pair->value) < 0)
            return -1;
    }
    entry->attributes = *attributes;
    return 0;
}

static PyObject *sqs_send(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue_url", "entries", "timeout", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    const char *queue_url = NULL;
    PyObject *sequence = NULL, *items = NULL, *keep = NULL, *operation = NULL;
    struct dtq_sqs_entry *entries = NULL;
    struct dtq_pair **attributes = NULL;
    Py_ssize_t count = 0;
    int timeout_ms = 0;
    struct dtq_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|$O&:send", names, &queue_url, &sequence, convert_limit_ms,
                                     &timeout_ms) ||
        prepare(object) < 0)
        return NULL;
    items = PySequence_Tuple(sequence); /* new */
    keep = PyList_New(0);               /* new */
    if (!items || !keep)
        goto cleanup;
    count = PyTuple_Size(items);
    entries = PyMem_Calloc((size_t)count + 1, sizeof *entries);
    attributes = PyMem_Calloc((size_t)count + 1, sizeof *attributes);
    if (!entries || !attributes) {
        PyErr_NoMemory();
        goto cleanup;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (read_entry(PyTuple_GetItem(items, i), keep, &entries[i], &attributes[i]) < 0)
            goto cleanup;
    }
    operation =
        submit(object, dtq_sqs_send_batch(self->client, queue_url, entries, (size_t)count, timeout_ms, &err), &err);

cleanup:
    for (Py_ssize_t i = 0; attributes && i < count; i++)
        PyMem_Free(attributes[i]);
    PyMem_Free(attributes);
    PyMem_Free(entries);
    Py_XDECREF(keep);
    Py_XDECREF(items);
    return operation;
}

static PyObject *sqs_receive(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue_url", "max_messages", "wait", "visibility", "timeout", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    const char *queue_url = NULL;
    int max_messages = DTQ_SQS_BATCH_MAX, wait_s = DTQ_SQS_WAIT_S_MAX, visibility_s = -1, timeout_ms = 0;
    PyObject *visibility = Py_None;
    struct dtq_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|$iiOO&:receive", names, &queue_url, &max_messages, &wait_s,
                                     &visibility, convert_limit_ms, &timeout_ms) ||
        (visibility != Py_None && as_int(visibility, "visibility", &visibility_s) < 0) || prepare(object) < 0)
        return NULL;
    if (visibility != Py_None && visibility_s < 0)
        return PyErr_Format(PyExc_ValueError, "visibility must not be negative");
    return submit(object,
                  dtq_sqs_receive(self->client, queue_url, max_messages, wait_s, visibility_s, timeout_ms, &err), &err);
}

static PyObject *sqs_delete(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue_url", "receipt_handles", "timeout", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    const char *queue_url = NULL, **handles = NULL;
    PyObject *sequence = NULL, *items = NULL, *operation = NULL;
    int timeout_ms = 0;
    struct dtq_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|$O&:delete", names, &queue_url, &sequence, convert_limit_ms,
                                     &timeout_ms) ||
        prepare(object) < 0)
        return NULL;
    items = PySequence_Tuple(sequence); /* new */
    if (!items)
        return NULL;
    Py_ssize_t count = PyTuple_Size(items);
    handles = PyMem_Calloc((size_t)count + 1, sizeof *handles);
    if (!handles) {
        PyErr_NoMemory();
        goto cleanup;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (as_text(PyTuple_GetItem(items, i), "a receipt handle", &handles[i]) < 0)
            goto cleanup;
    }
    operation =
        submit(object, dtq_sqs_delete_batch(self->client, queue_url, handles, (size_t)count, timeout_ms, &err), &err);

cleanup:
    PyMem_Free(handles);
    Py_DECREF(items);
    return operation;
}

static PyObject *sqs_change_visibility(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue_url", "entries", "timeout", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    const char *queue_url = NULL, **handles = NULL;
    PyObject *sequence = NULL, *items = NULL, *keep = NULL, *operation = NULL;
    int *seconds = NULL;
    int timeout_ms = 0;
    struct dtq_error err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|$O&:change_visibility", names, &queue_url, &sequence,
                                     convert_limit_ms, &timeout_ms) ||
        prepare(object) < 0)
        return NULL;
    items = PySequence_Tuple(sequence); /* new */
    keep = PyList_New(0);               /* new */
    if (!items || !keep)
        goto cleanup;
    Py_ssize_t count = PyTuple_Size(items);
    handles = PyMem_Calloc((size_t)count + 1, sizeof *handles);
    seconds = PyMem_Calloc((size_t)count + 1, sizeof *seconds);
    if (!handles || !seconds) {
        PyErr_NoMemory();
        goto cleanup;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PySequence_Tuple(PyTuple_GetItem(items, i)); /* new */
        int rc = pair ? PyList_Append(keep, pair) : -1;
        Py_XDECREF(pair);
        if (rc < 0 || !PyArg_ParseTuple(pair, "si;an entry is (receipt handle, seconds)", &handles[i], &seconds[i]))
            goto cleanup;
    }
    operation = submit(
        object, dtq_sqs_visibility_batch(self->client, queue_url, handles, seconds, (size_t)count, timeout_ms, &err),
        &err);

cleanup:
    PyMem_Free(seconds);
    PyMem_Free(handles);
    Py_XDECREF(keep);
    Py_XDECREF(items);
    return operation;
}

static int load_json(struct module_state *state)
{
    if (state->json_dumps)
        return 0;
    PyObject *json = PyImport_ImportModule("json");                         /* new */
    PyObject *dumps = json ? PyObject_GetAttrString(json, "dumps") : NULL;  /* new */
    PyObject *loads = dumps ? PyObject_GetAttrString(json, "loads") : NULL; /* new */
    Py_XDECREF(json);
    if (!loads) {
        Py_XDECREF(dumps);
        return -1;
    }
    replace(&state->json_loads, loads);
    replace(&state->json_dumps, dumps);
    return 0;
}

static PyObject *sqs_call(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"action", "request", "timeout", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    struct module_state *state = state_of(object);
    const char *action = NULL, *queue_url = NULL;
    PyObject *request = Py_None, *keep = NULL, *dict = NULL, *text = NULL, *operation = NULL;
    struct dtq_slice json;
    int timeout_ms = 0;
    struct dtq_error err;

    if (!state ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "s|O$O&:call", names, &action, &request, convert_limit_ms,
                                     &timeout_ms) ||
        prepare(object) < 0 || load_json(state) < 0)
        return NULL;
    keep = PyList_New(0); /* new */
    if (!keep)
        return NULL;
    dict = keep_as_dict(request, keep);                                               /* borrowed */
    text = dict ? PyObject_CallFunctionObjArgs(state->json_dumps, dict, NULL) : NULL; /* new */
    if (!text || as_slice(text, "a request", &json) < 0 ||
        as_optional_text(PyDict_GetItemString(dict, "QueueUrl"), "QueueUrl", &queue_url) < 0)
        goto cleanup;
    operation = submit(object, dtq_sqs_call(self->client, action, queue_url, json, timeout_ms, &err), &err);

cleanup:
    Py_XDECREF(text);
    Py_DECREF(keep);
    return operation;
}

static PyObject *sqs_set_credentials(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"access_key_id", "secret_access_key", "session_token", "expires_at", NULL};
    struct sqs_object *self = (struct sqs_object *)object;
    const char *key_id = NULL, *secret = NULL, *token = NULL;
    long long expires_at_s = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ss|zL:set_credentials", names, &key_id, &secret, &token,
                                     &expires_at_s) ||
        loop_check_fork(self->loop) < 0 || put_credentials(self, key_id, secret, token, expires_at_s) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *sqs_refresh_credentials(PyObject *object, PyObject *unused)
{
    (void)unused;
    if (prepare(object) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *sqs_stats(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sqs_object *self = (struct sqs_object *)object;
    struct dtq_sqs_stats stats = {0};
    if (loop_check_fork(self->loop) < 0)
        return NULL;
    dtq_sqs_get_stats(self->client, &stats);
    return Py_BuildValue("{sKsKsKsKsKsKsK}", "requests", (unsigned long long)stats.requests, "retries",
                         (unsigned long long)stats.retries, "throttled", (unsigned long long)stats.throttled, "failed",
                         (unsigned long long)stats.failed, "connections", (unsigned long long)stats.connections,
                         "bytes_sent", (unsigned long long)stats.bytes_sent, "bytes_received",
                         (unsigned long long)stats.bytes_received);
}

/* ---- results
 * -------------------------------------------------------------------------------------------------------- */

static PyObject *entry_dict(const struct dtq_sqs_entry_result *entry)
{
    PyObject *dict = PyDict_New(); /* new */
    int rc = dict ? set_item(dict, "ok", PyBool_FromLong(entry->ok)) : -1;
    if (rc == 0 && entry->ok && entry->message_id)
        rc = set_item(dict, "message_id", text_or_none(entry->message_id));
    if (rc == 0 && !entry->ok &&
        (set_item(dict, "code", text_or_none(entry->code)) < 0 ||
         set_item(dict, "message", text_or_none(entry->message)) < 0 ||
         set_item(dict, "sender_fault", PyBool_FromLong(entry->sender_fault)) < 0))
        rc = -1;
    if (rc < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *pairs_dict(const struct dtq_pair *pairs, size_t count)
{
    PyObject *dict = PyDict_New(); /* new */
    for (size_t i = 0; dict && i < count; i++) {
        if (set_item(dict, pairs[i].name, text_or_none(pairs[i].value)) < 0)
            Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *message_dict(const struct dtq_sqs_message *message)
{
    PyObject *dict = PyDict_New(); /* new */
    if (!dict)
        return NULL;
    if (set_item(dict, "message_id", text_or_none(message->message_id)) < 0 ||
        set_item(dict, "receipt_handle", text_or_none(message->receipt_handle)) < 0 ||
        set_item(dict, "body", bytes_of(message->body)) < 0 ||
        set_item(dict, "system_attributes", pairs_dict(message->system_attributes, message->system_attribute_count)) <
            0 ||
        set_item(dict, "attributes", pairs_dict(message->attributes, message->attribute_count)) < 0 ||
        set_item(dict, "damaged", PyBool_FromLong(message->damaged)) < 0)
        Py_CLEAR(dict);
    return dict;
}

PyObject *sqs_result(struct module_state *state, const struct dtq_sqs_op *op)
{
    enum dtq_sqs_result_kind kind = dtq_sqs_op_kind(op);
    if (kind == DTQ_SQS_RESULT_JSON) {
        PyObject *text = text_of(dtq_sqs_op_json(op)); /* new */
        PyObject *value = text && load_json(state) == 0 ? PyObject_CallFunctionObjArgs(state->json_loads, text, NULL)
                                                        : NULL; /* new */
        Py_XDECREF(text);
        return value;
    }
    PyObject *list = PyList_New(0); /* new */
    for (size_t i = 0; list && i < dtq_sqs_op_count(op); i++) {
        PyObject *item = kind == DTQ_SQS_RESULT_MESSAGES ? message_dict(dtq_sqs_op_message(op, i))
                                                         : entry_dict(dtq_sqs_op_entry(op, i)); /* new */
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* ---- the type
 * ------------------------------------------------------------------------------------------------------- */

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"send", KEYWORDS(sqs_send),
     "send($self, queue_url, entries, *, timeout=None)\n--\n\nSend 1..10 messages in one request."},
    {"receive", KEYWORDS(sqs_receive),
     "receive($self, queue_url, *, max_messages=10, wait=20, visibility=None, timeout=None)\n--\n\n"
     "Receive, by long polling."},
    {"delete", KEYWORDS(sqs_delete),
     "delete($self, queue_url, receipt_handles, *, timeout=None)\n--\n\nDelete 1..10 messages."},
    {"change_visibility", KEYWORDS(sqs_change_visibility),
     "change_visibility($self, queue_url, entries, *, timeout=None)\n--\n\n"
     "Hide 1..10 messages for some seconds from now."},
    {"call", KEYWORDS(sqs_call),
     "call($self, action, request=None, *, timeout=None)\n--\n\nAny action of SQS by its name."},
    {"set_credentials", KEYWORDS(sqs_set_credentials),
     "set_credentials($self, access_key_id, secret_access_key, session_token=None, expires_at=0)\n--\n\n"
     "Use these from now on."},
    {"refresh_credentials", sqs_refresh_credentials, METH_NOARGS,
     "refresh_credentials($self)\n--\n\nCall refresh when the credentials are missing, expire soon, or have been refused as expired."},
    {"stats", sqs_stats, METH_NOARGS, "stats($self)\n--\n\nCounters since the start."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"loop", T_OBJECT_EX, offsetof(struct sqs_object, loop), READONLY, "the Loop that works for it"},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct sqs_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "SqsClient(loop, *, region, endpoint=None, access_key_id=None, secret_access_key=None, session_token=None, "
     "expires_at=0, refresh=None, ca_file=None, proxy=None, insecure=False, connect_timeout=None, "
     "request_timeout=None, "
     "max_attempts=None, backoff_base=None, backoff_cap=None)\n--\n\nSQS over AWS's JSON protocol."},
    {Py_tp_new, sqs_new},
    {Py_tp_dealloc, sqs_dealloc},
    {Py_tp_traverse, sqs_traverse},
    {Py_tp_clear, sqs_clear},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "dagster_taskiq._core.SqsClient",
    .basicsize = sizeof(struct sqs_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int add_sqs_type(PyObject *module, struct module_state *state)
{
    return add_type(module, &spec, &state->sqs_type);
}
