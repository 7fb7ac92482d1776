/*
 * The I/O thread, driven by a source of the tests: it finishes an operation at once, when told, or after a time.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <check.h>

#include "check_alloc.h"
#include "dtq_clock.h"
#include "dtq_loop.h"

enum behaviour {
    AT_ONCE,  /* finishes in submit */
    ON_READ,  /* finishes when the source's pipe is readable */
    ON_TIMER, /* finishes after 5 ms */
    NEVER,    /* only cancel or stop end it */
    CHAIN,    /* its on_done publishes an event */
};

struct test_op {
    struct dtq_op op;
    enum behaviour behaviour;
    uint64_t at_ms;
    struct test_op *next; /* of the source's list */
};

struct test_source {
    struct dtq_source source;
    struct test_op *waiting;
    int pipe[2];
    int cancels, graceful_stops, forced_stops; /* I/O thread; read after the close */
    int *destroyed;                            /* of the test: +1 when destroyed, +100 when as a fork */
    bool blocks_signals;
    bool keep_busy; /* never idle */
};

static void test_op_destroy(struct dtq_op *op)
{
    dtq_free(op);
}

static const struct dtq_op_class test_op_class = {DTQ_OP_SQS, test_op_destroy};

static void unlink_op(struct test_source *self, struct test_op *op)
{
    for (struct test_op **link = &self->waiting; *link; link = &(*link)->next) {
        if (*link == op) {
            *link = op->next;
            return;
        }
    }
}

static void finish_op(struct test_source *self, struct test_op *op, enum dtq_code code)
{
    unlink_op(self, op);
    if (code)
        dtq_error_set(&op->op.error, code, NULL);
    else
        dtq_error_clear(&op->op.error);
    dtq_loop_finish(self->source.loop, &op->op);
}

static void test_submit(struct dtq_source *source, struct dtq_op *base)
{
    struct test_source *self = (struct test_source *)source;
    struct test_op *op = (struct test_op *)base;
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    self->blocks_signals = sigismember(&blocked, SIGINT) && sigismember(&blocked, SIGPIPE);
    op->at_ms = dtq_clock_monotonic_ms() + 5;
    op->next = self->waiting;
    self->waiting = op;
    if (op->behaviour == AT_ONCE || op->behaviour == CHAIN)
        finish_op(self, op, DTQ_OK);
}

static void test_cancel(struct dtq_source *source, struct dtq_op *op)
{
    struct test_source *self = (struct test_source *)source;
    self->cancels++;
    unlink_op(self, (struct test_op *)op);
    dtq_loop_finish(source->loop, op);
}

static unsigned test_prepare(struct dtq_source *source, uint64_t now_ms, struct curl_waitfd *fds, unsigned room,
                             uint64_t *wake_ms)
{
    struct test_source *self = (struct test_source *)source;
    (void)now_ms;
    ck_assert_uint_eq(room, DTQ_LOOP_FDS_MAX);
    for (struct test_op *op = self->waiting; op; op = op->next) {
        if (op->behaviour == ON_TIMER && op->at_ms < *wake_ms)
            *wake_ms = op->at_ms;
    }
    memset(fds, 0, sizeof *fds);
    fds[0].fd = self->pipe[0];
    fds[0].events = CURL_WAIT_POLLIN;
    return 1;
}

static void test_dispatch(struct dtq_source *source, uint64_t now_ms, const struct curl_waitfd *fds, unsigned count)
{
    struct test_source *self = (struct test_source *)source;
    char byte;
    bool readable = count && (fds[0].revents & CURL_WAIT_POLLIN) && read(self->pipe[0], &byte, 1) == 1;
    for (struct test_op *op = self->waiting, *next; op; op = next) {
        next = op->next;
        if ((op->behaviour == ON_READ && readable) || (op->behaviour == ON_TIMER && op->at_ms <= now_ms))
            finish_op(self, op, DTQ_OK);
    }
}

static void test_stop(struct dtq_source *source, bool graceful)
{
    struct test_source *self = (struct test_source *)source;
    if (graceful)
        self->graceful_stops++;
    else
        self->forced_stops++;
}

static bool test_is_idle(struct dtq_source *source)
{
    struct test_source *self = (struct test_source *)source;
    return !self->waiting && !self->keep_busy;
}

static void test_destroy(struct dtq_source *source, bool forked)
{
    struct test_source *self = (struct test_source *)source;
    if (self->destroyed)
        *self->destroyed += forked ? 100 : 1;
    close(self->pipe[0]);
    close(self->pipe[1]);
    dtq_free(self);
}

static const struct dtq_source_class test_source_class = {
    .name = "test",
    .submit = test_submit,
    .cancel = test_cancel,
    .prepare = test_prepare,
    .dispatch = test_dispatch,
    .stop = test_stop,
    .is_idle = test_is_idle,
    .destroy = test_destroy,
};

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static struct test_source *add_source(struct dtq_loop *loop)
{
    struct dtq_error err;
    struct test_source *self = dtq_calloc(1, sizeof *self);
    self->source.source_class = &test_source_class;
    ck_assert_int_eq(pipe(self->pipe), 0);
    ck_assert_int_eq(dtq_loop_add(loop, &self->source, &err), DTQ_OK);
    return self;
}

static struct dtq_loop *new_loop(struct test_source **source)
{
    struct dtq_loop *loop;
    struct dtq_error err;
    ck_assert_int_eq(dtq_loop_new(&loop, &err), DTQ_OK);
    *source = add_source(loop);
    return loop;
}

static struct dtq_op *new_op(struct test_source *source, enum behaviour behaviour)
{
    struct test_op *op = dtq_calloc(1, sizeof *op);
    dtq_op_init(&op->op, &test_op_class, &source->source);
    op->behaviour = behaviour;
    return &op->op;
}

static void submit(struct dtq_loop *loop, struct dtq_op *op)
{
    struct dtq_error err;
    ck_assert_int_eq(dtq_loop_submit(loop, op, &err), DTQ_OK);
}

static struct dtq_op *submit_new(struct dtq_loop *loop, struct test_source *source, enum behaviour behaviour)
{
    struct dtq_op *op = new_op(source, behaviour);
    submit(loop, op);
    return op;
}

static void wait_done(struct dtq_loop *loop, struct dtq_op *op)
{
    struct dtq_error err;
    ck_assert_int_eq(dtq_loop_wait(loop, op, -1, &err), DTQ_OK);
    ck_assert(dtq_op_is_done(loop, op));
}

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, timeout_ms) == 1;
}

/* ---- cases ------------------------------------------------------------------------------------------------------- */

START_TEST(an_operation_is_done_and_waited_for)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = submit_new(loop, source, AT_ONCE);
    wait_done(loop, op);
    ck_assert_int_eq(op->error.code, DTQ_OK);
    dtq_op_release(loop, op);
    dtq_loop_close(loop, 1000);
    ck_assert(source->blocks_signals);
    ck_assert_int_eq(source->graceful_stops, 1);
    ck_assert_int_eq(source->forced_stops, 1);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(timers_and_descriptors_of_a_source_are_served)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *timer = submit_new(loop, source, ON_TIMER);
    struct dtq_op *reading = submit_new(loop, source, ON_READ);
    wait_done(loop, timer);
    ck_assert(!dtq_op_is_done(loop, reading));
    ck_assert_int_eq((int)write(source->pipe[1], "x", 1), 1);
    wait_done(loop, reading);
    dtq_op_release(loop, timer);
    dtq_op_release(loop, reading);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(a_wait_that_ends_early_leaves_the_operation)
{
    struct dtq_error err;
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = submit_new(loop, source, ON_READ);
    ck_assert_int_eq(dtq_loop_wait(loop, op, 1, &err), DTQ_TIMEOUT);
    ck_assert_int_eq((int)write(source->pipe[1], "x", 1), 1);
    wait_done(loop, op);
    ck_assert_int_eq(op->error.code, DTQ_OK);
    dtq_op_release(loop, op);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(a_deadline_ends_the_operation)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *late = new_op(source, NEVER), *later = new_op(source, NEVER);
    late->deadline_ms = dtq_clock_monotonic_ms() + 3;
    later->deadline_ms = dtq_clock_monotonic_ms() + 6;
    submit(loop, later);
    submit(loop, late);
    wait_done(loop, late);
    wait_done(loop, later);
    ck_assert_int_eq(late->error.code, DTQ_TIMEOUT);
    ck_assert_int_eq(later->error.code, DTQ_TIMEOUT);
    dtq_op_release(loop, late);
    dtq_op_release(loop, later);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(cancelling_ends_the_operation)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *ops[3];
    for (int i = 0; i < 3; i++)
        ops[i] = submit_new(loop, source, NEVER);
    for (int i = 0; i < 3; i++) {
        dtq_loop_cancel(loop, ops[i]);
        dtq_loop_cancel(loop, ops[i]);
    }
    for (int i = 0; i < 3; i++) {
        wait_done(loop, ops[i]);
        ck_assert_int_eq(ops[i]->error.code, DTQ_CANCELLED);
        dtq_loop_cancel(loop, ops[i]);
        dtq_op_release(loop, ops[i]);
    }
    dtq_loop_close(loop, 0);
    ck_assert_int_le(source->cancels, 3);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(an_operation_cancelled_before_it_is_submitted_never_begins)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = new_op(source, NEVER);
    dtq_loop_cancel(loop, op);
    submit(loop, op);
    wait_done(loop, op);
    ck_assert_int_eq(op->error.code, DTQ_CANCELLED);
    dtq_op_release(loop, op);
    dtq_loop_close(loop, 0);
    ck_assert_int_eq(source->cancels, 0);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(watched_operations_are_drained_in_order)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *ops[5];
    ck_assert(!is_readable(dtq_loop_fd(loop), 0));
    ck_assert_ptr_null(dtq_loop_drain(loop));
    for (int i = 0; i < 5; i++) {
        ops[i] = new_op(source, AT_ONCE);
        ops[i]->user = &ops[i];
        if (i < 4)
            dtq_loop_watch(loop, ops[i]);
        submit(loop, ops[i]);
    }
    wait_done(loop, ops[4]);
    dtq_loop_watch(loop, ops[4]);
    dtq_loop_watch(loop, ops[4]);
    ck_assert(is_readable(dtq_loop_fd(loop), -1));
    struct dtq_op *op = dtq_loop_drain(loop);
    for (int i = 0; i < 5; i++) {
        ck_assert_ptr_eq(op, ops[i]);
        struct dtq_op *next = dtq_op_next(op);
        dtq_op_release(loop, op);
        dtq_op_release(loop, ops[i]);
        op = next;
    }
    ck_assert_ptr_null(op);
    ck_assert(!is_readable(dtq_loop_fd(loop), 0));
    dtq_loop_destroy(loop);
}
END_TEST

static void publish_event(struct dtq_op *op)
{
    struct dtq_event *event = dtq_event_new(op->source, DTQ_EVENT_NOTIFICATION, 7, "channel", "payload");
    dtq_loop_publish(op->source->loop, &event->op);
}

START_TEST(events_arrive_in_the_drain_list)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = new_op(source, CHAIN);
    op->on_done = publish_event;
    submit(loop, op);
    wait_done(loop, op);
    ck_assert(is_readable(dtq_loop_fd(loop), -1));
    struct dtq_op *drained = dtq_loop_drain(loop);
    struct dtq_event *event = (struct dtq_event *)drained;
    ck_assert_int_eq(drained->op_class->kind, DTQ_OP_EVENT);
    ck_assert_int_eq(event->kind, DTQ_EVENT_NOTIFICATION);
    ck_assert_int_eq((int)event->generation, 7);
    ck_assert_str_eq(event->text, "channel");
    ck_assert_str_eq(event->detail, "payload");
    ck_assert_ptr_null(dtq_op_next(drained));
    dtq_op_release(loop, drained);
    dtq_op_release(loop, op);
    op = new_op(source, CHAIN);
    op->on_done = publish_event; /* left undrained: the destroy frees it */
    submit(loop, op);
    wait_done(loop, op);
    dtq_op_release(loop, op);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(close_waits_for_what_can_be_finished)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = submit_new(loop, source, ON_TIMER);
    dtq_loop_close(loop, 60000);
    ck_assert(dtq_op_is_done(loop, op));
    ck_assert_int_eq(op->error.code, DTQ_OK);
    dtq_op_release(loop, op);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(close_ends_what_cannot_be_finished)
{
    struct dtq_error err;
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = submit_new(loop, source, NEVER), *refused = new_op(source, AT_ONCE);
    dtq_loop_close(loop, 20);
    ck_assert(dtq_op_is_done(loop, op));
    ck_assert_int_eq(op->error.code, DTQ_CLOSED);
    ck_assert_int_eq(source->graceful_stops, 1);
    ck_assert_int_eq(source->forced_stops, 1);
    ck_assert_int_eq(dtq_loop_submit(loop, refused, &err), DTQ_CLOSED);
    dtq_loop_close(loop, 20);
    dtq_op_release(loop, refused);
    dtq_op_release(loop, op);
    dtq_loop_destroy(loop);
}
END_TEST

struct closer {
    struct dtq_loop *loop;
    int timeout_ms;
};

static void *close_in_thread(void *argument)
{
    struct closer *closer = argument;
    dtq_loop_close(closer->loop, closer->timeout_ms);
    return NULL;
}

START_TEST(a_second_close_cuts_the_first_one_short)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *op = submit_new(loop, source, NEVER);
    struct closer patient = {loop, 3600 * 1000};
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, close_in_thread, &patient), 0);
    dtq_loop_close(loop, 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(op->error.code, DTQ_CLOSED);
    dtq_op_release(loop, op);
    dtq_loop_destroy(loop);
}
END_TEST

START_TEST(a_loop_that_never_ran_closes)
{
    int destroyed = 0;
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    source->destroyed = &destroyed;
    dtq_loop_wakeup(loop);
    dtq_loop_close(loop, 1000);
    dtq_loop_destroy(loop);
    ck_assert_int_eq(destroyed, 1);
    dtq_loop_destroy(NULL);
}
END_TEST

/* libcurl needs descriptors for being woken and hides that it got none. */
START_TEST(a_loop_that_could_not_be_woken_is_not_made)
{
    struct dtq_loop *loop = NULL;
    struct dtq_error err = {0};
    struct rlimit before;
    enum dtq_code codes[2];
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    int next = dup(0);
    close(next);
    for (int room = 0; room < 2; room++) {
        struct rlimit limit = {.rlim_cur = (rlim_t)(next + room), .rlim_max = before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &limit);
        codes[room] = dtq_loop_new(&loop, &err);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    ck_assert_int_eq(codes[0], DTQ_SYSTEM);
    ck_assert_int_eq(codes[1], DTQ_SYSTEM);
    ck_assert_ptr_null(loop);
    ck_assert_ptr_nonnull(strstr(err.message, "ulimit -n"));
}
END_TEST

START_TEST(a_loop_has_a_bounded_number_of_sources)
{
    struct dtq_error err;
    int destroyed = 0;
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    source->destroyed = &destroyed;
    for (int i = 1; i < DTQ_LOOP_SOURCES_MAX; i++)
        add_source(loop)->destroyed = &destroyed;
    struct dtq_source more = {.source_class = &test_source_class};
    ck_assert_int_eq(dtq_loop_add(loop, &more, &err), DTQ_TOO_LARGE);
    struct dtq_op *op = submit_new(loop, source, ON_TIMER);
    wait_done(loop, op);
    dtq_op_release(loop, op);
    dtq_loop_close(loop, 0);
    ck_assert_int_eq(dtq_loop_add(loop, &more, &err), DTQ_CLOSED);
    dtq_loop_destroy(loop);
    ck_assert_int_eq(destroyed, DTQ_LOOP_SOURCES_MAX);
}
END_TEST

/* What a forked child may do; returns 0 when all of it is as promised. */
static int use_in_child(struct dtq_loop *loop, struct test_source *source, struct dtq_op *done, struct dtq_op *open)
{
    struct dtq_error err;
    int destroyed = 0;
    struct dtq_op *op = new_op(source, AT_ONCE);
    source->destroyed = &destroyed;
    if (dtq_loop_check_fork(loop, &err) != DTQ_FORKED || dtq_loop_submit(loop, op, &err) != DTQ_FORKED)
        return 1;
    if (dtq_loop_wait(loop, open, -1, &err) != DTQ_FORKED || dtq_loop_wait(loop, done, -1, &err) != DTQ_OK)
        return 2;
    if (dtq_loop_fd(loop) != -1 || dtq_loop_drain(loop))
        return 3;
    if (dtq_loop_add(loop, &source->source, &err) != DTQ_FORKED)
        return 4;
    dtq_loop_cancel(loop, open);
    dtq_loop_watch(loop, done);
    dtq_loop_wakeup(loop);
    dtq_op_release(loop, dtq_op_acquire(loop, open));
    dtq_op_release(loop, open);
    dtq_loop_close(loop, 1000);
    dtq_loop_destroy(loop);
    return destroyed == 100 ? 0 : 5;
}

START_TEST(a_forked_child_is_refused_and_does_not_disturb)
{
    int answer[2], status;
    char result = -1;
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct dtq_op *done = submit_new(loop, source, AT_ONCE), *open = submit_new(loop, source, ON_READ);
    wait_done(loop, done);
    ck_assert_int_eq(pipe(answer), 0);
    pid_t child = fork();
    if (child == 0) {
        result = (char)use_in_child(loop, source, done, open);
        if (write(answer[1], &result, 1) == 1)
            kill(getpid(), SIGKILL); /* an exit would make a leak checker complain of what is left alone on purpose */
        _exit(1);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq((int)read(answer[0], &result, 1), 1);
    ck_assert_int_eq(result, 0);
    close(answer[0]);
    close(answer[1]);
    ck_assert_int_eq((int)write(source->pipe[1], "x", 1), 1);
    wait_done(loop, open);
    dtq_op_release(loop, done);
    dtq_op_release(loop, open);
    dtq_loop_destroy(loop);
}
END_TEST

#define THREADS 4
#define OPS_PER_THREAD 2000

struct hammer {
    struct dtq_loop *loop;
    struct test_source *source;
    unsigned finished;
};

static void *hammer_in_thread(void *argument)
{
    static const enum behaviour behaviours[] = {AT_ONCE, NEVER, AT_ONCE, ON_TIMER};
    struct hammer *hammer = argument;
    for (int i = 0; i < OPS_PER_THREAD; i++) {
        struct dtq_op *op = new_op(hammer->source, behaviours[i % 4]);
        if (i % 3 == 0)
            dtq_loop_watch(hammer->loop, op);
        submit(hammer->loop, op);
        if (behaviours[i % 4] == NEVER)
            dtq_loop_cancel(hammer->loop, op);
        if (i % 8 == 0)
            wait_done(hammer->loop, op);
        dtq_op_release(hammer->loop, op);
    }
    struct dtq_op *last = submit_new(hammer->loop, hammer->source, ON_TIMER);
    wait_done(hammer->loop, last);
    dtq_op_release(hammer->loop, last);
    return NULL;
}

START_TEST(many_threads_submit_cancel_and_drain)
{
    struct test_source *source;
    struct dtq_loop *loop = new_loop(&source);
    struct hammer hammer = {loop, source, 0};
    pthread_t threads[THREADS];
    unsigned drained = 0, wanted = THREADS * ((OPS_PER_THREAD + 2) / 3);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer_in_thread, &hammer), 0);
    while (drained < wanted) {
        ck_assert(is_readable(dtq_loop_fd(loop), -1));
        for (struct dtq_op *op = dtq_loop_drain(loop), *next; op; op = next) {
            next = dtq_op_next(op);
            dtq_op_release(loop, op);
            drained++;
        }
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(drained, wanted);
    dtq_loop_destroy(loop);
}
END_TEST

static enum dtq_code make_a_loop(void *context)
{
    struct dtq_loop *loop = NULL;
    struct dtq_error err;
    (void)context;
    enum dtq_code rc = dtq_loop_new(&loop, &err);
    if (!rc) {
        struct dtq_event *event = dtq_event_new(NULL, DTQ_EVENT_CANCEL, 1, "text", "detail");
        if (event)
            event->op.op_class->destroy(&event->op);
        else
            rc = DTQ_NO_MEMORY;
    }
    dtq_loop_destroy(loop);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(make_a_loop, NULL);
}
END_TEST

Suite *loop_suite(void)
{
    Suite *suite = suite_create("loop");
    TCase *core = tcase_create("core");
    tcase_add_test(core, an_operation_is_done_and_waited_for);
    tcase_add_test(core, timers_and_descriptors_of_a_source_are_served);
    tcase_add_test(core, a_wait_that_ends_early_leaves_the_operation);
    tcase_add_test(core, a_deadline_ends_the_operation);
    tcase_add_test(core, cancelling_ends_the_operation);
    tcase_add_test(core, an_operation_cancelled_before_it_is_submitted_never_begins);
    tcase_add_test(core, watched_operations_are_drained_in_order);
    tcase_add_test(core, events_arrive_in_the_drain_list);
    suite_add_tcase(suite, core);
    TCase *close = tcase_create("close");
    tcase_add_test(close, close_waits_for_what_can_be_finished);
    tcase_add_test(close, close_ends_what_cannot_be_finished);
    tcase_add_test(close, a_second_close_cuts_the_first_one_short);
    tcase_add_test(close, a_loop_that_never_ran_closes);
    tcase_add_test(close, a_loop_that_could_not_be_woken_is_not_made);
    tcase_add_test(close, a_loop_has_a_bounded_number_of_sources);
    suite_add_tcase(suite, close);
    TCase *threads = tcase_create("threads and forks");
    tcase_set_timeout(threads, 60);
    tcase_add_test(threads, a_forked_child_is_refused_and_does_not_disturb);
    tcase_add_test(threads, many_threads_submit_cancel_and_drain);
    tcase_add_test(threads, survives_failing_allocations);
    suite_add_tcase(suite, threads);
    return suite;
}
