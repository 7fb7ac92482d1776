/*
 * When to try again.
 *
 * What it is for: capped exponential backoff with full jitter, within a total deadline.
 * Source: "Exponential Backoff And Jitter" (AWS Architecture Blog): the wait is even from 0 to the ceiling, so that
 * clients that failed together do not come back together. Thread: any; a pure function of its arguments: time and
 * randomness are injected. Failure: none.
 */
#ifndef DTQ_RETRY_H
#define DTQ_RETRY_H

#include <stdbool.h>
#include <stdint.h>

struct dtq_retry_policy {
    int max_attempts; /* the first one counts */
    int base_ms;      /* the ceiling after the first failure; doubles with each further one */
    int cap_ms;       /* the ceiling never exceeds this */
};

/* The longest wait after attempt (1 = the first) has failed. */
uint64_t dtq_retry_ceiling_ms(const struct dtq_retry_policy *policy, int attempt);

/* Attempt has failed at now_ms.  True: try again at *at_ms.  False: there is no attempt left, or it would come at or
 * after deadline_ms (0 = none): then the failure at hand says more than a timeout would.  random: 64 even bits. */
bool dtq_retry_next(const struct dtq_retry_policy *policy, int attempt, uint64_t now_ms, uint64_t deadline_ms,
                    uint64_t random, uint64_t *at_ms);

#endif
