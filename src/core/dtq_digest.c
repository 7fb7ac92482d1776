#include "dtq_digest.h"

#include <limits.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

/* OpenSSL's own text for a failed digest is of no help to anybody; what fails is memory or the algorithm's absence. */
static enum dtq_code failed(const char *algorithm, struct dtq_error *err)
{
    return dtq_error_set(err, DTQ_UNSUPPORTED, "OpenSSL could not compute %s", algorithm);
}

enum dtq_code dtq_sha256(struct dtq_slice data, unsigned char out[DTQ_SHA256_SIZE], struct dtq_error *err)
{
    unsigned size = 0;
    if (EVP_Digest(data.data, data.length, out, &size, EVP_sha256(), NULL) != 1 || size != DTQ_SHA256_SIZE)
        return failed("SHA-256", err);
    return DTQ_OK;
}

enum dtq_code dtq_sha256_hex(struct dtq_slice data, char out[DTQ_SHA256_HEX_SIZE], struct dtq_error *err)
{
    unsigned char digest[DTQ_SHA256_SIZE];
    enum dtq_code rc = dtq_sha256(data, digest, err);
    if (!rc)
        dtq_hex(digest, sizeof digest, out);
    return rc;
}

enum dtq_code dtq_hmac_sha256(struct dtq_slice key, struct dtq_slice data, unsigned char out[DTQ_SHA256_SIZE],
                              struct dtq_error *err)
{
    static const unsigned char none[1] = {0};
    unsigned size = 0;
    if (key.length > INT_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the key is too long");
    const void *bytes = key.length ? (const void *)key.data : none;
    const unsigned char *input = data.length ? (const unsigned char *)data.data : none;
    if (!HMAC(EVP_sha256(), bytes, (int)key.length, input, data.length, out, &size) || size != DTQ_SHA256_SIZE)
        return failed("HMAC-SHA256", err);
    return DTQ_OK;
}

enum dtq_code dtq_md5_hex(struct dtq_slice data, char out[DTQ_MD5_HEX_SIZE], struct dtq_error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (EVP_Digest(data.data, data.length, digest, &size, EVP_md5(), NULL) != 1 || size != DTQ_MD5_SIZE)
        return failed("MD5", err);
    dtq_hex(digest, DTQ_MD5_SIZE, out);
    return DTQ_OK;
}

void dtq_hex(const unsigned char *bytes, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * size] = '\0';
}

bool dtq_is_lower_hex(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    }
    return true;
}

bool dtq_equal_constant_time(struct dtq_slice a, struct dtq_slice b)
{
    return a.length == b.length && (a.length == 0 || CRYPTO_memcmp(a.data, b.data, a.length) == 0);
}
