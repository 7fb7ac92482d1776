#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_alloc.h"
#include "dtq_digest.h"
#include "dtq_sigv4.h"

#define VECTORS TEST_DIR "/vectors/sigv4"
#define CASES_MAX 64
#define HEADERS_MAX 16

static const struct dtq_sigv4_scope vector_scope = {"us-east-1", "service", 1440938160};

/* ---- AWS's own cases -------------------------------------------------------------------------------------------- */

struct vector {
    char name[64];
    char *request, *canonical, *to_sign, *authorization; /* the files' texts */
    struct dtq_sigv4_header headers[HEADERS_MAX];
    struct dtq_sigv4_request parsed;
    struct dtq_creds *creds;
};

static int is_case(const struct dirent *entry)
{
    return strchr(entry->d_name, '.') == NULL && strcmp(entry->d_name, "LICENSE") != 0 &&
           strcmp(entry->d_name, "NOTICE") != 0;
}

/* Runs before the tests too, so it asserts nothing: cases_are_there does. */
static int list_cases(char names[CASES_MAX][64])
{
    struct dirent **entries = NULL;
    int count = scandir(VECTORS, &entries, is_case, alphasort);
    for (int i = 0; i < count; i++) {
        if (i < CASES_MAX)
            snprintf(names[i], 64, "%.63s", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return count;
}

/* Without carriage returns. */
static char *read_file(const char *name, const char *suffix)
{
    char path[512];
    snprintf(path, sizeof path, VECTORS "/%s/%s.%s", name, name, suffix);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s is missing", path);
    char *text = calloc(1, 65536);
    ck_assert_ptr_nonnull(text);
    size_t length = 0;
    for (int c; (c = fgetc(file)) != EOF && length < 65535;) {
        if (c != '\r')
            text[length++] = (char)c;
    }
    fclose(file);
    return text;
}

static struct dtq_slice take_line(char **rest)
{
    char *begin = *rest;
    char *end = strchr(begin, '\n');
    *rest = end ? end + 1 : begin + strlen(begin);
    return dtq_slice(begin, end ? (size_t)(end - begin) : strlen(begin));
}

static void parse_target(struct vector *vector, struct dtq_slice line)
{
    const char *target = memchr(line.data, ' ', line.length);
    const char *version = memrchr(line.data, ' ', line.length);
    ck_assert(target && version > target);
    vector->parsed.method = dtq_slice(line.data, (size_t)(target - line.data));
    target++;
    struct dtq_slice whole = dtq_slice(target, (size_t)(version - target));
    const char *mark = memchr(target, '?', whole.length);
    vector->parsed.path = mark ? dtq_slice(target, (size_t)(mark - target)) : whole;
    if (mark)
        vector->parsed.query = dtq_slice(mark + 1, (size_t)(version - mark) - 1);
}

static void parse_request(struct vector *vector)
{
    char *rest = vector->request;
    size_t count = 0;
    parse_target(vector, take_line(&rest));
    while (*rest) {
        struct dtq_slice line = take_line(&rest);
        if (line.length == 0)
            break;
        if (line.data[0] == ' ') { /* the value before goes on: RFC 9112, 5.2, makes the line end a space */
            struct dtq_slice *value = &vector->headers[count - 1].value;
            vector->request[line.data - vector->request - 1] = ' ';
            value->length = (size_t)(line.data + line.length - value->data);
            continue;
        }
        const char *colon = memchr(line.data, ':', line.length);
        ck_assert_ptr_nonnull(colon);
        ck_assert_uint_lt(count, HEADERS_MAX);
        vector->headers[count].name = dtq_slice(line.data, (size_t)(colon - line.data));
        vector->headers[count].value = dtq_slice(colon + 1, (size_t)(line.data + line.length - colon) - 1);
        count++;
    }
    vector->parsed.headers = vector->headers;
    vector->parsed.header_count = count;
    vector->parsed.body = dtq_slice_str(rest);
    vector->parsed.normalize_path = true;
}

/* The session token, when the case signs one, stands in the canonical request only. */
static struct dtq_creds *make_creds(const char *canonical)
{
    char token[1024] = "";
    const char *header = strstr(canonical, "x-amz-security-token:");
    if (header)
        sscanf(header, "x-amz-security-token:%1023s", token);
    return dtq_creds_new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token, 0);
}

static void vector_init(struct vector *vector, int index)
{
    char names[CASES_MAX][64];
    ck_assert_int_lt(index, list_cases(names));
    memset(vector, 0, sizeof *vector);
    memcpy(vector->name, names[index], sizeof vector->name);
    vector->request = read_file(vector->name, "req");
    vector->canonical = read_file(vector->name, "creq");
    vector->to_sign = read_file(vector->name, "sts");
    vector->authorization = read_file(vector->name, "authz");
    parse_request(vector);
    vector->creds = make_creds(vector->canonical);
    ck_assert_ptr_nonnull(vector->creds);
}

static void vector_clean_up(struct vector *vector)
{
    free(vector->request);
    free(vector->canonical);
    free(vector->to_sign);
    free(vector->authorization);
    dtq_creds_release(vector->creds);
}

START_TEST(cases_are_there)
{
    char names[CASES_MAX][64];
    ck_assert_int_eq(list_cases(names), 34);
}
END_TEST

START_TEST(canonical_request_is_aws_s)
{
    struct vector vector;
    struct dtq_buf text, names;
    struct dtq_error err = {0};
    vector_init(&vector, _i);
    dtq_buf_init(&text, 65536);
    dtq_buf_init(&names, 65536);
    ck_assert_msg(!dtq_sigv4_canonical_request(&vector.parsed, vector.creds, &vector_scope, &text, &names, &err),
                  "%s: %s", vector.name, err.message);
    ck_assert_msg(strcmp(dtq_buf_str(&text), vector.canonical) == 0, "%s:\n%s\nis not\n%s", vector.name,
                  dtq_buf_str(&text), vector.canonical);
    dtq_buf_clean_up(&names);
    dtq_buf_clean_up(&text);
    vector_clean_up(&vector);
}
END_TEST

START_TEST(string_to_sign_is_aws_s)
{
    struct vector vector;
    struct dtq_buf text;
    struct dtq_error err = {0};
    vector_init(&vector, _i);
    dtq_buf_init(&text, 65536);
    ck_assert_int_eq(dtq_sigv4_string_to_sign(dtq_slice_str(vector.canonical), &vector_scope, &text, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&text), vector.to_sign);
    dtq_buf_clean_up(&text);
    vector_clean_up(&vector);
}
END_TEST

START_TEST(signature_is_aws_s)
{
    struct vector vector;
    char hex[65];
    struct dtq_error err = {0};
    vector_init(&vector, _i);
    ck_assert_int_eq(dtq_sigv4_signature(dtq_slice_str(vector.to_sign), vector.creds, &vector_scope, NULL, hex, &err),
                     DTQ_OK);
    ck_assert_str_eq(hex, strstr(vector.authorization, "Signature=") + strlen("Signature="));
    vector_clean_up(&vector);
}
END_TEST

START_TEST(authorization_is_aws_s)
{
    struct vector vector;
    struct dtq_buf text;
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_error err = {0};
    struct dtq_sigv4_key_cache cache = {0};
    vector_init(&vector, _i);
    dtq_buf_init(&text, 65536);
    for (int round = 0; round < 2; round++) { /* the second time with the key from the cache */
        dtq_buf_clear(&text);
        ck_assert_int_eq(dtq_sigv4_sign(&vector.parsed, vector.creds, &vector_scope, &cache, &text, date, &err),
                         DTQ_OK);
        ck_assert_str_eq(dtq_buf_str(&text), vector.authorization);
        ck_assert_str_eq(date, "20150830T123600Z");
    }
    dtq_sigv4_key_cache_clean_up(&cache);
    dtq_buf_clean_up(&text);
    vector_clean_up(&vector);
}
END_TEST

/* ---- our own cases ---------------------------------------------------------------------------------------------- */

static struct dtq_creds *example_creds(const char *secret, const char *token)
{
    struct dtq_creds *creds = dtq_creds_new("AKIDEXAMPLE", secret, token, 0);
    ck_assert_ptr_nonnull(creds);
    return creds;
}

static const struct dtq_sigv4_header host_only[] = {{{"Host", 4}, {"sqs.example", 11}}};

static struct dtq_sigv4_request plain_request(void)
{
    struct dtq_sigv4_request request = {0};
    request.method = dtq_slice_str("POST");
    request.path = dtq_slice_str("/");
    request.headers = host_only;
    request.header_count = 1;
    request.body = dtq_slice_str("{}");
    request.normalize_path = true;
    return request;
}

/* One line of the canonical request. */
static void assert_canonical_line(const struct dtq_sigv4_request *request, int line, const char *expected)
{
    struct dtq_buf text, names;
    struct dtq_error err = {0};
    struct dtq_creds *creds = example_creds("secret", NULL);
    dtq_buf_init(&text, 65536);
    dtq_buf_init(&names, 65536);
    ck_assert_msg(!dtq_sigv4_canonical_request(request, creds, &vector_scope, &text, &names, &err), "%s", err.message);
    const char *at = dtq_buf_str(&text);
    for (int i = 0; i < line; i++)
        at = strchr(at, '\n') + 1;
    size_t length = strcspn(at, "\n");
    ck_assert_msg(length == strlen(expected) && memcmp(at, expected, length) == 0, "%.*s is not %s", (int)length, at,
                  expected);
    dtq_buf_clean_up(&names);
    dtq_buf_clean_up(&text);
    dtq_creds_release(creds);
}

START_TEST(paths_are_normalised)
{
    static const struct {
        const char *path, *canonical;
    } cases[] = {
        {"", "/"},
        {"/", "/"},
        {"//", "/"},
        {"/a//b/", "/a/b/"},
        {"/a/./b", "/a/b"},
        {"/a/../b", "/b"},
        {"/..", "/"},
        {"/../../a", "/a"},
        {"/a/..", "/"},
        {"/a/b/..", "/a"},
        {"/a/b/../", "/a/"},
        {"/a/.", "/a"},
        {"/a%20b", "/a%2520b"},
        {"/a b", "/a%20b"},
        {"/...", "/..."},
        {"/123/my-queue.fifo", "/123/my-queue.fifo"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_sigv4_request request = plain_request();
        request.path = dtq_slice_str(cases[i].path);
        assert_canonical_line(&request, 1, cases[i].canonical);
    }
}
END_TEST

START_TEST(paths_stay_as_they_are_for_s3)
{
    struct dtq_sigv4_request request = plain_request();
    request.normalize_path = false;
    request.path = dtq_slice_str("/a//b/../%20");
    assert_canonical_line(&request, 1, "/a//b/../%20");
}
END_TEST

START_TEST(queries_are_sorted)
{
    static const struct {
        const char *query, *canonical;
    } cases[] = {
        {"", ""},
        {"b=2&a=1", "a=1&b=2"},
        {"a=2&a=10&a=1", "a=1&a=10&a=2"},
        {"a", "a="},
        {"a=b=c", "a=b=c"},
        {"a-b=1&a=2", "a=2&a-b=1"},
        {"&a=1", "=&a=1"},
        {"b=%2F&a=%20", "a=%20&b=%2F"},
        {"a=\xe1\x88\xb4", "a=%E1%88%B4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_sigv4_request request = plain_request();
        request.query = dtq_slice_str(cases[i].query);
        assert_canonical_line(&request, 2, cases[i].canonical);
    }
}
END_TEST

START_TEST(token_is_signed)
{
    struct dtq_sigv4_request request = plain_request();
    struct dtq_creds *creds = example_creds("secret", "the token");
    struct dtq_buf text;
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_error err = {0};
    dtq_buf_init(&text, 65536);
    ck_assert_int_eq(dtq_sigv4_sign(&request, creds, &vector_scope, NULL, &text, date, &err), DTQ_OK);
    ck_assert_ptr_nonnull(strstr(dtq_buf_str(&text), "SignedHeaders=host;x-amz-date;x-amz-security-token,"));
    dtq_buf_clean_up(&text);
    dtq_creds_release(creds);
}
END_TEST

/* The cache must never give another day's, region's, service's or secret's key. */
START_TEST(key_cache_tells_scopes_apart)
{
    static const struct {
        struct dtq_sigv4_scope scope;
        const char *secret;
    } uses[] = {
        {{"us-east-1", "sqs", 1440938160}, "one"}, {{"us-east-1", "sqs", 1440938161}, "one"},
        {{"us-east-1", "sqs", 1441024560}, "one"}, {{"us-east-2", "sqs", 1441024560}, "one"},
        {{"us-east-2", "sns", 1441024560}, "one"}, {{"us-east-2", "sns", 1441024560}, "two"},
        {{"us-east-1", "sqs", 1440938160}, "one"},
    };
    struct dtq_sigv4_key_cache cache = {0};
    for (size_t i = 0; i < sizeof uses / sizeof uses[0]; i++) {
        struct dtq_creds *creds = example_creds(uses[i].secret, NULL);
        char with_cache[65], without[65];
        struct dtq_error err = {0};
        struct dtq_slice text = dtq_slice_str("text");
        ck_assert_int_eq(dtq_sigv4_signature(text, creds, &uses[i].scope, &cache, with_cache, &err), DTQ_OK);
        ck_assert_int_eq(dtq_sigv4_signature(text, creds, &uses[i].scope, NULL, without, &err), DTQ_OK);
        ck_assert_str_eq(with_cache, without);
        dtq_creds_release(creds);
    }
    ck_assert(cache.valid);
    dtq_sigv4_key_cache_clean_up(&cache);
    ck_assert(!cache.valid);
}
END_TEST

START_TEST(long_regions_are_signed_without_the_cache)
{
    char region[201] = "";
    memset(region, 'r', 200);
    struct dtq_sigv4_scope scope = {region, "sqs", 1440938160};
    struct dtq_sigv4_key_cache cache = {0};
    struct dtq_creds *creds = example_creds("secret", NULL);
    char with_cache[65], without[65];
    struct dtq_error err = {0};
    ck_assert_int_eq(dtq_sigv4_signature(dtq_slice_str("x"), creds, &scope, &cache, with_cache, &err), DTQ_OK);
    ck_assert_int_eq(dtq_sigv4_signature(dtq_slice_str("x"), creds, &scope, NULL, without, &err), DTQ_OK);
    ck_assert_str_eq(with_cache, without);
    ck_assert(!cache.valid);
    dtq_creds_release(creds);
}
END_TEST

static enum dtq_code sign_code(const struct dtq_sigv4_request *request, struct dtq_creds *creds, int64_t time_s)
{
    struct dtq_sigv4_scope scope = {"us-east-1", "sqs", time_s};
    struct dtq_buf text;
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_error err = {0};
    dtq_buf_init(&text, 65536);
    enum dtq_code rc = dtq_sigv4_sign(request, creds, &scope, NULL, &text, date, &err);
    ck_assert_int_eq(err.code, rc);
    ck_assert(rc == DTQ_OK || text.length == 0);
    dtq_buf_clean_up(&text);
    return rc;
}

START_TEST(what_cannot_be_signed_is_refused)
{
    struct dtq_creds *creds = example_creds("secret", NULL);
    struct dtq_sigv4_request request = plain_request();
    ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_OK);
    ck_assert_int_eq(sign_code(&request, creds, INT64_C(253402300799)), DTQ_OK);
    ck_assert_int_eq(sign_code(&request, creds, -1), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(sign_code(&request, creds, INT64_C(253402300800)), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(sign_code(&request, NULL, 0), DTQ_CREDENTIALS);

    request.header_count = 0;
    ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_INVALID_ARGUMENT);

    struct dtq_sigv4_header bad[] = {host_only[0], {{"a:b", 3}, {"c", 1}}};
    request.headers = bad;
    request.header_count = 2;
    ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_INVALID_ARGUMENT);

    struct dtq_sigv4_header many[DTQ_SIGV4_HEADERS_MAX + 1];
    for (size_t i = 0; i < sizeof many / sizeof many[0]; i++)
        many[i] = host_only[0];
    request.headers = many;
    request.header_count = DTQ_SIGV4_HEADERS_MAX;
    ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_OK);
    request.header_count = DTQ_SIGV4_HEADERS_MAX + 1;
    ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_INVALID_ARGUMENT);
    dtq_creds_release(creds);
}
END_TEST

START_TEST(line_ends_and_the_like_are_refused)
{
    struct dtq_creds *creds = example_creds("secret", NULL);
    struct dtq_sigv4_request request = plain_request();
    for (int c = 0; c < 256; c++) {
        char value[] = {'a', (char)c, 'b'};
        struct dtq_sigv4_header headers[] = {host_only[0], {{"X-Own", 5}, {value, sizeof value}}};
        bool is_control = (c < ' ' && c != '\t') || c == 0x7f;
        request.headers = headers;
        request.header_count = 2;
        ck_assert_int_eq(sign_code(&request, creds, 0), is_control ? DTQ_INVALID_ARGUMENT : DTQ_OK);
    }
    dtq_creds_release(creds);
}
END_TEST

START_TEST(credentials_that_cannot_be_sent_are_refused)
{
    static const char *const sets[][3] = {{"AKID\n", "secret", NULL},
                                          {"AKID", "secret\r\n", "token"},
                                          {"AKID", "secret", "token\r\nX-Evil: 1"},
                                          {"AKID", "secret", "token\n"}};
    struct dtq_sigv4_request request = plain_request();
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        struct dtq_creds *creds = dtq_creds_new(sets[i][0], sets[i][1], sets[i][2], 0);
        ck_assert_int_eq(sign_code(&request, creds, 0), DTQ_CREDENTIALS);
        dtq_creds_release(creds);
    }
}
END_TEST

static enum dtq_code sign_everything(void *context)
{
    (void)context;
    struct dtq_sigv4_request request = plain_request();
    struct dtq_sigv4_key_cache cache = {0};
    struct dtq_buf text;
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_error err = {0};
    enum dtq_code rc = DTQ_NO_MEMORY;
    request.query = dtq_slice_str("c=1&b=2&a=3");
    request.path = dtq_slice_str("/a/../b c/");
    dtq_buf_init(&text, 65536);
    struct dtq_creds *creds = dtq_creds_new("AKIDEXAMPLE", "secret", "token", 0);
    if (creds)
        rc = dtq_sigv4_sign(&request, creds, &vector_scope, &cache, &text, date, &err);
    dtq_sigv4_key_cache_clean_up(&cache);
    dtq_creds_release(creds);
    dtq_buf_clean_up(&text);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(sign_everything, NULL);
}
END_TEST

Suite *sigv4_suite(void)
{
    char names[CASES_MAX][64];
    int count = list_cases(names);
    Suite *suite = suite_create("sigv4");
    TCase *vectors = tcase_create("vectors");
    tcase_add_test(vectors, cases_are_there);
    tcase_add_loop_test(vectors, canonical_request_is_aws_s, 0, count);
    tcase_add_loop_test(vectors, string_to_sign_is_aws_s, 0, count);
    tcase_add_loop_test(vectors, signature_is_aws_s, 0, count);
    tcase_add_loop_test(vectors, authorization_is_aws_s, 0, count);
    suite_add_tcase(suite, vectors);
    TCase *own = tcase_create("own");
    tcase_add_test(own, paths_are_normalised);
    tcase_add_test(own, paths_stay_as_they_are_for_s3);
    tcase_add_test(own, queries_are_sorted);
    tcase_add_test(own, token_is_signed);
    tcase_add_test(own, key_cache_tells_scopes_apart);
    tcase_add_test(own, long_regions_are_signed_without_the_cache);
    tcase_add_test(own, what_cannot_be_signed_is_refused);
    tcase_add_test(own, line_ends_and_the_like_are_refused);
    tcase_add_test(own, credentials_that_cannot_be_sent_are_refused);
    tcase_add_test(own, survives_failing_allocations);
    suite_add_tcase(suite, own);
    return suite;
}
