/* The walk through a JSON text: every kind of value, escapes of every length, and what is skipped. */
#include <stdio.h>
#include <string.h>

#include <check.h>

#include "dtq_buf.h"
#include "dtq_json.h"
#include "dtq_json_cursor.h"

static char text[1024];

static struct dtq_json_cursor start(const char *json)
{
    struct dtq_error err;
    snprintf(text, sizeof text, "%s", json);
    ck_assert_msg(dtq_json_check(dtq_slice_str(text), "the text", &err) == DTQ_OK, "%s", err.message);
    return dtq_json_cursor(text, strlen(text));
}

static void assert_string(struct dtq_json_cursor *at, const char *wanted)
{
    struct dtq_slice found = {NULL, 0};
    ck_assert(dtq_json_take_string(at, &found));
    ck_assert_str_eq(found.data, wanted);
    ck_assert_uint_eq(found.length, strlen(wanted));
}

static void assert_member(struct dtq_json_cursor *at, const char *wanted)
{
    const char *key = NULL;
    ck_assert(dtq_json_next_member(at, &key));
    ck_assert_str_eq(key, wanted);
}

static const struct {
    const char *json, *wanted;
} strings[] = {
    {"\"\"", ""},
    {" \"plain text of more than eight bytes\" ", "plain text of more than eight bytes"},
    {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
    {"\"\\u0041\\u00e4\\u20aC\\uFFFF\"", "A\xc3\xa4\xe2\x82\xac\xef\xbf\xbf"},
    {"\"\\ud83d\\uDE00|\\u001f\\u007f\"", "\xf0\x9f\x98\x80|\x1f\x7f"},
    {"\"\xc3\xa4\xf0\x9f\x98\x80\x7f after\"", "\xc3\xa4\xf0\x9f\x98\x80\x7f after"},
    {"\"{\\\"a\\\":\\\"{\\\\\\\"b\\\\\\\":1}\\\"}\"", "{\"a\":\"{\\\"b\\\":1}\"}"},
};

START_TEST(strings_are_unescaped_where_they_stand)
{
    struct dtq_json_cursor at = start(strings[_i].json);
    assert_string(&at, strings[_i].wanted);
}
END_TEST

START_TEST(containers_are_entered_and_left)
{
    const char *key = NULL;
    struct dtq_json_cursor at =
        start(" { \"a\" : [ \"x\" , { } , [ ] , \"y\" ] , \"b\\n\" : { \"c\" : \"z\" } , \"d\":[] } ");
    ck_assert_int_eq(dtq_json_peek(&at), '{');
    ck_assert(!dtq_json_enter_array(&at));
    ck_assert(dtq_json_enter_object(&at));
    assert_member(&at, "a");
    ck_assert(dtq_json_enter_array(&at));
    ck_assert(dtq_json_next_item(&at));
    assert_string(&at, "x");
    ck_assert(dtq_json_next_item(&at));
    ck_assert(dtq_json_enter_object(&at));
    ck_assert(!dtq_json_next_member(&at, &key));
    ck_assert(dtq_json_next_item(&at));
    ck_assert(dtq_json_enter_array(&at));
    ck_assert(!dtq_json_next_item(&at));
    ck_assert(dtq_json_next_item(&at));
    assert_string(&at, "y");
    ck_assert(!dtq_json_next_item(&at));
    assert_member(&at, "b\n");
    ck_assert(dtq_json_enter_object(&at));
    assert_member(&at, "c");
    assert_string(&at, "z");
    ck_assert(!dtq_json_next_member(&at, &key));
    assert_member(&at, "d");
    ck_assert(dtq_json_enter_array(&at));
    ck_assert(!dtq_json_next_item(&at));
    ck_assert(!dtq_json_next_member(&at, &key));
}
END_TEST

static const char *const skipped[] = {
    "1",
    "-1.5e+3",
    "true",
    "null",
    "\"]}\\\"\"",
    "[]",
    "{}",
    "[1 , [ ] , { \"a\" : [ { \"b\" : \"}]\" } ] } , false ]",
    "{ \"a\" : 1 , \"b\" : { \"c\" : null }\n}",
};

START_TEST(what_is_skipped_leaves_the_next_value)
{
    char json[256];
    snprintf(json, sizeof json, "{\"a\":%s,\"b\" : %s , \"c\":\"here\"}", skipped[_i], skipped[_i]);
    struct dtq_json_cursor at = start(json);
    struct dtq_slice text_of_value = {NULL, 0};
    ck_assert(dtq_json_enter_object(&at));
    assert_member(&at, "a");
    dtq_json_skip(&at);
    assert_member(&at, "b");
    ck_assert_int_eq(dtq_json_take_string(&at, &text_of_value), skipped[_i][0] == '"');
    assert_member(&at, "c");
    assert_string(&at, "here");
}
END_TEST

/* Of every length around those of words and parts, with what needs care at any distance. */
START_TEST(what_is_written_is_read)
{
    static const char *const special[] = {"\"",          "\\", "\n", "\x01", "\x7f", "\xc3\xa4", "\xf0\x9f\x98\x80",
                                          "\xef\xbf\xbf"};
    int distance = _i + 1;
    for (int wanted = 0; wanted < 300; wanted++) {
        char original[400] = "";
        size_t length = 0;
        for (int i = 0; i < wanted; i++) {
            const char *more = i % distance ? "a" : special[(size_t)(i / distance) % 8];
            memcpy(original + length, more, strlen(more));
            length += strlen(more);
            if (length > sizeof original - 8)
                break;
        }
        struct dtq_buf json;
        struct dtq_error err;
        dtq_buf_init(&json, 4096);
        ck_assert_int_eq(dtq_json_write_string(&json, dtq_slice(original, length)), DTQ_OK);
        ck_assert_msg(dtq_json_check(dtq_buf_slice(&json), "the text", &err) == DTQ_OK, "%s", err.message);
        struct dtq_json_cursor at = dtq_json_cursor(json.data, json.length);
        assert_string(&at, original);
        dtq_buf_clean_up(&json);
    }
}
END_TEST

Suite *json_cursor_suite(void)
{
    Suite *suite = suite_create("json_cursor");
    TCase *tcase = tcase_create("walks");
    tcase_add_loop_test(tcase, strings_are_unescaped_where_they_stand, 0, (int)(sizeof strings / sizeof strings[0]));
    tcase_add_test(tcase, containers_are_entered_and_left);
    tcase_add_loop_test(tcase, what_is_skipped_leaves_the_next_value, 0, (int)(sizeof skipped / sizeof skipped[0]));
    tcase_add_loop_test(tcase, what_is_written_is_read, 0, 12);
    suite_add_tcase(suite, tcase);
    return suite;
}
