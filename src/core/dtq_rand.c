#include "dtq_rand.h"

#include <limits.h>

#include <openssl/rand.h>

#include "dtq_digest.h"

enum dtq_code dtq_random_bytes(void *out, size_t size, struct dtq_error *err)
{
    if (size > INT_MAX || RAND_bytes(out, (int)size) != 1)
        return dtq_error_set(err, DTQ_SYSTEM, "no random bytes could be had");
    return DTQ_OK;
}

enum dtq_code dtq_random_uuid_hex(char out[DTQ_UUID_HEX_SIZE], struct dtq_error *err)
{
    unsigned char bytes[16];
    enum dtq_code rc = dtq_random_bytes(bytes, sizeof bytes, err);
    if (rc)
        return rc;
    bytes[6] = (unsigned char)((bytes[6] & 0x0f) | 0x40);
    bytes[8] = (unsigned char)((bytes[8] & 0x3f) | 0x80);
    dtq_hex(bytes, sizeof bytes, out);
    return DTQ_OK;
}

uint64_t dtq_jitter_ms(uint64_t max_ms)
{
    uint64_t number;
    if (max_ms == 0 || dtq_random_bytes(&number, sizeof number, NULL))
        return max_ms;
    /* The bias of the remainder is below 2^-32 for any wait that makes sense. */
    return max_ms == UINT64_MAX ? number : number % (max_ms + 1);
}
