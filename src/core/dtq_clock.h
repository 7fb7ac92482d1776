/*
 * Clocks.
 *
 * dtq_clock_monotonic_ms  for deadlines and timers inside a process (CLOCK_MONOTONIC).
 * dtq_clock_boot_ns       for lease deadlines: goes on while the machine sleeps (CLOCK_BOOTTIME; elsewhere CLOCK_MONOTONIC, which
 *                         on macOS counts sleep too). Comparable between the processes of one host.
 * dtq_clock_wall_s        for request signing only; never for a lease.
 * Thread: any.  Cannot fail.
 */
#ifndef DTQ_CLOCK_H
#define DTQ_CLOCK_H

#include <stdint.h>

uint64_t dtq_clock_monotonic_ms(void);
uint64_t dtq_clock_boot_ns(void);
int64_t dtq_clock_wall_s(void);

#endif
