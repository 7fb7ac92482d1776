"""Every move of the protocol's table: what it does, what each guard refuses, and what a second sending answers."""

from __future__ import annotations

import hashlib
import json
import select
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest
import services

from dagster_taskiq.store import Fellow, FellowClaim, IdempotencyStore, host_channel

from .conftest import TTL, Run, Sql

TERMINAL = ("succeeded", "failed", "cancelled", "lost")


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_begin_again_with_the_same_nonce_keeps_the_generation(store: IdempotencyStore) -> None:
    run_id, nonce = str(uuid.uuid4()), uuid.uuid4().hex
    first = store.begin_run(run_id, nonce, TTL).result()
    second = store.begin_run(run_id, nonce, TTL).result()
    assert (first.state, first.previous_generation) == ("active", None)
    assert (second.generation, second.previous_generation) == (first.generation, None)


def test_a_run_begins_once(store: IdempotencyStore) -> None:
    """Whoever comes second is told who coordinates it."""
    run_id = str(uuid.uuid4())
    first = store.begin_run(run_id, "one", TTL).result()
    second = store.begin_run(run_id, "two", TTL).result()
    assert (second.generation, second.coordinator, second.previous_generation) == (first.generation, "one", None)


def test_take_over_gives_a_higher_generation_and_names_the_old_ones(run: Run) -> None:
    second = run.store.take_over_run(run.id, "two", TTL, run.generation).result()
    assert second and second.generation > run.generation
    assert (second.previous_generation, second.unfenced) == (run.generation, [run.generation])
    third = run.store.take_over_run(run.id, "three", TTL, second.generation).result()
    again = run.store.take_over_run(run.id, "three", TTL, second.generation).result()
    assert third and again and again.generation == third.generation
    assert (again.previous_generation, again.unfenced) == (second.generation, [run.generation, second.generation])


def test_a_takeover_that_comes_late_supersedes_nobody(run: Run) -> None:
    """Its process is dead, and another coordinator has begun since it looked."""
    living = run.store.take_over_run(run.id, "living", TTL, run.generation).result()
    assert run.store.take_over_run(run.id, "dead", TTL, run.generation).result() is None
    assert living and run.store.renew_run(run.id, living.generation, TTL).result() == "active"


def test_what_has_been_fenced_is_forgotten(run: Run) -> None:
    second = run.store.take_over_run(run.id, "two", TTL, run.generation).result()
    assert second
    assert run.store.fenced_run(run.id, run.generation).result() is False
    assert run.store.fenced_run(run.id, second.generation).result() is True
    third = run.store.take_over_run(run.id, "three", TTL, second.generation).result()
    assert third and third.unfenced == [second.generation]


def test_an_ended_run_does_not_begin_again(run: Run) -> None:
    assert run.store.end_run(run.id, run.generation).result() is not None
    before = run.store.get_run(run.id).result()
    row = run.store.begin_run(run.id, uuid.uuid4().hex, TTL).result()
    assert row.state == "ended"
    assert run.store.take_over_run(run.id, "two", TTL, run.generation).result() is None
    after = run.store.get_run(run.id).result()
    assert before and after
    assert (after.generation, after.coordinator) == (before.generation, before.coordinator)


def test_a_superseded_coordinator_can_do_nothing(run: Run) -> None:
    run.queued("queued")
    run.claimed("claimed")
    run.started("late")
    run.expire("late")
    run.sql("UPDATE dagster_taskiq_steps SET queued_at = now() - interval '1 hour' WHERE run_id = %s", run.id)
    old = run.generation
    taken = run.store.take_over_run(run.id, "two", TTL, old).result()
    assert taken
    new = taken.generation
    before = [run.row(key) for key in ("queued", "claimed", "late")]
    assert run.store.renew_run(run.id, old, TTL).result() is None
    assert run.store.enqueue(run.id, old, [("b", 1, run.queue)]).result() == []
    assert run.store.resend(run.id, old, 1, 2, 10).result() == []
    assert run.store.cancel_queued(run.id, old).result() == []
    assert run.store.request_cancel(run.id, old).result() == []
    assert run.store.sweep_lost(run.id, old).result() == []
    assert run.store.end_run(run.id, old).result() is None
    assert [run.row(key) for key in ("queued", "claimed", "late")] == before
    assert run.store.renew_run(run.id, new, TTL).result() == "active"


def test_cancel_run(run: Run) -> None:
    generation = run.claimed("claimed")
    run.queued("queued")
    assert run.store.cancel_run(run.id).result() is True
    assert run.store.cancel_run(run.id).result() is True
    assert run.store.renew_run(run.id, run.generation, TTL).result() == "cancelling"
    assert run.state("queued") == "queued"
    assert run.store.renew([(run.id, "claimed", 1, generation)], [TTL]).result() == {generation: True}
    assert run.store.enqueue(run.id, run.generation, [("new", 1, run.queue)]).result() == []
    run.store.end_run(run.id, run.generation).result()
    assert run.store.cancel_run(run.id).result() is False
    assert run.store.cancel_run(str(uuid.uuid4())).result() is False


def test_end_run_settles_what_is_queued_and_asks_for_what_is_claimed(run: Run) -> None:
    run.queued("q1")
    run.queued("q2")
    generation = run.started("c")
    terminal = run.ended("succeeded", "done") and run.row("done")
    ended = run.store.end_run(run.id, run.generation).result()
    assert ended is not None
    assert ended.cancelled == 2
    assert [(s.step_key, s.generation, s.cancel_requested) for s in ended.still_claimed] == [("c", generation, True)]
    assert (run.state("q1"), run.state("q2"), run.state("c")) == ("cancelled", "cancelled", "claimed")
    assert run.row("done") == terminal
    again = run.store.end_run(run.id, run.generation).result()
    assert again is not None and again.cancelled == 0 and len(again.still_claimed) == 1
    assert run.store.renew_run(run.id, run.generation, TTL).result() == "ended"
    assert run.store.complete(run.id, "c", 1, generation, "cancelled").result() is True


def test_end_run_with_nothing_alive(run: Run) -> None:
    ended = run.store.end_run(run.id, run.generation).result()
    assert ended is not None and (ended.cancelled, ended.still_claimed) == (0, [])


# ---- enqueue, resend, depth ------------------------------------------------------------------------------------------


def test_enqueue_inserts_once(run: Run) -> None:
    steps = [("a", 1, run.queue), ("b", 1, run.queue), ("a", 1, run.queue)]
    assert sorted(run.store.enqueue(run.id, run.generation, steps).result()) == [("a", 1), ("b", 1)]
    assert run.store.enqueue(run.id, run.generation, [*steps, ("c", 1, run.queue)]).result() == [("c", 1)]


def test_enqueue_sent_twice_answers_alike(run: Run) -> None:
    params = (run.id, run.generation, "nonce", ["a", "b"], [1, 1], ["q", "q"])
    first = run.store.core.run("enqueue", params).result()
    run.claim("b")
    assert sorted(first) == [("a", 1), ("b", 1)]
    assert run.store.core.run("enqueue", params).result() == [("a", 1)]  # b needs no message any more
    assert run.store.core.run("enqueue", (*params[:2], "other", *params[3:])).result() == []


@pytest.mark.parametrize("state", TERMINAL)
def test_next_attempt_only_after_the_last_one_ended(run: Run, state: str) -> None:
    run.queued("b")
    assert run.store.enqueue(run.id, run.generation, [("b", 2, run.queue)]).result() == []
    run.ended(state)
    assert run.store.enqueue(run.id, run.generation, [("a", 2, run.queue)]).result() == [("a", 2)]


def test_two_live_attempts_of_a_step_are_impossible(run: Run) -> None:
    run.queued("a")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        run.sql(
            "INSERT INTO dagster_taskiq_steps (run_id, step_key, attempt, queue, enqueued_by) "
            "VALUES (%s, 'a', 2, 'q', 'x')",
            run.id,
        )


def test_enqueue_into_a_run_that_is_not_there(store: IdempotencyStore) -> None:
    assert store.enqueue(str(uuid.uuid4()), 1, [("a", 1, "q")]).result() == []


def test_resend_backs_off(run: Run) -> None:
    run.queued("a")
    run.claimed("taken")
    assert run.store.resend(run.id, run.generation, 30, 600, 10).result() == []

    def age(seconds: int) -> list[tuple[str, int]]:
        run.sql(
            "UPDATE dagster_taskiq_steps SET queued_at = now() - make_interval(secs => %s), "
            "sent_at = CASE WHEN sent_at IS NOT NULL THEN now() - make_interval(secs => %s) END WHERE run_id = %s",
            seconds,
            seconds,
            run.id,
        )
        due = run.store.resend(run.id, run.generation, 30, 600, 10).result()
        assert all(r.queue == run.queue for r in due)
        return [(r.step_key, r.sends) for r in due]

    assert age(29) == []
    assert age(31) == [("a", 1)]
    assert age(31) == []
    assert age(61) == [("a", 2)]
    run.sql("UPDATE dagster_taskiq_steps SET sends = 2000 WHERE run_id = %s AND state = 'queued'", run.id)
    assert age(599) == []
    assert age(601) == [("a", 2001)]


def test_resend_takes_the_oldest_up_to_its_limit(run: Run) -> None:
    for n, key in enumerate(("a", "b", "c")):
        run.queued(key)
        run.sql(
            "UPDATE dagster_taskiq_steps SET queued_at = now() - make_interval(hours => %s) "
            "WHERE run_id = %s AND step_key = %s",
            n + 1,
            run.id,
            key,
        )
    assert {r.step_key for r in run.store.resend(run.id, run.generation, 30, 600, 2).result()} == {"b", "c"}


def test_resend_only_while_the_run_is_active(run: Run) -> None:
    run.queued("a")
    run.sql("UPDATE dagster_taskiq_steps SET queued_at = now() - interval '1 hour' WHERE run_id = %s", run.id)
    run.store.cancel_run(run.id).result()
    assert run.store.resend(run.id, run.generation, 30, 600, 2).result() == []


def test_queue_depth(run: Run) -> None:
    empty = run.store.queue_depth(run.queue).result()
    assert (empty.queued, empty.claimed, empty.oldest_queued_age, empty.workers) == (0, 0, None, 0)
    run.queued("a")
    run.queued("b")
    run.claimed("c")
    run.ended("failed", "d")
    for identity, queues, ttl in (("x", [run.queue], 60.0), ("y", ["other"], 60.0), ("z", [run.queue, "o"], -1.0)):
        run.store.register_worker(identity + run.queue, identity, "h", 1, "b", queues, 2, ttl=ttl).result()
    depth = run.store.queue_depth(run.queue).result()
    assert (depth.queued, depth.claimed, depth.workers) == (2, 1, 1)
    assert depth.oldest_queued_age is not None and depth.oldest_queued_age >= 0
    assert run.queue in run.store.live_queues().result()
    run.store.cancel_run(run.id).result()
    assert run.store.queue_depth(run.queue).result().queued == 0
    assert run.queue not in run.store.live_queues().result()


# ---- claim -----------------------------------------------------------------------------------------------------------


def test_claim(run: Run) -> None:
    run.store.register_worker("w-" + run.queue, "worker one", "h", 1, "b", [run.queue], 2).result()
    run.queued()
    claim = run.claim(owner="w-" + run.queue, deliveries=3, delivery_id="message", ttl=60.0)
    assert (claim.outcome, claim.state, claim.owner) == ("claimed", "claimed", "w-" + run.queue)
    assert claim.lease_left == pytest.approx(60.0)
    (row,) = run.store.steps(run.id).result()
    assert (row.worker_name, row.deliveries, row.delivery_id, row.host) == ("worker one", 3, "message", "h")
    assert row.generation == claim.generation and row.claimed_at is not None and row.started_at is None


def test_an_orphaned_attempt_is_not_claimed(run: Run) -> None:
    """Nobody waits for it: it stays queued, until somebody does again."""
    run.queued("a")
    first = run.claimed("b")
    run.sql("UPDATE dagster_taskiq_runs SET lease = now() - interval '1 s' WHERE run_id = %s", run.id)
    before = run.row("a")
    claim = run.claim("a")
    assert (claim.outcome, claim.state, claim.generation) == ("orphaned", "queued", None)
    assert run.row("a") == before
    assert run.store.queue_depth(run.queue).result().queued == 0
    # What is claimed goes on.
    assert run.store.start(run.id, "b", 1, first).result()
    assert run.store.renew_run(run.id, run.generation, 60.0).result() == "active"
    assert run.claim("a").outcome == "claimed"


def test_a_retried_claim_gets_the_same_generation(run: Run) -> None:
    run.queued()
    first = run.claim(nonce="n")
    second = run.claim(nonce="n", owner="ignored")
    assert first.outcome == second.outcome == "claimed"
    assert first.generation == second.generation
    assert second.owner == "w1"
    run.expire()
    third = run.claim(nonce="n")
    assert (third.outcome, third.generation) == ("claimed", first.generation)
    assert third.lease_left is not None and third.lease_left > 0


def test_claim_of_a_held_attempt(run: Run) -> None:
    generation = run.claimed()
    before = run.row()
    claim = run.claim(owner="w2")
    assert (claim.outcome, claim.generation, claim.owner) == ("held", generation, "w1")
    assert claim.lease_left is not None and 0 < claim.lease_left <= TTL
    assert run.row() == before


def test_claim_of_an_expired_claim_that_never_started(run: Run) -> None:
    first = run.claimed()
    run.expire()
    claim = run.claim(owner="w2")
    assert (claim.outcome, claim.state, claim.generation, claim.owner) == ("expired", "queued", first, "w1")
    second = run.claim(owner="w2")
    assert second.outcome == "claimed" and second.generation is not None and second.generation > first


def test_claim_of_an_expired_claim_that_started(run: Run) -> None:
    generation = run.started()
    run.expire()
    claim = run.claim(owner="w2")
    assert (claim.outcome, claim.state, claim.generation) == ("expired", "lost", generation)
    assert run.claim(owner="w2").outcome == "terminal"
    (outcome,) = run.store.outcomes(run.id, [("a", 1)]).result()
    assert outcome.reason and "lease of worker w1" in outcome.reason


@pytest.mark.parametrize("state", TERMINAL)
def test_claim_of_a_terminal_attempt(run: Run, state: str) -> None:
    generation = run.ended(state)
    claim = run.claim()
    assert (claim.outcome, claim.state, claim.generation) == ("terminal", state, generation)


@pytest.mark.parametrize("end", [False, True])
def test_no_claim_in_a_run_that_is_not_active(run: Run, end: bool) -> None:
    run.queued()
    run.store.cancel_run(run.id).result()
    if end:
        run.sql("UPDATE dagster_taskiq_runs SET state = 'ended', ended_at = now() WHERE run_id = %s", run.id)
    claim = run.claim()
    assert (claim.outcome, claim.state, claim.generation) == ("run_inactive", "cancelled", None)
    assert run.state() == "cancelled"


def test_expired_and_never_started_in_a_run_that_is_not_active(run: Run) -> None:
    run.claimed()
    run.expire()
    run.store.cancel_run(run.id).result()
    claim = run.claim()
    assert (claim.outcome, claim.state) == ("expired", "cancelled")


def test_claim_of_nothing(run: Run) -> None:
    assert run.claim("nothing").outcome == "missing"
    assert run.store.claim(
        str(uuid.uuid4()), "a", 1, owner="w", nonce="n", ttl=1.0, host="h", boot_id="b", delivery_id="m", deliveries=1
    ).result() == run.claim("nothing")


# ---- claimed --------------------------------------------------------------------------------------------------------


def test_start_and_its_guards(run: Run) -> None:
    generation = run.claimed()
    assert run.store.start(run.id, "a", 1, generation + 1000000).result() is False
    assert run.store.start(run.id, "a", 2, generation).result() is False
    assert run.store.start(run.id, "a", 1, generation).result() is True
    (first,) = run.store.steps(run.id).result()
    assert run.store.start(run.id, "a", 1, generation, pid=7, pid_start="s").result() is True
    (second,) = run.store.steps(run.id).result()
    assert first.started_at == second.started_at
    assert (second.pid, second.pid_start) == (7, "s")


def test_renew_by_another_generation_changes_nothing(run: Run) -> None:
    generation = run.started()
    before = run.row()
    assert run.store.renew([(run.id, "a", 1, generation + 1000000)], [2 * TTL]).result() == {}
    assert run.row() == before


def test_renew_lists_what_is_still_held(run: Run) -> None:
    held, other, gone = run.started("a"), run.started("b"), run.ended("failed", "c")
    run.expire("a")
    run.store.request_cancel(run.id, run.generation, [("b", 1)]).result()
    renewed = run.store.renew(
        [(run.id, "a", 1, held), (run.id, "b", 1, other), (run.id, "c", 1, gone), (run.id, "a", 1, gone)], [60.0] * 4
    ).result()
    assert renewed == {held: False, other: True}
    assert run.store.renew([], []).result() == {}
    left = {row.step_key: row.lease_left for row in run.store.steps(run.id).result()}
    assert left["a"] is not None and left["b"] is not None
    assert 0 < left["a"] <= 60 and left["b"] > 60  # never backwards


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_complete(run: Run, state: Any) -> None:
    generation = run.started()
    written = run.store.complete(
        run.id, "a", 1, generation, state, events='["e"]', error='{"m": 1}', reason="because"
    ).result()
    assert written is True
    before = run.row()
    assert run.store.complete(run.id, "a", 1, generation, state, events="[]").result() is True
    assert run.row() == before
    (outcome,) = run.store.outcomes(run.id, [("a", 1)]).result()
    assert (outcome.state, outcome.events, outcome.error, outcome.reason) == (state, '["e"]', '{"m": 1}', "because")
    assert (outcome.generation, outcome.pid, outcome.host, outcome.deliveries) == (generation, 42, "h", 1)
    times = (outcome.queued_at, outcome.claimed_at, outcome.started_at, outcome.finished_at)
    assert all(t is not None for t in times) and list(times) == sorted(t for t in times if t is not None)
    assert outcome.lease_at is not None and outcome.lease_at > outcome.queued_at


def test_complete_refused(run: Run) -> None:
    generation = run.claimed()
    before = run.row()
    assert run.store.complete(run.id, "a", 1, generation + 1000000, "failed").result() is False
    assert run.store.complete(run.id, "a", 1, generation, "cancelled").result() is False  # nobody asked
    assert run.store.complete(run.id, "a", 1, generation, "succeeded").result() is False  # never started
    assert run.row() == before
    assert run.store.complete(run.id, "a", 1, generation, "failed").result() is True


def test_late_completion_after_loss_is_refused(run: Run) -> None:
    generation = run.started()
    run.expire()
    assert [s.state for s in run.store.sweep_lost(run.id, run.generation).result()] == ["lost"]
    assert run.store.complete(run.id, "a", 1, generation, "succeeded").result() is False
    assert run.state() == "lost"


def test_completion_after_the_lease_but_before_the_sweep_counts(run: Run) -> None:
    generation = run.started()
    run.expire()
    assert run.store.complete(run.id, "a", 1, generation, "succeeded").result() is True
    assert run.store.sweep_lost(run.id, run.generation).result() == []


def test_hand_back(run: Run) -> None:
    generation = run.claimed()
    run.sql("UPDATE dagster_taskiq_steps SET sends = 3, sent_at = now() WHERE run_id = %s", run.id)
    assert run.store.hand_back(run.id, "a", 1, generation + 1000000).result() is False
    assert run.store.hand_back(run.id, "a", 1, generation).result() is True
    (row,) = run.store.steps(run.id).result()
    assert (row.state, row.sent_at, row.sends, row.owner, row.claimed_at) == ("queued", None, 0, None, None)
    assert run.store.hand_back(run.id, "a", 1, generation).result() is True
    assert run.claim().outcome == "claimed"
    assert run.store.hand_back(run.id, "a", 1, generation).result() is False


def test_hand_back_of_a_started_attempt_is_refused(run: Run) -> None:
    generation = run.started()
    before = run.row()
    assert run.store.hand_back(run.id, "a", 1, generation).result() is False
    assert run.row() == before


def test_hand_back_in_a_run_that_is_not_active_cancels(run: Run) -> None:
    generation = run.claimed()
    run.store.cancel_run(run.id).result()
    assert run.store.hand_back(run.id, "a", 1, generation).result() is True
    assert run.state() == "cancelled"
    assert run.store.hand_back(run.id, "a", 1, generation).result() is True


def test_mark_lost(run: Run) -> None:
    generation = run.started()
    assert run.store.mark_lost(run.id, "a", 1, generation + 1000000, "x").result() is False
    assert run.store.mark_lost(run.id, "a", 1, generation, "its process was fenced").result() is True
    assert run.store.mark_lost(run.id, "a", 1, generation, "again").result() is True
    (outcome,) = run.store.outcomes(run.id).result()
    assert (outcome.state, outcome.reason) == ("lost", "its process was fenced")


def test_nothing_starts_under_a_lease_that_is_past(run: Run) -> None:
    generation = run.claimed()
    run.expire()
    assert run.store.start(run.id, "a", 1, generation).result() is False
    assert run.store.renew([(run.id, "a", 1, generation)], [TTL]).result() == {generation: False}
    assert run.store.start(run.id, "a", 1, generation).result() is True


def test_claim_is_live(run: Run) -> None:
    generation = run.started()
    assert run.store.claim_is_live(generation).result() is True
    run.store.complete(run.id, "a", 1, generation, "failed").result()
    assert run.store.claim_is_live(generation).result() is False


@pytest.mark.parametrize("state", TERMINAL)
def test_terminal_rows_never_change(run: Run, state: str) -> None:
    generation = run.ended(state)
    run.expire()
    before = run.row()
    store, keys = run.store, [("a", 1)]
    store.enqueue(run.id, run.generation, [("a", 1, run.queue)]).result()
    store.resend(run.id, run.generation, 0, 0, 10).result()
    run.claim()
    store.start(run.id, "a", 1, generation, pid=1).result()
    store.renew([(run.id, "a", 1, generation)], [TTL]).result()
    others: tuple[Any, ...] = ("succeeded", "failed", "cancelled")
    for other in others:
        assert store.complete(run.id, "a", 1, generation, other, reason="x").result() is (other == state)
    store.hand_back(run.id, "a", 1, generation).result()
    assert store.mark_lost(run.id, "a", 1, generation, "x").result() is (state == "lost")
    store.cancel_queued(run.id, run.generation, keys).result()
    store.request_cancel(run.id, run.generation, keys).result()
    store.sweep_lost(run.id, run.generation).result()
    store.cancel_run(run.id).result()
    store.end_run(run.id, run.generation).result()
    assert run.row() == before


# ---- the executor's sweeps and cancellations -------------------------------------------------------------------------


def test_sweep_lost(run: Run) -> None:
    started, never, alive = run.started("started"), run.claimed("never"), run.claimed("alive")
    run.expire("started")
    run.expire("never")
    swept = run.store.sweep_lost(run.id, run.generation).result()
    assert [(s.step_key, s.state, s.generation, s.owner) for s in swept] == [
        ("never", "queued", never, "w1"),
        ("started", "lost", started, "w1"),
    ]
    assert "ended at" in swept[1].reason
    assert run.state("alive") == "claimed" and run.store.claim_is_live(alive).result()
    assert run.store.sweep_lost(run.id, run.generation).result() == []


def test_sweep_in_a_run_that_has_ended_settles_everything(run: Run) -> None:
    run.claimed("never")
    run.started("started")
    run.store.end_run(run.id, run.generation).result()
    run.expire("never")
    run.expire("started")
    swept = run.store.sweep_lost(run.id, run.generation).result()
    assert [(s.step_key, s.state) for s in swept] == [("never", "cancelled"), ("started", "lost")]


def test_cancel_queued(run: Run) -> None:
    run.queued("a")
    run.queued("b")
    run.queued("c")
    run.claimed("d")
    assert run.store.cancel_queued(run.id, run.generation, [("a", 1), ("a", 2), ("d", 1)]).result() == [("a", 1)]
    assert run.store.cancel_queued(run.id, run.generation, []).result() == []
    assert sorted(run.store.cancel_queued(run.id, run.generation).result()) == [("b", 1), ("c", 1)]
    assert run.state("d") == "claimed"


def test_request_cancel(run: Run) -> None:
    run.queued("a")
    run.claimed("b")
    run.claimed("c")
    assert run.store.request_cancel(run.id, run.generation, [("a", 1), ("b", 1)]).result() == [("b", 1, "w1")]
    both = run.store.request_cancel(run.id, run.generation).result()
    assert sorted(both) == [("b", 1, "w1"), ("c", 1, "w1")]
    assert run.state("a") == "queued"


def test_outcomes_are_those_not_claimed(run: Run) -> None:
    run.ended("failed", "failed")
    run.queued("queued")
    run.claimed("claimed")
    keys = [("failed", 1), ("queued", 1), ("claimed", 1), ("absent", 1)]
    assert [o.step_key for o in run.store.outcomes(run.id, keys).result()] == ["failed", "queued"]
    assert [o.step_key for o in run.store.outcomes(run.id, keys, terminal_only=True).result()] == ["failed"]
    assert [o.step_key for o in run.store.outcomes(run.id, [("queued", 1)]).result()] == ["queued"]
    assert [o.step_key for o in run.store.outcomes(run.id).result()] == ["failed", "queued"]


def test_odd_keys_pass_unchanged(run: Run) -> None:
    key = "map[\"a\\b\", 'c', {d}, NULL, ü€😀 \t\n]"
    run.queued(key)
    assert run.claim(key).outcome == "claimed"
    (row,) = run.store.steps(run.id).result()
    assert row.step_key == key
    generation = row.generation
    assert generation and run.store.renew([(run.id, key, 1, generation)], [TTL]).result() == {generation: False}


# ---- impossible rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running'",
        "generation = NULL",
        "lease = NULL",
        "owner = NULL",
        "nonce = NULL",
        "claimed_at = NULL",
        "state = 'queued'",
        "finished_at = now()",
        "state = 'succeeded', finished_at = now(), started_at = NULL",
        "state = 'succeeded'",
        "state = 'lost', finished_at = now()",
        "state = 'cancelled', finished_at = now()",
        "events = '[]'",
        "attempt = 0",
        "sends = -1",
        "owner = repeat('x', 53)",
    ],
)
def test_impossible_rows_are_refused(run: Run, change: str) -> None:
    run.started()
    with pytest.raises(psycopg2.errors.IntegrityError):
        run.sql(f"UPDATE dagster_taskiq_steps SET {change} WHERE run_id = %s", run.id)


# ---- workers, parts, backends ----------------------------------------------------------------------------------------


def test_workers(store: IdempotencyStore, sql: Sql) -> None:
    identity = uuid.uuid4().hex
    assert store.heartbeat_worker(identity, 1).result() is False
    store.register_worker(identity, "name", "host", 12, "boot", ["a", 'b,"c"'], 4).result()
    assert store.heartbeat_worker(identity, 3).result() is True
    (row,) = [w for w in store.list_workers().result() if w.identity == identity]
    assert (row.name, row.host, row.pid, row.queues, row.slots, row.busy) == ("name", "host", 12, ["a", 'b,"c"'], 4, 3)
    assert row.alive and row.heartbeat_age >= 0
    sql("UPDATE dagster_taskiq_workers SET heartbeat_at = now() - interval '61 s' WHERE identity = %s", identity)
    (row,) = [w for w in store.list_workers().result() if w.identity == identity]
    assert not row.alive
    store.remove_worker(identity).result()
    assert identity not in [w.identity for w in store.list_workers().result()]


def test_fellows(run: Run) -> None:
    """Workers of one host, their claims whose leases run, and the word to the others."""
    store, host = run.store, "boot-" + run.queue
    store.listen(host_channel(host)).result()
    for identity, boot_id in (("a", host), ("b", host), ("c", "elsewhere")):
        store.register_worker(identity + run.queue, identity, "h", 7, boot_id, [], 1, pid_start="5").result()
    assert store.fellows(host, "a" + run.queue).result() == [Fellow("b" + run.queue, "b", 7, "5")]
    told: list[str | None] = []
    loop = store.loop_of_test  # type: ignore[attr-defined]
    while len(told) < 2:
        select.select([loop], [], [], services.DEADLINE)
        told += [event.payload for event in loop.drain() if event.kind == "notification"]
    assert told == ["a" + run.queue, "b" + run.queue]
    owner = "b" + run.queue
    for key, boot_id in (("one", host), ("two", host), ("past", host), ("other", "elsewhere")):
        run.queued(key)
        run.claim(key, owner=owner, boot_id=boot_id)
    generation = next(row.generation for row in store.steps(run.id).result() if row.step_key == "one")
    assert store.start(run.id, "one", 1, generation, pid=42, pid_start="7").result()
    run.expire("past")
    one, two = store.claims_of(owner, host).result()
    assert one == FellowClaim(run.id, "one", 1, generation, 42, "7", True)
    assert (two.step_key, two.pid, two.pid_start, two.started) == ("two", None, None, False)


def test_parts(store: IdempotencyStore, sql: Sql) -> None:
    texts = [json.dumps({"n": uuid.uuid4().hex, "pad": "ü" * size}) for size in (1, 100_000)]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert sorted(store.missing_parts(digests).result()) == sorted(digests)
    assert [store.put_part(d, t).result() for d, t in zip(digests, texts, strict=True)] == [True, True]
    assert store.put_part(digests[0], texts[0]).result() is False
    assert store.missing_parts([*digests, "0" * 64]).result() == ["0" * 64]
    assert store.get_parts([*digests, "0" * 64]).result() == dict(zip(digests, texts, strict=True))
    sql("UPDATE dagster_taskiq_parts SET used_at = now() - interval '2 days' WHERE digest = %s", digests[0])
    assert store.missing_parts(digests).result() == []
    ((fresh,),) = sql(
        "SELECT used_at > now() - interval '1 hour' FROM dagster_taskiq_parts WHERE digest=%s", digests[0]
    )
    assert fresh


def test_a_part_under_a_wrong_digest_is_refused(store: IdempotencyStore) -> None:
    with pytest.raises(Exception, match="dagster_taskiq_parts_digest"):
        store.put_part("0" * 64, "text").result()


def test_prune(open_store: Callable[..., IdempotencyStore], empty_database: Callable[[], str]) -> None:
    from dagster_taskiq import migrations

    url = empty_database()
    store, sql = open_store(url=url), Sql(url)
    migrations.migrate(store)
    run = Run(store, sql)
    run.ended("succeeded")
    run.started("runs")
    store.register_worker("w", "w", "h", 1, "b", [], 1).result()
    text = "part"
    store.put_part(hashlib.sha256(text.encode()).hexdigest(), text).result()

    def pruned() -> tuple[int, int, int]:
        p = store.prune(86400).result()
        return p.runs, p.parts, p.workers

    assert pruned() == (0, 0, 0)
    sql("UPDATE dagster_taskiq_parts SET used_at = now() - interval '2 days'")
    sql("UPDATE dagster_taskiq_workers SET heartbeat_at = now() - interval '2 days'")
    sql("UPDATE dagster_taskiq_runs SET created_at = now() - interval '3 days'")
    assert pruned() == (0, 0, 1)  # the run may use the part
    sql("UPDATE dagster_taskiq_runs SET lease = now() - interval '2 days'")
    assert pruned() == (0, 1, 0)  # nobody coordinates it any more
    store.end_run(run.id, run.generation).result()
    assert pruned() == (0, 0, 0)
    sql("UPDATE dagster_taskiq_runs SET ended_at = now() - interval '2 days'")
    assert pruned() == (1, 0, 0)
    assert sql("SELECT count(*) FROM dagster_taskiq_steps") == [(0,)]
    dead = Run(store, sql)
    dead.started()
    sql("UPDATE dagster_taskiq_runs SET lease = now() - interval '2 days'")
    assert pruned() == (0, 0, 0)  # a step of it runs
    dead.expire()
    assert pruned() == (1, 0, 0)
    sql.connection.close()


def test_what_ended_runs_have_left_is_settled(run: Run) -> None:
    """Their coordinators are gone: nobody else sweeps these claims."""
    for key in ("started", "running"):
        run.started(key)
    run.claimed("claimed")
    run.store.end_run(run.id, run.generation).result()
    for key in ("started", "claimed"):
        run.expire(key)
    assert run.store.settle_ended().result() == 2
    assert run.store.settle_ended().result() == 0
    assert [run.state(key) for key in ("started", "claimed", "running")] == ["lost", "cancelled", "claimed"]


def test_an_ordinary_role_ends_its_own_backends(
    url: str, sql: Sql, open_store: Callable[..., IdempotencyStore]
) -> None:
    role, name = "role_" + uuid.uuid4().hex[:8], "dagster-taskiq:" + uuid.uuid4().hex[:8]
    sql(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    parts = urlsplit(url)
    own = urlunsplit(parts._replace(netloc=f"{role}:p@{parts.hostname}:{parts.port}"))
    victim = psycopg2.connect(own, application_name=name)
    stranger = psycopg2.connect(url, application_name=name)
    store = open_store(url=own)
    assert store.end_backends(name, 10.0).result() == 1
    pids = [victim.info.backend_pid, stranger.info.backend_pid]
    # A superuser's backend is counted, not ended.
    assert sql("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", pids) == [(pids[1],)]
    victim.close()
    stranger.close()
    store.loop_of_test.close()  # type: ignore[attr-defined]
    sql(f"DROP ROLE {role}")


def test_end_backends_waits_until_they_are_gone(store: IdempotencyStore, url: str, sql: Sql) -> None:
    name = "dagster-taskiq:" + uuid.uuid4().hex[:8]
    victims = [psycopg2.connect(url, application_name=name) for _ in range(3)]
    sql("CREATE TABLE IF NOT EXISTS late_writes (n int)")
    with victims[0].cursor() as cursor:
        cursor.execute("INSERT INTO late_writes VALUES (1)")
    pids = [v.info.backend_pid for v in victims]
    assert store.end_backends(name, 10.0).result() == 0
    # Gone when the answer is there, with the insert that was not committed.
    assert sql("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", pids) == [(0,)]
    assert sql("SELECT count(*) FROM late_writes") == [(0,)]
    assert store.end_backends(name, 10.0).result() == 0
    for victim in victims:
        victim.close()
