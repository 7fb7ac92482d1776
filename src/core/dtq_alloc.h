/*
 * Allocation of the core.
 *
 * What it is for: one place through which every byte of the core is allocated, so that a test can make the n-th
 * allocation fail (DTQ_ALLOC_FAILABLE builds only) and see that every path cleans up.
 * Ownership: what these return is freed with dtq_free; NULL-safe.
 * Failure: NULL; nothing else changes.  dtq_realloc leaves the old block as it was.
 * Thread: any.
 */
#ifndef DTQ_ALLOC_H
#define DTQ_ALLOC_H

#include <stddef.h>

void *dtq_malloc(size_t size);
void *dtq_calloc(size_t count, size_t size);
void *dtq_realloc(void *block, size_t size);
char *dtq_strdup(const char *text);
char *dtq_strndup(const char *text, size_t length); /* copies exactly length bytes and adds a NUL */
void dtq_free(void *block);

/* Overwrite in a way that the compiler may not leave out, then free: for keys and secrets. */
void dtq_free_secret(void *block, size_t size);

#ifdef DTQ_ALLOC_FAILABLE
/* The n-th allocation from now (1 = the next one) fails, once; 0 = none. */
void dtq_alloc_fail_at(unsigned long n);
/* Allocations since the last dtq_alloc_fail_at. */
unsigned long dtq_alloc_count(void);
#endif

#endif
