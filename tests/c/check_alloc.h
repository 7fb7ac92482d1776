/*
 * Runs a scenario with its first allocation failing, then its second, and so on, until none is left to fail.
 *
 * A scenario does one piece of work, frees everything, and returns the code that the core gave.  In a build without
 * DTQ_ALLOC_FAILABLE it runs once.  Leaks are the sanitizer's to find: the alloc target builds with it.
 */
#ifndef CHECK_ALLOC_H
#define CHECK_ALLOC_H

#include <check.h>

#include "dtq_alloc.h"
#include "dtq_error.h"

typedef enum dtq_code (*scenario_fn)(void *context);

static inline void run_with_failing_allocations(scenario_fn scenario, void *context)
{
#ifdef DTQ_ALLOC_FAILABLE
    for (unsigned long n = 1;; n++) {
        dtq_alloc_fail_at(n);
        enum dtq_code rc = scenario(context);
        unsigned long seen = dtq_alloc_count();
        dtq_alloc_fail_at(0);
        if (seen < n)
            break;
        ck_assert_msg(rc == DTQ_NO_MEMORY, "allocation %lu of %lu failed and the scenario returned %d", n, seen, rc);
    }
#endif
    ck_assert_int_eq(scenario(context), DTQ_OK);
}

#endif
