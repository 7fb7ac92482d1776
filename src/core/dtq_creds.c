#include "dtq_creds.h"

#include <stdbool.h>
#include <string.h>

#include "dtq_alloc.h"

static void free_secret_text(const char *text)
{
    if (text)
        dtq_free_secret((char *)text, strlen(text));
}

static void destroy(struct dtq_creds *creds)
{
    free_secret_text(creds->access_key_id);
    free_secret_text(creds->secret_access_key);
    free_secret_text(creds->session_token);
    dtq_free(creds);
}

struct dtq_creds *dtq_creds_new(const char *access_key_id, const char *secret_access_key, const char *session_token,
                                int64_t expires_at_s)
{
    struct dtq_creds *creds = dtq_calloc(1, sizeof *creds);
    if (!creds)
        return NULL;
    bool has_token = session_token && session_token[0];
    creds->references = 1;
    creds->expires_at_s = expires_at_s;
    creds->access_key_id = dtq_strdup(access_key_id);
    creds->secret_access_key = dtq_strdup(secret_access_key);
    creds->session_token = has_token ? dtq_strdup(session_token) : NULL;
    if (!creds->access_key_id || !creds->secret_access_key || (has_token && !creds->session_token)) {
        destroy(creds);
        return NULL;
    }
    return creds;
}

static bool has_control(const char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return true;
    }
    return false;
}

enum dtq_code dtq_creds_check(const struct dtq_creds *creds, struct dtq_error *err)
{
    const char *which = NULL;
    if (has_control(creds->access_key_id))
        which = "access key id";
    else if (has_control(creds->secret_access_key))
        which = "secret access key";
    else if (creds->session_token && has_control(creds->session_token))
        which = "session token";
    if (which)
        return dtq_error_set(err, DTQ_CREDENTIALS,
                             "the AWS %s has a control character in it, such as a line end: it cannot be sent", which);
    return DTQ_OK;
}

struct dtq_creds *dtq_creds_acquire(struct dtq_creds *creds)
{
    if (creds)
        __atomic_add_fetch(&creds->references, 1, __ATOMIC_RELAXED);
    return creds;
}

void dtq_creds_release(struct dtq_creds *creds)
{
    if (creds && __atomic_sub_fetch(&creds->references, 1, __ATOMIC_ACQ_REL) == 0)
        destroy(creds);
}
