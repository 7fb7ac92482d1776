#include "dtq_json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "dtq_alloc.h"
#include "dtq_json_plain.h"

#define ONLY_KEYS_MAX 32
#define PART_BYTES 128 /* of a text that is written */
#define ESCAPE_BYTES 6 /* \u001f */
/* The worst that becomes of a part, and the word that may pass its end, twice: where it is copied, and what follows. */
#define PART_ROOM ((PART_BYTES + DTQ_PLAIN_BYTES) * ESCAPE_BYTES + DTQ_PLAIN_BYTES)

/* ---- the tree --------------------------------------------------------------------------------------------------- */

#ifdef DTQ_ALLOC_FAILABLE
#include <pthread.h>

/* dtq_malloc is malloc but for builds that let it fail: only those need cJSON to use it. */
static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;

static void set_hooks(void)
{
    cJSON_Hooks hooks = {dtq_malloc, dtq_free};
    cJSON_InitHooks(&hooks);
}
#endif

enum dtq_code dtq_json_parse(struct dtq_slice text, size_t max_bytes, const char *what, struct cJSON **out,
                             struct dtq_error *err)
{
    *out = NULL;
    if (text.length > max_bytes)
        return dtq_error_set(err, DTQ_TOO_LARGE, "%s is larger than %zu bytes", what, max_bytes);
    enum dtq_code rc = dtq_json_check(text, what, err);
    if (rc)
        return rc;
#ifdef DTQ_ALLOC_FAILABLE
    pthread_once(&hooks_once, set_hooks);
#endif
    /* The scan took the text, so nothing but memory can be wanting. */
    *out = cJSON_ParseWithLength(text.data, text.length);
    return *out ? DTQ_OK : dtq_error_no_memory(err);
}

void dtq_json_free(struct cJSON *tree)
{
    cJSON_Delete(tree);
}

static enum dtq_code missing(const char *key, struct dtq_error *err)
{
    return dtq_error_set(err, DTQ_PARSE, "\"%s\" is missing", key);
}

static enum dtq_code not_a(const char *key, const char *type, struct dtq_error *err)
{
    return dtq_error_set(err, DTQ_PARSE, "\"%s\" is not %s", key, type);
}

static const struct cJSON *member(const struct cJSON *object, const char *key)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

static bool is_there(const struct cJSON *object, const char *key)
{
    const struct cJSON *item = member(object, key);
    return item && !cJSON_IsNull(item);
}

enum dtq_code dtq_json_get_object(const struct cJSON *object, const char *key, const struct cJSON **out,
                                  struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    if (!cJSON_IsObject(item))
        return not_a(key, "an object", err);
    *out = item;
    return DTQ_OK;
}

enum dtq_code dtq_json_get_array(const struct cJSON *object, const char *key, const struct cJSON **out,
                                 struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    if (!cJSON_IsArray(item))
        return not_a(key, "an array", err);
    *out = item;
    return DTQ_OK;
}

enum dtq_code dtq_json_get_string(const struct cJSON *object, const char *key, struct dtq_slice *out,
                                  struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    return dtq_json_as_string(item, out) ? DTQ_OK : not_a(key, "a string", err);
}

enum dtq_code dtq_json_get_int(const struct cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out,
                               struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble))
        return not_a(key, "an integer", err);
    double bound = (double)DTQ_JSON_INT_MAX;
    if (!(item->valuedouble >= -bound && item->valuedouble <= bound) || (int64_t)item->valuedouble < min ||
        (int64_t)item->valuedouble > max)
        return dtq_error_set(err, DTQ_PARSE, "\"%s\" is out of range", key);
    *out = (int64_t)item->valuedouble;
    return DTQ_OK;
}

enum dtq_code dtq_json_get_double(const struct cJSON *object, const char *key, double *out, struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    if (!cJSON_IsNumber(item))
        return not_a(key, "a number", err);
    if (!isfinite(item->valuedouble))
        return dtq_error_set(err, DTQ_PARSE, "\"%s\" is out of range", key);
    *out = item->valuedouble;
    return DTQ_OK;
}

enum dtq_code dtq_json_get_bool(const struct cJSON *object, const char *key, bool *out, struct dtq_error *err)
{
    const struct cJSON *item = member(object, key);
    if (!item)
        return missing(key, err);
    if (!cJSON_IsBool(item))
        return not_a(key, "true or false", err);
    *out = cJSON_IsTrue(item);
    return DTQ_OK;
}

enum dtq_code dtq_json_find_object(const struct cJSON *object, const char *key, const struct cJSON **out,
                                   struct dtq_error *err)
{
    return is_there(object, key) ? dtq_json_get_object(object, key, out, err) : DTQ_OK;
}

enum dtq_code dtq_json_find_array(const struct cJSON *object, const char *key, const struct cJSON **out,
                                  struct dtq_error *err)
{
    return is_there(object, key) ? dtq_json_get_array(object, key, out, err) : DTQ_OK;
}

enum dtq_code dtq_json_find_string(const struct cJSON *object, const char *key, struct dtq_slice *out,
                                   struct dtq_error *err)
{
    return is_there(object, key) ? dtq_json_get_string(object, key, out, err) : DTQ_OK;
}

enum dtq_code dtq_json_find_bool(const struct cJSON *object, const char *key, bool *out, struct dtq_error *err)
{
    return is_there(object, key) ? dtq_json_get_bool(object, key, out, err) : DTQ_OK;
}

bool dtq_json_is_object(const struct cJSON *item)
{
    return cJSON_IsObject(item);
}

bool dtq_json_as_string(const struct cJSON *item, struct dtq_slice *out)
{
    if (!cJSON_IsString(item))
        return false;
    *out = dtq_slice_str(item->valuestring);
    return true;
}

const struct cJSON *dtq_json_first(const struct cJSON *container)
{
    return cJSON_IsObject(container) || cJSON_IsArray(container) ? container->child : NULL;
}

const struct cJSON *dtq_json_next(const struct cJSON *item)
{
    return item->next;
}

const char *dtq_json_key(const struct cJSON *item)
{
    return item->string ? item->string : "";
}

size_t dtq_json_count(const struct cJSON *container)
{
    size_t count = 0;
    for (const struct cJSON *item = dtq_json_first(container); item; item = item->next)
        count++;
    return count;
}

enum dtq_code dtq_json_only_keys(const struct cJSON *object, const char *const *names, size_t count,
                                 struct dtq_error *err)
{
    uint32_t seen = 0;
    if (count > ONLY_KEYS_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "more than %d key names", ONLY_KEYS_MAX);
    for (const struct cJSON *item = dtq_json_first(object); item; item = item->next) {
        size_t i = 0;
        while (i < count && strcmp(names[i], dtq_json_key(item)) != 0)
            i++;
        /* An unknown key is the sender's text: shortened, it may go into a message. */
        if (i == count)
            return dtq_error_set(err, DTQ_PARSE, "\"%.40s\" is not a key that is known here", dtq_json_key(item));
        if (seen & (UINT32_C(1) << i))
            return dtq_error_set(err, DTQ_PARSE, "\"%s\" comes twice", names[i]);
        seen |= UINT32_C(1) << i;
    }
    return DTQ_OK;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static enum dtq_code refuse(struct dtq_buf *buf)
{
    if (!buf->failed) {
        dtq_buf_clean_up(buf);
        buf->failed = DTQ_INVALID_ARGUMENT;
    }
    return buf->failed;
}

/* The letter after the backslash, 0 when there is none. */
static char short_escape(unsigned char c)
{
    switch (c) {
    case '"':
    case '\\':
        return (char)c;
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

/* U+FFFE and U+FFFF, which no SQS message body may hold. */
static bool is_no_character(const unsigned char *p)
{
    return p[0] == 0xef && p[1] == 0xbf && p[2] >= 0xbe;
}

static char *put_unicode_escape(char *at, unsigned code)
{
    static const char digits[] = "0123456789abcdef";
    *at++ = '\\';
    *at++ = 'u';
    for (int shift = 12; shift >= 0; shift -= 4)
        *at++ = digits[code >> shift & 15];
    return at;
}

/* The character at p, which does not stand for itself, to *at.  Returns how many bytes it has in p, 0 when they are not
 * text. */
static size_t write_special(const unsigned char *p, size_t left, char **at)
{
    size_t length = *p ? dtq_utf8_length(p, left) : 0;
    if (length == 3 && is_no_character(p)) {
        *at = put_unicode_escape(*at, p[2] == 0xbe ? 0xfffe : 0xffff);
    }
    else if (length == 1) {
        *at = put_unicode_escape(*at, *p);
    }
    else {
        memcpy(*at, p, length);
        *at += length;
    }
    return length;
}

/* From p to at, until part_end is reached or passed by a few bytes.  Whole words are copied, whatever counts of them.
 * NULL when the bytes are not text. */
static const unsigned char *write_part(const unsigned char *p, const unsigned char *part_end, const unsigned char *end,
                                       char **at)
{
    while (p < part_end) {
        if (end - p >= DTQ_PLAIN_BYTES) {
            size_t plain = dtq_plain_bytes(p);
            memcpy(*at, p, DTQ_PLAIN_BYTES);
            *at += plain;
            p += plain;
            if (plain == DTQ_PLAIN_BYTES)
                continue;
        }
        char letter = short_escape(*p);
        if (letter) {
            *(*at)++ = '\\';
            *(*at)++ = letter;
            p++;
        }
        else if (*p >= 0x20 && *p < 0x7f) {
            *(*at)++ = (char)*p++;
        }
        else {
            size_t length = write_special(p, (size_t)(end - p), at);
            if (!length)
                return NULL;
            p += length;
        }
    }
    return p;
}

/* Most of a payload is JSON within JSON within JSON: short runs of plain text between quotes and backslashes.  Part by
 * part, so that the room for the worst case is small. */
enum dtq_code dtq_json_write_string(struct dtq_buf *buf, struct dtq_slice text)
{
    const unsigned char *p = (const unsigned char *)text.data, *end = p + text.length;
    dtq_buf_add_char(buf, '"');
    while (p < end) {
        char *start = dtq_buf_open(buf, PART_ROOM), *at = start;
        if (!start)
            return buf->failed;
        p = write_part(p, end - p > PART_BYTES ? p + PART_BYTES : end, end, &at);
        if (!p)
            return refuse(buf);
        if (dtq_buf_close(buf, (size_t)(at - start)))
            return buf->failed;
    }
    return dtq_buf_add_char(buf, '"');
}

enum dtq_code dtq_json_write_str(struct dtq_buf *buf, const char *text)
{
    return dtq_json_write_string(buf, dtq_slice_str(text));
}

enum dtq_code dtq_json_write_key(struct dtq_buf *buf, const char *key)
{
    dtq_buf_add_char(buf, '"');
    dtq_buf_add_str(buf, key);
    return dtq_buf_add(buf, "\":", 2);
}

enum dtq_code dtq_json_write_int(struct dtq_buf *buf, int64_t number)
{
    char text[20], *at = text + sizeof text; /* as many digits as INT64_MIN has, and its sign */
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0)
        *--at = '-';
    return dtq_buf_add(buf, at, (size_t)(text + sizeof text - at));
}

enum dtq_code dtq_json_write_double(struct dtq_buf *buf, double number)
{
    char text[64];
    if (!isfinite(number))
        return refuse(buf);
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(text, sizeof text, "%.*g", precision, number);
        if (strtod(text, NULL) == number)
            break;
    }
    /* The decimal point of the process's locale, of one byte or more, becomes JSON's. */
    size_t plain = strspn(text, "0123456789+-e");
    dtq_buf_add(buf, text, plain);
    if (text[plain] == '\0')
        return buf->failed;
    dtq_buf_add_char(buf, '.');
    return dtq_buf_add_str(buf, text + plain + strcspn(text + plain, "0123456789"));
}
