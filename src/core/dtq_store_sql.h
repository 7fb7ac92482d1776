/*
 * The moves of the protocol as named statements.  Included by dtq_store_op.c only.  In words:
 * docs/internals/protocol.md.
 *
 * Each move is one statement in a transaction of its own at READ COMMITTED; all its guards are in the statement; zero
 * rows changed is an answer.  Time is now() of PostgreSQL: the start of the transaction, so a wait for a lock can only
 * make it earlier.
 *
 * Step rows (key: run_id, step_key, attempt).  Terminal states: succeeded, failed, cancelled, lost; they never change.
 * "mine": the run row has the coordinator generation that the caller gives; "coordinated": the coordinator's lease
 * has not run out.
 *
 *   from     to         statement       who                guard                         effect; notified
 *   -        queued     enqueue         executor           run active and mine, no       sent_at null
 *                                                          live attempt of the step
 *   queued   queued     resend          executor (S2)      run active and mine, due      sends + 1, sent_at; -
 *   queued   claimed    claim           worker, free slot  run active, coordinated       generation, lease, owner; -
 *   queued   cancelled  cancel_queued   executor           run mine                      run
 *   queued   cancelled  end_run         executor           run mine                      run
 *   queued   cancelled  claim           worker             run not active                run
 *   claimed  claimed    claim           worker             same nonce: its reply was     same generation, lease; -
 *                                                          lost
 *   claimed  claimed    renew           worker's beat      generation                    lease; -
 *   claimed  claimed    start           worker             generation, lease not past    started_at, process; -
 *   claimed  claimed    request_cancel  executor           run mine                      cancel_requested; worker
 *   claimed  claimed    end_run         executor           run mine                      cancel_requested; worker, run
 *   claimed  claimed    cancel_run      anybody            run not ended                 cancel_requested; worker, run
 *   claimed  succeeded  complete        worker, reaped it  generation, started           events; run
 *   claimed  failed     complete        worker, reaped it  generation                    events, error; run
 *   claimed  cancelled  complete        worker, reaped it  generation, cancel_requested  run
 *   claimed  queued *   hand_back       worker             generation, never started     sent_at null, sends 0; run
 *   claimed  queued *   sweep_lost      executor (S1)      run mine, lease past, never   sent_at null, sends 0; run
 *                                                          started
 *   claimed  lost       sweep_lost      executor (S1)      run mine, lease past,         reason; run
 *                                                          started
 *   claimed  queued *   claim           worker, another    lease past, never started     sent_at null, sends 0; run
 *                                       delivery
 *   claimed  lost       claim           worker, another    lease past, started           reason; run
 *                                       delivery
 *   claimed  lost       mark_lost       who saw it dead    generation                    reason; run
 *   claimed  lost       settle_ended    any worker, hourly run ended, lease past,        reason; run
 *                                                          started
 *   claimed  cancelled  settle_ended    any worker, hourly run ended, lease past,        run
 *                                                          never started
 *   * of a run that is not active: cancelled at once, which is where the next move would take it.
 *
 * Run rows: begin_run (none to active), take_over_run (a new generation, if the one that the caller has read still
 * holds), fenced_run (nothing of earlier coordinators is under way any more), renew_run (lease), cancel_run (active to
 * cancelling), end_run (to ended).
 *
 * Locks: the run row first, then step rows by (run_id, step_key, attempt); sweeps skip what is locked.  Whatever must
 * not run beside the end of a run holds its row FOR SHARE: a plain sub-select would not be looked at again after a
 * wait.  Rows that are moved are locked by a SELECT ... FOR UPDATE first, which reads their newest version; an UPDATE
 * alone would choose by the snapshot taken before the wait.
 *
 * Sent twice (after a lost connection): begin_run, take_over_run and claim answer alike by their nonce, enqueue by the
 * nonce of its call, complete, start, hand_back and mark_lost by the generation; the others are idempotent.
 *
 * Notifications: of a single row to its run {"step_key", "attempt", "state"}; of many rows, or when that is too long,
 * {} ("look"); of a cancelled run {"run_state"}; to a worker the generation to cancel; to the workers of a host who
 * has joined them; to the coordinators that use a queue what a worker makes of its messages (tell_queue).
 */
#ifndef DTQ_STORE_SQL_H
#define DTQ_STORE_SQL_H

#include "dtq_store.h"

/* SQL is broken at its clauses. */
/* clang-format off */

#define RUN_CHANNEL(run_id) "'dtq_run_' || replace(" run_id ", '-', '')"
#define HOST_CHANNEL(boot_id) "'dtq_host_' || md5(" boot_id ")"
#define QUEUE_CHANNEL(queue) "'dtq_queue_' || md5(" queue ")"
#define TELL_RUN_ROW(s) \
    "pg_notify(" RUN_CHANNEL(s ".run_id") ", CASE WHEN octet_length(" ROW_JSON(s) ") < 8000 THEN " ROW_JSON(s) \
    " ELSE '{}' END)::text"
#define ROW_JSON(s) \
    "json_build_object('step_key', " s ".step_key, 'attempt', " s ".attempt, 'state', " s ".state)::text"
#define TELL_RUN_LOOK(s) "pg_notify(" RUN_CHANNEL(s ".run_id") ", '{}')::text"
#define TELL_WORKER(s) "pg_notify('dtq_worker_' || " s ".owner, " s ".generation::text)::text"

#define SECONDS(p) "make_interval(secs => " p ")"
#define EPOCH(t) "extract(epoch FROM " t ")::float8"
#define LEFT(t) "extract(epoch FROM " t " - now())::float8"
#define SAME_ROW(a, b) a ".run_id = " b ".run_id AND " a ".step_key = " b ".step_key AND " a ".attempt = " b ".attempt"
#define KEY_ORDER(s) s ".run_id, " s ".step_key, " s ".attempt"
#define KEY_IS_123(s) s ".run_id = $1::text AND " s ".step_key = $2::text AND " s ".attempt = $3::int"

/* The run row of $1 with coordinator generation $2, kept from ending meanwhile. */
#define MY_RUN \
    "run AS (SELECT r.run_id, r.state FROM dagster_taskiq_runs r " \
    "WHERE r.run_id = $1::text AND r.generation = $2::bigint FOR SHARE)"
/* … and restricted to the keys ($3 step keys, $4 attempts), or none when $3 is null. */
#define IN_KEYS_34(s) \
    "($3::text[] IS NULL OR (" s ".step_key, " s ".attempt) IN (SELECT k, a FROM unnest($3::text[], " \
    "$4::int[]) AS asked(k, a)))"

/* What an UPDATE does not change, as the locked row has it.  PostgreSQL checks constraints on the row that it builds
 * from its snapshot before it notices that a newer version exists; built from the locked row alone, both are the
 * same. */
#define SET_CLAIM_OF(l) \
    "generation = " l ".generation, lease = " l ".lease, owner = " l ".owner, nonce = " l ".nonce, worker_name = " l \
    ".worker_name, host = " l ".host, boot_id = " l ".boot_id, pid = " l ".pid, pid_start = " l \
    ".pid_start, delivery_id = " l ".delivery_id, deliveries = " l ".deliveries, claimed_at = " l ".claimed_at, " \
    "started_at = " l ".started_at"

/* Back into the queue as never claimed; generation stays as a trace.  active: SQL that says whether the run is
 * active. */
#define SET_REQUEUED(active) \
    "state = CASE WHEN " active " THEN 'queued' ELSE 'cancelled' END, finished_at = CASE WHEN " active \
    " THEN NULL ELSE now() END, reason = CASE WHEN " active " THEN NULL ELSE 'the run was no longer active' END, " \
    "sent_at = NULL, sends = 0, lease = NULL, owner = NULL, nonce = NULL, worker_name = NULL, host = NULL, " \
    "boot_id = NULL, pid = NULL, pid_start = NULL, delivery_id = NULL, deliveries = NULL, claimed_at = NULL, " \
    "started_at = NULL, cancel_requested = false "

#define LEASE_ENDED_REASON(s) \
    "'the lease of worker ' || coalesce(" s ".worker_name, " s ".owner) || ' on ' || coalesce(" s \
    ".host, 'an unknown host') || ' ended at ' || to_char(" s ".lease AT TIME ZONE 'UTC', " \
    "'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || ' without a result'"

/* Rows that one prune removes at the most; PRUNE_BATCH of store.py is the smaller one. */
#define PRUNE_RUNS "100"
#define PRUNE_PARTS "1000"

/* StepRow of store.py. */
#define STEP_COLUMNS(s) \
    s ".run_id, " s ".step_key, " s ".attempt, " s ".state, " s ".queue, " s ".generation, " s ".owner, " s \
    ".worker_name, " s ".host, " s ".boot_id, " s ".pid, " s ".pid_start, " s ".delivery_id, " s ".deliveries, " s \
    ".sends, " s ".cancel_requested, " s ".reason, " LEFT(s ".lease") ", " EPOCH(s ".queued_at") ", " \
    EPOCH(s ".sent_at") ", " EPOCH(s ".claimed_at") ", " EPOCH(s ".started_at") ", " EPOCH(s ".finished_at")
#define STEP_COLUMN_TYPES "ttittittttittiibtffffff"

#define RUN_COLUMNS \
    "r.run_id, r.generation, r.state, r.previous_generation, r.unfenced, r.coordinator, " LEFT("r.lease") ", " \
    EPOCH("r.created_at")
#define RUN_COLUMN_TYPES "titiItff"

/* Columns that a statement gives beyond its signature are there for their effect (pg_notify) and not read. */
static const struct dtq_statement statements[] = {
    /* ---- runs ---------------------------------------------------------------------------------------------------- */

    /* run_id, coordinator (nonce), lease s -> the run, whoever coordinates it */
    {"begin_run", "ttf", RUN_COLUMN_TYPES,
     "INSERT INTO dagster_taskiq_runs AS r (run_id, generation, coordinator, state, lease) VALUES ($1::text, "
     "nextval('dagster_taskiq_generations'), $2::text, 'active', now() + " SECONDS("$3::float8") ") "
     /* Changes nothing: it makes RETURNING give the row that is there. */
     "ON CONFLICT (run_id) DO UPDATE SET coordinator = r.coordinator "
     "RETURNING " RUN_COLUMNS},

    /* run_id, coordinator (nonce), lease s, generation of the coordinator before it; no row: it is another's by now */
    {"take_over_run", "ttfi", RUN_COLUMN_TYPES,
     "WITH run AS (SELECT r.*, r.coordinator = $2::text AS again FROM dagster_taskiq_runs r "
     "WHERE r.run_id = $1::text AND r.state <> 'ended' AND (r.generation = $4::bigint OR r.coordinator = $2::text) "
     "FOR UPDATE) "
     "UPDATE dagster_taskiq_runs r SET "
     "generation = CASE WHEN run.again THEN run.generation ELSE nextval('dagster_taskiq_generations') END, "
     "previous_generation = CASE WHEN run.again THEN run.previous_generation ELSE run.generation END, "
     "unfenced = CASE WHEN run.again THEN run.unfenced ELSE run.unfenced || run.generation END, "
     "coordinator = $2::text, state = run.state, ended_at = run.ended_at, "
     "lease = greatest(run.lease, now() + " SECONDS("$3::float8") ") FROM run "
     "WHERE r.run_id = run.run_id "
     "RETURNING " RUN_COLUMNS},

    /* run_id, generation */
    {"fenced_run", "ti", "i",
     "UPDATE dagster_taskiq_runs SET unfenced = '{}' "
     "WHERE run_id = $1::text AND generation = $2::bigint "
     "RETURNING generation"},

    /* run_id, generation, lease s */
    {"renew_run", "tif", "t",
     "UPDATE dagster_taskiq_runs SET lease = CASE state WHEN 'ended' THEN lease ELSE greatest(lease, now() + "
     SECONDS("$3::float8") ") END WHERE run_id = $1::text AND generation = $2::bigint "
     "RETURNING state"},

    /* run_id */
    {"get_run", "t", RUN_COLUMN_TYPES,
     "SELECT " RUN_COLUMNS " FROM dagster_taskiq_runs r "
     "WHERE r.run_id = $1::text"},

    /* run_id */
    {"cancel_run", "t", "i",
     "WITH run AS (UPDATE dagster_taskiq_runs SET state = 'cancelling' "
     "WHERE run_id = $1::text AND state <> 'ended' "
     "RETURNING run_id), live AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.state IN ('queued', 'claimed') "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE), "
     "asked AS (UPDATE dagster_taskiq_steps s SET cancel_requested = true, state = live.state, " SET_CLAIM_OF("live")
     " FROM live WHERE " SAME_ROW("s", "live") " AND live.state = 'claimed' "
     "RETURNING " TELL_WORKER("s") " AS told) "
     "SELECT (SELECT count(told) FROM asked), pg_notify(" RUN_CHANNEL("run.run_id") ", '{\"run_state\": "
     "\"cancelling\"}') FROM run"},

    /* run_id, generation -> number cancelled; then the claims that are left (one row of nulls when none) */
    {"end_run", "ti", "i" STEP_COLUMN_TYPES,
     "WITH run AS (UPDATE dagster_taskiq_runs SET state = 'ended', ended_at = coalesce(ended_at, now()) "
     "WHERE run_id = $1::text AND generation = $2::bigint "
     "RETURNING run_id), live AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.state IN ('queued', 'claimed') "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE), "
     "settled AS (UPDATE dagster_taskiq_steps s SET state = CASE live.state WHEN 'queued' THEN 'cancelled' "
     "ELSE live.state END, finished_at = CASE live.state WHEN 'queued' THEN now() END, "
     "reason = CASE live.state WHEN 'queued' THEN 'the run ended' END, cancel_requested = live.state = 'claimed', "
     SET_CLAIM_OF("live") " FROM live "
     "WHERE " SAME_ROW("s", "live") " "
     "RETURNING s.*, CASE live.state WHEN 'claimed' THEN " TELL_WORKER("s") " END AS told) "
     "SELECT (SELECT count(*) FROM settled "
     "WHERE state = 'cancelled'), " STEP_COLUMNS("c") ", " TELL_RUN_LOOK("run") " FROM run LEFT JOIN settled c ON "
     "c.state = 'claimed' ORDER BY c.step_key, c.attempt"},

    /* ---- the executor's moves ------------------------------------------------------------------------------------ */

    /* run_id, generation, nonce, step keys, attempts, queues */
    {"enqueue", "titTIT", "ti",
     /* One at a time for each run: of two that insert the same row at once the second would meet it in the index of
      * live attempts before it meets it in the primary key, which is the only one that ON CONFLICT looks after. */
     "WITH run AS (SELECT r.run_id, pg_advisory_xact_lock(hashtextextended('dagster_taskiq ' || r.run_id, 0))::text "
     "FROM dagster_taskiq_runs r "
     "WHERE r.run_id = $1::text AND r.generation = $2::bigint AND r.state = 'active' FOR SHARE) "
     "INSERT INTO dagster_taskiq_steps AS s (run_id, step_key, attempt, queue, enqueued_by) "
     "SELECT DISTINCT ON (n.step_key, n.attempt) run.run_id, n.step_key, n.attempt, n.queue, $3::text FROM run, "
     "unnest($4::text[], $5::int[], $6::text[]) AS n(step_key, attempt, queue) "
     "WHERE NOT EXISTS (SELECT FROM dagster_taskiq_steps o "
     "WHERE o.run_id = run.run_id AND o.step_key = n.step_key AND o.attempt <> n.attempt AND o.state IN ('queued', "
     "'claimed')) ORDER BY n.step_key, n.attempt "
     /* Changes nothing: it makes RETURNING give the rows that this very call inserted before its reply was lost. */
     "ON CONFLICT (run_id, step_key, attempt) "
     "DO UPDATE SET enqueued_by = s.enqueued_by "
     "WHERE s.enqueued_by = excluded.enqueued_by AND s.state = 'queued' "
     "RETURNING s.step_key, s.attempt"},

    /* run_id, generation, base s, cap s, limit */
    {"resend", "tiffi", "titi",
     "WITH " MY_RUN ", due AS (SELECT " KEY_ORDER("s") " FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run "
     "WHERE state = 'active') AND s.state = 'queued' AND coalesce(s.sent_at, s.queued_at) < now() - "
     SECONDS("least($3::float8, $4::float8)") " AND coalesce(s.sent_at, s.queued_at) < now() - "
     SECONDS("least($3::float8 * power(2, least(s.sends, 30)), $4::float8)") " "
     "ORDER BY coalesce(s.sent_at, s.queued_at), s.step_key, s.attempt LIMIT $5::bigint FOR UPDATE SKIP LOCKED) "
     "UPDATE dagster_taskiq_steps s SET sends = s.sends + 1, sent_at = now() FROM due "
     "WHERE " SAME_ROW("s", "due") " "
     "RETURNING s.step_key, s.attempt, s.queue, s.sends"},

    /* queue -> queued, claimed, age of the oldest queued s, workers that serve it */
    {"queue_depth", "t", "iifi",
     "SELECT count(*) FILTER (WHERE s.state = 'queued'), count(*) FILTER (WHERE s.state = 'claimed'), "
     "extract(epoch FROM now() - min(s.queued_at) FILTER (WHERE s.state = 'queued'))::float8, "
     "(SELECT count(*) FROM dagster_taskiq_workers w "
     "WHERE $1::text = ANY (w.queues) AND w.heartbeat_at + w.ttl > now()) "
     "FROM dagster_taskiq_steps s JOIN dagster_taskiq_runs r ON r.run_id = s.run_id AND r.state = 'active' "
     "AND r.lease > now() WHERE s.queue = $1::text AND s.state IN ('queued', 'claimed')"},

    /* -> queues with rows that queue_depth counts */
    {"live_queues", "", "t",
     "SELECT DISTINCT s.queue FROM dagster_taskiq_steps s JOIN dagster_taskiq_runs r ON r.run_id = s.run_id "
     "AND r.state = 'active' AND r.lease > now() WHERE s.state IN ('queued', 'claimed') ORDER BY s.queue"},

    /* run_id, generation, step keys or null, attempts */
    {"cancel_queued", "tiTI", "ti",
     "WITH " MY_RUN ", picked AS (SELECT " KEY_ORDER("s") " FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.state = 'queued' AND " IN_KEYS_34("s") " "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE) "
     "UPDATE dagster_taskiq_steps s SET state = 'cancelled', finished_at = now(), "
     "reason = 'cancelled before a worker took it' FROM picked "
     "WHERE " SAME_ROW("s", "picked") " "
     "RETURNING s.step_key, s.attempt, " TELL_RUN_LOOK("s")},

    /* run_id, generation, step keys or null, attempts */
    {"request_cancel", "tiTI", "tit",
     "WITH " MY_RUN ", picked AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.state IN ('queued', 'claimed') AND " IN_KEYS_34("s") " "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE) "
     "UPDATE dagster_taskiq_steps s SET cancel_requested = true, state = picked.state, " SET_CLAIM_OF("picked")
     " FROM picked WHERE " SAME_ROW("s", "picked") " AND picked.state = 'claimed' "
     "RETURNING s.step_key, s.attempt, s.owner, " TELL_WORKER("s")},

    /* run_id, generation -> key, new state, generation, owner, worker name, reason */
    {"sweep_lost", "ti", "titittt",
     "WITH " MY_RUN ", due AS (SELECT " KEY_ORDER("s") ", s.started_at IS NOT NULL AS started, s.owner, "
     "s.worker_name, " LEASE_ENDED_REASON("s") " AS why FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.state = 'claimed' AND s.lease < now() "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE SKIP LOCKED), "
     "lost AS (UPDATE dagster_taskiq_steps s SET state = 'lost', finished_at = now(), reason = due.why FROM due "
     "WHERE " SAME_ROW("s", "due") " AND due.started "
     "RETURNING " KEY_ORDER("s") ", s.state, s.generation, " TELL_RUN_LOOK("s") " AS told), "
     "back AS (UPDATE dagster_taskiq_steps s SET " SET_REQUEUED("run.state = 'active'") "FROM due, run "
     "WHERE " SAME_ROW("s", "due") " AND NOT due.started "
     "RETURNING " KEY_ORDER("s") ", s.state, s.generation, " TELL_RUN_LOOK("s") " AS told) "
     "SELECT m.step_key, m.attempt, m.state, m.generation, due.owner, due.worker_name, "
     "due.why FROM (SELECT * FROM lost "
     "UNION ALL SELECT * FROM back) m JOIN due ON " SAME_ROW("m", "due") " "
     "ORDER BY m.step_key, m.attempt"},

    /* run_id, step keys or null, attempts, terminal ones only */
    {"outcomes", "tTIb", "tititttjjtifffffi",
     "SELECT s.step_key, s.attempt, s.state, s.generation, s.owner, s.worker_name, s.host, s.events, s.error, "
     "s.reason, s.deliveries, " EPOCH("s.queued_at") ", " EPOCH("s.claimed_at") ", " EPOCH("s.started_at") ", "
     EPOCH("s.finished_at") ", " EPOCH("s.lease") ", s.pid FROM "
     /* Those that are asked for by their key: what else the run has does not count. */
     "(SELECT s.* FROM (SELECT DISTINCT k, a FROM unnest($2::text[], $3::int[]) AS u(k, a)) AS asked "
     "JOIN dagster_taskiq_steps s ON s.run_id = $1::text AND s.step_key = asked.k AND s.attempt = asked.a "
     "UNION ALL SELECT s.* FROM dagster_taskiq_steps s WHERE $2::text[] IS NULL AND s.run_id = $1::text) AS s "
     "WHERE s.state <> 'claimed' AND ($4::bool IS NOT TRUE OR s.state <> 'queued') "
     "ORDER BY s.finished_at, s.step_key, s.attempt"},

    /* run_id */
    {"steps", "t", STEP_COLUMN_TYPES,
     "SELECT " STEP_COLUMNS("s") " FROM dagster_taskiq_steps s "
     "WHERE s.run_id = $1::text ORDER BY s.step_key, s.attempt"},

    /* application_name, timeout ms for each -> how many are still there */
    {"end_backends", "ti", "i",
     /* The list of backends is kept for the length of a transaction: the count needs a new one, after the waits.
      * Those that this role may not end are left out, for the whole statement would fail, and are counted. */
     "SELECT (SELECT count(*) FROM pg_stat_get_activity(NULL) a "
     "WHERE a.application_name = $1::text AND a.pid <> pg_backend_pid() AND ended.fresh IS NOT NULL) "
     "FROM (SELECT pg_stat_clear_snapshot()::text AS fresh "
     "FROM (SELECT count(pg_terminate_backend(b.pid, greatest($2::bigint, 1))) AS told "
     "FROM pg_stat_get_activity(NULL) b JOIN pg_roles role ON role.oid = b.usesysid "
     "WHERE b.application_name = $1::text AND b.pid <> pg_backend_pid() "
     "AND (current_setting('is_superuser') = 'on' OR NOT role.rolsuper "
     "AND (pg_has_role(b.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))) asked "
     "WHERE asked.told >= 0 OFFSET 0) ended"},

    /* ---- the worker's moves -------------------------------------------------------------------------------------- */

    /* run_id, step_key, attempt, owner, nonce, ttl s, host, boot_id, delivery_id, deliveries
     * -> outcome, generation, state, lease left s, owner, whether the claim met came by this message; no row: missing */
    {"claim", "ttittfttti", "titftb",
     "WITH run AS (SELECT r.run_id, r.state = 'active' AS active, r.lease < now() AS orphaned "
     "FROM dagster_taskiq_runs r "
     "WHERE r.run_id = $1::text FOR SHARE), "
     "step AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.step_key = $2::text AND s.attempt = $3::int FOR UPDATE), "
     "seen AS (SELECT step.*, run.active, CASE "
     "WHEN step.state = 'queued' AND run.active AND run.orphaned THEN 'orphaned' "
     "WHEN step.state = 'queued' AND run.active THEN 'claimed' "
     "WHEN step.state = 'queued' THEN 'run_inactive' "
     "WHEN step.state = 'claimed' AND step.nonce = $5::text THEN 'again' "
     "WHEN step.state = 'claimed' AND step.lease < now() THEN 'expired' "
     "WHEN step.state = 'claimed' THEN 'held' "
     "ELSE 'terminal' END AS outcome, " LEASE_ENDED_REASON("step") " AS why FROM step, run), "
     "taken AS (UPDATE dagster_taskiq_steps s SET state = 'claimed', generation = "
     "nextval('dagster_taskiq_generations'), lease = now() + " SECONDS("$6::float8") ", owner = $4::text, nonce = "
     "$5::text, worker_name = (SELECT w.name FROM dagster_taskiq_workers w "
     "WHERE w.identity = $4::text), host = $7::text, boot_id = $8::text, delivery_id = $9::text, "
     "deliveries = $10::int, claimed_at = now() FROM seen "
     "WHERE " SAME_ROW("s", "seen") " AND seen.outcome = 'claimed' "
     "RETURNING s.generation, s.state, s.lease, s.owner), "
     "kept AS (UPDATE dagster_taskiq_steps s SET state = seen.state, generation = seen.generation, "
     "lease = greatest(seen.lease, now() + " SECONDS("$6::float8") "), owner = seen.owner, nonce = seen.nonce, "
     "claimed_at = seen.claimed_at FROM seen "
     "WHERE " SAME_ROW("s", "seen") " AND seen.outcome = 'again' "
     "RETURNING s.generation, s.state, s.lease, s.owner), "
     "lost AS (UPDATE dagster_taskiq_steps s SET state = 'lost', finished_at = now(), reason = seen.why, "
     SET_CLAIM_OF("seen") " FROM seen "
     "WHERE " SAME_ROW("s", "seen") " AND seen.outcome = 'expired' AND seen.started_at IS NOT NULL "
     "RETURNING s.generation, s.state, s.lease, s.owner, " TELL_RUN_ROW("s") " AS told), "
     "back AS (UPDATE dagster_taskiq_steps s SET " SET_REQUEUED("seen.active") "FROM seen "
     "WHERE " SAME_ROW("s", "seen") " AND (seen.outcome = 'run_inactive' OR seen.outcome = 'expired' "
     "AND seen.started_at IS NULL) "
     "RETURNING s.generation, s.state, s.lease, s.owner, " TELL_RUN_ROW("s") " AS told), "
     "moved AS (SELECT generation, state, lease, owner FROM taken "
     "UNION ALL SELECT generation, state, lease, owner FROM kept "
     "UNION ALL SELECT generation, state, lease, owner FROM lost "
     "UNION ALL SELECT generation, state, lease, owner FROM back) "
     "SELECT CASE seen.outcome WHEN 'again' THEN 'claimed' ELSE seen.outcome END, coalesce(moved.generation, "
     "seen.generation), coalesce(moved.state, seen.state), " LEFT("coalesce(moved.lease, seen.lease)")
     ", coalesce(moved.owner, seen.owner), coalesce(seen.delivery_id = $9::text, false) "
     "FROM seen LEFT JOIN moved ON true"},

    /* run_id, step_key, attempt, generation, pid, start of the process */
    {"start", "ttiiit", "i",
     "UPDATE dagster_taskiq_steps s SET started_at = coalesce(s.started_at, now()), pid = coalesce($5::int, s.pid), "
     "pid_start = coalesce($6::text, s.pid_start) "
     "WHERE " KEY_IS_123("s") " AND s.generation = $4::bigint AND s.state = 'claimed' "
     "AND s.lease > now() RETURNING s.generation"},

    /* run_ids, step_keys, attempts, generations, ttls s -> of the renewed: generation, cancel_requested */
    {"renew", "TTIIF", "ib",
     "WITH mine AS (SELECT " KEY_ORDER("s") ", s.generation, n.ttl FROM unnest($1::text[], $2::text[], $3::int[], "
     "$4::bigint[], $5::float8[]) AS n(run_id, step_key, attempt, generation, ttl) JOIN dagster_taskiq_steps s ON "
     SAME_ROW("s", "n") " AND s.generation = n.generation AND s.state = 'claimed' "
     "ORDER BY " KEY_ORDER("s") " FOR UPDATE OF s) "
     "UPDATE dagster_taskiq_steps s SET lease = greatest(s.lease, now() + " SECONDS("mine.ttl") ") FROM mine "
     "WHERE " SAME_ROW("s", "mine") " AND s.generation = mine.generation AND s.state = 'claimed' "
     "RETURNING s.generation, s.cancel_requested"},

    /* run_id, step_key, attempt, generation, state, events, error, reason -> whether the row holds this result now */
    {"complete", "ttiitjjt", "b",
     "WITH step AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE " KEY_IS_123("s") " AND s.generation = $4::bigint FOR UPDATE), "
     "done AS (UPDATE dagster_taskiq_steps s SET state = $5::text, finished_at = now(), events = $6::text, "
     "error = $7::text, reason = $8::text, cancel_requested = step.cancel_requested, " SET_CLAIM_OF("step")
     " FROM step WHERE " SAME_ROW("s", "step") " AND step.state = 'claimed' AND ($5::text = 'failed' OR $5::text = "
     "'succeeded' AND step.started_at IS NOT NULL OR $5::text = 'cancelled' AND step.cancel_requested) "
     "RETURNING s.state, " TELL_RUN_ROW("s") " AS told) "
     "SELECT (step.state = $5::text OR EXISTS (SELECT FROM done)) FROM step"},

    /* run_id, step_key, attempt, generation -> whether it is back */
    /* run_id, step_key, attempt, generation: the run is told that its attempt, which goes on, has given an output */
    {"tell_progress", "ttii", "t",
     "SELECT " TELL_RUN_ROW("s") " FROM dagster_taskiq_steps s "
     "WHERE " KEY_IS_123("s") " AND s.generation = $4::bigint AND s.state = 'claimed'"},
    {"hand_back", "ttii", "b",
     "WITH run AS (SELECT r.run_id, r.state = 'active' AS active FROM dagster_taskiq_runs r "
     "WHERE r.run_id = $1::text FOR SHARE), "
     "step AS (SELECT s.*, (SELECT active FROM run) AS active FROM dagster_taskiq_steps s "
     "WHERE s.run_id = (SELECT run_id FROM run) AND s.step_key = $2::text AND s.attempt = $3::int "
     "AND s.generation = $4::bigint FOR UPDATE), "
     "back AS (UPDATE dagster_taskiq_steps s SET " SET_REQUEUED("step.active") "FROM step "
     "WHERE " SAME_ROW("s", "step") " AND step.state = 'claimed' AND step.started_at IS NULL "
     "RETURNING s.state, " TELL_RUN_ROW("s") " AS told) "
     "SELECT (step.state = 'queued' OR step.state = 'cancelled' AND step.claimed_at IS NULL OR EXISTS (SELECT "
     "FROM back)) FROM step"},

    /* run_id, step_key, attempt, generation, reason -> whether it is lost */
    {"mark_lost", "ttiit", "b",
     "WITH step AS (SELECT s.* FROM dagster_taskiq_steps s "
     "WHERE " KEY_IS_123("s") " AND s.generation = $4::bigint FOR UPDATE), "
     "lost AS (UPDATE dagster_taskiq_steps s SET state = 'lost', finished_at = now(), reason = $5::text, "
     SET_CLAIM_OF("step") " FROM step "
     "WHERE " SAME_ROW("s", "step") " AND step.state = 'claimed' "
     "RETURNING s.state, " TELL_RUN_ROW("s") " AS told) "
     "SELECT (step.state = 'lost' OR EXISTS (SELECT FROM lost)) FROM step"},

    /* generation */
    {"claim_is_live", "i", "b",
     "SELECT EXISTS (SELECT FROM dagster_taskiq_steps s "
     "WHERE s.generation = $1::bigint AND s.state = 'claimed')"},

    /* ---- workers ------------------------------------------------------------------------------------------------- */

    /* identity, name, host, pid, start of the process, boot_id, queues, slots, ttl s */
    {"register_worker", "tttittTif", "",
     "INSERT INTO dagster_taskiq_workers AS w (identity, name, host, pid, pid_start, boot_id, queues, slots, ttl) "
     "VALUES ($1::text, $2::text, $3::text, $4::int, $5::text, $6::text, $7::text[], $8::int, "
     SECONDS("$9::float8") ") "
     "ON CONFLICT (identity) DO UPDATE SET name = excluded.name, host = excluded.host, pid = excluded.pid, "
     "pid_start = excluded.pid_start, boot_id = excluded.boot_id, queues = excluded.queues, "
     "slots = excluded.slots, ttl = excluded.ttl, heartbeat_at = now() "
     "RETURNING pg_notify(" HOST_CHANNEL("w.boot_id") ", w.identity)::text"},

    /* identity, busy */
    {"heartbeat_worker", "ti", "i",
     "UPDATE dagster_taskiq_workers SET heartbeat_at = now(), busy = $2::int "
     "WHERE identity = $1::text RETURNING busy"},

    /* identity */
    {"remove_worker", "t", "",
     "DELETE FROM dagster_taskiq_workers "
     "WHERE identity = $1::text"},

    /* boot_id, identity of who asks */
    {"fellows", "tt", "ttit",
     "SELECT w.identity, w.name, w.pid, w.pid_start FROM dagster_taskiq_workers w "
     "WHERE w.boot_id = $1::text AND w.identity <> $2::text ORDER BY w.identity"},

    /* queue, payload: to the coordinators that use the queue */
    {"tell_queue", "tt", "", "SELECT pg_notify(" QUEUE_CHANNEL("$1::text") ", $2::text)::text"},

    /* owner, boot_id -> its claims whose lease runs: key, generation, pid, start of the process, whether it started */
    {"claims_of", "tt", "ttiiitb",
     "SELECT s.run_id, s.step_key, s.attempt, s.generation, s.pid, s.pid_start, s.started_at IS NOT NULL "
     "FROM dagster_taskiq_steps s "
     "WHERE s.owner = $1::text AND s.boot_id = $2::text AND s.state = 'claimed' AND s.lease > now() "
     "ORDER BY " KEY_ORDER("s")},

    {"list_workers", "", "tttitTiiffb",
     "SELECT w.identity, w.name, w.host, w.pid, w.boot_id, w.queues, w.slots, w.busy, " EPOCH("w.started_at") ", "
     EPOCH("now() - w.heartbeat_at") ", w.heartbeat_at + w.ttl > now() FROM dagster_taskiq_workers w "
     "ORDER BY w.name, w.identity"},

    /* ---- parts of payloads --------------------------------------------------------------------------------------- */

    /* digest, text -> whether it was new */
    {"put_part", "tt", "b",
     "INSERT INTO dagster_taskiq_parts AS p (digest, content) VALUES ($1::text, $2::text) "
     "ON CONFLICT (digest) DO UPDATE SET used_at = now() "
     "RETURNING p.xmax = 0"},

    /* digests -> those that are not there; the others are kept from prune for two hours more */
    {"missing_parts", "T", "t",
     "WITH fresh AS (SELECT p.digest FROM dagster_taskiq_parts p "
     "WHERE p.digest = ANY ($1::text[]) AND p.used_at >= now() - interval '1 hour'), "
     "old AS (SELECT p.digest FROM dagster_taskiq_parts p "
     "WHERE p.digest = ANY ($1::text[]) AND p.used_at < now() - interval '1 hour' "
     "ORDER BY p.digest FOR UPDATE), "
     "touched AS (UPDATE dagster_taskiq_parts p SET used_at = now() FROM old "
     "WHERE p.digest = old.digest RETURNING p.digest) "
     "SELECT DISTINCT d FROM unnest($1::text[]) AS d "
     "WHERE d NOT IN (SELECT digest FROM fresh "
     "UNION ALL SELECT digest FROM touched)"},

    /* digests */
    {"get_parts", "T", "tt",
     "SELECT p.digest, p.content FROM dagster_taskiq_parts p "
     "WHERE p.digest = ANY ($1::text[])"},

    /* -> rows that were settled: what a run left claimed whose coordinator died at its end. */
    {"settle_ended", "", "i",
     "WITH left_over AS (SELECT " KEY_ORDER("s") ", s.started_at IS NOT NULL AS started, " LEASE_ENDED_REASON("s")
     " AS why FROM dagster_taskiq_steps s JOIN dagster_taskiq_runs r ON r.run_id = s.run_id AND r.state = 'ended' "
     "WHERE s.state = 'claimed' AND s.lease < now() "
     "ORDER BY " KEY_ORDER("s") " LIMIT " PRUNE_RUNS " FOR UPDATE OF s SKIP LOCKED), "
     "lost AS (UPDATE dagster_taskiq_steps s SET state = 'lost', finished_at = now(), reason = left_over.why "
     "FROM left_over WHERE " SAME_ROW("s", "left_over") " AND left_over.started "
     "RETURNING " TELL_RUN_LOOK("s") "), "
     "cancelled AS (UPDATE dagster_taskiq_steps s SET " SET_REQUEUED("false") "FROM left_over "
     "WHERE " SAME_ROW("s", "left_over") " AND NOT left_over.started "
     "RETURNING " TELL_RUN_LOOK("s") ") SELECT (SELECT count(*) FROM lost) + (SELECT count(*) FROM cancelled)"},

    /* older than s -> runs, parts and workers that were removed.  A bounded number at a time, and nothing that another
     * worker is removing: this runs on the connection that renews leases. */
    {"prune", "f", "iii",
     "WITH age AS (SELECT now() - " SECONDS("greatest($1::float8, 7200)") " AS before), "
     "old_runs AS (SELECT o.run_id FROM dagster_taskiq_runs o "
     "WHERE o.state = 'ended' AND o.ended_at < (SELECT before FROM age) "
     "ORDER BY o.ended_at LIMIT " PRUNE_RUNS " FOR UPDATE SKIP LOCKED), "
     /* Nobody has ended them, and nobody will. */
     "dead_runs AS (SELECT o.run_id FROM dagster_taskiq_runs o "
     "WHERE o.state <> 'ended' AND o.lease < (SELECT before FROM age) "
     "AND NOT EXISTS (SELECT FROM dagster_taskiq_steps s "
     "WHERE s.run_id = o.run_id AND s.state = 'claimed' AND s.lease > now()) "
     "ORDER BY o.created_at LIMIT " PRUNE_RUNS " FOR UPDATE SKIP LOCKED), "
     "runs AS (DELETE FROM dagster_taskiq_runs r "
     "WHERE r.run_id IN (SELECT run_id FROM old_runs UNION ALL SELECT run_id FROM dead_runs) "
     "RETURNING r.run_id), "
     "old_parts AS (SELECT p.digest FROM dagster_taskiq_parts p "
     "WHERE p.used_at < (SELECT before FROM age) "
     "AND NOT EXISTS (SELECT FROM dagster_taskiq_runs r "
     "WHERE r.state <> 'ended' AND r.lease > (SELECT before FROM age) "
     "AND r.created_at <= p.used_at + interval '2 hours') "
     "ORDER BY p.used_at LIMIT " PRUNE_PARTS " FOR UPDATE SKIP LOCKED), "
     "parts AS (DELETE FROM dagster_taskiq_parts p USING old_parts WHERE p.digest = old_parts.digest "
     "RETURNING p.digest), "
     "workers AS (DELETE FROM dagster_taskiq_workers w USING age "
     "WHERE w.heartbeat_at + w.ttl < greatest(age.before, now() - interval '1 day') "
     "RETURNING w.identity) SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM parts), "
     "(SELECT count(*) FROM workers)"},

    /* ---- schema -------------------------------------------------------------------------------------------------- */

    {"migrations", "", "it",
     "SELECT number, name FROM dagster_taskiq_migrations "
     "ORDER BY number"},
};

/* clang-format on */

#endif
