/*
 * The fence: a step process is dead before its lease ends.
 *
 * What it is for: a worker holds a board of slots in shared memory and moves a slot's deadline at each confirmed
 * renewal; the step process arms a kernel timer that kills it with SIGKILL at the deadline (stopped or not), and a
 * small thread there re-arms the timer when the board's deadline moves.  Deadlines are dtq_clock_boot_ns values.
 * Where there is no timer_create (macOS) the thread itself kills the process: later by its scheduling, and not while it
 * is stopped.
 * Ownership: the board's descriptor is inheritable by design (it holds no secret) and crosses exec to the warm parent,
 * and fork to the step process.  dtq_fence_arm maps it for itself: the descriptor may be closed afterwards.
 * Thread: dtq_fence_set, _extend and _clear from any thread of the process that made the board; dtq_fence_arm once per
 * step process, before its user code.
 * Failure: DTQ_SYSTEM; DTQ_INVALID_ARGUMENT for a descriptor that is no board; DTQ_FENCED when the deadline is already
 * past or the slot has another generation; DTQ_UNSUPPORTED.
 */
#ifndef DTQ_FENCE_H
#define DTQ_FENCE_H

#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_error.h"

struct dtq_fence_board;

enum dtq_code dtq_fence_board_new(int slots, struct dtq_fence_board **out, struct dtq_error *err) DTQ_MUST_CHECK;
void dtq_fence_board_destroy(struct dtq_fence_board *board); /* NULL-safe */
int dtq_fence_board_fd(const struct dtq_fence_board *board);
int dtq_fence_board_slots(const struct dtq_fence_board *board);

/* Give slot to generation with its first deadline. */
void dtq_fence_set(struct dtq_fence_board *board, int slot, int64_t generation, uint64_t deadline_ns);
/* Move the deadline when the slot still has this generation; never backwards. */
void dtq_fence_extend(struct dtq_fence_board *board, int slot, int64_t generation, uint64_t deadline_ns);
void dtq_fence_clear(struct dtq_fence_board *board, int slot);

/* In the step process: fence this process by slot of the board behind fd.  Returns once the timer is armed. */
enum dtq_code dtq_fence_arm(int fd, int slot, int64_t generation, struct dtq_error *err) DTQ_MUST_CHECK;

/* The deadline that the armed fence knows, 0 when none: lets the parent tell a fenced death from memory shortage. */
uint64_t dtq_fence_deadline_ns(int fd, int slot, int64_t generation);

/* The process dies with SIGKILL when the thread that forked it (the main thread of expected_parent) dies; DTQ_FENCED
 * when that has happened already.  Linux; elsewhere DTQ_UNSUPPORTED. */
enum dtq_code dtq_fence_die_with_parent(int expected_parent, struct dtq_error *err) DTQ_MUST_CHECK;
/* Takes that back. */
enum dtq_code dtq_fence_outlive_parent(struct dtq_error *err) DTQ_MUST_CHECK;

#endif
