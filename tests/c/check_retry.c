#include <limits.h>

#include <check.h>

#include "dtq_retry.h"

static const struct dtq_retry_policy policy = {.max_attempts = 5, .base_ms = 100, .cap_ms = 1000};

START_TEST(the_ceiling_doubles_up_to_the_cap)
{
    static const uint64_t ceilings_ms[] = {100, 100, 200, 400, 800, 1000, 1000};
    for (int attempt = 0; attempt < 7; attempt++)
        ck_assert_uint_eq(dtq_retry_ceiling_ms(&policy, attempt), ceilings_ms[attempt]);
    ck_assert_uint_eq(dtq_retry_ceiling_ms(&policy, INT_MAX), 1000);
    ck_assert_uint_eq(dtq_retry_ceiling_ms(&policy, INT_MIN), 100);
}
END_TEST

START_TEST(the_largest_settings_do_not_wrap)
{
    const struct dtq_retry_policy large = {.max_attempts = INT_MAX, .base_ms = INT_MAX, .cap_ms = INT_MAX};
    for (int attempt = 1; attempt < 100; attempt++)
        ck_assert_uint_eq(dtq_retry_ceiling_ms(&large, attempt), INT_MAX);
    const struct dtq_retry_policy none = {.max_attempts = 3, .base_ms = -1, .cap_ms = -1};
    ck_assert_uint_eq(dtq_retry_ceiling_ms(&none, 1), 0);
}
END_TEST

START_TEST(the_wait_is_anywhere_from_nothing_to_the_ceiling)
{
    uint64_t at_ms = 0;
    ck_assert(dtq_retry_next(&policy, 1, 5000, 0, 0, &at_ms));
    ck_assert_uint_eq(at_ms, 5000);
    ck_assert(dtq_retry_next(&policy, 1, 5000, 0, 100, &at_ms));
    ck_assert_uint_eq(at_ms, 5100);
    ck_assert(dtq_retry_next(&policy, 1, 5000, 0, 101, &at_ms));
    ck_assert_uint_eq(at_ms, 5000);
    ck_assert(dtq_retry_next(&policy, 4, 5000, 0, UINT64_MAX, &at_ms));
    ck_assert_uint_le(at_ms, 5800);
}
END_TEST

START_TEST(attempts_are_bounded)
{
    uint64_t at_ms = 77;
    ck_assert(dtq_retry_next(&policy, 4, 0, 0, 1, &at_ms));
    at_ms = 77;
    ck_assert(!dtq_retry_next(&policy, 5, 0, 0, 1, &at_ms));
    ck_assert(!dtq_retry_next(&policy, 6, 0, 0, 1, &at_ms));
    ck_assert_uint_eq(at_ms, 77);
}
END_TEST

START_TEST(no_attempt_begins_at_the_deadline)
{
    uint64_t at_ms = 77;
    ck_assert(!dtq_retry_next(&policy, 1, 5000, 5050, 50, &at_ms));
    ck_assert(!dtq_retry_next(&policy, 1, 5000, 4000, 0, &at_ms));
    ck_assert_uint_eq(at_ms, 77);
    ck_assert(dtq_retry_next(&policy, 1, 5000, 5051, 50, &at_ms));
    ck_assert_uint_eq(at_ms, 5050);
}
END_TEST

Suite *retry_suite(void)
{
    Suite *suite = suite_create("retry");
    TCase *tcase = tcase_create("retry");
    tcase_add_test(tcase, the_ceiling_doubles_up_to_the_cap);
    tcase_add_test(tcase, the_largest_settings_do_not_wrap);
    tcase_add_test(tcase, the_wait_is_anywhere_from_nothing_to_the_ceiling);
    tcase_add_test(tcase, attempts_are_bounded);
    tcase_add_test(tcase, no_attempt_begins_at_the_deadline);
    suite_add_tcase(suite, tcase);
    return suite;
}
