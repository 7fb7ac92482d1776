#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_alloc.h"
#include "dtq_buf.h"
#include "dtq_digest.h"
#include "dtq_json.h"
#include "dtq_limits.h"
#include "dtq_payload.h"

#define SHA256_OF_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static const struct dtq_payload_key first_key = {{"first key", 9}};
static const struct dtq_payload_key second_key = {{"second key", 10}};

/* A task with one inline and one stored part; everything in it is borrowed. */
struct example {
    struct dtq_part parts[2];
    struct dtq_step_task task;
};

static void example_init(struct example *example)
{
    memset(example, 0, sizeof *example);
    example->parts[0].name = "job_origin";
    example->parts[0].text = "{\"__class__\": \"JobPythonOrigin\", \"name\": \"j\xc3\xb6"
                             "b \\\"x\\\"\"}";
    example->parts[0].length = strlen(example->parts[0].text);
    example->parts[1].name = "known_state";
    example->parts[1].length = 3;
    memcpy(example->parts[1].digest, SHA256_OF_ABC, DTQ_DIGEST_HEX_SIZE);
    example->task = (struct dtq_step_task){
        .version = DTQ_PAYLOAD_VERSION,
        .run_id = "2f0c0f3e-0d9c-4c11-8f1a-5f5d6c0b7a11",
        .step_key = "graph.op[part/1]",
        .attempt = 2,
        .job_name = "job",
        .queue = "dagster",
        .code_location = "",
        .lease_ttl_s = 120,
        .heartbeat_s = 0.1,
        .visibility_s = 60,
        .sent_at_s = 1700000000.25,
        .settings = "{\"retry_mode\": \"enabled\"}",
        .parts = example->parts,
        .part_count = 2,
    };
}

static void assert_same_part(const struct dtq_part *a, const struct dtq_part *b)
{
    ck_assert_str_eq(a->name, b->name);
    ck_assert_uint_eq(a->length, b->length);
    ck_assert_str_eq(a->digest, b->digest);
    if (b->text)
        ck_assert_str_eq(a->text, b->text);
    else
        ck_assert_ptr_null(a->text);
}

static void assert_same_task(const struct dtq_step_task *a, const struct dtq_step_task *b)
{
    ck_assert_int_eq(a->version, b->version);
    ck_assert_str_eq(a->run_id, b->run_id);
    ck_assert_str_eq(a->step_key, b->step_key);
    ck_assert_int_eq(a->attempt, b->attempt);
    ck_assert_str_eq(a->job_name, b->job_name);
    ck_assert_str_eq(a->queue, b->queue);
    ck_assert_str_eq(a->code_location, b->code_location);
    ck_assert(a->lease_ttl_s == b->lease_ttl_s && a->heartbeat_s == b->heartbeat_s && a->sent_at_s == b->sent_at_s);
    ck_assert_int_eq(a->visibility_s, b->visibility_s);
    ck_assert_str_eq(a->settings, b->settings);
    ck_assert_uint_eq(a->part_count, b->part_count);
    for (size_t i = 0; i < a->part_count; i++)
        assert_same_part(&a->parts[i], &b->parts[i]);
}

static char *encode(const struct dtq_payload_key *key)
{
    struct example example;
    struct dtq_error err = {0};
    char *message = NULL;
    size_t length = 0;
    example_init(&example);
    ck_assert_msg(!dtq_payload_encode(&example.task, "id-1", key, &message, &length, &err), "%s", err.message);
    ck_assert_uint_eq(strlen(message), length);
    return message;
}

static enum dtq_code decode_code(const char *message, const struct dtq_payload_key *keys, size_t key_count,
                                 struct dtq_error *err)
{
    struct dtq_step_task task;
    static const struct dtq_step_task empty;
    enum dtq_code rc = dtq_payload_decode(dtq_slice_str(message), keys, key_count, &task, err);
    if (rc) {
        ck_assert_int_eq(rc, err->code);
        ck_assert(memcmp(&task, &empty, sizeof task) == 0);
    }
    else {
        dtq_step_task_clean_up(&task);
    }
    return rc;
}

START_TEST(what_is_encoded_comes_back)
{
    const struct dtq_payload_key *keys[] = {NULL, &first_key};
    for (size_t i = 0; i < 2; i++) {
        struct example example;
        struct dtq_step_task again;
        struct dtq_error err = {0};
        char *message = encode(keys[i]);
        example_init(&example);
        ck_assert_msg(!dtq_payload_decode(dtq_slice_str(message), keys[i], i, &again, &err), "%s", err.message);
        assert_same_task(&again, &example.task);
        dtq_step_task_clean_up(&again);
        dtq_free(message);
    }
}
END_TEST

/* The text that other releases must be able to read: a change of it is a new version. */
START_TEST(the_text_of_version_1_stays)
{
    char *message = encode(&first_key);
    struct cJSON *tree = NULL;
    const struct cJSON *kwargs = NULL;
    struct dtq_slice text, signature;
    struct dtq_error err;
    unsigned char digest[DTQ_SHA256_SIZE];
    char hex[DTQ_SHA256_HEX_SIZE];
    ck_assert_ptr_eq(message, strstr(message, "{\"task_id\":\"id-1\",\"task_name\":\"dagster_taskiq.execute_step\","
                                              "\"labels\":{},\"labels_types\":{},\"args\":[],\"kwargs\":{\"task\":"));
    ck_assert_int_eq(dtq_json_parse(dtq_slice_str(message), 10000, "message", &tree, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_object(tree, "kwargs", &kwargs, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(kwargs, "task", &text, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(kwargs, "signature", &signature, &err), DTQ_OK);
    ck_assert_str_eq(text.data,
                     "{\"version\":1,\"run_id\":\"2f0c0f3e-0d9c-4c11-8f1a-5f5d6c0b7a11\",\"step_key\":"
                     "\"graph.op[part/1]\",\"attempt\":2,\"job_name\":\"job\",\"queue\":\"dagster\","
                     "\"code_location\":\"\",\"lease_ttl\":120,\"heartbeat\":0.1,\"visibility\":60,"
                     "\"sent_at\":1700000000.25,\"settings\":\"{\\\"retry_mode\\\": \\\"enabled\\\"}\","
                     "\"parts\":[{\"name\":\"job_origin\",\"text\":\"{\\\"__class__\\\": \\\"JobPythonOrigin\\\", "
                     "\\\"name\\\": \\\"j\xc3\xb6"
                     "b \\\\\\\"x\\\\\\\"\\\"}\"},"
                     "{\"name\":\"known_state\",\"sha256\":\"" SHA256_OF_ABC "\",\"length\":3}]}");
    ck_assert_int_eq(dtq_hmac_sha256(first_key.secret, text, digest, &err), DTQ_OK);
    dtq_hex(digest, sizeof digest, hex);
    ck_assert_str_eq(signature.data, hex);
    dtq_json_free(tree);
    dtq_free(message);
}
END_TEST

START_TEST(signatures_are_looked_at)
{
    struct dtq_error err;
    const struct dtq_payload_key both[] = {second_key, first_key};
    const struct dtq_payload_key empty = {{"", 0}};
    char *signed_message = encode(&first_key);
    char *unsigned_message = encode(NULL);
    ck_assert_int_eq(decode_code(signed_message, &first_key, 1, &err), DTQ_OK);
    ck_assert_int_eq(decode_code(signed_message, both, 2, &err), DTQ_OK);
    ck_assert_int_eq(decode_code(signed_message, NULL, 0, &err), DTQ_OK);
    ck_assert_int_eq(decode_code(signed_message, &second_key, 1, &err), DTQ_SIGNATURE);
    ck_assert_int_eq(decode_code(signed_message, &empty, 1, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(decode_code(unsigned_message, NULL, 0, &err), DTQ_OK);
    ck_assert_int_eq(decode_code(unsigned_message, &first_key, 1, &err), DTQ_UNSIGNED);
    dtq_free(signed_message);
    dtq_free(unsigned_message);
}
END_TEST

START_TEST(an_empty_key_signs_nothing)
{
    struct example example;
    struct dtq_error err;
    const struct dtq_payload_key empty = {{"", 0}};
    char *message = NULL;
    size_t length = 0;
    example_init(&example);
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", &empty, &message, &length, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_ptr_null(message);
}
END_TEST

/* Every byte of the signed text and of the signature counts, whatever else the change does to the message. */
START_TEST(a_changed_byte_is_found)
{
    char *message = encode(&first_key);
    char *begin = strstr(message, "\"kwargs\":{\"task\":") + strlen("\"kwargs\":{\"task\":");
    for (char *p = begin; *p; p++) {
        struct dtq_error err;
        char was = *p;
        *p = was == '1' ? '2' : '1';
        ck_assert_msg(decode_code(message, &first_key, 1, &err) != DTQ_OK, "byte %zu", (size_t)(p - message));
        *p = was;
    }
    dtq_free(message);
}
END_TEST

static char *put_signature(const char *message, const char *with)
{
    const char *at = strstr(message, ",\"signature\":");
    char *changed = calloc(1, strlen(message) + strlen(with) + 10);
    ck_assert(at && changed);
    memcpy(changed, message, (size_t)(at - message));
    strcat(changed, with);
    strcat(changed, "}}");
    return changed;
}

START_TEST(odd_signatures_are_refused)
{
    static const struct {
        const char *text;
        enum dtq_code code;
    } cases[] = {
        {"", DTQ_UNSIGNED},
        {",\"signature\":null", DTQ_UNSIGNED},
        {",\"signature\":\"\"", DTQ_SIGNATURE},
        {",\"signature\":\"0\"", DTQ_SIGNATURE},
        {",\"signature\":1", DTQ_PARSE},
        {",\"signature\":[]", DTQ_PARSE},
        {",\"signature\":\"0\",\"signature\":\"0\"", DTQ_PARSE},
    };
    char *message = encode(&first_key);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_error err;
        char *changed = put_signature(message, cases[i].text);
        ck_assert_msg(decode_code(changed, &first_key, 1, &err) == cases[i].code, "%s", cases[i].text);
        free(changed);
    }
    dtq_free(message);
}
END_TEST

/* What TaskIQ's formatters make of the message: another order, white space, escapes, labels of its own. */
START_TEST(a_message_written_anew_is_read)
{
    static const char *const forms[] = {
        "{\"task_name\": \"dagster_taskiq.execute_step\", \"task_id\": \"x\", \"kwargs\": {\"signature\": %s, "
        "\"task\": "
        "%s}, \"args\": [], \"labels\": {\"ack_type\": 1}, \"labels_types\": null}",
        "\n{\"args\":[],\"kwargs\":{\n\"signature\":%s,\"task\":%s},\"task_name\":\"dagster_taskiq\\u002eexecute_"
        "step\"}\n",
    };
    struct cJSON *tree = NULL;
    const struct cJSON *kwargs = NULL;
    struct dtq_slice text, signature;
    struct dtq_error err = {0};
    struct dtq_buf task_text, signature_text;
    char *message = encode(&first_key);
    ck_assert_int_eq(dtq_json_parse(dtq_slice_str(message), 10000, "message", &tree, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_object(tree, "kwargs", &kwargs, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(kwargs, "task", &text, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_get_string(kwargs, "signature", &signature, &err), DTQ_OK);
    dtq_buf_init(&task_text, 100000);
    dtq_buf_init(&signature_text, 1000);
    dtq_buf_add_char(&task_text, '"');
    for (size_t i = 0; i < text.length; i++) { /* every ASCII character as an escape */
        if ((unsigned char)text.data[i] < 0x80)
            dtq_buf_addf(&task_text, "\\u%04X", (unsigned)text.data[i]);
        else
            dtq_buf_add_char(&task_text, text.data[i]);
    }
    dtq_buf_add_char(&task_text, '"');
    dtq_json_write_string(&signature_text, signature);
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        char *changed = calloc(1, 20000);
        snprintf(changed, 20000, i ? forms[1] : forms[0], dtq_buf_str(&signature_text), dtq_buf_str(&task_text));
        ck_assert_msg(decode_code(changed, &first_key, 1, &err) == DTQ_OK, "%s: %s", changed, err.message);
        free(changed);
    }
    dtq_buf_clean_up(&signature_text);
    dtq_buf_clean_up(&task_text);
    dtq_json_free(tree);
    dtq_free(message);
}
END_TEST

/* A message around a task's text. */
static enum dtq_code decode_task_text(const char *text, struct dtq_error *err)
{
    struct dtq_buf message;
    dtq_buf_init(&message, 2 << 20);
    dtq_buf_add_str(&message, "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":");
    dtq_json_write_str(&message, text);
    dtq_buf_add_str(&message, "}}");
    enum dtq_code rc = decode_code(dtq_buf_str(&message), NULL, 0, err);
    dtq_buf_clean_up(&message);
    return rc;
}

/* The text of a good task with one piece replaced. */
static enum dtq_code decode_changed(const char *piece, const char *by, struct dtq_error *err)
{
    static const char good[] =
        "{\"version\":1,\"run_id\":\"r\",\"step_key\":\"s\",\"attempt\":1,\"job_name\":\"j\",\"queue\":\"q\","
        "\"code_location\":\"\",\"lease_ttl\":120,\"heartbeat\":10,\"visibility\":60,\"sent_at\":1,"
        "\"settings\":\"{}\",\"parts\":[{\"name\":\"a\",\"text\":\"1\"}]}";
    char text[2000] = "";
    const char *at = strstr(good, piece);
    ck_assert_ptr_nonnull(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, by, at + strlen(piece));
    return decode_task_text(text, err);
}

START_TEST(fields_are_checked)
{
    static const struct {
        const char *piece, *by;
        enum dtq_code code;
        const char *why;
    } cases[] = {
        {"\"version\":1", "\"version\":1", DTQ_OK, ""},
        {"\"version\":1", "\"version\":2,\"news\":true", DTQ_VERSION, "version 2"},
        {"\"version\":1", "\"version\":0", DTQ_VERSION, "version 0"},
        {"\"version\":1,", "", DTQ_PARSE, "\"version\" is missing"},
        {"\"version\":1", "\"version\":\"1\"", DTQ_PARSE, "\"version\" is not an integer"},
        {"\"version\":1", "\"version\":1,\"news\":true", DTQ_PARSE, "\"news\" is not a key"},
        {"\"attempt\":1", "\"attempt\":1,\"attempt\":2", DTQ_PARSE, "\"attempt\" comes twice"},
        {"\"attempt\":1", "\"attempt\":0", DTQ_PARSE, "attempt must be"},
        {"\"attempt\":1", "\"attempt\":2147483648", DTQ_PARSE, "out of range"},
        {"\"attempt\":1", "\"attempt\":1.5", DTQ_PARSE, "not an integer"},
        {"\"run_id\":\"r\"", "\"run_id\":\"\"", DTQ_PARSE, "must not be empty"},
        {"\"run_id\":\"r\",", "", DTQ_PARSE, "\"run_id\" is missing"},
        {"\"step_key\":\"s\"", "\"step_key\":\"\"", DTQ_PARSE, "must not be empty"},
        {"\"step_key\":\"s\"", "\"step_key\":null", DTQ_PARSE, "\"step_key\" is not a string"},
        {"\"job_name\":\"j\",", "", DTQ_PARSE, "\"job_name\" is missing"},
        {"\"queue\":\"q\",", "", DTQ_PARSE, "\"queue\" is missing"},
        {"\"code_location\":\"\",", "", DTQ_PARSE, "\"code_location\" is missing"},
        {"\"lease_ttl\":120", "\"lease_ttl\":0", DTQ_PARSE, "more than 0"},
        {"\"lease_ttl\":120", "\"lease_ttl\":1e999", DTQ_PARSE, "out of range"},
        {"\"heartbeat\":10", "\"heartbeat\":-1", DTQ_PARSE, "more than 0"},
        {"\"visibility\":60", "\"visibility\":43201", DTQ_PARSE, "visibility"},
        {"\"visibility\":60", "\"visibility\":-1", DTQ_PARSE, "visibility"},
        {"\"sent_at\":1", "\"sent_at\":-1", DTQ_PARSE, "sent_at"},
        {"\"settings\":\"{}\"", "\"settings\":\"[]\"", DTQ_PARSE, "settings"},
        {"\"settings\":\"{}\"", "\"settings\":\"{\"", DTQ_PARSE, "settings"},
        {"\"settings\":\"{}\"", "\"settings\":\"\"", DTQ_PARSE, "settings"},
        {"\"settings\":\"{}\"", "\"settings\":{}", DTQ_PARSE, "\"settings\" is not a string"},
        {",\"parts\":[{\"name\":\"a\",\"text\":\"1\"}]", "", DTQ_PARSE, "\"parts\" is missing"},
        {"[{\"name\":\"a\",\"text\":\"1\"}]", "[]", DTQ_OK, ""},
        {"[{\"name\":\"a\",\"text\":\"1\"}]", "{}", DTQ_PARSE, "\"parts\" is not an array"},
        {"[{\"name\":\"a\",\"text\":\"1\"}]", "[1]", DTQ_PARSE, "a part is not an object"},
        {"\"name\":\"a\",", "", DTQ_PARSE, "\"name\" is missing"},
        {"\"name\":\"a\"", "\"name\":\"\"", DTQ_PARSE, "no name"},
        {"\"text\":\"1\"", "\"text\":\"\"", DTQ_OK, ""},
        {"\"text\":\"1\"", "\"text\":\"1\",\"sha256\":\"" SHA256_OF_ABC "\"", DTQ_PARSE, "\"sha256\" is not a key"},
        {"\"text\":\"1\"", "\"sha256\":\"" SHA256_OF_ABC "\",\"length\":3", DTQ_OK, ""},
        {"\"text\":\"1\"", "\"sha256\":\"" SHA256_OF_ABC "\"", DTQ_PARSE, "\"length\" is missing"},
        {"\"text\":\"1\"", "\"sha256\":\"" SHA256_OF_ABC "\",\"length\":-1", DTQ_PARSE, "out of range"},
        {"\"text\":\"1\"", "\"sha256\":\"ABC\",\"length\":3", DTQ_PARSE, "not a digest"},
        {"\"text\":\"1\"",
         "\"sha256\":\"G"
         "a7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"length\":3",
         DTQ_PARSE, "nor a digest"},
        {"{\"name\":\"a\",\"text\":\"1\"}", "{\"name\":\"a\",\"text\":\"1\"},{\"name\":\"a\",\"text\":\"1\"}",
         DTQ_PARSE, "same name"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_error err = {0};
        enum dtq_code rc = decode_changed(cases[i].piece, cases[i].by, &err);
        ck_assert_msg(rc == cases[i].code, "%s gives %d: %s", cases[i].by, rc, err.message);
        ck_assert_msg(!rc || strstr(err.message, cases[i].why), "%s gives: %s", cases[i].by, err.message);
    }
}
END_TEST

START_TEST(messages_of_others_are_refused)
{
    static const char *const cases[] = {
        "",
        "x",
        "[]",
        "{}",
        "{\"task_name\":\"other\",\"kwargs\":{\"task\":\"{}\"}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\"}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":[]}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":{}}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":\"\"}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":\"[]\"}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":\"{}\",\"other\":1}}",
        "{\"task_name\":\"dagster_taskiq.execute_step\",\"kwargs\":{\"task\":\"{}\",\"task\":\"{}\"}}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_error err;
        ck_assert_msg(decode_code(cases[i], NULL, 0, &err) == DTQ_PARSE, "%s", cases[i]);
    }
}
END_TEST

START_TEST(sizes_are_bounded)
{
    static char text[DTQ_SQS_MESSAGE_BYTES_MAX + 2];
    struct dtq_error err;
    memset(text, ' ', DTQ_SQS_MESSAGE_BYTES_MAX + 1);
    ck_assert_int_eq(decode_code(text, NULL, 0, &err), DTQ_TOO_LARGE);

    struct example example;
    char *message = NULL;
    size_t length = 0;
    memset(text, 'x', DTQ_PAYLOAD_BYTES_MAX);
    text[DTQ_PAYLOAD_BYTES_MAX] = '\0';
    example_init(&example);
    example.parts[0].text = text;
    example.parts[0].length = DTQ_PAYLOAD_BYTES_MAX;
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err), DTQ_TOO_LARGE);
    ck_assert_ptr_null(message);
    example.parts[0].length = DTQ_PAYLOAD_BYTES_MAX - 2000;
    text[DTQ_PAYLOAD_BYTES_MAX - 2000] = '\0';
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err), DTQ_OK);
    ck_assert_uint_le(length, DTQ_PAYLOAD_BYTES_MAX);
    ck_assert_int_eq(decode_code(message, NULL, 0, &err), DTQ_OK);
    dtq_free(message);
}
END_TEST

START_TEST(parts_are_bounded)
{
    char names[DTQ_PAYLOAD_PARTS_MAX + 1][8];
    struct dtq_part parts[DTQ_PAYLOAD_PARTS_MAX + 1];
    struct example example;
    struct dtq_error err;
    char *message = NULL;
    size_t length = 0;
    example_init(&example);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        snprintf(names[i], sizeof names[i], "p%zu", i);
        parts[i] = example.parts[0];
        parts[i].name = names[i];
    }
    example.task.parts = parts;
    example.task.part_count = DTQ_PAYLOAD_PARTS_MAX;
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err), DTQ_OK);
    ck_assert_int_eq(decode_code(message, NULL, 0, &err), DTQ_OK);
    dtq_free(message);
    example.task.part_count = DTQ_PAYLOAD_PARTS_MAX + 1;
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

/* One task that must not be sent, made by its index; false when there are no more. */
static bool spoil(struct example *example, int index)
{
    struct dtq_step_task *task = &example->task;
    switch (index) {
    case 0:
        task->run_id = NULL;
        return true;
    case 1:
        task->step_key = "";
        return true;
    case 2:
        task->attempt = 0;
        return true;
    case 3:
        task->lease_ttl_s = NAN;
        return true;
    case 4:
        task->heartbeat_s = INFINITY;
        return true;
    case 5:
        task->visibility_s = 50000;
        return true;
    case 6:
        task->settings = "null";
        return true;
    case 7:
        task->queue = "\xff";
        return true;
    case 8:
        example->parts[0].length++; /* takes the NUL in */
        return true;
    case 9:
        example->parts[1].digest[0] = 'G';
        return true;
    case 10:
        example->parts[1].name = "job_origin";
        return true;
    case 11:
        example->parts[1].length = (size_t)DTQ_PART_BYTES_MAX + 1;
        return true;
    case 12:
        task->code_location = NULL;
        return true;
    default:
        return false;
    }
}

START_TEST(bad_tasks_are_not_encoded)
{
    struct example example;
    struct dtq_error err;
    char *message = NULL;
    size_t length = 0;
    for (int i = 0;; i++) {
        example_init(&example);
        if (!spoil(&example, i))
            break;
        ck_assert_msg(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err) == DTQ_INVALID_ARGUMENT,
                      "case %d", i);
        ck_assert_ptr_null(message);
    }
    example_init(&example);
    example.task.version = 2;
    ck_assert_int_eq(dtq_payload_encode(&example.task, "id", NULL, &message, &length, &err), DTQ_VERSION);
}
END_TEST

static enum dtq_code there_and_back(void *context)
{
    (void)context;
    struct example example;
    struct dtq_step_task again;
    struct dtq_error err = {0};
    char *message = NULL;
    size_t length = 0;
    example_init(&example);
    enum dtq_code rc = dtq_payload_encode(&example.task, "id", &first_key, &message, &length, &err);
    if (!rc)
        rc = dtq_payload_decode(dtq_slice(message, length), &first_key, 1, &again, &err);
    if (!rc)
        dtq_step_task_clean_up(&again);
    dtq_free(message);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(there_and_back, NULL);
}
END_TEST

Suite *payload_suite(void)
{
    Suite *suite = suite_create("payload");
    TCase *tcase = tcase_create("payload");
    tcase_add_test(tcase, what_is_encoded_comes_back);
    tcase_add_test(tcase, the_text_of_version_1_stays);
    tcase_add_test(tcase, signatures_are_looked_at);
    tcase_add_test(tcase, an_empty_key_signs_nothing);
    tcase_add_test(tcase, a_changed_byte_is_found);
    tcase_add_test(tcase, odd_signatures_are_refused);
    tcase_add_test(tcase, a_message_written_anew_is_read);
    tcase_add_test(tcase, fields_are_checked);
    tcase_add_test(tcase, messages_of_others_are_refused);
    tcase_add_test(tcase, sizes_are_bounded);
    tcase_add_test(tcase, parts_are_bounded);
    tcase_add_test(tcase, bad_tasks_are_not_encoded);
    tcase_add_test(tcase, survives_failing_allocations);
    suite_add_tcase(suite, tcase);
    return suite;
}
