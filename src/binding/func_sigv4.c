/* sign_request: the signer as the SQS client uses it, with its stages, for tests and diagnosis. */
#include "module.h"

#include "convert.h"
#include "dtq_buf.h"
#include "dtq_creds.h"
#include "dtq_sigv4.h"
#include "raise.h"

#define TEXT_BYTES_MAX (4 * 1024 * 1024)

struct signing {
    struct dtq_sigv4_request request;
    struct dtq_sigv4_scope scope;
    struct dtq_creds *creds;
    struct dtq_buf canonical, signed_headers, to_sign, authorization;
    char date[DTQ_SIGV4_DATE_SIZE];
};

static void signing_init(struct signing *self)
{
    memset(self, 0, sizeof *self);
    dtq_buf_init(&self->canonical, TEXT_BYTES_MAX);
    dtq_buf_init(&self->signed_headers, TEXT_BYTES_MAX);
    dtq_buf_init(&self->to_sign, TEXT_BYTES_MAX);
    dtq_buf_init(&self->authorization, TEXT_BYTES_MAX);
}

static void signing_clean_up(struct signing *self)
{
    dtq_creds_release(self->creds);
    dtq_buf_clean_up(&self->canonical);
    dtq_buf_clean_up(&self->signed_headers);
    dtq_buf_clean_up(&self->to_sign);
    dtq_buf_clean_up(&self->authorization);
}

static enum dtq_code sign(struct signing *self, struct dtq_error *err)
{
    enum dtq_code rc = dtq_sigv4_canonical_request(&self->request, self->creds, &self->scope, &self->canonical,
                                                   &self->signed_headers, err);
    if (!rc)
        rc = dtq_sigv4_string_to_sign(dtq_buf_slice(&self->canonical), &self->scope, &self->to_sign, err);
    if (!rc)
        rc = dtq_sigv4_sign(&self->request, self->creds, &self->scope, NULL, &self->authorization, self->date, err);
    return rc;
}

/* Views into items, a tuple of (name, value) tuples; freed with PyMem_Free.  NULL with the indicator set on failure. */
static struct dtq_sigv4_header *read_headers(PyObject *items, size_t count)
{
    struct dtq_sigv4_header *headers = PyMem_Calloc(count + 1, sizeof *headers);
    if (!headers) {
        PyErr_NoMemory();
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        PyObject *pair = PyTuple_GetItem(items, (Py_ssize_t)i); /* borrowed */
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "a header is (name, value)");
            goto failed;
        }
        if (as_slice(PyTuple_GetItem(pair, 0), "a header's name", &headers[i].name) < 0 ||
            as_slice(PyTuple_GetItem(pair, 1), "a header's value", &headers[i].value) < 0)
            goto failed;
    }
    return headers;

failed:
    PyMem_Free(headers);
    return NULL;
}

static PyObject *signed_dict(const struct signing *self)
{
    PyObject *dict = PyDict_New(); /* new */
    if (!dict)
        return NULL;
    if (set_item(dict, "authorization", text_of(dtq_buf_slice(&self->authorization))) < 0 ||
        set_item(dict, "x-amz-date", text_or_none(self->date)) < 0 ||
        set_item(dict, "canonical_request", text_of(dtq_buf_slice(&self->canonical))) < 0 ||
        set_item(dict, "string_to_sign", text_of(dtq_buf_slice(&self->to_sign))) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *sign_request(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"method",
                            "path",
                            "query",
                            "headers",
                            "body",
                            "region",
                            "service",
                            "access_key_id",
                            "secret_access_key",
                            "session_token",
                            "time",
                            "normalize_path",
                            NULL};
    const char *method = NULL, *path = NULL, *query = NULL, *key_id = NULL, *secret = NULL, *token = NULL;
    PyObject *header_sequence = NULL, *items = NULL, *body = NULL, *result = NULL;
    struct dtq_sigv4_header *headers = NULL;
    long long time_s = 0;
    int normalize_path = 1;
    struct signing signing;
    struct dtq_error err;

    signing_init(&signing);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$sssOSsssszLp:sign_request", names, &method, &path, &query,
                                     &header_sequence, &body, &signing.scope.region, &signing.scope.service, &key_id,
                                     &secret, &token, &time_s, &normalize_path))
        return NULL;
    if (!method || !path || !query || !header_sequence || !body || !signing.scope.region || !signing.scope.service ||
        !key_id || !secret)
        return PyErr_Format(PyExc_TypeError, "sign_request() lacks a keyword argument");
    items = PySequence_Tuple(header_sequence); /* new */
    if (!items)
        return NULL;
    signing.request.header_count = (size_t)PyTuple_Size(items);
    headers = read_headers(items, signing.request.header_count);
    if (!headers || as_slice(body, "body", &signing.request.body) < 0)
        goto cleanup;
    signing.request.headers = headers;
    signing.request.method = dtq_slice_str(method);
    signing.request.path = dtq_slice_str(path);
    signing.request.query = dtq_slice_str(query);
    signing.request.normalize_path = normalize_path != 0;
    signing.scope.time_s = time_s;
    signing.creds = dtq_creds_new(key_id, secret, token, 0);
    if (!signing.creds) {
        PyErr_NoMemory();
        goto cleanup;
    }
    enum dtq_code rc = DTQ_OK;
    Py_BEGIN_ALLOW_THREADS;
    rc = sign(&signing, &err);
    Py_END_ALLOW_THREADS;
    result = rc ? raise_error(PyModule_GetState(module), &err) : signed_dict(&signing);

cleanup:
    signing_clean_up(&signing);
    PyMem_Free(headers);
    Py_DECREF(items);
    return result;
}

static PyMethodDef functions[] = {
    {"sign_request", (PyCFunction)(void (*)(void))sign_request, METH_VARARGS | METH_KEYWORDS,
     "sign_request($module, *, method, path, query, headers, body, region, service, access_key_id, secret_access_key, "
     "session_token, "
     "time, normalize_path=True)\n--\n\nAWS Signature Version 4."},
    {NULL, NULL, 0, NULL},
};

int add_sigv4_functions(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
