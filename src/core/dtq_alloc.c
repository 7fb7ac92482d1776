#include "dtq_alloc.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

#ifdef DTQ_ALLOC_FAILABLE
#include <stdatomic.h>

/* Test builds only: the one mutable file-static of the core. */
static atomic_ulong fail_at;
static atomic_ulong seen;

void dtq_alloc_fail_at(unsigned long n)
{
    atomic_store(&seen, 0);
    atomic_store(&fail_at, n);
}

unsigned long dtq_alloc_count(void)
{
    return atomic_load(&seen);
}

static int must_fail(void)
{
    unsigned long mine = atomic_fetch_add(&seen, 1) + 1;
    return mine == atomic_load(&fail_at);
}
#else
#define must_fail() 0
#endif

void *dtq_malloc(size_t size)
{
    return must_fail() ? NULL : malloc(size ? size : 1);
}

void *dtq_calloc(size_t count, size_t size)
{
    return must_fail() ? NULL : calloc(count ? count : 1, size ? size : 1);
}

void *dtq_realloc(void *block, size_t size)
{
    return must_fail() ? NULL : realloc(block, size ? size : 1);
}

char *dtq_strndup(const char *text, size_t length)
{
    char *copy = dtq_malloc(length + 1);
    if (copy) {
        memcpy(copy, text, length);
        copy[length] = '\0';
    }
    return copy;
}

char *dtq_strdup(const char *text)
{
    return dtq_strndup(text, strlen(text));
}

void dtq_free(void *block)
{
    free(block);
}

void dtq_free_secret(void *block, size_t size)
{
    if (block)
        OPENSSL_cleanse(block, size);
    free(block);
}
