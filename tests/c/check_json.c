#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_alloc.h"
#include "dtq_json.h"
#include "dtq_limits.h"

static struct cJSON *parse(const char *text)
{
    struct cJSON *tree = NULL;
    struct dtq_error err = {0};
    ck_assert_msg(!dtq_json_parse(dtq_slice_str(text), 1 << 20, "text", &tree, &err), "%s: %s", text, err.message);
    ck_assert_ptr_nonnull(tree);
    return tree;
}

static void assert_refused(struct dtq_slice text, const char *why)
{
    struct cJSON *tree = NULL;
    struct dtq_error err = {0};
    ck_assert_msg(dtq_json_parse(text, 1 << 20, "text", &tree, &err) == DTQ_PARSE, "%.*s", (int)text.length, text.data);
    ck_assert_ptr_null(tree);
    ck_assert_msg(strstr(err.message, why) != NULL, "%.*s: %s", (int)text.length, text.data, err.message);
}

START_TEST(json_is_taken)
{
    static const char *const texts[] = {
        "{}",
        "[]",
        " [ ] ",
        "\t{\r\n}",
        "0",
        "-0",
        "1.5e+3",
        "1E-2",
        "null",
        "true",
        "false",
        "\"\"",
        "\"\xc3\xa4\xe1\x88\xb4\xf0\x9f\x98\x80\"",
        "\"\\u00e4\\ud83d\\ude00\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "[1,[2,[3]],{\"a\":{}}]",
        "{\"a\" : [ ] , \"b\" : { } }",
        "{\"\":\"\"}",
        "{\"a\":1,\"a\":2}",
        "\"\x7f\"",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        dtq_json_free(parse(texts[i]));
}
END_TEST

START_TEST(what_is_not_json_is_refused)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"", "empty"},
        {" ", "ends too early"},
        {"{", "a string is expected"},
        {"[", "ends too early"},
        {"[1", "ends too early"},
        {"[1,", "ends too early"},
        {"[1,]", "a value is expected"},
        {"[,]", "a value is expected"},
        {"{\"a\"}", "a colon is expected"},
        {"{\"a\":}", "a value is expected"},
        {"{\"a\":1,}", "a string is expected"},
        {"{a:1}", "a string is expected"},
        {"{'a':1}", "a string is expected"},
        {"[1}", "a comma or a closing bracket"},
        {"{\"a\":1]", "a comma or a closing bracket"},
        {"[1 2]", "a comma or a closing bracket"},
        {"{} {}", "something follows"},
        {"1 x", "something follows"},
        {"]", "a value is expected"},
        {"tru", "a value is expected"},
        {"True", "a value is expected"},
        {"NaN", "a value is expected"},
        {"Infinity", "a value is expected"},
        {"-", "a number is not"},
        {"-x", "a number is not"},
        {"01", "a number is not"},
        {"1.", "a number is not"},
        {".5", "a value is expected"},
        {"+1", "a value is expected"},
        {"1e", "a number is not"},
        {"1e+", "a number is not"},
        {"0x10", "something follows"},
        {"\"a", "is not closed"},
        {"\"\\\"", "is not closed"},
        {"\"\\", "is not closed"},
        {"\"\\x\"", "an escape is not one"},
        {"\"\\u12\"", "an escape is"},
        {"\"\\u12g4\"", "not hexadecimal"},
        {"\"\\u0000\"", "NUL"},
        {"\"\\ud800\"", "a surrogate is alone"},
        {"\"\\udc00\"", "a surrogate is alone"},
        {"\"\\ud800\\ud800\"", "a surrogate is alone"},
        {"\"\\ud800x\"", "a surrogate is alone"},
        {"\"\\ud800\\n\"", "a surrogate is alone"},
        {"\"\n\"", "a control character"},
        {"\"\x1f\"", "a control character"},
        {"\"\xff\"", "not UTF-8"},
        {"\"\xc0\x80\"", "not UTF-8"},         /* overlong NUL */
        {"\"\xe0\x80\xaf\"", "not UTF-8"},     /* overlong '/' */
        {"\"\xf0\x80\x80\xaf\"", "not UTF-8"}, /* overlong '/' */
        {"\"\xed\xa0\x80\"", "not UTF-8"},     /* a surrogate */
        {"\"\xf4\x90\x80\x80\"", "not UTF-8"}, /* beyond U+10FFFF */
        {"\"\xc3\"", "not UTF-8"},
        {"\"\xe1\x88\"", "not UTF-8"},
        {"\"\x80\"", "not UTF-8"},
        {"\xef\xbb\xbf{}", "a value is expected"}, /* byte order mark */
        {"/**/1", "a value is expected"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_refused(dtq_slice_str(cases[i].text), cases[i].why);
    assert_refused(dtq_slice("\"a\0b\"", 5), "NUL");
    assert_refused(dtq_slice("{}\0", 3), "something follows");
    assert_refused(dtq_slice("\xe1\x88\xb4", 2), "a value is expected");
}
END_TEST

/* Nothing behind the length is read: the sanitizer would tell. */
START_TEST(the_length_is_the_end)
{
    const char *text = "{\"a\":[1,\"b\\u00e4\",true]}";
    for (size_t length = 0; length <= strlen(text); length++) {
        struct cJSON *tree = NULL;
        struct dtq_error err;
        char *copy = malloc(length ? length : 1);
        memcpy(copy, text, length);
        enum dtq_code rc = dtq_json_parse(dtq_slice(copy, length), 1000, "text", &tree, &err);
        ck_assert_int_eq(rc, length == strlen(text) ? DTQ_OK : DTQ_PARSE);
        dtq_json_free(tree);
        free(copy);
    }
}
END_TEST

static void nest(char *text, size_t depth)
{
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    text[2 * depth] = '\0';
}

START_TEST(depth_is_bounded)
{
    static char text[400001];
    nest(text, DTQ_JSON_DEPTH_MAX);
    dtq_json_free(parse(text));
    nest(text, DTQ_JSON_DEPTH_MAX + 1);
    assert_refused(dtq_slice_str(text), "nested too deeply");
    nest(text, 200000);
    assert_refused(dtq_slice_str(text), "nested too deeply");
}
END_TEST

START_TEST(size_is_bounded)
{
    struct cJSON *tree = NULL;
    struct dtq_error err;
    ck_assert_int_eq(dtq_json_parse(dtq_slice_str("[1]"), 2, "the text", &tree, &err), DTQ_TOO_LARGE);
    ck_assert_ptr_null(tree);
    ck_assert_str_eq(err.message, "the text is larger than 2 bytes");
}
END_TEST

START_TEST(getters_give_what_is_there)
{
    struct cJSON *tree = parse("{\"o\":{\"x\":1},\"a\":[1,\"two\"],\"s\":\"t\\u00e4xt\",\"i\":-5,\"d\":2.5,\"b\":true,"
                               "\"n\":null}");
    const struct cJSON *item = NULL;
    struct dtq_slice text = {NULL, 0};
    struct dtq_error err;
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    ck_assert_int_eq(dtq_json_get_object(tree, "o", &item, &err), DTQ_OK);
    ck_assert_uint_eq(dtq_json_count(item), 1);
    ck_assert_int_eq(dtq_json_get_array(tree, "a", &item, &err), DTQ_OK);
    ck_assert_uint_eq(dtq_json_count(item), 2);
    item = dtq_json_next(dtq_json_first(item));
    ck_assert(dtq_json_as_string(item, &text));
    ck_assert(dtq_slice_equal(text, dtq_slice_str("two")));
    ck_assert_ptr_null(dtq_json_next(item));
    ck_assert_int_eq(dtq_json_get_string(tree, "s", &text, &err), DTQ_OK);
    ck_assert_str_eq(text.data, "t\xc3\xa4xt");
    ck_assert_int_eq(dtq_json_get_int(tree, "i", -10, 10, &integer, &err), DTQ_OK);
    ck_assert_int_eq(integer, -5);
    ck_assert_int_eq(dtq_json_get_double(tree, "d", &number, &err), DTQ_OK);
    ck_assert(number == 2.5);
    ck_assert_int_eq(dtq_json_get_bool(tree, "b", &flag, &err), DTQ_OK);
    ck_assert(flag);
    ck_assert_str_eq(dtq_json_key(dtq_json_first(tree)), "o");
    ck_assert(dtq_json_is_object(tree) && !dtq_json_is_object(item));
    dtq_json_free(tree);
}
END_TEST

START_TEST(getters_name_the_key_that_is_wrong)
{
    struct cJSON *tree = parse("{\"s\":\"secret value\",\"n\":null,\"A\":1}");
    const struct cJSON *item = NULL;
    struct dtq_slice text = {NULL, 0};
    struct dtq_error err;
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    ck_assert_int_eq(dtq_json_get_string(tree, "a", &text, &err), DTQ_PARSE); /* the case counts */
    ck_assert_str_eq(err.message, "\"a\" is missing");
    ck_assert_int_eq(dtq_json_get_object(tree, "s", &item, &err), DTQ_PARSE);
    ck_assert_str_eq(err.message, "\"s\" is not an object");
    ck_assert_int_eq(dtq_json_get_array(tree, "s", &item, &err), DTQ_PARSE);
    ck_assert_int_eq(dtq_json_get_int(tree, "s", 0, 1, &integer, &err), DTQ_PARSE);
    ck_assert_int_eq(dtq_json_get_double(tree, "s", &number, &err), DTQ_PARSE);
    ck_assert_int_eq(dtq_json_get_bool(tree, "s", &flag, &err), DTQ_PARSE);
    ck_assert_int_eq(dtq_json_get_string(tree, "n", &text, &err), DTQ_PARSE);
    ck_assert_str_eq(err.message, "\"n\" is not a string");
    ck_assert_ptr_null(dtq_json_first(dtq_json_first(tree)));
    dtq_json_free(tree);
    tree = parse("[1]");
    ck_assert_int_eq(dtq_json_get_string(tree, "a", &text, &err), DTQ_PARSE);
    dtq_json_free(tree);
}
END_TEST

START_TEST(find_takes_missing_and_null)
{
    struct cJSON *tree = parse("{\"n\":null,\"s\":\"x\",\"i\":1}");
    const struct cJSON *item = NULL;
    struct dtq_slice text = {NULL, 0};
    struct dtq_error err;
    bool flag = true;
    ck_assert_int_eq(dtq_json_find_string(tree, "missing", &text, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_find_string(tree, "n", &text, &err), DTQ_OK);
    ck_assert_ptr_null(text.data);
    ck_assert_int_eq(dtq_json_find_object(tree, "n", &item, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_find_array(tree, "n", &item, &err), DTQ_OK);
    ck_assert_int_eq(dtq_json_find_bool(tree, "n", &flag, &err), DTQ_OK);
    ck_assert(flag);
    ck_assert_ptr_null(item);
    ck_assert_int_eq(dtq_json_find_string(tree, "s", &text, &err), DTQ_OK);
    ck_assert_str_eq(text.data, "x");
    ck_assert_int_eq(dtq_json_find_string(tree, "i", &text, &err), DTQ_PARSE);
    dtq_json_free(tree);
}
END_TEST

START_TEST(integers_are_exact_or_refused)
{
    static const struct {
        const char *text;
        int64_t number;
        bool ok;
    } cases[] = {
        {"[{\"i\":9007199254740991}]", INT64_C(9007199254740991), true},
        {"[{\"i\":-9007199254740991}]", INT64_C(-9007199254740991), true},
        {"[{\"i\":9007199254740992}]", 0, false},
        {"[{\"i\":9007199254740993}]", 0, false},
        {"[{\"i\":1e400}]", 0, false},
        {"[{\"i\":-1e400}]", 0, false},
        {"[{\"i\":1.5}]", 0, false},
        {"[{\"i\":1e3}]", 1000, true},
        {"[{\"i\":-0}]", 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cJSON *tree = parse(cases[i].text);
        int64_t number = 0;
        struct dtq_error err;
        enum dtq_code rc = dtq_json_get_int(dtq_json_first(tree), "i", INT64_MIN, INT64_MAX, &number, &err);
        ck_assert_msg(rc == (cases[i].ok ? DTQ_OK : DTQ_PARSE), "%s", cases[i].text);
        ck_assert_int_eq(number, cases[i].number);
        dtq_json_free(tree);
    }
    struct cJSON *tree = parse("{\"i\":11,\"big\":1e400}");
    int64_t number = 0;
    double real = 0;
    struct dtq_error err;
    ck_assert_int_eq(dtq_json_get_int(tree, "i", 0, 10, &number, &err), DTQ_PARSE);
    ck_assert_str_eq(err.message, "\"i\" is out of range");
    ck_assert_int_eq(dtq_json_get_double(tree, "big", &real, &err), DTQ_PARSE);
    dtq_json_free(tree);
}
END_TEST

START_TEST(numbers_longer_than_cjson_reads_are_refused)
{
    char text[80] = "";
    memset(text, '1', 60);
    dtq_json_free(parse(text));
    memset(text, '1', 61);
    assert_refused(dtq_slice_str(text), "too many digits");
}
END_TEST

START_TEST(keys_are_known_and_single)
{
    static const char *const names[] = {"a", "b"};
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {
        {"{}", true},         {"{\"b\":1}", true},          {"{\"a\":1,\"b\":2}", true},
        {"{\"c\":1}", false}, {"{\"a\":1,\"a\":2}", false}, {"{\"A\":1}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cJSON *tree = parse(cases[i].text);
        struct dtq_error err;
        ck_assert_int_eq(dtq_json_only_keys(tree, names, 2, &err), cases[i].ok ? DTQ_OK : DTQ_PARSE);
        dtq_json_free(tree);
    }
}
END_TEST

static void assert_written(struct dtq_slice text, const char *expected)
{
    struct dtq_buf buf;
    struct cJSON *tree;
    struct dtq_slice again;
    dtq_buf_init(&buf, 10000);
    ck_assert_int_eq(dtq_json_write_string(&buf, text), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&buf), expected);
    tree = parse(dtq_buf_str(&buf));
    ck_assert(dtq_json_as_string(tree, &again));
    ck_assert(dtq_slice_equal(again, text));
    dtq_json_free(tree);
    dtq_buf_clean_up(&buf);
}

START_TEST(strings_are_written_and_read_back)
{
    assert_written(dtq_slice(NULL, 0), "\"\"");
    assert_written(dtq_slice_str("plain"), "\"plain\"");
    assert_written(dtq_slice_str("\"\\\n\r\t/"), "\"\\\"\\\\\\n\\r\\t/\"");
    assert_written(dtq_slice_str("\x01\x1f\x7f"), "\"\\u0001\\u001f\\u007f\"");
    assert_written(dtq_slice_str("\xc3\xa4\xf0\x9f\x98\x80"), "\"\xc3\xa4\xf0\x9f\x98\x80\"");
    assert_written(dtq_slice_str("a\xef\xbf\xbe\xef\xbf\xbf\xef\xbf\xbd"), "\"a\\ufffe\\uffff\xef\xbf\xbd\"");
}
END_TEST

START_TEST(every_character_of_the_first_plane_survives)
{
    for (unsigned code = 1; code < 0x10000; code++) {
        char text[4] = "";
        if (code >= 0xd800 && code <= 0xdfff)
            continue;
        if (code < 0x80) {
            text[0] = (char)code;
        }
        else if (code < 0x800) {
            text[0] = (char)(0xc0 | code >> 6);
            text[1] = (char)(0x80 | (code & 0x3f));
        }
        else {
            text[0] = (char)(0xe0 | code >> 12);
            text[1] = (char)(0x80 | (code >> 6 & 0x3f));
            text[2] = (char)(0x80 | (code & 0x3f));
        }
        struct dtq_buf buf;
        struct dtq_slice again;
        dtq_buf_init(&buf, 100);
        ck_assert_int_eq(dtq_json_write_str(&buf, text), DTQ_OK);
        struct cJSON *tree = parse(dtq_buf_str(&buf));
        ck_assert(dtq_json_as_string(tree, &again));
        ck_assert_msg(dtq_slice_equal(again, dtq_slice_str(text)), "U+%04x", code);
        dtq_json_free(tree);
        dtq_buf_clean_up(&buf);
    }
}
END_TEST

START_TEST(bad_bytes_are_not_written)
{
    static const struct dtq_slice bad[] = {{"\xff", 1}, {"a\0b", 3}, {"\xed\xa0\x80", 3}, {"\xc3", 1}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct dtq_buf buf;
        struct dtq_error err;
        dtq_buf_init(&buf, 100);
        ck_assert_int_eq(dtq_json_write_string(&buf, bad[i]), DTQ_INVALID_ARGUMENT);
        ck_assert_int_eq(dtq_json_write_key(&buf, "more"), DTQ_INVALID_ARGUMENT);
        ck_assert_int_eq(dtq_buf_check(&buf, &err, "text"), DTQ_INVALID_ARGUMENT);
        ck_assert(!dtq_is_text(bad[i]));
        dtq_buf_clean_up(&buf);
    }
    ck_assert(dtq_is_text(dtq_slice_str("\xc3\xa4")));
    ck_assert(dtq_is_text(dtq_slice(NULL, 0)));
}
END_TEST

static void assert_double(double number, const char *expected)
{
    struct dtq_buf buf;
    dtq_buf_init(&buf, 100);
    ck_assert_int_eq(dtq_json_write_double(&buf, number), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&buf), expected);
    dtq_buf_clean_up(&buf);
}

START_TEST(numbers_are_written_short_and_exact)
{
    struct dtq_buf buf;
    assert_double(0, "0");
    assert_double(120, "120");
    assert_double(0.1, "0.1");
    assert_double(-2.5, "-2.5");
    assert_double(1700000000.123456, "1700000000.123456");
    assert_double(1.0 / 3, "0.3333333333333333");
    assert_double(DBL_MAX, "1.7976931348623157e+308");
    assert_double(5e-324, "4.94065645841247e-324");
    dtq_buf_init(&buf, 100);
    ck_assert_int_eq(dtq_json_write_double(&buf, NAN), DTQ_INVALID_ARGUMENT);
    dtq_buf_clear(&buf);
    ck_assert_int_eq(dtq_json_write_double(&buf, -INFINITY), DTQ_INVALID_ARGUMENT);
    dtq_buf_clear(&buf);
    ck_assert_int_eq(dtq_json_write_int(&buf, INT64_MIN), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&buf), "-9223372036854775808");
    dtq_buf_clean_up(&buf);
}
END_TEST

/* Runs where such a locale is installed; the process is Check's own fork. */
START_TEST(a_locale_with_a_comma_changes_nothing)
{
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8"))
        return;
    assert_double(2.5, "2.5");
    struct cJSON *tree = parse("{\"d\":2.5}");
    double number = 0;
    struct dtq_error err;
    ck_assert_int_eq(dtq_json_get_double(tree, "d", &number, &err), DTQ_OK);
    ck_assert(number == 2.5);
    dtq_json_free(tree);
    setlocale(LC_NUMERIC, "C");
}
END_TEST

static enum dtq_code read_and_write(void *context)
{
    (void)context;
    struct cJSON *tree = NULL;
    struct dtq_error err;
    struct dtq_buf buf;
    dtq_buf_init(&buf, 1000);
    enum dtq_code rc =
        dtq_json_parse(dtq_slice_str("{\"a\":[1,2,{\"b\":\"text\"}],\"c\":\"d\"}"), 1000, "text", &tree, &err);
    if (!rc)
        rc = dtq_json_write_str(&buf, "a \"quoted\" text");
    dtq_json_free(tree);
    dtq_buf_clean_up(&buf);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(read_and_write, NULL);
}
END_TEST

Suite *json_suite(void)
{
    Suite *suite = suite_create("json");
    TCase *reading = tcase_create("reading");
    tcase_add_test(reading, json_is_taken);
    tcase_add_test(reading, what_is_not_json_is_refused);
    tcase_add_test(reading, the_length_is_the_end);
    tcase_add_test(reading, depth_is_bounded);
    tcase_add_test(reading, size_is_bounded);
    tcase_add_test(reading, getters_give_what_is_there);
    tcase_add_test(reading, getters_name_the_key_that_is_wrong);
    tcase_add_test(reading, find_takes_missing_and_null);
    tcase_add_test(reading, integers_are_exact_or_refused);
    tcase_add_test(reading, numbers_longer_than_cjson_reads_are_refused);
    tcase_add_test(reading, keys_are_known_and_single);
    tcase_add_test(reading, survives_failing_allocations);
    suite_add_tcase(suite, reading);
    TCase *writing = tcase_create("writing");
    tcase_add_test(writing, strings_are_written_and_read_back);
    tcase_add_test(writing, every_character_of_the_first_plane_survives);
    tcase_add_test(writing, bad_bytes_are_not_written);
    tcase_add_test(writing, numbers_are_written_short_and_exact);
    tcase_add_test(writing, a_locale_with_a_comma_changes_nothing);
    suite_add_tcase(suite, writing);
    return suite;
}
