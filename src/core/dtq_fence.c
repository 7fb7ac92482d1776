/*
 * DESIGN
 *
 * Memory of the board, in a memfd (elsewhere an unlinked file), mapped shared by the worker and, read-only, by each
 * step process; all numbers in the machine's byte order, offsets in bytes:
 *
 *     0   uint64  magic             "DTQFENC1"
 *     8   uint32  slots
 *    64   slot 0, 128 slot 1 ..., each on a cache line of its own:
 *           +0   uint64  generation      0: free
 *           +8   uint64  deadline_ns     dtq_clock_boot_ns
 *           +16  uint32  changes         counts; the futex that the step process's thread sleeps on
 *
 * Only the worker writes, under its own lock.  A slot is given to another generation by way of 0, so a reader that sees
 * its generation before and after reading the deadline has read its own.
 *
 * The step process: timer_create(CLOCK_BOOTTIME) with SIGKILL needs no thread, no signal handler and no interpreter to
 * fire, and fires while the process is stopped.  The thread only moves it to later.  When the slot is no longer ours
 * the thread ends and the timer stays where it is.  Where the system has no such timer, the thread looks at the clock
 * and kills.
 */
#include "dtq_fence.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include "dtq_alloc.h"
#include "dtq_clock.h"

#define MAGIC 0x31434E4546515444u /* "DTQFENC1" */
#define LINE 64
#define SLOTS_MAX 65536
#define STACK_BYTES (256 * 1024)
#define NS_PER_S 1000000000u
#define LOOK_NS 20000000 /* without futex or kernel timer: how often the thread looks */

struct header {
    uint64_t magic;
    uint32_t slots;
};

struct slot {
    _Alignas(LINE) _Atomic uint64_t generation;
    _Atomic uint64_t deadline_ns;
    _Atomic uint32_t changes;
};

_Static_assert(sizeof(struct slot) == LINE, "the layout above");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "atomics must work across processes");

struct dtq_fence_board {
    int fd;
    int slots;
    size_t size;
    void *map;
    pthread_mutex_t lock;
};

static struct slot *slot_of(void *map, int slot)
{
    return (struct slot *)((char *)map + LINE) + slot;
}

static size_t size_of(int slots)
{
    return LINE + (size_t)slots * LINE;
}

/* ---- waking the step process ------------------------------------------------------------------------------------- */

static void pause_ns(long ns)
{
    struct timespec pause = {0, ns};
    nanosleep(&pause, NULL);
}

#ifdef __linux__
static void wake(struct slot *slot)
{
    syscall(SYS_futex, &slot->changes, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* Until changes is no longer seen, or for no reason. */
static void wait_for_change(struct slot *slot, uint32_t seen)
{
    if (syscall(SYS_futex, &slot->changes, FUTEX_WAIT, seen, NULL, NULL, 0) == 0 || errno == EAGAIN || errno == EINTR)
        return;
    pause_ns(LOOK_NS); /* no futex here: look now and then */
}
#else
static void wake(struct slot *slot)
{
    (void)slot;
}

static void wait_for_change(struct slot *slot, uint32_t seen)
{
    (void)slot;
    (void)seen;
    pause_ns(LOOK_NS);
}
#endif

/* ---- the board --------------------------------------------------------------------------------------------------- */

static int open_memory(void)
{
#if defined(__linux__) && defined(MFD_ALLOW_SEALING)
    int memory = memfd_create("dagster-taskiq-fence", 0);
    if (memory >= 0 || errno != ENOSYS)
        return memory;
#endif
    char path[4096];
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/dagster-taskiq-fence-XXXXXX", folder && folder[0] ? folder : "/tmp");
    int fd = mkstemp(path);
    if (fd >= 0)
        unlink(path);
    return fd;
}

enum dtq_code dtq_fence_board_new(int slots, struct dtq_fence_board **out, struct dtq_error *err)
{
    *out = NULL;
    if (slots < 1 || slots > SLOTS_MAX)
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a fence board has 1 to %d slots", SLOTS_MAX);
    struct dtq_fence_board *board = dtq_calloc(1, sizeof *board);
    if (!board)
        return dtq_error_no_memory(err);
    enum dtq_code rc = DTQ_OK;
    pthread_mutex_init(&board->lock, NULL);
    board->slots = slots;
    board->size = size_of(slots);
    board->map = MAP_FAILED;
    board->fd = open_memory();
    if (board->fd < 0 || ftruncate(board->fd, (off_t)board->size) != 0) {
        rc = dtq_error_set_errno(err, errno, "the fence board could not be made");
        goto cleanup;
    }
    board->map = mmap(NULL, board->size, PROT_READ | PROT_WRITE, MAP_SHARED, board->fd, 0);
    if (board->map == MAP_FAILED) {
        rc = dtq_error_set_errno(err, errno, "the fence board could not be mapped");
        goto cleanup;
    }
    struct header *header = board->map;
    header->magic = MAGIC;
    header->slots = (uint32_t)slots;
    *out = board;
cleanup:
    if (rc)
        dtq_fence_board_destroy(board);
    return rc;
}

void dtq_fence_board_destroy(struct dtq_fence_board *board)
{
    if (!board)
        return;
    if (board->map != MAP_FAILED)
        munmap(board->map, board->size);
    if (board->fd >= 0)
        close(board->fd);
    pthread_mutex_destroy(&board->lock);
    dtq_free(board);
}

int dtq_fence_board_fd(const struct dtq_fence_board *board)
{
    return board->fd;
}

int dtq_fence_board_slots(const struct dtq_fence_board *board)
{
    return board->slots;
}

static void change(struct slot *slot)
{
    atomic_fetch_add(&slot->changes, 1);
    wake(slot);
}

void dtq_fence_set(struct dtq_fence_board *board, int slot, int64_t generation, uint64_t deadline_ns)
{
    if (slot < 0 || slot >= board->slots)
        return;
    struct slot *at = slot_of(board->map, slot);
    pthread_mutex_lock(&board->lock);
    atomic_store(&at->generation, 0);
    atomic_store(&at->deadline_ns, deadline_ns);
    atomic_store(&at->generation, (uint64_t)generation);
    change(at);
    pthread_mutex_unlock(&board->lock);
}

void dtq_fence_extend(struct dtq_fence_board *board, int slot, int64_t generation, uint64_t deadline_ns)
{
    if (slot < 0 || slot >= board->slots)
        return;
    struct slot *at = slot_of(board->map, slot);
    pthread_mutex_lock(&board->lock);
    if (atomic_load(&at->generation) == (uint64_t)generation && atomic_load(&at->deadline_ns) < deadline_ns) {
        atomic_store(&at->deadline_ns, deadline_ns);
        change(at);
    }
    pthread_mutex_unlock(&board->lock);
}

void dtq_fence_clear(struct dtq_fence_board *board, int slot)
{
    dtq_fence_set(board, slot, 0, 0);
}

/* ---- the step process -------------------------------------------------------------------------------------------- */

struct fence {
    void *map;
    size_t size;
    struct slot *slot;
    uint64_t generation;
    uint64_t armed_ns;
    bool has_timer;
#ifdef CLOCK_BOOTTIME
    timer_t timer;
#endif
};

/* 0 when the slot is another's. */
static uint64_t read_deadline_ns(const struct slot *slot, uint64_t generation)
{
    if (generation == 0 || atomic_load(&slot->generation) != generation)
        return 0;
    uint64_t deadline_ns = atomic_load(&slot->deadline_ns);
    return atomic_load(&slot->generation) == generation ? deadline_ns : 0;
}

static enum dtq_code map_board(int fd, int slot, struct fence *fence, struct dtq_error *err)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return dtq_error_set_errno(err, errno, "descriptor %d of the fence board", fd);
    if ((size_t)info.st_size < size_of(1))
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "descriptor %d is not a fence board", fd);
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return dtq_error_set_errno(err, errno, "the fence board could not be mapped");
    const struct header *header = map;
    if (header->magic != MAGIC || slot < 0 || (uint32_t)slot >= header->slots ||
        (size_t)info.st_size < size_of((int)header->slots)) {
        munmap(map, (size_t)info.st_size);
        return dtq_error_set(err, DTQ_INVALID_ARGUMENT, "descriptor %d has no fence board with slot %d", fd, slot);
    }
    fence->map = map;
    fence->size = (size_t)info.st_size;
    fence->slot = slot_of(map, slot);
    return DTQ_OK;
}

static void fence_free(struct fence *fence)
{
    if (!fence)
        return;
    if (fence->map)
        munmap(fence->map, fence->size);
    dtq_free(fence);
}

#ifdef CLOCK_BOOTTIME
static bool timer_open(struct fence *fence)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    return timer_create(CLOCK_BOOTTIME, &event, &fence->timer) == 0;
}

static void timer_close(struct fence *fence)
{
    timer_delete(fence->timer);
}

static void timer_move(struct fence *fence)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(fence->armed_ns / NS_PER_S), .tv_nsec = (long)(fence->armed_ns % NS_PER_S)}};
    timer_settime(fence->timer, TIMER_ABSTIME, &when, NULL);
}
#else
static bool timer_open(struct fence *fence)
{
    (void)fence;
    return false;
}

static void timer_close(struct fence *fence)
{
    (void)fence;
}

static void timer_move(struct fence *fence)
{
    (void)fence;
}
#endif

static void arm_at(struct fence *fence, uint64_t deadline_ns)
{
    fence->armed_ns = deadline_ns;
    if (fence->has_timer)
        timer_move(fence);
}

static void *follow_board(void *argument)
{
    struct fence *fence = argument;
    for (;;) {
        uint32_t seen = atomic_load(&fence->slot->changes);
        uint64_t deadline_ns = read_deadline_ns(fence->slot, fence->generation);
        if (deadline_ns > fence->armed_ns)
            arm_at(fence, deadline_ns);
        if (!fence->has_timer) {
            if (dtq_clock_boot_ns() >= fence->armed_ns)
                kill(getpid(), SIGKILL);
            pause_ns(LOOK_NS);
        }
        else if (deadline_ns)
            wait_for_change(fence->slot, seen);
        else
            break;
    }
    fence_free(fence);
    return NULL;
}

static int start_follower(struct fence *fence)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, &attributes, follow_board, fence);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return failed;
}

enum dtq_code dtq_fence_arm(int fd, int slot, int64_t generation, struct dtq_error *err)
{
    struct fence *fence = dtq_calloc(1, sizeof *fence);
    if (!fence)
        return dtq_error_no_memory(err);
    fence->generation = (uint64_t)generation;
    enum dtq_code rc = map_board(fd, slot, fence, err);
    if (rc) {
        fence_free(fence);
        return rc;
    }
    uint64_t deadline_ns = read_deadline_ns(fence->slot, fence->generation);
    if (!deadline_ns || dtq_clock_boot_ns() >= deadline_ns) {
        rc = dtq_error_set(err, DTQ_FENCED, deadline_ns ? NULL : "the slot belongs to another claim");
        goto cleanup;
    }
    fence->has_timer = timer_open(fence);
    arm_at(fence, deadline_ns);
    /* A timer set to a time that is just past may fire a moment later than this returns. */
    if (dtq_clock_boot_ns() >= deadline_ns) {
        rc = dtq_error_set(err, DTQ_FENCED, NULL);
        goto cleanup;
    }
    int failed = start_follower(fence);
    if (failed)
        rc = dtq_error_set_errno(err, failed, "the fence's thread could not be started");
cleanup:
    if (rc) {
        if (fence->has_timer)
            timer_close(fence);
        fence_free(fence);
    }
    return rc;
}

uint64_t dtq_fence_deadline_ns(int fd, int slot, int64_t generation)
{
    struct fence fence = {0};
    if (map_board(fd, slot, &fence, NULL))
        return 0;
    uint64_t deadline_ns = read_deadline_ns(fence.slot, (uint64_t)generation);
    munmap(fence.map, fence.size);
    return deadline_ns;
}

enum dtq_code dtq_fence_die_with_parent(int expected_parent, struct dtq_error *err)
{
#ifdef __linux__
    if (prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0UL, 0UL, 0UL) != 0)
        return dtq_error_set_errno(err, errno, "PR_SET_PDEATHSIG");
    /* A parent that died before the call sent nothing. */
    if (getppid() != (pid_t)expected_parent)
        return dtq_error_set(err, DTQ_FENCED, "process %d, the parent, is gone", expected_parent);
    return DTQ_OK;
#else
    (void)expected_parent;
    return dtq_error_set(err, DTQ_UNSUPPORTED, "a process cannot ask to die with its parent here");
#endif
}

enum dtq_code dtq_fence_outlive_parent(struct dtq_error *err)
{
#ifdef __linux__
    if (prctl(PR_SET_PDEATHSIG, 0UL, 0UL, 0UL, 0UL) != 0)
        return dtq_error_set_errno(err, errno, "PR_SET_PDEATHSIG");
    return DTQ_OK;
#else
    return dtq_error_set(err, DTQ_UNSUPPORTED, "a process cannot ask to die with its parent here");
#endif
}
