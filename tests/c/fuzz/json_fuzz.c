/*
 * JSON from outside: what the scan takes, cJSON must take too, hold whole, and give back through our writer.
 */
#include <stdint.h>
#include <stdlib.h>

#include "dtq_json.h"

/* Write every string of the tree and read it again: it must be the same. */
static void check_string(struct dtq_slice text)
{
    struct dtq_buf buf;
    struct cJSON *again = NULL;
    struct dtq_slice same;
    struct dtq_error err;
    dtq_buf_init(&buf, 1 << 20);
    if (dtq_json_write_string(&buf, text) || dtq_json_parse(dtq_buf_slice(&buf), 1 << 20, "text", &again, &err))
        abort();
    if (!dtq_json_as_string(again, &same) || !dtq_slice_equal(same, text))
        abort();
    dtq_json_free(again);
    dtq_buf_clean_up(&buf);
}

static void walk(const struct cJSON *item)
{
    struct dtq_slice text;
    struct dtq_error err;
    int64_t integer = 0;
    if (dtq_json_as_string(item, &text)) {
        if (!dtq_is_text(text))
            abort();
        check_string(text);
    }
    if (dtq_json_get_int(item, "i", INT64_MIN, INT64_MAX, &integer, &err) == DTQ_OK &&
        (integer > DTQ_JSON_INT_MAX || integer < -DTQ_JSON_INT_MAX))
        abort();
    for (const struct cJSON *child = dtq_json_first(item); child; child = dtq_json_next(child)) {
        check_string(dtq_slice_str(dtq_json_key(child)));
        walk(child);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dtq_slice text = dtq_slice((const char *)data, size);
    struct cJSON *tree = NULL;
    struct dtq_error err;
    enum dtq_code scanned = dtq_json_check(text, "text", &err);
    enum dtq_code parsed = dtq_json_parse(text, 1 << 20, "text", &tree, &err);
    if (scanned != parsed || (parsed == DTQ_OK) != (tree != NULL))
        abort();
    if (tree)
        walk(tree);
    dtq_json_free(tree);
    return 0;
}
