/* The fence with real processes: who is killed, by what, and who lives. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <check.h>

#include "check_alloc.h"
#include "dtq_clock.h"
#include "dtq_fence.h"

#define MS 1000000u
#define S (1000 * MS)
#define GENERATION 7001
#define SLOT 3

static struct dtq_fence_board *board;

static void set_up(void)
{
    struct dtq_error err;
    ck_assert_int_eq(dtq_fence_board_new(8, &board, &err), DTQ_OK);
}

static void tear_down(void)
{
    dtq_fence_board_destroy(board);
}

static uint64_t in_ns(uint64_t ns)
{
    return dtq_clock_boot_ns() + ns;
}

/* A step process: arms, says so (a byte), and then does what it is told until it is killed. */
enum behaviour { SPIN, SLEEP };

static pid_t start_step(enum behaviour behaviour)
{
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct dtq_error err;
        volatile unsigned long turns = 0;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char code = (char)dtq_fence_arm(dtq_fence_board_fd(board), SLOT, GENERATION, &err);
        if (write(ready[1], &code, 1) != 1)
            _exit(99);
        while (behaviour == SPIN) /* as a C loop of an extension that holds the interpreter */
            turns++;
        for (;;)
            pause();
    }
    char code = 1;
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &code, 1), 1);
    close(ready[0]);
    ck_assert_int_eq(code, DTQ_OK);
    return child;
}

static bool is_running(pid_t child)
{
    int status;
    return waitpid(child, &status, WNOHANG) == 0;
}

static void assert_killed(pid_t child)
{
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %d", status);
}

static void wait_until(uint64_t boot_ns)
{
    while (dtq_clock_boot_ns() < boot_ns)
        usleep(1000);
}

START_TEST(the_deadline_kills)
{
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(_i ? SPIN : SLEEP);
    assert_killed(child);
    ck_assert_uint_ge(dtq_clock_boot_ns(), deadline_ns); /* never before */
}
END_TEST

START_TEST(the_deadline_kills_a_stopped_process)
{
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(SPIN);
    kill(child, SIGSTOP);
    int status;
    ck_assert_int_eq(waitpid(child, &status, WUNTRACED), child);
    if (WIFSTOPPED(status))
        assert_killed(child); /* without SIGCONT */
    else
        ck_assert_int_eq(WTERMSIG(status), SIGKILL);
    ck_assert_uint_ge(dtq_clock_boot_ns(), deadline_ns);
}
END_TEST

START_TEST(renewals_keep_it_alive)
{
    uint64_t first_ns = in_ns(2 * S), deadline_ns = first_ns;
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(_i ? SPIN : SLEEP);
    while (dtq_clock_boot_ns() < first_ns + 1 * S) {
        deadline_ns = in_ns(2 * S);
        dtq_fence_extend(board, SLOT, GENERATION, deadline_ns);
        usleep(50000);
    }
    ck_assert(is_running(child));
    assert_killed(child); /* no renewals any more */
    ck_assert_uint_ge(dtq_clock_boot_ns(), deadline_ns);
}
END_TEST

START_TEST(a_stopped_process_dies_although_it_was_renewed_too_late)
{
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(SLEEP);
    kill(child, SIGSTOP);
    wait_until(deadline_ns + 10 * MS);
    dtq_fence_extend(board, SLOT, GENERATION, in_ns(60ull * S));
    kill(child, SIGCONT);
    assert_killed(child);
}
END_TEST

START_TEST(another_generation_does_not_extend)
{
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(SLEEP);
    dtq_fence_extend(board, SLOT, GENERATION + 1, in_ns(60ull * S));
    dtq_fence_extend(board, SLOT + 1, GENERATION, in_ns(60ull * S));
    ck_assert_uint_eq(dtq_fence_deadline_ns(dtq_fence_board_fd(board), SLOT, GENERATION), deadline_ns);
    assert_killed(child);
}
END_TEST

START_TEST(a_slot_that_was_given_away_leaves_the_timer_where_it_was)
{
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = start_step(SLEEP);
    dtq_fence_clear(board, SLOT);
    dtq_fence_set(board, SLOT, GENERATION + 1, in_ns(60ull * S));
    assert_killed(child);
    ck_assert_uint_ge(dtq_clock_boot_ns(), deadline_ns);
}
END_TEST

START_TEST(never_backwards)
{
    int fd = dtq_fence_board_fd(board);
    dtq_fence_set(board, SLOT, GENERATION, 2000);
    dtq_fence_extend(board, SLOT, GENERATION, 1000);
    ck_assert_uint_eq(dtq_fence_deadline_ns(fd, SLOT, GENERATION), 2000);
    dtq_fence_extend(board, SLOT, GENERATION, 3000);
    ck_assert_uint_eq(dtq_fence_deadline_ns(fd, SLOT, GENERATION), 3000);
    ck_assert_uint_eq(dtq_fence_deadline_ns(fd, SLOT, GENERATION + 1), 0);
    dtq_fence_clear(board, SLOT);
    ck_assert_uint_eq(dtq_fence_deadline_ns(fd, SLOT, GENERATION), 0);
    ck_assert_uint_eq(dtq_fence_deadline_ns(fd, SLOT, 0), 0);
}
END_TEST

START_TEST(arming_is_refused)
{
    struct dtq_error err;
    int fd = dtq_fence_board_fd(board);
    dtq_fence_set(board, SLOT, GENERATION, dtq_clock_boot_ns() - 1);
    ck_assert_int_eq(dtq_fence_arm(fd, SLOT, GENERATION, &err), DTQ_FENCED);
    dtq_fence_set(board, SLOT, GENERATION + 1, in_ns(60ull * S));
    ck_assert_int_eq(dtq_fence_arm(fd, SLOT, GENERATION, &err), DTQ_FENCED);
    ck_assert_int_eq(dtq_fence_arm(fd, 8, GENERATION, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_fence_arm(fd, -1, GENERATION, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_fence_arm(-1, SLOT, GENERATION, &err), DTQ_SYSTEM);
    FILE *other = tmpfile();
    ck_assert_int_eq(dtq_fence_arm(fileno(other), SLOT, GENERATION, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(ftruncate(fileno(other), 4096), 0);
    ck_assert_int_eq(dtq_fence_arm(fileno(other), SLOT, GENERATION, &err), DTQ_INVALID_ARGUMENT);
    fclose(other);
}
END_TEST

START_TEST(sizes_are_checked)
{
    struct dtq_error err;
    struct dtq_fence_board *none;
    ck_assert_int_eq(dtq_fence_board_new(0, &none, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_fence_board_new(1 << 20, &none, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_fence_board_slots(board), 8);
    dtq_fence_set(board, 8, 1, 1);
    dtq_fence_set(board, -1, 1, 1);
    dtq_fence_board_destroy(NULL);
}
END_TEST

START_TEST(the_descriptor_may_be_closed_after_arming)
{
    struct dtq_error err;
    dtq_fence_set(board, SLOT, GENERATION, in_ns(1 * S));
    pid_t child = fork();
    if (child == 0) {
        if (dtq_fence_arm(dtq_fence_board_fd(board), SLOT, GENERATION, &err))
            _exit(1);
        close(dtq_fence_board_fd(board));
        for (;;)
            pause();
    }
    dtq_fence_extend(board, SLOT, GENERATION, in_ns(2 * S));
    assert_killed(child);
}
END_TEST

START_TEST(a_fork_of_the_step_process_is_not_fenced)
{
    /* The grandchild outlives the step process and tells so through the pipe. */
    int out[2];
    struct dtq_error err;
    ck_assert_int_eq(pipe(out), 0);
    uint64_t deadline_ns = in_ns(1 * S);
    dtq_fence_set(board, SLOT, GENERATION, deadline_ns);
    pid_t child = fork();
    if (child == 0) {
        if (dtq_fence_arm(dtq_fence_board_fd(board), SLOT, GENERATION, &err))
            _exit(1);
        if (fork() == 0) {
            wait_until(deadline_ns + 50 * MS);
            _exit(write(out[1], "x", 1) == 1 ? 0 : 1);
        }
        for (;;)
            pause();
    }
    assert_killed(child);
    char byte = 0;
    ck_assert_int_eq(read(out[0], &byte, 1), 1);
    close(out[0]);
    close(out[1]);
}
END_TEST

START_TEST(dies_with_its_parent)
{
    int out[2];
    ck_assert_int_eq(pipe(out), 0);
    pid_t parent = fork();
    if (parent == 0) {
        pid_t me = getpid();
        if (fork() == 0) {
            struct dtq_error err;
            char code = (char)dtq_fence_outlive_parent(&err); /* of nothing yet: does no harm */
            if (code == DTQ_OK)
                code = (char)dtq_fence_die_with_parent(me, &err);
            if (write(out[1], &code, 1) != 1)
                _exit(1);
            for (;;)
                pause();
        }
        close(out[1]);
        for (;;)
            pause();
    }
    char byte = 1;
    close(out[1]);
    ck_assert_int_eq(read(out[0], &byte, 1), 1);
    ck_assert_int_eq(byte, DTQ_OK);
    kill(parent, SIGKILL);
    assert_killed(parent);
    ck_assert_int_eq(read(out[0], &byte, 1), 0); /* the child's end is closed: it is dead */
    close(out[0]);
}
END_TEST

START_TEST(a_parent_that_is_gone_is_noticed)
{
    pid_t child = fork();
    if (child == 0) {
        struct dtq_error err;
        _exit(dtq_fence_die_with_parent(getpid(), &err) == DTQ_FENCED ? 0 : 1);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}
END_TEST

static enum dtq_code make_board(void *context)
{
    (void)context;
    struct dtq_error err = {0};
    struct dtq_fence_board *made = NULL;
    enum dtq_code rc = dtq_fence_board_new(2, &made, &err);
    dtq_fence_board_destroy(made);
    return rc;
}

START_TEST(memory_may_be_short)
{
    run_with_failing_allocations(make_board, NULL);
}
END_TEST

Suite *fence_suite(void)
{
    Suite *suite = suite_create("fence");
    TCase *tcase = tcase_create("fence");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_loop_test(tcase, the_deadline_kills, 0, 2);
    tcase_add_test(tcase, the_deadline_kills_a_stopped_process);
    tcase_add_loop_test(tcase, renewals_keep_it_alive, 0, 2);
    tcase_add_test(tcase, a_stopped_process_dies_although_it_was_renewed_too_late);
    tcase_add_test(tcase, another_generation_does_not_extend);
    tcase_add_test(tcase, a_slot_that_was_given_away_leaves_the_timer_where_it_was);
    tcase_add_test(tcase, never_backwards);
    tcase_add_test(tcase, arming_is_refused);
    tcase_add_test(tcase, sizes_are_checked);
    tcase_add_test(tcase, the_descriptor_may_be_closed_after_arming);
    tcase_add_test(tcase, a_fork_of_the_step_process_is_not_fenced);
    tcase_add_test(tcase, dies_with_its_parent);
    tcase_add_test(tcase, a_parent_that_is_gone_is_noticed);
    tcase_add_test(tcase, memory_may_be_short);
    suite_add_tcase(suite, tcase);
    return suite;
}
