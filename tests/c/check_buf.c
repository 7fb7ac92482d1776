#include <string.h>

#include "check_alloc.h"
#include "dtq_buf.h"

START_TEST(grows_and_keeps_the_content)
{
    struct dtq_buf buf;
    dtq_buf_init(&buf, 1 << 20);
    for (int i = 0; i < 5000; i++)
        ck_assert_int_eq(dtq_buf_addf(&buf, "%05d", i), DTQ_OK);
    ck_assert_uint_eq(buf.length, 25000);
    ck_assert(memcmp(buf.data + 4999 * 5, "04999", 6) == 0);
    dtq_buf_clean_up(&buf);
}
END_TEST

START_TEST(is_empty_before_the_first_add)
{
    struct dtq_buf buf;
    dtq_buf_init(&buf, 10);
    ck_assert_str_eq(dtq_buf_str(&buf), "");
    ck_assert_uint_eq(dtq_buf_slice(&buf).length, 0);
    ck_assert_int_eq(dtq_buf_add(&buf, NULL, 0), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&buf), "");
    dtq_buf_clean_up(&buf);
}
END_TEST

START_TEST(holds_exactly_its_cap)
{
    struct dtq_buf buf;
    dtq_buf_init(&buf, 4);
    ck_assert_int_eq(dtq_buf_add_str(&buf, "abcd"), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&buf), "abcd");
    ck_assert_int_eq(dtq_buf_add_char(&buf, 'e'), DTQ_TOO_LARGE);
    dtq_buf_clean_up(&buf);
}
END_TEST

START_TEST(stays_failed_and_empty)
{
    struct dtq_error err;
    struct dtq_buf buf;
    dtq_buf_init(&buf, 4);
    ck_assert_int_eq(dtq_buf_add_str(&buf, "abcde"), DTQ_TOO_LARGE);
    ck_assert_int_eq(dtq_buf_add_str(&buf, "a"), DTQ_TOO_LARGE);
    ck_assert_int_eq(dtq_buf_addf(&buf, "%d", 1), DTQ_TOO_LARGE);
    ck_assert_str_eq(dtq_buf_str(&buf), "");
    ck_assert_ptr_null(dtq_buf_take(&buf, NULL));
    ck_assert_int_eq(dtq_buf_check(&buf, &err, "a thing"), DTQ_TOO_LARGE);
    ck_assert_str_eq(err.message, "a thing is larger than 4 bytes");
    dtq_buf_clear(&buf);
    ck_assert_int_eq(dtq_buf_add_str(&buf, "ab"), DTQ_OK);
    ck_assert_int_eq(dtq_buf_check(&buf, &err, "a thing"), DTQ_OK);
    dtq_buf_clean_up(&buf);
}
END_TEST

START_TEST(take_moves_the_bytes_out)
{
    struct dtq_buf buf;
    size_t length = 0;
    dtq_buf_init(&buf, 100);
    dtq_buf_add(&buf, "a\0b", 3);
    char *bytes = dtq_buf_take(&buf, &length);
    ck_assert_uint_eq(length, 3);
    ck_assert(memcmp(bytes, "a\0b", 4) == 0);
    ck_assert_uint_eq(buf.length, 0);
    dtq_free(bytes);
    bytes = dtq_buf_take(&buf, &length);
    ck_assert_str_eq(bytes, "");
    ck_assert_uint_eq(length, 0);
    dtq_free(bytes);
}
END_TEST

START_TEST(huge_additions_do_not_wrap)
{
    struct dtq_buf buf;
    dtq_buf_init(&buf, 100);
    dtq_buf_add_str(&buf, "x");
    ck_assert_int_eq(dtq_buf_reserve(&buf, (size_t)-1), DTQ_TOO_LARGE);
    dtq_buf_clean_up(&buf);
}
END_TEST

static enum dtq_code fill(void *context)
{
    (void)context;
    struct dtq_buf buf;
    struct dtq_error err;
    dtq_buf_init(&buf, 1 << 16);
    for (int i = 0; i < 1000; i++)
        dtq_buf_addf(&buf, "%d,", i);
    enum dtq_code rc = dtq_buf_check(&buf, &err, "numbers");
    dtq_buf_clean_up(&buf);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(fill, NULL);
}
END_TEST

Suite *buf_suite(void)
{
    Suite *suite = suite_create("buf");
    TCase *tcase = tcase_create("buf");
    tcase_add_test(tcase, grows_and_keeps_the_content);
    tcase_add_test(tcase, is_empty_before_the_first_add);
    tcase_add_test(tcase, holds_exactly_its_cap);
    tcase_add_test(tcase, stays_failed_and_empty);
    tcase_add_test(tcase, take_moves_the_bytes_out);
    tcase_add_test(tcase, huge_additions_do_not_wrap);
    tcase_add_test(tcase, survives_failing_allocations);
    suite_add_tcase(suite, tcase);
    return suite;
}
