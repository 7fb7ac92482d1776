#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "dtq_digest.h"
#include "dtq_rand.h"

/* FIPS 180-4's and RFC 1321's examples. */
START_TEST(digests_are_the_standards)
{
    char sha256[DTQ_SHA256_HEX_SIZE], md5[DTQ_MD5_HEX_SIZE];
    struct dtq_error err;
    ck_assert_int_eq(dtq_sha256_hex(dtq_slice(NULL, 0), sha256, &err), DTQ_OK);
    ck_assert_str_eq(sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    ck_assert_int_eq(dtq_sha256_hex(dtq_slice_str("abc"), sha256, &err), DTQ_OK);
    ck_assert_str_eq(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    ck_assert_int_eq(dtq_md5_hex(dtq_slice(NULL, 0), md5, &err), DTQ_OK);
    ck_assert_str_eq(md5, "d41d8cd98f00b204e9800998ecf8427e");
    ck_assert_int_eq(dtq_md5_hex(dtq_slice_str("abc"), md5, &err), DTQ_OK);
    ck_assert_str_eq(md5, "900150983cd24fb0d6963f7d28e17f72");
}
END_TEST

static void assert_hmac(struct dtq_slice key, struct dtq_slice data, const char *expected)
{
    unsigned char digest[DTQ_SHA256_SIZE];
    char hex[DTQ_SHA256_HEX_SIZE];
    struct dtq_error err;
    ck_assert_int_eq(dtq_hmac_sha256(key, data, digest, &err), DTQ_OK);
    dtq_hex(digest, sizeof digest, hex);
    ck_assert_str_eq(hex, expected);
}

/* RFC 4231, cases 2 and 6 (a key longer than a block), and the empty key. */
START_TEST(hmac_is_the_standard)
{
    char long_key[131];
    memset(long_key, 0xaa, sizeof long_key);
    assert_hmac(dtq_slice_str("Jefe"), dtq_slice_str("what do ya want for nothing?"),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    assert_hmac(dtq_slice(long_key, sizeof long_key),
                dtq_slice_str("Test Using Larger Than Block-Size Key - Hash Key First"),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    assert_hmac(dtq_slice(NULL, 0), dtq_slice(NULL, 0),
                "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}
END_TEST

START_TEST(hex_is_told_from_other_text)
{
    ck_assert(dtq_is_lower_hex("09af", 4));
    ck_assert(dtq_is_lower_hex("", 0));
    ck_assert(!dtq_is_lower_hex("0A", 2));
    ck_assert(!dtq_is_lower_hex("0g", 2));
    ck_assert(!dtq_is_lower_hex("0\0", 2));
}
END_TEST

START_TEST(secrets_compare)
{
    ck_assert(dtq_equal_constant_time(dtq_slice_str("abc"), dtq_slice_str("abc")));
    ck_assert(!dtq_equal_constant_time(dtq_slice_str("abc"), dtq_slice_str("abd")));
    ck_assert(!dtq_equal_constant_time(dtq_slice_str("abc"), dtq_slice_str("ab")));
    ck_assert(dtq_equal_constant_time(dtq_slice(NULL, 0), dtq_slice_str("")));
}
END_TEST

START_TEST(uuids_are_of_version_4)
{
    char first[DTQ_UUID_HEX_SIZE], second[DTQ_UUID_HEX_SIZE];
    struct dtq_error err;
    ck_assert_int_eq(dtq_random_uuid_hex(first, &err), DTQ_OK);
    ck_assert_int_eq(dtq_random_uuid_hex(second, &err), DTQ_OK);
    ck_assert(dtq_is_lower_hex(first, 32));
    ck_assert_int_eq(first[12], '4');
    ck_assert_ptr_nonnull(strchr("89ab", first[16]));
    ck_assert_str_ne(first, second);
}
END_TEST

START_TEST(jitter_stays_in_its_range)
{
    unsigned seen = 0;
    ck_assert_uint_eq(dtq_jitter_ms(0), 0);
    for (int i = 0; i < 1000; i++) {
        uint64_t wait = dtq_jitter_ms(3);
        ck_assert_uint_le(wait, 3);
        seen |= 1u << wait;
    }
    ck_assert_uint_eq(seen, 15);
}
END_TEST

Suite *digest_suite(void)
{
    Suite *suite = suite_create("digest");
    TCase *tcase = tcase_create("digest");
    tcase_add_test(tcase, digests_are_the_standards);
    tcase_add_test(tcase, hmac_is_the_standard);
    tcase_add_test(tcase, hex_is_told_from_other_text);
    tcase_add_test(tcase, secrets_compare);
    tcase_add_test(tcase, uuids_are_of_version_4);
    tcase_add_test(tcase, jitter_stays_in_its_range);
    suite_add_tcase(suite, tcase);
    return suite;
}
