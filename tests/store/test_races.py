"""What happens when two moves meet: each from a connection of its own, held at a lock so that they really overlap."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from dagster_taskiq.store import IdempotencyStore

from .conftest import TTL, Run, Sql


class Lock:
    """A transaction that holds a row until it is told to commit."""

    def __init__(self, url: str, sql: Sql) -> None:
        self.connection, self.sql = psycopg2.connect(url), sql

    def run(self, text: str, *params: Any) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(text, params)

    def wait_for(self, waiting: int) -> None:
        """Until that many backends wait for this transaction (directly or behind one another)."""
        pid = self.connection.info.backend_pid
        while (
            self.sql(
                "WITH RECURSIVE behind(pid) AS (VALUES (%s) UNION SELECT a.pid FROM pg_stat_activity a, behind b "
                "WHERE b.pid = ANY (pg_blocking_pids(a.pid))) SELECT count(*) - 1 FROM behind",
                pid,
            )[0][0]
            < waiting
        ):
            pass

    def commit(self) -> None:
        self.connection.commit()


@pytest.fixture
def lock(url: str, sql: Sql) -> Iterator[Lock]:
    lock = Lock(url, sql)
    yield lock
    lock.connection.close()


@contextmanager
def held_step(run: Run, lock: Lock, waiting: int, key: str = "a") -> Iterator[None]:
    """What is begun inside waits for the step row, and goes on together at the end."""
    lock.run("SELECT 1 FROM dagster_taskiq_steps WHERE run_id = %s AND step_key = %s FOR UPDATE", run.id, key)
    yield
    lock.wait_for(waiting)
    lock.commit()


@contextmanager
def held_run(run: Run, lock: Lock, waiting: int) -> Iterator[None]:
    lock.run("SELECT 1 FROM dagster_taskiq_runs WHERE run_id = %s FOR UPDATE", run.id)
    yield
    lock.wait_for(waiting)
    lock.commit()


def test_many_claims_at_once_give_exactly_one(
    run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]
) -> None:
    run.queued()
    stores = [open_store() for _ in range(8)]
    for store in stores:
        store.claim_is_live(0).result()
    with held_step(run, lock, len(stores)):
        claims = [run.claim_operation(store=s, owner=f"w{n}") for n, s in enumerate(stores)]
    results = [claim.result() for claim in claims]
    assert Counter(r.outcome for r in results) == {"claimed": 1, "held": 7}
    (winner,) = [r for r in results if r.outcome == "claimed"]
    assert all(r.generation == winner.generation and r.owner == winner.owner for r in results)


def test_the_same_claim_sent_twice_at_once(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    run.queued()
    stores = [open_store() for _ in range(4)]
    with held_step(run, lock, len(stores)):
        claims = [run.claim_operation(store=s, nonce="same") for s in stores]
    results = [claim.result() for claim in claims]
    assert {r.outcome for r in results} == {"claimed"}
    assert len({r.generation for r in results}) == 1


def test_claims_meeting_a_completion_see_it(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    run.started()
    lock.run(
        "UPDATE dagster_taskiq_steps SET state = 'failed', finished_at = now() WHERE run_id = %s AND step_key = 'a'",
        run.id,
    )
    claim = run.claim_operation(store=open_store(), owner="w2")
    lock.wait_for(1)
    lock.commit()
    assert (claim.result().outcome, claim.result().state) == ("terminal", "failed")


def test_claim_meeting_the_end_of_its_run(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    """The end came first: no claim, though the claim's snapshot is older."""
    run.queued()
    lock.run("UPDATE dagster_taskiq_runs SET state = 'ended', ended_at = now() WHERE run_id = %s", run.id)
    claim = run.claim_operation(store=open_store())
    lock.wait_for(1)
    lock.commit()
    assert (claim.result().outcome, claim.result().state) == ("run_inactive", "cancelled")


@pytest.mark.parametrize("end", ["end_run", "cancel_run", "request_cancel"])
def test_the_end_of_a_run_meeting_a_claim(
    run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore], end: str
) -> None:
    """The claim came first: the end sees it and asks for its cancellation, though its snapshot shows a queued row."""
    run.queued()
    claimer, ender = open_store(), open_store()
    claimer.claim_is_live(0).result()
    ender.claim_is_live(0).result()
    with held_step(run, lock, 2):
        claim = run.claim_operation(store=claimer)
        lock.wait_for(1)
        ending = ender.cancel_run(run.id) if end == "cancel_run" else getattr(ender, end)(run.id, run.generation)
    assert claim.result().outcome == "claimed"
    result = ending.result()
    (row,) = run.store.steps(run.id).result()
    assert (row.state, row.cancel_requested) == ("claimed", True)
    if end == "end_run":
        assert result.cancelled == 0
        assert [s.generation for s in result.still_claimed] == [claim.result().generation]
    if end == "request_cancel":
        assert result == [("a", 1, "w1")]


@pytest.mark.parametrize("round_", range(10))
def test_claims_and_end_of_run_in_any_order(run: Run, open_store: Callable[..., IdempotencyStore], round_: int) -> None:
    keys = [f"s{n}" for n in range(20)]
    run.store.enqueue(run.id, run.generation, [(key, 1, run.queue) for key in keys]).result()
    workers, ender = [open_store() for _ in range(3)], open_store()
    for store in (*workers, ender):
        store.claim_is_live(0).result()
    claims = [run.claim_operation(key, store=w) for key in keys for w in workers]
    ended = ender.end_run(run.id, run.generation).result()
    outcomes = Counter(c.result().outcome for c in claims)
    assert ended is not None
    rows = run.store.steps(run.id).result()
    assert {r.state for r in rows} <= {"claimed", "cancelled"}
    claimed = [r for r in rows if r.state == "claimed"]
    assert all(r.cancel_requested for r in claimed)
    assert outcomes["claimed"] == len(claimed) == len(ended.still_claimed)
    assert len(rows) == 20


def test_no_insert_once_the_run_is_ending(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    lock.run("UPDATE dagster_taskiq_runs SET state = 'cancelling' WHERE run_id = %s", run.id)
    insert = open_store().enqueue(run.id, run.generation, [("a", 1, run.queue)])
    lock.wait_for(1)
    lock.commit()
    assert insert.result() == []


def test_no_insert_by_a_superseded_coordinator(
    run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]
) -> None:
    lock.run("UPDATE dagster_taskiq_runs SET generation = generation + 1000000 WHERE run_id = %s", run.id)
    insert = open_store().enqueue(run.id, run.generation, [("a", 1, run.queue)])
    lock.wait_for(1)
    lock.commit()
    assert insert.result() == []


def test_two_coordinators_at_once(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    stores = [open_store() for _ in range(3)]
    with held_run(run, lock, len(stores)):
        taken = [s.take_over_run(run.id, uuid.uuid4().hex, TTL, run.generation) for s in stores]
    rows = [row for row in (t.result() for t in taken) if row is not None]
    assert [(r.previous_generation, r.unfenced) for r in rows] == [(run.generation, [run.generation])]
    assert run.store.renew_run(run.id, rows[0].generation, TTL).result() == "active"


def test_two_that_begin_a_run_at_once(store: IdempotencyStore, open_store: Callable[..., IdempotencyStore]) -> None:
    run_id = str(uuid.uuid4())
    begun = [s.begin_run(run_id, nonce, TTL) for s, nonce in ((store, "a"), (open_store(), "b"))]
    rows = [operation.result() for operation in begun]
    assert len({(row.generation, row.coordinator) for row in rows}) == 1


def test_completion_meeting_the_sweep(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    """Both wait for the row: exactly one of them decides, and the other knows."""
    generation = run.started()
    run.expire()
    lost, done = open_store(), open_store()
    with held_step(run, lock, 2):
        marking = lost.mark_lost(run.id, "a", 1, generation, "x")
        completing = done.complete(run.id, "a", 1, generation, "succeeded")
    assert sorted([marking.result(), completing.result()]) == [False, True]
    assert run.state() == ("lost" if marking.result() else "succeeded")


def test_sweep_skips_a_row_that_is_being_renewed(
    run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]
) -> None:
    generation = run.started()
    run.expire()
    with held_step(run, lock, 1):
        renewing = open_store().renew([(run.id, "a", 1, generation)], [TTL])
        lock.wait_for(1)
        assert run.store.sweep_lost(run.id, run.generation).result() == []
    assert renewing.result() == {generation: False}
    assert run.store.sweep_lost(run.id, run.generation).result() == []


def test_two_completions_at_once(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    generation = run.started()
    stores = [open_store() for _ in range(2)]
    with held_step(run, lock, 2):
        first = stores[0].complete(run.id, "a", 1, generation, "succeeded", reason="first")
        second = stores[1].complete(run.id, "a", 1, generation, "failed", reason="second")
    assert sorted([first.result(), second.result()]) == [False, True]


def test_enqueue_sent_twice_at_once(run: Run, lock: Lock, open_store: Callable[..., IdempotencyStore]) -> None:
    params = (run.id, run.generation, "nonce", ["a", "b"], [1, 1], ["q", "q"])
    stores = [open_store() for _ in range(3)]
    with held_run(run, lock, 3):
        inserts = [s.core.run("enqueue", params) for s in stores]
    assert [sorted(i.result()) for i in inserts] == [[("a", 1), ("b", 1)]] * 3


def test_overlapping_batches_do_not_deadlock(run: Run, open_store: Callable[..., IdempotencyStore]) -> None:
    keys = [f"s{n:02}" for n in range(30)]
    run.store.enqueue(run.id, run.generation, [(key, 1, run.queue) for key in keys]).result()
    claims = {key: run.claim(key).generation or 0 for key in keys}
    stores = [open_store() for _ in range(4)]
    forward = [(run.id, key, 1, claims[key]) for key in keys]
    work: list[Any] = []
    for n in range(25):
        work.append(stores[0].renew(forward, [TTL] * 30))
        work.append(stores[1].renew(forward[::-1], [TTL] * 30))
        work.append(stores[2].request_cancel(run.id, run.generation, [(k, 1) for k in keys[::-1]]))
        work.append(stores[3].cancel_run(run.id) if n % 2 else stores[3].sweep_lost(run.id, run.generation))
    for operation in work:
        operation.result()
    assert len(run.store.renew(forward, [TTL] * 30).result()) == 30
