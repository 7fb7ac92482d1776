#include "dtq_retry.h"

#define DOUBLINGS_MAX 31 /* an int doubled so often still fits the uint64_t */

uint64_t dtq_retry_ceiling_ms(const struct dtq_retry_policy *policy, int attempt)
{
    int doublings = attempt < 1 ? 0 : attempt - 1;
    uint64_t base_ms = policy->base_ms > 0 ? (uint64_t)policy->base_ms : 0;
    uint64_t cap_ms = policy->cap_ms > 0 ? (uint64_t)policy->cap_ms : 0;
    uint64_t ceiling_ms = base_ms << (doublings > DOUBLINGS_MAX ? DOUBLINGS_MAX : doublings);
    return ceiling_ms < cap_ms ? ceiling_ms : cap_ms;
}

bool dtq_retry_next(const struct dtq_retry_policy *policy, int attempt, uint64_t now_ms, uint64_t deadline_ms,
                    uint64_t random, uint64_t *at_ms)
{
    if (attempt >= policy->max_attempts)
        return false;
    uint64_t again_ms = now_ms + random % (dtq_retry_ceiling_ms(policy, attempt) + 1);
    if (deadline_ms && again_ms >= deadline_ms)
        return false;
    *at_ms = again_ms;
    return true;
}
