#include <string.h>

#include "check_alloc.h"
#include "dtq_creds.h"

START_TEST(a_snapshot_lives_until_its_last_release)
{
    struct dtq_creds *creds = dtq_creds_new("id", "secret", "token", 1234);
    ck_assert_ptr_nonnull(creds);
    ck_assert_ptr_eq(dtq_creds_acquire(creds), creds);
    dtq_creds_release(creds);
    ck_assert_str_eq(creds->access_key_id, "id");
    ck_assert_str_eq(creds->secret_access_key, "secret");
    ck_assert_str_eq(creds->session_token, "token");
    ck_assert_int_eq(creds->expires_at_s, 1234);
    dtq_creds_release(creds);
    dtq_creds_release(dtq_creds_acquire(NULL));
}
END_TEST

START_TEST(an_empty_token_is_none)
{
    struct dtq_creds *creds = dtq_creds_new("id", "secret", "", 0);
    ck_assert_ptr_null(creds->session_token);
    dtq_creds_release(creds);
}
END_TEST

START_TEST(the_one_that_cannot_be_sent_is_named)
{
    static const struct {
        const char *set[3];
        const char *name; /* NULL: they are good */
    } cases[] = {
        {{"id", "secret", NULL}, NULL},
        {{"id", "secret", "t\xc3\xa4ken +/="}, NULL},
        {{"id\r", "secret", NULL}, "access key id"},
        {{"id", "sec\x7fret", NULL}, "secret access key"},
        {{"id", "secret", "token\n"}, "session token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_error err = {0};
        struct dtq_creds *creds = dtq_creds_new(cases[i].set[0], cases[i].set[1], cases[i].set[2], 0);
        ck_assert_int_eq(dtq_creds_check(creds, &err), cases[i].name ? DTQ_CREDENTIALS : DTQ_OK);
        ck_assert(!cases[i].name || (strstr(err.message, cases[i].name) && strstr(err.message, "control character")));
        dtq_creds_release(creds);
    }
}
END_TEST

static enum dtq_code make_and_release(void *context)
{
    (void)context;
    struct dtq_creds *creds = dtq_creds_new("id", "secret", "token", 0);
    dtq_creds_release(creds);
    return creds ? DTQ_OK : DTQ_NO_MEMORY;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(make_and_release, NULL);
}
END_TEST

Suite *creds_suite(void)
{
    Suite *suite = suite_create("creds");
    TCase *tcase = tcase_create("creds");
    tcase_add_test(tcase, a_snapshot_lives_until_its_last_release);
    tcase_add_test(tcase, an_empty_token_is_none);
    tcase_add_test(tcase, the_one_that_cannot_be_sent_is_named);
    tcase_add_test(tcase, survives_failing_allocations);
    suite_add_tcase(suite, tcase);
    return suite;
}
