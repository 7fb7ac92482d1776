#include <string.h>

#include "check_alloc.h"
#include "dtq_uri.h"

START_TEST(addresses_come_apart)
{
    static const struct {
        const char *text, *host, *origin, *path, *query;
        int port;
    } cases[] = {
        {"http://127.0.0.1:9324", "127.0.0.1:9324", "http://127.0.0.1:9324", "", "", 9324},
        {"https://sqs.eu-central-1.amazonaws.com/123/q.fifo", "sqs.eu-central-1.amazonaws.com",
         "https://sqs.eu-central-1.amazonaws.com", "/123/q.fifo", "", 443},
        {"HTTPS://Example.COM:443/", "example.com", "https://example.com", "/", "", 443},
        {"https://example.com:80/x?a=b?c", "example.com:80", "https://example.com:80", "/x", "a=b?c", 80},
        {"http://example.com:80?q", "example.com", "http://example.com", "", "q", 80},
        {"http://[::1]:8080/a", "[::1]:8080", "http://[::1]:8080", "/a", "", 8080},
        {"http://[FE80::1]", "[fe80::1]", "http://[fe80::1]", "", "", 80},
        {"http://moto_server/", "moto_server", "http://moto_server", "/", "", 80},
        {"http://a:65535/", "a:65535", "http://a:65535", "/", "", 65535},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_uri uri;
        struct dtq_error err = {0};
        struct dtq_buf text;
        dtq_buf_init(&text, 1000);
        ck_assert_msg(!dtq_uri_split(dtq_slice_str(cases[i].text), &uri, &err), "%s: %s", cases[i].text, err.message);
        ck_assert_int_eq(uri.port, cases[i].port);
        ck_assert_int_eq(uri.secure, cases[i].origin[4] == 's');
        ck_assert(dtq_slice_equal(uri.path, dtq_slice_str(cases[i].path)));
        ck_assert(dtq_slice_equal(uri.query, dtq_slice_str(cases[i].query)));
        ck_assert_int_eq(dtq_uri_add_host(&uri, &text), DTQ_OK);
        ck_assert_str_eq(dtq_buf_str(&text), cases[i].host);
        dtq_buf_clear(&text);
        ck_assert_int_eq(dtq_uri_add_origin(&uri, &text), DTQ_OK);
        ck_assert_str_eq(dtq_buf_str(&text), cases[i].origin);
        dtq_buf_clean_up(&text);
    }
}
END_TEST

START_TEST(what_is_no_address_is_refused)
{
    static const char *const cases[] = {
        "",
        "http:/",
        "http://",
        "https:///path",
        "ftp://host/",
        "host",
        "//host",
        "http://user@host/",
        "http://user:password@host/",
        "http://host:/",
        "http://host:0/",
        "http://host:65536/",
        "http://host:99999999999999999999/",
        "http://host:8a/",
        "http://host:-1/",
        "http://ho st/",
        "http://host/a b",
        "http://host/\n",
        "http://host/\xc3\xa4",
        "http://h\xc3\xa4/",
        "http://host/#fragment",
        "http://[::1",
        "http://[::1]x/",
        "http://[]/",
        "http://[::g]/",
        "http://a[::1]/",
        "http://ho%20st/",
        "http://host\\path/",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_uri uri;
        struct dtq_error err;
        ck_assert_msg(dtq_uri_split(dtq_slice_str(cases[i]), &uri, &err) == DTQ_INVALID_ARGUMENT, "%s", cases[i]);
        ck_assert_ptr_null(strstr(err.message, "password"));
    }
    struct dtq_uri uri;
    struct dtq_error err;
    ck_assert_int_eq(dtq_uri_split(dtq_slice("http://a\0b/", 11), &uri, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

START_TEST(bytes_are_percent_encoded)
{
    static const struct {
        const char *text, *encoded;
        bool keep_slash;
    } cases[] = {
        {"", "", false},
        {"aZ09-._~", "aZ09-._~", false},
        {"a/b", "a%2Fb", false},
        {"a/b", "a/b", true},
        {" +%\xc3\xa4", "%20%2B%25%C3%A4", true},
        {"a b", "a%20b", false},
        {"\x7f\x01", "%7F%01", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dtq_buf text;
        dtq_buf_init(&text, 1000);
        ck_assert_int_eq(dtq_uri_add_encoded(dtq_slice_str(cases[i].text), cases[i].keep_slash, &text), DTQ_OK);
        ck_assert_str_eq(dtq_buf_str(&text), cases[i].encoded);
        dtq_buf_clean_up(&text);
    }
}
END_TEST

static enum dtq_code rebuild(void *context)
{
    (void)context;
    struct dtq_uri uri;
    struct dtq_error err;
    struct dtq_buf text;
    dtq_buf_init(&text, 1000);
    enum dtq_code rc = dtq_uri_split(dtq_slice_str("https://Host:1/path"), &uri, &err);
    if (!rc)
        rc = dtq_uri_add_origin(&uri, &text);
    if (!rc)
        rc = dtq_uri_add_encoded(uri.path, false, &text);
    dtq_buf_clean_up(&text);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(rebuild, NULL);
}
END_TEST

Suite *uri_suite(void)
{
    Suite *suite = suite_create("uri");
    TCase *tcase = tcase_create("uri");
    tcase_add_test(tcase, addresses_come_apart);
    tcase_add_test(tcase, what_is_no_address_is_refused);
    tcase_add_test(tcase, bytes_are_percent_encoded);
    tcase_add_test(tcase, survives_failing_allocations);
    suite_add_tcase(suite, tcase);
    return suite;
}
