#include <errno.h>
#include <string.h>

#include <check.h>

#include "dtq_error.h"

START_TEST(table_has_no_number_twice)
{
    unsigned count = 0;
    const struct dtq_error_info *table = dtq_error_table(&count);
    ck_assert_uint_gt(count, 20);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_ptr_eq(dtq_error_info(table[i].code), &table[i]);
        ck_assert_uint_gt(strlen(table[i].sentence), 0);
        for (unsigned j = 0; j < i; j++)
            ck_assert_str_ne(table[i].name, table[j].name);
    }
    ck_assert_ptr_null(dtq_error_info((enum dtq_code)9999));
}
END_TEST

START_TEST(set_clears_what_was_there)
{
    struct dtq_error err;
    memset(&err, 0x55, sizeof err);
    ck_assert_int_eq(dtq_error_set(&err, DTQ_PARSE, "byte %d", 7), DTQ_PARSE);
    ck_assert_int_eq(err.code, DTQ_PARSE);
    ck_assert_str_eq(err.message, "byte 7");
    ck_assert_str_eq(err.sqlstate, "");
    ck_assert_str_eq(err.service_code, "");
    ck_assert_int_eq(err.http_status, 0);
    ck_assert_int_eq(err.system_errno, 0);
}
END_TEST

START_TEST(without_a_format_the_code_s_sentence_stands)
{
    struct dtq_error err;
    ck_assert_int_eq(dtq_error_no_memory(&err), DTQ_NO_MEMORY);
    ck_assert_str_eq(err.message, "out of memory");
    ck_assert_int_eq(dtq_error_set(NULL, DTQ_CLOSED, NULL), DTQ_CLOSED);
}
END_TEST

START_TEST(errno_is_kept_and_told)
{
    struct dtq_error err;
    ck_assert_int_eq(dtq_error_set_errno(&err, ENOENT, "open %s", "x"), DTQ_SYSTEM);
    ck_assert_int_eq(err.system_errno, ENOENT);
    ck_assert_ptr_nonnull(strstr(err.message, "open x: "));
}
END_TEST

START_TEST(long_messages_are_cut)
{
    struct dtq_error err;
    char text[1000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    dtq_error_set_errno(&err, EINVAL, "%s", text);
    ck_assert_uint_eq(strlen(err.message), sizeof err.message - 1);
}
END_TEST

Suite *error_suite(void)
{
    Suite *suite = suite_create("error");
    TCase *tcase = tcase_create("error");
    tcase_add_test(tcase, table_has_no_number_twice);
    tcase_add_test(tcase, set_clears_what_was_there);
    tcase_add_test(tcase, without_a_format_the_code_s_sentence_stands);
    tcase_add_test(tcase, errno_is_kept_and_told);
    tcase_add_test(tcase, long_messages_are_cut);
    suite_add_tcase(suite, tcase);
    return suite;
}
