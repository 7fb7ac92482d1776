/*
 * The protocol of dagster-taskiq, for one step of one run, as a finite model for spin.
 *
 * Who acts: executors (the second one stands for a run worker that is started while the first still lives), workers
 * with one slot each, step processes (one per generation), PostgreSQL statements that outlive their client, SQS, time,
 * and Dagster's run monitoring.  Everything that can go wrong is bought from a budget, a constant given with -D.  So
 * every behaviour is finite, and what a living system does in endless polls is an action that is enabled only when it
 * changes something.  Then a hang is a state without a successor, and the judge at the end of this file looks at each
 * of them.  That no behaviour is infinite is checked too (run.py --cycles).
 *
 * A step row changes only by MOVE and KEEP; transitions.json lists the moves, and a test compares both with the SQL.
 * A switch that begins with BUG_ takes one rule out of the protocol; run.py knows which check notices.
 */

#ifndef WORKERS
#define WORKERS 2            /* 1 or 2 */
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2           /* 1 to 3; the last of them is not retried */
#endif
#ifndef GENERATIONS
#define GENERATIONS 6        /* claims that a behaviour can make: a bound of the arrays, asserted */
#endif
#ifndef COORDINATORS
#define COORDINATORS 4       /* takeovers that a behaviour can make: a bound of the arrays, asserted */
#endif
#ifndef RECEIVES
#define RECEIVES 0           /* at most 2: a message received so often goes to the dead-letter queue; 0: never */
#endif
#ifndef WORKER_CRASHES
#define WORKER_CRASHES 0     /* a worker dies and is started again under another identity */
#endif
#ifndef PROCESS_CRASHES
#define PROCESS_CRASHES 0    /* a step process dies by itself under a living worker */
#endif
#ifndef STALLS
#define STALLS 0             /* a worker is stopped or cut off from PostgreSQL, and recovers: no renewals meanwhile */
#endif
#ifndef EXECUTOR_CRASHES
#define EXECUTOR_CRASHES 0
#endif
#ifndef SECOND_EXECUTORS
#define SECOND_EXECUTORS 0   /* an executor is started although one lives */
#endif
#ifndef LATE
#define LATE 0               /* statements that commit after their client died, or after it sent them a second time */
#endif
#ifndef LOST_REPLIES
#define LOST_REPLIES 0       /* a claim commits, its worker lives on and never learns of it */
#endif
#ifndef LOST_MESSAGES
#define LOST_MESSAGES 0
#endif
#ifndef COPIES
#define COPIES 0             /* deliveries that leave the message in the queue; re-sends that were not needed */
#endif
#ifndef LOST_NOTIFIES
#define LOST_NOTIFIES 0
#endif
#ifndef CANCELS
#define CANCELS 0            /* the run is cancelled */
#endif
#ifndef UNWANTED
#define UNWANTED 0           /* the executor cancels the step of a run that goes on */
#endif
#ifndef BREAKS
#define BREAKS 0             /* the executor breaks off: it ends the run although its step is not at its end */
#endif
#ifndef DRAINS
#define DRAINS 0             /* a worker is told to leave; it is started again under another identity */
#endif
#ifndef OP_RETRIES
#define OP_RETRIES 0         /* attempts whose own policy logs STEP_UP_FOR_RETRY */
#endif
#ifndef GIVES_UP
#define GIVES_UP 0           /* 1: after SENDS re-sends the executor ends the step as one that nobody took */
#endif
#ifndef SENDS
#define SENDS 2
#endif

#if RECEIVES > 0
#define COUNTS RECEIVES
#else
#define COUNTS 1
#endif

/* ---- PostgreSQL -------------------------------------------------------------------------------------------------- */

#define NO_HOST 9
mtype = { queued, claimed, succeeded, failed, cancelled, lost };     /* of a step row; 0: there is no row */
mtype = { open, cancelling, ended };                                 /* of the run row; 0: there is no row */

typedef step_row {
    mtype state;
    byte generation;         /* of the claim; 0 when never claimed */
    byte owner;              /* worker + 1; 0: it is dead, and its host lives; NO_HOST: its host is gone too */
    bool lease;              /* it is in the future */
    bool started;
    bool cancel_requested
};
step_row row[ATTEMPTS + 1];  /* by attempt, from 1 */
mtype run_state;
bool orphaned;               /* the coordinator's lease is past */
byte coordinator;            /* generation of the coordinator in the run row, and the last one given */
byte generation;             /* the last one given to a claim */

/* Dagster's event log.  Its events carry no attempt: what follows the n-th STEP_UP_FOR_RETRY is of attempt n + 1. */
byte ups;                    /* STEP_UP_FOR_RETRY events */
bool finished;               /* STEP_SUCCESS or STEP_FAILURE after the last of them */
bool run_over;               /* Dagster's run has its final status */

/* A statement whose client is gone or has sent it again. */
mtype = { s_enqueue, s_resend, s_begin_run, s_take_over_run, s_settle_ended, s_cancel_run, s_end_run, s_sweep_lost, s_cancel_queued, s_request_cancel,
          s_claim, s_start, s_renew, s_hand_back, s_complete, s_succeeded, s_failed, s_cancelled, s_mark_lost };
mtype late_what;
byte late_attempt, late_generation;

/* ---- processes, messages, budgets -------------------------------------------------------------------------------- */

mtype = { forked, live, logged, dead };                              /* of a step process */
mtype = { by_itself, fenced, stopped, crashed };                     /* how it died */
typedef step_process {
    mtype state;
    mtype end;
    byte attempt;
    bool success;            /* what it logged was final and not a failure: exit and event agree */
    bool in_flight             /* its INSERT is on the way though it is dead */
};
step_process process[GENERATIONS + 1];                               /* by generation */
bool ran[ATTEMPTS + 1];

mtype = { starting, taking, settling, reading, adopting, waiting, ending, looking, connecting, writing, enqueueing, sending,
          finishing, clearing, closing };
typedef executor_state {
    mtype phase;             /* 0: not running */
    byte generation;
    byte attempt;
    bool up;                 /* the event that it is about to log is STEP_UP_FOR_RETRY, otherwise the failure */
    mtype seen;              /* only by a mutation that looks too early */
    bool told                /* NOTIFY reached it */
};
executor_state executor[2];
mtype = { saw_nothing, saw_up, saw_final };

typedef coordinator_write { byte attempt; bool up };                 /* attempt 0: none */
coordinator_write late_write[COORDINATORS + 1];          /* an INSERT of a dead coordinator, by its generation */

mtype = { holding, granted, running, reaped };
typedef worker_state {
    mtype phase;             /* 0: its slot is free */
    byte attempt;
    byte count;              /* receive count of its message */
    byte generation;
    bool stalled;
    bool draining
};
worker_state worker[WORKERS];

byte message[(ATTEMPTS + 1) * COUNTS];                               /* visible ones, by attempt and receive count */
byte aside[(ATTEMPTS + 1) * COUNTS];                    /* put aside until the lease that was met could end */
byte sends;

byte worker_crashes = WORKER_CRASHES, process_crashes = PROCESS_CRASHES, executor_crashes = EXECUTOR_CRASHES;
byte second_executors = SECOND_EXECUTORS, stalls = STALLS, late = LATE, lost_replies = LOST_REPLIES;
byte lost_messages = LOST_MESSAGES, copies = COPIES, breaks = BREAKS;
byte lost_notifies = LOST_NOTIFIES, cancels = CANCELS, unwanted = UNWANTED, drains = DRAINS, op_retries = OP_RETRIES;

/* ---- small words ------------------------------------------------------------------------------------------------- */

#define TERMINAL(s) (s == succeeded || s == failed || s == cancelled || s == lost)
#define ALIVE(s) (s == live || s == logged)
#define EXISTS(s) (s == forked || s == live || s == logged)
#define MAIL(a, n) ((a) * COUNTS + (n))
#if COUNTS > 1
#define MAIL_LEFT(a) (message[MAIL(a, 0)] + message[MAIL(a, 1)] + aside[MAIL(a, 0)] + aside[MAIL(a, 1)] > 0)
#define ANY_MAIL (message[MAIL(1, 0)] + message[MAIL(ATTEMPTS, 0)] + message[MAIL(ATTEMPTS / 2 + 1, 0)] + \
                  message[MAIL(1, 1)] + message[MAIL(ATTEMPTS, 1)] + message[MAIL(ATTEMPTS / 2 + 1, 1)] > 0)
#else
#define ANY_MAIL (message[MAIL(1, 0)] + message[MAIL(ATTEMPTS, 0)] + message[MAIL(ATTEMPTS / 2 + 1, 0)] > 0)
#define MAIL_LEFT(a) (message[MAIL(a, 0)] + aside[MAIL(a, 0)] > 0)
#endif

#ifdef BUG_NO_GENERATION
#define HOLDS(a, g) (row[a].state == claimed)
#else
#define HOLDS(a, g) (row[a].state == claimed && row[a].generation == g)
#endif

#ifdef BUG_NO_COORDINATOR
#define COORDINATES(c) true
#else
#define COORDINATES(c) (coordinator == c)
#endif

#ifdef BUG_NO_RUN_GUARD
#define RUN_ACTIVE true
#else
#define RUN_ACTIVE (run_state == open)
#endif

/* What must hold where it is said.  The properties are variables that are never true: spin names them when it fails. */
bool terminal_is_final, live_process_has_a_claim, one_live_process, attempt_runs_once, one_outcome_of_each_attempt;
bool takes_over_what_it_saw, success_is_in_the_log, nothing_begins_after_the_end, run_ends, nothing_is_left, every_outcome_is_reported;
#define REQUIRE(condition, property) assert((condition) || property)

/* The one place where a row changes its state.  Terminal rows never change; no row leaves a living process. */
#define MOVE(a, old, new, statement) \
    assert(row[a].state == old); \
    REQUIRE(!TERMINAL(row[a].state), terminal_is_final); \
    REQUIRE(old != claimed || !ALIVE(process[row[a].generation].state), live_process_has_a_claim); \
    REQUIRE((new != claimed && new != queued) || old == claimed || run_state == open, nothing_begins_after_the_end); \
    row[a].state = new; \
    printf("> row %d: %e to %e by %e\n", a, old, new, s_##statement)

/* A move that changes other columns only. */
#define KEEP(a, same, statement) \
    assert(row[a].state == same); \
    printf("> row %d: stays %e by %e\n", a, same, s_##statement)

inline notify() {
#ifdef BUG_NO_SLOW_POLL
    if
    :: executor[0].told = (executor[0].phase != 0); executor[1].told = (executor[1].phase != 0)
    :: lost_notifies > 0 -> lost_notifies--
    fi
#else
    skip
#endif
}

/* An event of attempt a: it must find the log where that attempt left it. */
inline log_up(xa) {
    REQUIRE(!finished && ups == (xa) - 1, one_outcome_of_each_attempt);
    ups++;
    printf("> log: STEP_UP_FOR_RETRY of attempt %d\n", xa)
}

inline log_final(xa) {
    REQUIRE(!finished && ups == (xa) - 1, one_outcome_of_each_attempt);
    finished = true;
    printf("> log: the end of attempt %d\n", xa)
}

inline send(xa, xn) {
    message[MAIL(xa, xn)]++;
    printf("> a message of attempt %d is in the queue\n", xa)
}

/* Back to the queue after a receipt. */
inline put_back(xa, xn) {
    if
    :: RECEIVES == 0 -> send(xa, 0)
    :: RECEIVES > 0 && xn + 1 < COUNTS -> send(xa, xn + 1)
    :: RECEIVES > 0 && xn + 1 >= COUNTS -> skip                       /* dead-lettered */
    fi
}

/* ---- the statements, as src/core/dtq_store_sql.h has them -------------------------------------------------------- */

#define SET_REQUEUED(a) \
    row[a].lease = false; row[a].owner = 0; row[a].cancel_requested = false

/* Queued again, or where the run does not go on, cancelled at once. */
#define REQUEUE(a, statement) \
    if \
    :: RUN_ACTIVE -> MOVE(a, claimed, queued, statement); sends = 0 \
    :: else -> MOVE(a, claimed, cancelled, statement) \
    fi; \
    SET_REQUEUED(a); \
    notify()

#define LOSE(a, statement) \
    MOVE(a, claimed, lost, statement); \
    row[a].lease = false; row[a].owner = 0; row[a].cancel_requested = false; \
    notify()

inline enqueue(xa, xc, done) {
    done = false;
    if
    :: COORDINATES(xc) && RUN_ACTIVE && row[xa].state == 0 && (xa == 1 || TERMINAL(row[(xa) - 1].state)) ->
        MOVE(xa, 0, queued, enqueue);
        sends = 0;
        done = true
    :: else
    fi
}

/* Attempt xa, by worker xw - 1 (0: it is dead); xg: the generation that this nonce got before (0: none). */
mtype = { ok, held, over };
inline claim(xa, xw, xg, answer) {
    if
    :: row[xa].state == queued && RUN_ACTIVE && orphaned ->
        answer = held
    :: row[xa].state == queued && RUN_ACTIVE && !orphaned ->
        assert(generation < GENERATIONS);
        generation++;
        MOVE(xa, queued, claimed, claim);
        row[xa].generation = generation;
        row[xa].owner = xw;
        row[xa].lease = true;
        row[xa].started = false;
        answer = ok
    :: row[xa].state == queued && !RUN_ACTIVE ->
        MOVE(xa, queued, cancelled, claim);
        notify();
        answer = over
    :: row[xa].state == claimed && xg != 0 && row[xa].generation == xg ->
        KEEP(xa, claimed, claim);
        row[xa].lease = true;
        answer = ok
    :: row[xa].state == claimed && !(xg != 0 && row[xa].generation == xg) && !row[xa].lease && row[xa].started ->
        LOSE(xa, claim);
        answer = over
    :: row[xa].state == claimed && !(xg != 0 && row[xa].generation == xg) && !row[xa].lease && !row[xa].started ->
        REQUEUE(xa, claim);
        answer = held
    :: row[xa].state == claimed && !(xg != 0 && row[xa].generation == xg) && row[xa].lease ->
        answer = held
    :: TERMINAL(row[xa].state) ->
        answer = over
    fi
}

inline start(xa, xg, done) {
    done = false;
    if
    :: HOLDS(xa, xg) && row[xa].lease -> KEEP(xa, claimed, start); row[xa].started = true; done = true
    :: else
    fi
}

inline complete(xa, xg, result) {
    if
    :: HOLDS(xa, xg) && result == s_succeeded && row[xa].started ->
        MOVE(xa, claimed, succeeded, complete); settled_row(xa)
    :: HOLDS(xa, xg) && result == s_failed -> MOVE(xa, claimed, failed, complete); settled_row(xa)
    :: HOLDS(xa, xg) && result == s_cancelled && row[xa].cancel_requested ->
        MOVE(xa, claimed, cancelled, complete); settled_row(xa)
    :: else
    fi
}

inline settled_row(xa) {
    row[xa].lease = false;
    row[xa].owner = 0;
    row[xa].cancel_requested = false;
    notify()
}

inline hand_back(xa, xg) {
    if
    :: HOLDS(xa, xg) && !row[xa].started -> REQUEUE(xa, hand_back)
    :: else
    fi
}

inline mark_lost(xa, xg) {
    if
    :: HOLDS(xa, xg) -> LOSE(xa, mark_lost)
    :: else
    fi
}

inline renew(xa, xg) {
    if
    :: HOLDS(xa, xg) -> KEEP(xa, claimed, renew); row[xa].lease = true
    :: else
    fi
}

inline sweep_lost(xa, xc) {
    if
    :: COORDINATES(xc) && row[xa].state == claimed && !row[xa].lease && row[xa].started -> LOSE(xa, sweep_lost)
    :: COORDINATES(xc) && row[xa].state == claimed && !row[xa].lease && !row[xa].started -> REQUEUE(xa, sweep_lost)
    :: else
    fi
}

inline cancel_queued(xa, xc) {
    if
    :: COORDINATES(xc) && row[xa].state == queued -> MOVE(xa, queued, cancelled, cancel_queued); notify()
    :: else
    fi
}

inline request_cancel(xa, xc) {
    if
    :: COORDINATES(xc) && row[xa].state == claimed ->
        KEEP(xa, claimed, request_cancel); row[xa].cancel_requested = true
    :: else
    fi
}

inline cancel_run() {
    if
    :: run_state == open -> run_state = cancelling
    :: else
    fi;
    printf("> the run is cancelled\n");
    for (i : 1 .. ATTEMPTS) {
        if
        :: row[i].state == claimed && run_state == cancelling ->
            KEEP(i, claimed, cancel_run); row[i].cancel_requested = true
        :: else
        fi
    }
    i = 0
}

inline end_run(xc, done) {
    done = false;
    if
    :: COORDINATES(xc) ->
        done = true;
        run_state = ended;
        for (i : 1 .. ATTEMPTS) {
            if
            :: row[i].state == queued -> MOVE(i, queued, cancelled, end_run)
            :: row[i].state == claimed -> KEEP(i, claimed, end_run); row[i].cancel_requested = true
            :: else
            fi
        }
        i = 0
    :: else
    fi
}

/* xc: who coordinates the run; done: the caller does. */
inline begin_run(xc, done) {
    done = (run_state == 0);
    if
    :: done ->
        assert(coordinator < COORDINATORS);
        coordinator++;
        orphaned = false;
        run_state = open
    :: else
    fi;
    xc = coordinator
}

#ifdef BUG_BLIND_TAKEOVER
#define STILL(seen) true
#else
#define STILL(seen) (coordinator == seen)
#endif

/* seen: the generation that the caller has read. */
inline take_over_run(xc, seen, done) {
    done = false;
    if
    :: run_state != ended && STILL(seen) ->
        REQUIRE(coordinator == seen, takes_over_what_it_saw);
        assert(coordinator < COORDINATORS);
        coordinator++;
        xc = coordinator;
        orphaned = false;
        done = true
    :: else
    fi
}

/* ---- statements that commit late --------------------------------------------------------------------------------- */

inline leave_behind(what, xa, xg) {
    if
    :: late > 0 && late_what == 0 ->
        late--;
        printf("> a statement stays behind: %e\n", what);
        late_what = what;
        late_attempt = xa;
        late_generation = xg
    :: true
    fi
}

active proctype PostgreSQL() {
    byte i;
    bool done;
    mtype answer;
end_postgresql:
    do
    :: atomic { late_what != 0 ->
        printf("> a late statement, %e of attempt %d, generation %d, runs\n", late_what, late_attempt, late_generation);
        if
        :: late_what == s_enqueue -> enqueue(late_attempt, late_generation, done)
        :: late_what == s_begin_run -> begin_run(late_generation, done)
        :: late_what == s_take_over_run -> take_over_run(late_generation, late_attempt, done)
        :: late_what == s_end_run -> end_run(late_generation, done)
        :: late_what == s_sweep_lost -> sweep_lost(late_attempt, late_generation)
        :: late_what == s_claim -> claim(late_attempt, 0, late_generation, answer)
        :: late_what == s_start -> start(late_attempt, late_generation, done)
        :: late_what == s_hand_back -> hand_back(late_attempt, late_generation)
        :: late_what == s_succeeded || late_what == s_failed || late_what == s_cancelled ->
            complete(late_attempt, late_generation, late_what)
        :: late_what == s_mark_lost -> mark_lost(late_attempt, late_generation)
        :: late_what == s_renew -> renew(late_attempt, late_generation)
        fi;
        late_what = 0; late_attempt = 0; late_generation = 0; done = false; answer = 0
        }
    od
}

/* The INSERT into the log of a coordinator that is dead. */
proctype LateWrite(byte c) {
end_late_write:
    do
    :: atomic { late_write[c].attempt != 0 -> printf("> a late INSERT of coordinator %d commits\n", c);
        if
        :: late_write[c].up -> log_up(late_write[c].attempt)
        :: else -> log_final(late_write[c].attempt)
        fi;
        late_write[c].attempt = 0; late_write[c].up = false
        }
    od
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

/* The heartbeat of a worker that is well: no lease of its own can end while it goes on. */
#define BEATS(w, g) (worker[w].phase != 0 && worker[w].generation == g && !worker[w].stalled)
#ifdef BUG_HEARTBEAT_BY_OWNER
#define RENEWED(a) ((row[a].owner == 1 && !worker[0].stalled) || (row[a].owner == 2 && !worker[WORKERS - 1].stalled))
#else
#define RENEWED(a) (BEATS(0, row[a].generation) || BEATS(WORKERS - 1, row[a].generation))
#endif
#ifdef BUG_NO_FENCE
#define FENCED(g) true
#else
#define FENCED(g) (!EXISTS(process[g].state))
#endif

proctype Lease(byte a) {
end_lease:
    do
    :: atomic { row[a].state == claimed && row[a].lease && !RENEWED(a) && FENCED(row[a].generation) ->
        printf("> the lease on attempt %d, generation %d, ends\n", a, row[a].generation);
        row[a].lease = false;
        REQUIRE(!ALIVE(process[row[a].generation].state), live_process_has_a_claim)
        }
    od
}

/* ---- step processes ---------------------------------------------------------------------------------------------- */

/* Nobody asks for this process any more. */
inline forget(xg) {
    process[xg].state = 0; process[xg].end = 0; process[xg].success = false;
    if
    :: !process[xg].in_flight -> process[xg].attempt = 0
    :: else
    fi
}

/* Nobody waits for this process. */
#define ORPHAN(g) (worker[0].generation != g && worker[WORKERS - 1].generation != g)

/* Death takes the process at any point; an INSERT that it had sent lives on. */
inline die(xg, how) {
    if
    :: process[xg].state == live -> process[xg].in_flight = true
    :: true
    fi;
    process[xg].state = dead;
    process[xg].end = how;
    printf("> step process %d is dead, %e, its INSERT on the way: %d\n", xg, how, process[xg].in_flight);
    if
    :: ORPHAN(xg) -> forget(xg)
    :: else
    fi
}

proctype Process(byte g) {
end_process:
    do
    :: atomic { process[g].state == live ->
        log_final(process[g].attempt);
        printf("> step process %d logs the end of attempt %d\n", g, process[g].attempt);
        process[g].state = logged;
        process[g].success = true
        }
    :: atomic { process[g].state == live && op_retries > 0 && process[g].attempt < ATTEMPTS ->
        op_retries--;
        log_up(process[g].attempt);
        printf("> step process %d logs STEP_UP_FOR_RETRY of attempt %d\n", g, process[g].attempt);
        process[g].state = logged
        }
    :: atomic { process[g].state == logged -> die(g, by_itself) }
    :: atomic { ALIVE(process[g].state) && process_crashes > 0 -> process_crashes--; die(g, crashed) }
       /* The fence, or the death of its worker. */
#ifdef BUG_NO_FENCE
    :: atomic { EXISTS(process[g].state) && ORPHAN(g) -> die(g, fenced) }
#else
    :: atomic { EXISTS(process[g].state) && !BEATS(0, g) && !BEATS(WORKERS - 1, g) -> die(g, fenced) }
#endif
    :: atomic { process[g].in_flight && (process[g].state == 0 || process[g].state == dead) ->
        printf("> a late INSERT of step process %d commits\n", g);
        log_final(process[g].attempt);
        process[g].in_flight = false;
        if
        :: process[g].state == 0 -> process[g].attempt = 0
        :: else
        fi
        }
    od
}

/* ---- SQS: messages in no order ----------------------------------------------------------------------------------- */

/* What made a worker put a delivery aside. */
#define MET(a) (row[a].state == claimed && row[a].lease || row[a].state == queued && orphaned && run_state == open)

proctype Network(byte a) {
    byte n;
end_network:
    do
    :: atomic { lost_messages > 0 && message[MAIL(a, 0)] > 0 ->
        lost_messages--; message[MAIL(a, 0)]--; printf("> a message of attempt %d is lost\n", a)
        }
    :: atomic { aside[MAIL(a, 0)] > 0 && !MET(a) ->
        aside[MAIL(a, 0)]--; put_back(a, 0)
        }
#if COUNTS > 1
    :: atomic { aside[MAIL(a, 1)] > 0 && !MET(a) ->
        aside[MAIL(a, 1)]--; put_back(a, 1)
        }
#endif
    od
}

/* ---- workers ----------------------------------------------------------------------------------------------------- */

#define FREE_SLOT(w) \
    worker[w].phase = 0; worker[w].attempt = 0; worker[w].count = 0; worker[w].generation = 0; \
    worker[w].draining = false

/* The worker's identity is dead; its claims are without an owner, its step processes without a parent. */
inline crash_worker(xw) {
    printf("> worker %d dies\n", xw);
    worker_crashes--;
    if
    :: worker[xw].phase == holding -> leave_behind(s_start, worker[xw].attempt, worker[xw].generation)
    :: worker[xw].phase == holding -> leave_behind(s_hand_back, worker[xw].attempt, worker[xw].generation)
    :: worker[xw].phase == granted || worker[xw].phase == running ->
        leave_behind(s_renew, worker[xw].attempt, worker[xw].generation)
    :: worker[xw].phase == reaped ->
        result(worker[xw].generation, answer); leave_behind(answer, worker[xw].attempt, worker[xw].generation)
    fi;
    for (i : 1 .. ATTEMPTS) {
        if
        :: row[i].owner == xw + 1 -> row[i].owner = 0
        :: row[i].owner == xw + 1 -> row[i].owner = NO_HOST
        :: else
        fi
    }
    if
    :: process[worker[xw].generation].state == dead -> forget(worker[xw].generation)
    :: else
    fi;
    put_back(worker[xw].attempt, worker[xw].count);
    FREE_SLOT(xw);
    worker[xw].stalled = false;
    i = 0; answer = 0
}

/* What the worker makes of a death that it has waited for. */
inline result(xg, what) {
    if
    :: process[xg].end == by_itself && process[xg].success -> what = s_succeeded
    :: process[xg].end == by_itself && !process[xg].success -> what = s_failed
    :: process[xg].end == crashed -> what = s_failed
    :: process[xg].end == stopped && !worker[w].draining -> what = s_cancelled
    :: process[xg].end == stopped && worker[w].draining -> what = s_mark_lost
    :: process[xg].end == fenced -> what = s_mark_lost
    fi
}

inline delivered(xa, xn) {
    if
    :: answer == ok ->
        if
        :: worker[w].phase = holding; worker[w].attempt = xa; worker[w].count = xn; worker[w].generation = generation;
           leave_behind(s_claim, xa, generation)
        :: lost_replies > 0 -> lost_replies--; put_back(xa, xn)
        fi
    :: answer == held ->
        if
        :: skip                                                       /* deleted: S1 and S2 recover */
        :: row[xa].state == claimed || orphaned -> aside[MAIL(xa, xn)]++
        :: row[xa].state == queued && !orphaned -> put_back(xa, xn)
        fi
    :: answer == over -> skip                                         /* deleted */
    fi
}

#define W worker[w]
#define CLAIM row[worker[w].attempt]
#define PROCESS process[worker[w].generation]

proctype Worker(byte w) {
    byte i, a, n;
    bool done;
    mtype answer;
end_worker:
    do
       /* A delivery of attempt a, received n times before. */
    :: atomic { W.phase == 0 && ANY_MAIL ->
        if
        :: message[MAIL(1, 0)] > 0 -> a = 1
        :: message[MAIL(ATTEMPTS, 0)] > 0 -> a = ATTEMPTS
        :: message[MAIL(ATTEMPTS / 2 + 1, 0)] > 0 -> a = ATTEMPTS / 2 + 1
#if COUNTS > 1
        :: message[MAIL(1, 1)] > 0 -> a = 1; n = 1
        :: message[MAIL(ATTEMPTS, 1)] > 0 -> a = ATTEMPTS; n = 1
        :: message[MAIL(ATTEMPTS / 2 + 1, 1)] > 0 -> a = ATTEMPTS / 2 + 1; n = 1
#endif
        fi;
        if
        :: message[MAIL(a, n)]--
        :: copies > 0 -> copies--
        fi;
        if
        :: claim(a, w + 1, 0, answer); delivered(a, n)
        :: worker_crashes > 0 -> worker_crashes--; leave_behind(s_claim, a, 0); put_back(a, n)
        fi;
        a = 0; n = 0; answer = 0
        }
       /* Fork, then start: the process waits for the word of the worker. */
    :: atomic { W.phase == holding && !W.stalled && !W.draining ->
        start(W.attempt, W.generation, done);
        if
        :: done ->
            PROCESS.attempt = W.attempt;
            PROCESS.state = forked;
#ifndef BUG_NO_FENCE
            if
            :: !CLAIM.lease ->
                die(W.generation, fenced)     /* its deadline is past when it arms its timer */
            :: else
            fi;
#endif
            W.phase = granted;
            leave_behind(s_start, W.attempt, W.generation)
        :: else -> put_back(W.attempt, W.count); FREE_SLOT(w)
        fi;
        done = false
        }
    :: atomic { W.phase == holding && !W.stalled && W.draining ->
        hand_back(W.attempt, W.generation);
        leave_behind(s_hand_back, W.attempt, W.generation);
        put_back(W.attempt, W.count);
        FREE_SLOT(w)
        }
    :: atomic { W.phase == granted && !W.stalled && PROCESS.state == forked ->
        PROCESS.state = live;
        printf("> worker %d lets step process %d go\n", w, W.generation);
        W.phase = running;
        REQUIRE(CLAIM.state == claimed && CLAIM.generation == W.generation &&
                CLAIM.lease, live_process_has_a_claim);
        REQUIRE(!ran[W.attempt], attempt_runs_once);
        ran[W.attempt] = true;
        for (i : 1 .. GENERATIONS) {
            REQUIRE(i == W.generation || !ALIVE(process[i].state), one_live_process)
        }
        i = 0
        }
       /* Cancelled, no longer its own (both are answers to a heartbeat), or out of time to drain. */
    :: atomic { W.phase == running && !W.stalled && ALIVE(PROCESS.state) &&
                (W.draining || CLAIM.cancel_requested ||
                    !HOLDS(W.attempt, W.generation)) ->
        die(W.generation, stopped)
        }
    :: atomic { (W.phase == granted || W.phase == running) && !W.stalled &&
                PROCESS.state == dead ->
        W.phase = reaped
        }
    :: atomic { W.phase == reaped && !W.stalled ->
        result(W.generation, answer);
        if
        :: answer == s_mark_lost -> mark_lost(W.attempt, W.generation)
        :: else -> complete(W.attempt, W.generation, answer)
        fi;
        leave_behind(answer, W.attempt, W.generation);
        forget(W.generation);
        FREE_SLOT(w);
        answer = 0
        }
    :: atomic { W.phase != 0 && worker_crashes > 0 -> crash_worker(w) }
    :: atomic { W.phase != 0 && !W.stalled && stalls > 0 ->
        stalls--; W.stalled = true; printf("> worker %d stalls\n", w)
        }
    :: atomic { W.stalled -> W.stalled = false; printf("> worker %d goes on\n", w) }
    :: atomic { W.phase != 0 && !W.draining && drains > 0 ->
        drains--; W.draining = true; printf("> worker %d drains\n", w)
        }
    od
}

/* A worker's host lives on: its supervisor, or another worker there, has seen that the step process is gone. */
proctype Supervisor(byte a) {
end_supervisor:
    do
    :: atomic { WORKER_CRASHES > 0 && row[a].state == claimed && row[a].owner == 0 &&
                !EXISTS(process[row[a].generation].state) ->
        mark_lost(a, row[a].generation)
        }
#ifndef BUG_NO_CLEARING
       /* The regular visit of any worker: claims that an ended run has left. */
    :: atomic { run_state == ended && row[a].state == claimed && !row[a].lease && row[a].started -> LOSE(a, settle_ended) }
    :: atomic { run_state == ended && row[a].state == claimed && !row[a].lease && !row[a].started ->
        MOVE(a, claimed, cancelled, settle_ended);
        SET_REQUEUED(a)
        }
#endif
    od
}

/* ---- executors --------------------------------------------------------------------------------------------------- */

#define LEAVE(e) \
    printf("> executor %d leaves\n", e); \
    executor[e].phase = 0; executor[e].generation = 0; executor[e].attempt = 0; executor[e].up = false; \
    executor[e].seen = 0; \
    executor[e].told = false

inline look(xe) {
    if
    :: ups >= executor[xe].attempt -> executor[xe].seen = saw_up
    :: ups < executor[xe].attempt && finished -> executor[xe].seen = saw_final
    :: else -> executor[xe].seen = saw_nothing
    fi
}

/* After the look: adopt, retry, fail, or nothing to say of a step that the cancelled run never started. */
inline decide(xe) {
    if
    :: executor[xe].seen == saw_up ->
        REQUIRE(executor[xe].attempt < ATTEMPTS, one_outcome_of_each_attempt);
        executor[xe].attempt++;
        executor[xe].phase = enqueueing
    :: executor[xe].seen == saw_final -> executor[xe].phase = finishing
    :: executor[xe].seen == saw_nothing ->
        REQUIRE(row[executor[xe].attempt].state != succeeded, success_is_in_the_log);
        if
        :: row[executor[xe].attempt].state == cancelled && !row[executor[xe].attempt].started && run_state != open ->
            executor[xe].phase = finishing
        :: row[executor[xe].attempt].state == cancelled && !(!row[executor[xe].attempt].started && run_state != open) ->
            executor[xe].phase = connecting
        :: row[executor[xe].attempt].state != cancelled ->
            executor[xe].up = (executor[xe].attempt < ATTEMPTS && run_state == open);
            executor[xe].phase = connecting
        fi
    fi;
    executor[xe].seen = 0
}

/* The last attempt that has a row, or the first. */
inline latest(xe) {
    executor[xe].attempt = 1;
    for (i : 1 .. ATTEMPTS) {
        if
        :: row[i].state != 0 -> executor[xe].attempt = i
        :: else
        fi
    }
    i = 0
}

/* S5: an ended run has no claim left when its executor leaves. */
inline clear(xe) {
    if
#ifndef BUG_NO_CLEARING
    :: row[executor[xe].attempt].state == claimed -> executor[xe].phase = clearing
#endif
    :: else -> executor[xe].phase = closing
    fi
}

inline crash_executor(xe) {
    printf("> executor %d dies, %e\n", xe, executor[xe].phase);
    executor_crashes--;
    if
    :: executor[xe].phase == starting -> leave_behind(s_begin_run, 0, 0)
    :: executor[xe].phase == taking -> leave_behind(s_take_over_run, executor[xe].attempt, 0)
    :: executor[xe].phase == waiting -> leave_behind(s_sweep_lost, executor[xe].attempt, executor[xe].generation)
    :: executor[xe].phase == enqueueing -> leave_behind(s_enqueue, executor[xe].attempt, executor[xe].generation)
    :: executor[xe].phase == finishing -> leave_behind(s_end_run, 0, executor[xe].generation)
    :: executor[xe].phase == writing ->
        late_write[executor[xe].generation].attempt = executor[xe].attempt;
        late_write[executor[xe].generation].up = executor[xe].up
    :: true
    fi;
    LEAVE(xe)
}

#define ME executor[e]
#define ROW row[executor[e].attempt]

proctype Executor(byte e) {
    byte i;
    bool done;
end_executor:
    do
    :: atomic { ME.phase == starting ->
        begin_run(ME.generation, done);
        printf("> executor %d begins the run, which is of coordinator %d\n", e, ME.generation);
        if
        :: run_state == ended -> latest(e); clear(e)
        :: run_state != ended && done -> ME.phase = settling
        :: run_state != ended && !done -> ME.attempt = ME.generation; ME.generation = 0; ME.phase = taking
        fi;
        done = false
        }
    :: atomic { ME.phase == taking ->
        take_over_run(ME.generation, ME.attempt, done);
        if
        :: done -> printf("> executor %d takes the run over from coordinator %d\n", e, ME.attempt); ME.phase = settling
        :: else -> ME.phase = starting
        fi;
        ME.attempt = 0; done = false
        }
       /* The backends of the coordinators before it are ended: their INSERTs are in the log or never will be. */
    :: atomic { ME.phase == settling ->
#ifndef BUG_NO_COORDINATOR_FENCE
        for (i : 1 .. ME.generation - 1) {
#ifdef BUG_ONE_PREDECESSOR
            if
            :: i == ME.generation - 1 ->
#endif
            late_write[i].attempt = 0; late_write[i].up = false;
            if
#ifndef BUG_CHECK_BEFORE_CONNECTING
            :: executor[1 - e].phase == writing && executor[1 - e].generation == i ->
                executor[1 - e].phase = connecting
#endif
            :: else
            fi
#ifdef BUG_ONE_PREDECESSOR
            :: else
            fi
#endif
        }
        i = 0;
#endif
        ME.phase = reading
        }
       /* The rows first, the log after: see looking. */
    :: atomic { ME.phase == reading ->
#ifdef BUG_ADOPT_FIRST
        if
        :: ME.seen == 0 -> ME.attempt = ups + 1; look(e)
        :: else ->
#endif
        latest(e);
        if
        :: ROW.state == 0 -> ME.phase = enqueueing
        :: TERMINAL(ROW.state) -> ME.phase = ending
#ifdef BUG_ADOPT_LIVE
        :: !TERMINAL(ROW.state) && ROW.state != 0 ->
            ME.phase = adopting
#else
        :: else -> ME.phase = waiting
#endif
        fi
#ifdef BUG_ADOPT_FIRST
        ;
        if
        :: ME.phase == ending
        :: else -> ME.seen = 0
        fi
        fi
#endif
        }
#ifdef BUG_ADOPT_LIVE
    :: atomic { ME.phase == adopting ->
        look(e);
        if
        :: ME.seen == saw_nothing -> ME.seen = 0; ME.phase = waiting
        :: else -> decide(e)
        fi
        }
#endif
       /* NOTIFY, or the slow poll. */
#ifdef BUG_NO_SLOW_POLL
    :: atomic { ME.phase == waiting && TERMINAL(ROW.state) && ME.told ->
        ME.phase = ending; ME.told = false
        }
#else
    :: atomic { ME.phase == waiting && TERMINAL(ROW.state) ->
        ME.phase = ending
        }
#endif
       /* S1 */
#ifdef BUG_LOOK_BEFORE_LOST
    :: atomic { ME.phase == waiting && ROW.state == claimed && !ROW.lease &&
                ME.seen == 0 ->
        look(e)
        }
    :: atomic { ME.phase == waiting && ROW.state == claimed && !ROW.lease &&
                ME.seen != 0 ->
#else
    :: atomic { ME.phase == waiting && ROW.state == claimed && !ROW.lease ->
#endif
        sweep_lost(ME.attempt, ME.generation);
        if
        :: !COORDINATES(ME.generation) -> LEAVE(e)
        :: else
        fi
        }
#ifndef BUG_NO_RESEND
       /* S2: what has no message, and at times what has one. */
    :: atomic { ME.phase == waiting && ROW.state == queued && run_state == open &&
                COORDINATES(ME.generation) && (!MAIL_LEFT(ME.attempt) || copies > 0) ->
        if
        :: MAIL_LEFT(ME.attempt) -> copies--; send(ME.attempt, 0)
        :: !MAIL_LEFT(ME.attempt) && !(GIVES_UP && sends == SENDS) ->
            KEEP(ME.attempt, queued, resend);
            sends = sends + GIVES_UP;
            send(ME.attempt, 0)
        :: !MAIL_LEFT(ME.attempt) && GIVES_UP && sends == SENDS ->
            cancel_queued(ME.attempt, ME.generation)
        fi
        }
#endif
       /* The run is being cancelled, or this step is no longer wanted. */
    :: atomic { ME.phase == waiting && COORDINATES(ME.generation) && ROW.state == queued &&
                (run_state == cancelling || unwanted > 0) ->
        if
        :: run_state == cancelling
        :: else -> unwanted--
        fi;
        cancel_queued(ME.attempt, ME.generation)
        }
    :: atomic { ME.phase == waiting && COORDINATES(ME.generation) && ROW.state == claimed &&
                !ROW.cancel_requested && (run_state == cancelling || unwanted > 0) ->
        if
        :: run_state == cancelling
        :: else -> unwanted--
        fi;
        request_cancel(ME.attempt, ME.generation)
        }
       /* The renewal of its own lease tells it that it is superseded. */
    :: atomic { ME.phase == waiting && !COORDINATES(ME.generation) -> LEAVE(e) }
    :: atomic { ME.phase == ending ->
#ifndef BUG_NO_LOG_FENCE
        if
        :: ROW.state != succeeded ->
            process[ROW.generation].in_flight = false;
            if
            :: process[ROW.generation].state == 0 ->
                process[ROW.generation].attempt = 0
            :: else
            fi
        :: else
        fi;
#endif
        ME.phase = looking
        }
    :: atomic { ME.phase == looking ->
        if
#ifdef BUG_NO_LOOK_AFTER_CRASH
        :: ROW.state == failed -> ME.seen = saw_nothing
#endif
#if defined(BUG_LOOK_BEFORE_LOST) || defined(BUG_ADOPT_FIRST)
        :: ROW.state == lost && ME.seen != 0 -> skip
#endif
        :: else -> look(e)
        fi;
        decide(e)
        }
       /* Each connection to the log asks first whether its generation still coordinates the run. */
    :: atomic { ME.phase == connecting ->
#ifdef BUG_NO_CONNECTION_CHECK
        ME.phase = writing
#else
        if
        :: COORDINATES(ME.generation) -> ME.phase = writing
        :: else -> LEAVE(e)
        fi
#endif
        }
    :: atomic { ME.phase == writing ->
        if
        :: ME.up ->
            log_up(ME.attempt); ME.attempt++; ME.up = false; ME.phase = enqueueing
        :: else -> log_final(ME.attempt); ME.phase = finishing
        fi
        }
    :: atomic { ME.phase == enqueueing ->
        enqueue(ME.attempt, ME.generation, done);
        if
        :: done -> ME.phase = sending; leave_behind(s_enqueue, ME.attempt, ME.generation)
        :: else ->
            if
            :: !COORDINATES(ME.generation) -> LEAVE(e)
            :: COORDINATES(ME.generation) && !RUN_ACTIVE -> ME.phase = finishing
            :: COORDINATES(ME.generation) && RUN_ACTIVE -> ME.phase = waiting
            fi
        fi;
        done = false
        }
    :: atomic { ME.phase == sending -> send(ME.attempt, 0); ME.phase = waiting }
    :: atomic { ME.phase == finishing ->
        end_run(ME.generation, done);
        if
        :: done -> clear(e)
        :: else -> LEAVE(e)
        fi;
        done = false
        }
    :: atomic { ME.phase == clearing && ROW.state == claimed && !ROW.lease -> sweep_lost(ME.attempt, ME.generation) }
       /* It is done, or has waited for long enough. */
    :: atomic { ME.phase == clearing -> ME.phase = closing }
    :: atomic { ME.phase == waiting && COORDINATES(ME.generation) && breaks > 0 -> breaks--; ME.phase = finishing }
    :: atomic { ME.phase == closing -> run_over = true; LEAVE(e) }
    :: atomic { ME.phase != 0 && executor_crashes > 0 -> crash_executor(e) }
    od
}

/* ---- Dagster's run monitoring, and whoever cancels --------------------------------------------------------------- */

active proctype Dagster() {
    byte i;
    bool was_started;
end_dagster:
    do
#ifdef NO_RESUME
    :: atomic { !was_started -> was_started = true; executor[0].phase = starting }
    :: atomic { was_started && !run_over && executor[0].phase == 0 && executor[1].phase == 0 ->
        cancel_run(); run_over = true
        }
#else
    :: atomic { !run_over && executor[0].phase == 0 && executor[1].phase == 0 ->
        executor[0].phase = starting
        }
#endif
    :: atomic { second_executors > 0 && !run_over && executor[0].phase != 0 && executor[0].phase != starting &&
                executor[1].phase == 0 ->
        second_executors--; executor[1].phase = starting
        }
       /* Nobody renews the coordinator's lease. */
    :: atomic { run_state == open && !orphaned && executor[0].generation != coordinator &&
                executor[1].generation != coordinator ->
        orphaned = true
        }
    :: atomic { cancels > 0 && run_state == open -> cancels--; cancel_run() }
    od
}

/* The run had no need to bring its step to an end. */
#define CANCELLED (CANCELS > cancels || BREAKS > breaks)

/* Nothing can happen any more: was everything brought to its end? */
proctype Judge() {
    byte i;
    timeout;
    atomic {
        REQUIRE(run_over && executor[0].phase == 0 && executor[1].phase == 0, run_ends);
#ifndef NO_RESUME
        for (i : 1 .. ATTEMPTS) {
            REQUIRE(row[i].state != claimed && row[i].state != queued, nothing_is_left);
            REQUIRE(!TERMINAL(row[i].state) || ups >= i || (ups == i - 1 && finished) || BREAKS > breaks ||
                   (row[i].state == cancelled && !row[i].started && CANCELLED), every_outcome_is_reported)
        }
        REQUIRE(finished || CANCELLED, every_outcome_is_reported);
#endif
        for (i : 1 .. GENERATIONS) {
            REQUIRE(process[i].state == 0 && !process[i].in_flight, nothing_is_left)
        }
        for (i : 0 .. WORKERS - 1) {
            REQUIRE(worker[i].phase == 0, nothing_is_left)
        }
        for (i : 0 .. (ATTEMPTS + 1) * COUNTS - 1) {
            REQUIRE(message[i] == 0 && aside[i] == 0, nothing_is_left)
        }
    }
}

init {
    byte i;
    atomic {
        for (i : 1 .. COORDINATORS) { run LateWrite(i) }
        for (i : 1 .. ATTEMPTS) { run Lease(i); run Network(i); run Supervisor(i) }
        for (i : 1 .. GENERATIONS) { run Process(i) }
        for (i : 0 .. WORKERS - 1) { run Worker(i) }
        run Executor(0);
        run Executor(1);
        run Judge();
        i = 0
    }
}
