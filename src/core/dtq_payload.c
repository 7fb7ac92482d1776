#include "dtq_payload.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "dtq_alloc.h"
#include "dtq_buf.h"
#include "dtq_digest.h"
#include "dtq_json.h"
#include "dtq_limits.h"

static const char *const task_keys[] = {"version", "run_id",        "step_key",  "attempt",   "job_name",
                                        "queue",   "code_location", "lease_ttl", "heartbeat", "visibility",
                                        "sent_at", "settings",      "parts"};
static const char *const kwargs_keys[] = {"task", "signature"};
static const char *const inline_keys[] = {"name", "text"};
static const char *const stored_keys[] = {"name", "sha256", "length"};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

void dtq_step_task_clean_up(struct dtq_step_task *task)
{
    for (size_t i = 0; i < task->part_count; i++) {
        dtq_free(task->parts[i].name);
        dtq_free(task->parts[i].text);
    }
    dtq_free(task->parts);
    dtq_free(task->run_id);
    dtq_free(task->step_key);
    dtq_free(task->job_name);
    dtq_free(task->queue);
    dtq_free(task->code_location);
    dtq_free(task->settings);
    memset(task, 0, sizeof *task);
}

/* ---- what holds for a task on either side ----------------------------------------------------------------------- */

static bool is_object_text(const char *text)
{
    return text[strspn(text, " \t\r\n")] == '{' && dtq_json_check(dtq_slice_str(text), "settings", NULL) == DTQ_OK;
}

static const char *part_fault(const struct dtq_step_task *task, size_t index)
{
    const struct dtq_part *part = &task->parts[index];
    if (!part->name || !part->name[0])
        return "a part has no name";
    for (size_t i = 0; i < index; i++) {
        if (strcmp(task->parts[i].name, part->name) == 0)
            return "two parts have the same name";
    }
    if (part->length > DTQ_PART_BYTES_MAX)
        return "a part is too long";
    if (!part->text &&
        (strlen(part->digest) != DTQ_DIGEST_HEX_SIZE - 1 || !dtq_is_lower_hex(part->digest, DTQ_DIGEST_HEX_SIZE - 1)))
        return "a part has neither text nor a digest";
    return NULL;
}

/* What is wrong with the task, or NULL. */
static const char *task_fault(const struct dtq_step_task *task)
{
    if (!task->run_id || !task->run_id[0] || !task->step_key || !task->step_key[0])
        return "run_id and step_key must not be empty";
    if (!task->job_name || !task->queue || !task->code_location || !task->settings)
        return "a text is missing";
    if (task->attempt < 1)
        return "attempt must be 1 or more";
    if (!isfinite(task->lease_ttl_s) || task->lease_ttl_s <= 0 || !isfinite(task->heartbeat_s) ||
        task->heartbeat_s <= 0)
        return "lease_ttl and heartbeat must be more than 0";
    if (task->visibility_s < 0 || task->visibility_s > DTQ_SQS_VISIBILITY_S_MAX)
        return "visibility is out of range";
    if (!isfinite(task->sent_at_s) || task->sent_at_s < 0)
        return "sent_at is not a time";
    if (!is_object_text(task->settings))
        return "settings is not the text of a JSON object";
    if (task->part_count > DTQ_PAYLOAD_PARTS_MAX)
        return "there are too many parts";
    for (size_t i = 0; i < task->part_count; i++) {
        const char *fault = part_fault(task, i);
        if (fault)
            return fault;
    }
    return NULL;
}

static enum dtq_code sign(struct dtq_slice text, const struct dtq_payload_key *key, char hex[DTQ_SHA256_HEX_SIZE],
                          struct dtq_error *err)
{
    unsigned char signature[DTQ_SHA256_SIZE];
    if (key->secret.length == 0)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a signing key is empty");
    enum dtq_code rc = dtq_hmac_sha256(key->secret, text, signature, err);
    if (!rc)
        dtq_hex(signature, sizeof signature, hex);
    return rc;
}

/* ---- encode ----------------------------------------------------------------------------------------------------- */

static void write_text(struct dtq_buf *out, const char *key, const char *text)
{
    dtq_buf_add_char(out, ',');
    dtq_json_write_key(out, key);
    dtq_json_write_str(out, text);
}

static void write_double(struct dtq_buf *out, const char *key, double number)
{
    dtq_buf_add_char(out, ',');
    dtq_json_write_key(out, key);
    dtq_json_write_double(out, number);
}

static void write_int(struct dtq_buf *out, const char *key, int64_t number)
{
    dtq_buf_add_char(out, ',');
    dtq_json_write_key(out, key);
    dtq_json_write_int(out, number);
}

static void write_part(struct dtq_buf *out, const struct dtq_part *part)
{
    dtq_buf_add_str(out, "{\"name\":");
    dtq_json_write_str(out, part->name);
    if (part->text) {
        dtq_buf_add_str(out, ",\"text\":");
        dtq_json_write_string(out, dtq_slice(part->text, part->length));
    }
    else {
        write_text(out, "sha256", part->digest);
        write_int(out, "length", (int64_t)part->length);
    }
    dtq_buf_add_char(out, '}');
}

static void write_task(struct dtq_buf *out, const struct dtq_step_task *task)
{
    dtq_buf_add_str(out, "{\"version\":");
    dtq_json_write_int(out, DTQ_PAYLOAD_VERSION);
    write_text(out, "run_id", task->run_id);
    write_text(out, "step_key", task->step_key);
    write_int(out, "attempt", task->attempt);
    write_text(out, "job_name", task->job_name);
    write_text(out, "queue", task->queue);
    write_text(out, "code_location", task->code_location);
    write_double(out, "lease_ttl", task->lease_ttl_s);
    write_double(out, "heartbeat", task->heartbeat_s);
    write_int(out, "visibility", task->visibility_s);
    write_double(out, "sent_at", task->sent_at_s);
    write_text(out, "settings", task->settings);
    dtq_buf_add_str(out, ",\"parts\":[");
    for (size_t i = 0; i < task->part_count; i++) {
        if (i)
            dtq_buf_add_char(out, ',');
        write_part(out, &task->parts[i]);
    }
    dtq_buf_add_str(out, "]}");
}

static void write_message(struct dtq_buf *out, const char *task_id, struct dtq_slice task_text, const char *signature)
{
    dtq_buf_add_str(out, "{\"task_id\":");
    dtq_json_write_str(out, task_id);
    dtq_buf_add_str(out, ",\"task_name\":\"" DTQ_PAYLOAD_TASK_NAME "\",\"labels\":{},\"labels_types\":{},\"args\":[],"
                         "\"kwargs\":{\"task\":");
    dtq_json_write_string(out, task_text);
    if (signature)
        write_text(out, "signature", signature);
    dtq_buf_add_str(out, "}}");
}

enum dtq_code dtq_payload_encode(const struct dtq_step_task *task, const char *task_id,
                                 const struct dtq_payload_key *key, char **out, size_t *out_length,
                                 struct dtq_error *err)
{
    struct dtq_buf text, message;
    char signature[DTQ_SHA256_HEX_SIZE];
    enum dtq_code rc;
    *out = NULL;
    *out_length = 0;
    dtq_buf_init(&text, DTQ_PAYLOAD_BYTES_MAX);
    dtq_buf_init(&message, DTQ_PAYLOAD_BYTES_MAX);
    if (task->version != DTQ_PAYLOAD_VERSION) {
        rc = dtq_error_set(err, DTQ_VERSION, "payloads of version %d cannot be written", task->version);
        goto cleanup;
    }
    const char *fault = task_fault(task);
    if (fault) {
        rc = dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the step task cannot be encoded: %s", fault);
        goto cleanup;
    }
    write_task(&text, task);
    rc = dtq_buf_check(&text, err, "the step task");
    if (!rc && key)
        rc = sign(dtq_buf_slice(&text), key, signature, err);
    if (rc)
        goto cleanup;
    write_message(&message, task_id, dtq_buf_slice(&text), key ? signature : NULL);
    rc = dtq_buf_check(&message, err, "the step task's message");
    if (rc)
        goto cleanup;
    *out = dtq_buf_take(&message, out_length);
cleanup:
    dtq_buf_clean_up(&message);
    dtq_buf_clean_up(&text);
    return rc;
}

/* ---- decode ----------------------------------------------------------------------------------------------------- */

static enum dtq_code copy_text(const struct cJSON *object, const char *key, char **out, struct dtq_error *err)
{
    struct dtq_slice text;
    enum dtq_code rc = dtq_json_get_string(object, key, &text, err);
    if (rc)
        return rc;
    *out = dtq_strndup(text.data, text.length);
    return *out ? DTQ_OK : dtq_error_no_memory(err);
}

static enum dtq_code read_int(const struct cJSON *object, const char *key, int *out, struct dtq_error *err)
{
    int64_t number = 0;
    enum dtq_code rc = dtq_json_get_int(object, key, INT_MIN, INT_MAX, &number, err);
    if (!rc)
        *out = (int)number;
    return rc;
}

static enum dtq_code read_stored_part(const struct cJSON *item, struct dtq_part *part, struct dtq_error *err)
{
    struct dtq_slice digest;
    int64_t length = 0;
    enum dtq_code rc = dtq_json_only_keys(item, stored_keys, COUNT(stored_keys), err);
    if (!rc)
        rc = dtq_json_get_string(item, "sha256", &digest, err);
    if (!rc)
        rc = dtq_json_get_int(item, "length", 0, DTQ_PART_BYTES_MAX, &length, err);
    if (rc)
        return rc;
    if (digest.length != DTQ_DIGEST_HEX_SIZE - 1)
        return dtq_error_set(err, DTQ_PARSE, "\"sha256\" is not a digest");
    memcpy(part->digest, digest.data, DTQ_DIGEST_HEX_SIZE);
    part->length = (size_t)length;
    return DTQ_OK;
}

static enum dtq_code read_part(const struct cJSON *item, struct dtq_part *part, struct dtq_error *err)
{
    struct dtq_slice text = {NULL, 0};
    if (!dtq_json_is_object(item))
        return dtq_error_set(err, DTQ_PARSE, "a part is not an object");
    enum dtq_code rc = copy_text(item, "name", &part->name, err);
    if (!rc)
        rc = dtq_json_find_string(item, "text", &text, err);
    if (rc)
        return rc;
    if (!text.data)
        return read_stored_part(item, part, err);
    part->length = text.length;
    part->text = dtq_strndup(text.data, text.length);
    if (!part->text)
        return dtq_error_no_memory(err);
    return dtq_json_only_keys(item, inline_keys, COUNT(inline_keys), err);
}

static enum dtq_code read_parts(const struct cJSON *object, struct dtq_step_task *out, struct dtq_error *err)
{
    const struct cJSON *list = NULL;
    enum dtq_code rc = dtq_json_get_array(object, "parts", &list, err);
    if (rc)
        return rc;
    size_t count = dtq_json_count(list);
    if (count > DTQ_PAYLOAD_PARTS_MAX)
        return dtq_error_set(err, DTQ_TOO_LARGE, "there are more than %d parts", DTQ_PAYLOAD_PARTS_MAX);
    if (count == 0)
        return DTQ_OK;
    out->parts = dtq_calloc(count, sizeof *out->parts);
    if (!out->parts)
        return dtq_error_no_memory(err);
    out->part_count = count;
    size_t next = 0;
    for (const struct cJSON *item = dtq_json_first(list); item && !rc; item = dtq_json_next(item))
        rc = read_part(item, &out->parts[next++], err);
    return rc;
}

static enum dtq_code read_fields(const struct cJSON *tree, struct dtq_step_task *out, struct dtq_error *err)
{
    enum dtq_code rc = copy_text(tree, "run_id", &out->run_id, err);
    if (!rc)
        rc = copy_text(tree, "step_key", &out->step_key, err);
    if (!rc)
        rc = read_int(tree, "attempt", &out->attempt, err);
    if (!rc)
        rc = copy_text(tree, "job_name", &out->job_name, err);
    if (!rc)
        rc = copy_text(tree, "queue", &out->queue, err);
    if (!rc)
        rc = copy_text(tree, "code_location", &out->code_location, err);
    if (!rc)
        rc = dtq_json_get_double(tree, "lease_ttl", &out->lease_ttl_s, err);
    if (!rc)
        rc = dtq_json_get_double(tree, "heartbeat", &out->heartbeat_s, err);
    if (!rc)
        rc = read_int(tree, "visibility", &out->visibility_s, err);
    if (!rc)
        rc = dtq_json_get_double(tree, "sent_at", &out->sent_at_s, err);
    if (!rc)
        rc = copy_text(tree, "settings", &out->settings, err);
    return rc ? rc : read_parts(tree, out, err);
}

static enum dtq_code read_task(struct dtq_slice text, struct dtq_step_task *out, struct dtq_error *err)
{
    struct cJSON *tree = NULL;
    enum dtq_code rc = dtq_json_parse(text, DTQ_PAYLOAD_BYTES_MAX, "the step task", &tree, err);
    if (!rc)
        rc = read_int(tree, "version", &out->version, err);
    if (rc)
        goto cleanup;
    if (out->version != DTQ_PAYLOAD_VERSION) {
        rc = dtq_error_set(err, DTQ_VERSION, "the payload has version %d and this side reads %d", out->version,
                           DTQ_PAYLOAD_VERSION);
        goto cleanup;
    }
    rc = dtq_json_only_keys(tree, task_keys, COUNT(task_keys), err);
    if (!rc)
        rc = read_fields(tree, out, err);
    if (rc)
        goto cleanup;
    const char *fault = task_fault(out);
    if (fault)
        rc = dtq_error_set(err, DTQ_PARSE, "the step task is not valid: %s", fault);
cleanup:
    dtq_json_free(tree);
    return rc;
}

/* Every key is tried, whichever fits: the time taken tells nothing about which one did. */
static enum dtq_code verify(struct dtq_slice text, struct dtq_slice signature, const struct dtq_payload_key *keys,
                            size_t key_count, struct dtq_error *err)
{
    bool verified = false;
    for (size_t i = 0; i < key_count; i++) {
        char expected[DTQ_SHA256_HEX_SIZE];
        enum dtq_code rc = sign(text, &keys[i], expected, err);
        if (rc)
            return rc;
        verified |= dtq_equal_constant_time(signature, dtq_slice(expected, DTQ_SHA256_HEX_SIZE - 1));
    }
    return verified ? DTQ_OK : dtq_error_set(err, DTQ_SIGNATURE, NULL);
}

static enum dtq_code read_message(const struct cJSON *tree, struct dtq_slice *task_text, struct dtq_slice *signature,
                                  struct dtq_error *err)
{
    const struct cJSON *kwargs = NULL;
    struct dtq_slice name;
    enum dtq_code rc = dtq_json_get_string(tree, "task_name", &name, err);
    if (!rc && !dtq_slice_equal(name, dtq_slice_str(DTQ_PAYLOAD_TASK_NAME)))
        rc = dtq_error_set(err, DTQ_PARSE, "the message is not one of a step");
    if (!rc)
        rc = dtq_json_get_object(tree, "kwargs", &kwargs, err);
    if (!rc)
        rc = dtq_json_only_keys(kwargs, kwargs_keys, COUNT(kwargs_keys), err);
    if (!rc)
        rc = dtq_json_get_string(kwargs, "task", task_text, err);
    return rc ? rc : dtq_json_find_string(kwargs, "signature", signature, err);
}

enum dtq_code dtq_payload_decode(struct dtq_slice message, const struct dtq_payload_key *keys, size_t key_count,
                                 struct dtq_step_task *out, struct dtq_error *err)
{
    struct cJSON *tree = NULL;
    struct dtq_slice task_text = {NULL, 0}, signature = {NULL, 0};
    memset(out, 0, sizeof *out);
    /* TaskIQ may have written the message anew and with more escapes: SQS's limit is the one that holds here. */
    enum dtq_code rc = dtq_json_parse(message, DTQ_SQS_MESSAGE_BYTES_MAX, "the message", &tree, err);
    if (!rc)
        rc = read_message(tree, &task_text, &signature, err);
    if (!rc && key_count && !signature.data)
        rc = dtq_error_set(err, DTQ_UNSIGNED, NULL);
    if (!rc && key_count)
        rc = verify(task_text, signature, keys, key_count, err);
    if (!rc)
        rc = read_task(task_text, out, err);
    if (rc)
        dtq_step_task_clean_up(out);
    dtq_json_free(tree);
    return rc;
}
