/*
 * The bytes that stand for themselves in a JSON string: printable ASCII other than '"' and '\'.
 *
 * What it is for: the inner loops of writing, checking and walking, which look at eight bytes at once.
 */
#ifndef DTQ_JSON_PLAIN_H
#define DTQ_JSON_PLAIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DTQ_PLAIN_BYTES 8 /* that are looked at */

/* How many bytes at p are plain before the first that is not: 0..8.  All eight can be read.
 * One bit, the highest, is set for a byte that is not plain.  That is exact up to the first such byte, which is all that
 * counts: a borrow can only reach the bytes behind it. */
static inline size_t dtq_plain_bytes(const unsigned char *p)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), high = UINT64_C(0x8080808080808080);
    uint64_t word;
    memcpy(&word, p, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    uint64_t quote = word ^ ones * '"', backslash = word ^ ones * '\\', rubout = word ^ ones * 0x7f;
    uint64_t found = (word - ones * 0x20) | (quote - ones) | (backslash - ones) | (rubout - ones);
    found = (found | word) & high;
    return found ? (size_t)__builtin_ctzll(found) / 8 : DTQ_PLAIN_BYTES;
}

#endif
