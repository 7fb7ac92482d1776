#include "dtq_clock.h"

#include <time.h>

static uint64_t read_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t dtq_clock_monotonic_ms(void)
{
    return read_ns(CLOCK_MONOTONIC) / 1000000u;
}

uint64_t dtq_clock_boot_ns(void)
{
#ifdef CLOCK_BOOTTIME
    return read_ns(CLOCK_BOOTTIME);
#else
    return read_ns(CLOCK_MONOTONIC);
#endif
}

int64_t dtq_clock_wall_s(void)
{
    return (int64_t)time(NULL);
}
