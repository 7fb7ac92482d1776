"""Notifications of the moves, and what a lost connection does to them."""

from __future__ import annotations

import json
import select
import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from dagster_taskiq import _core
from dagster_taskiq.errors import OperationTimeoutError, StoreConnectionError
from dagster_taskiq.store import IdempotencyStore, run_channel, worker_channel

from .conftest import TTL, Run, Sql


class Listener:
    """A store that listens, and its events."""

    def __init__(self, store: IdempotencyStore, *channels: str) -> None:
        self.store = store
        self.loop: _core.Loop = store.loop_of_test  # type: ignore[attr-defined]
        self.events: list[_core.Event] = []
        for channel in channels:
            store.listen(channel).result()

    def next(self, kind: str) -> _core.Event:
        """The next event of that kind; earlier ones of other kinds are dropped."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event.kind == kind:
                    return event
            readable, _, _ = select.select([self.loop.fileno()], [], [], 60)
            assert readable, f"no {kind}"
            self.events += [e for e in self.loop.drain() if isinstance(e, _core.Event)]

    def payload(self) -> Any:
        return json.loads(self.next("notification").payload or "")


@pytest.fixture
def told(run: Run, open_store: Callable[..., IdempotencyStore]) -> Listener:
    return Listener(open_store(), run_channel(run.id), worker_channel("w1"))


def terminate(sql: Sql, name: str) -> None:
    ended = sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", name)
    assert ended == [(True,)]


# ---- who is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_completion_tells_the_run(run: Run, told: Listener, state: Any) -> None:
    generation = run.started()
    run.store.complete(run.id, "a", 1, generation, state).result()
    event = told.next("notification")
    assert event.channel == run_channel(run.id)
    assert json.loads(event.payload or "") == {"step_key": "a", "attempt": 1, "state": state}


def test_loss_and_hand_back_tell_the_run(run: Run, told: Listener) -> None:
    lost, back = run.started("lost"), run.claimed("back")
    run.store.mark_lost(run.id, "lost", 1, lost, "x").result()
    assert told.payload() == {"step_key": "lost", "attempt": 1, "state": "lost"}
    run.store.hand_back(run.id, "back", 1, back).result()
    assert told.payload() == {"step_key": "back", "attempt": 1, "state": "queued"}


def test_sweeps_tell_the_run_to_look(run: Run, told: Listener) -> None:
    run.started("a")
    run.claimed("b")
    run.expire("a")
    run.expire("b")
    run.store.sweep_lost(run.id, run.generation).result()
    assert told.payload() == {}
    run.store.cancel_queued(run.id, run.generation).result()
    assert told.payload() == {}


def test_redelivery_of_an_expired_claim_tells_the_run(run: Run, told: Listener) -> None:
    run.started()
    run.expire()
    run.claim()
    assert told.payload() == {"step_key": "a", "attempt": 1, "state": "lost"}


def test_cancelling_a_run_tells_the_run_and_the_workers(run: Run, told: Listener) -> None:
    generation = run.claimed()
    run.queued("b")
    run.store.cancel_run(run.id).result()
    events = sorted((told.next("notification") for _ in range(2)), key=lambda e: e.channel or "")
    assert [(e.channel, e.payload) for e in events] == [
        (run_channel(run.id), '{"run_state": "cancelling"}'),
        (worker_channel("w1"), str(generation)),
    ]
    run.claim("b")
    assert told.payload() == {"step_key": "b", "attempt": 1, "state": "cancelled"}


def test_request_and_end_tell_the_worker(run: Run, told: Listener) -> None:
    generation = run.claimed()
    run.store.request_cancel(run.id, run.generation).result()
    assert told.next("notification").payload == str(generation)
    run.store.end_run(run.id, run.generation).result()
    events = {told.next("notification").payload for _ in range(2)}
    assert events == {str(generation), "{}"}


def test_a_step_key_too_long_for_a_notification_says_look(run: Run, told: Listener) -> None:
    # Compressed it must still fit into the index of the key: 2704 bytes.
    key = "map[" + "x" * 20000 + "]"
    generation = run.started(key)
    run.store.complete(run.id, key, 1, generation, "failed").result()
    assert told.payload() == {}


def test_refused_moves_tell_nobody(run: Run, told: Listener) -> None:
    generation = run.claimed()
    run.store.complete(run.id, "a", 1, generation, "succeeded").result()
    run.store.mark_lost(run.id, "a", 1, generation + 1000000, "x").result()
    run.store.sweep_lost(run.id, run.generation).result()
    run.store.complete(run.id, "a", 1, generation, "failed", reason="the only one").result()
    assert told.payload() == {"step_key": "a", "attempt": 1, "state": "failed"}


# ---- losing the connection -------------------------------------------------------------------------------------------


def test_listening_goes_on_after_a_lost_connection(
    run: Run, sql: Sql, open_store: Callable[..., IdempotencyStore]
) -> None:
    name = "listener-" + uuid.uuid4().hex[:8]
    told = Listener(open_store(application_name=name), run_channel(run.id))
    told.next("store_connected")
    generation = run.started()
    terminate(sql, name)
    told.next("store_lost")
    told.next("store_connected")
    run.store.complete(run.id, "a", 1, generation, "succeeded").result()
    assert told.payload()["state"] == "succeeded"


@pytest.mark.parametrize("move", ["claim", "complete", "hand_back", "take_over_run", "enqueue"])
def test_a_move_in_flight_is_answered_after_a_lost_connection(
    run: Run, url: str, sql: Sql, open_store: Callable[..., IdempotencyStore], move: str
) -> None:
    """The backend dies while the move waits for a lock; the move is sent again and answers as if nothing had been."""
    name = "flight-" + uuid.uuid4().hex[:8]
    store = open_store(application_name=name)
    store.claim_is_live(0).result()
    if move == "claim":
        run.queued()
    elif move != "enqueue":
        generation = run.claimed()
        if move == "complete":
            run.store.start(run.id, "a", 1, generation).result()
    blocker = psycopg2.connect(url)
    with blocker.cursor() as cursor:
        cursor.execute("SELECT 1 FROM dagster_taskiq_runs WHERE run_id = %s FOR UPDATE", (run.id,))
        cursor.execute("SELECT 1 FROM dagster_taskiq_steps WHERE run_id = %s FOR UPDATE", (run.id,))
    operation: _core.Operation[Any]
    if move == "claim":
        operation = run.claim_operation(store=store)
    elif move == "complete":
        operation = store.complete(run.id, "a", 1, generation, "succeeded")
    elif move == "hand_back":
        operation = store.hand_back(run.id, "a", 1, generation)
    elif move == "take_over_run":
        operation = store.take_over_run(run.id, "taker", TTL, run.generation)
    else:
        operation = store.enqueue(run.id, run.generation, [("a", 1, run.queue)])
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    while sql(blocked, name) != [(1,)]:
        pass
    terminate(sql, name)
    while sql(blocked, name) != [(1,)]:  # again, on a connection of its own
        pass
    blocker.commit()
    blocker.close()
    result = operation.result()
    if move == "claim":
        assert result.outcome == "claimed"
    elif move == "take_over_run":
        assert (result.previous_generation, result.unfenced) == (run.generation, [run.generation])
    elif move == "enqueue":
        assert result == [("a", 1)]
    else:
        assert result is True


def test_no_server(open_store: Callable[..., IdempotencyStore]) -> None:
    store = open_store(url="postgresql://nobody@127.0.0.1:9/nothing", operation_timeout=0.5)
    with pytest.raises(StoreConnectionError, match="no connection to PostgreSQL in time"):
        store.claim_is_live(0).result()


def test_result_timeout_leaves_the_operation_alone(
    run: Run, url: str, open_store: Callable[..., IdempotencyStore]
) -> None:
    blocker = psycopg2.connect(url)
    with blocker.cursor() as cursor:
        cursor.execute("SELECT 1 FROM dagster_taskiq_runs WHERE run_id = %s FOR UPDATE", (run.id,))
    operation = open_store().renew_run(run.id, run.generation, TTL)
    with pytest.raises(OperationTimeoutError):
        operation.result(0.2)
    blocker.commit()
    blocker.close()
    assert operation.result() == "active"


def test_settings_of_the_role_do_not_reach_the_moves(url: str, open_store: Callable[..., IdempotencyStore]) -> None:
    """A role may default to another isolation level or to commits that a crash forgets: the moves need neither."""
    options = "?options=-cdefault_transaction_isolation%3Dserializable%20-csynchronous_commit%3Doff"
    store = open_store(url=url + options)
    script = (
        "DO $$ BEGIN IF current_setting('transaction_isolation') <> 'read committed' "
        "OR current_setting('synchronous_commit') <> 'on' THEN RAISE 'wrong settings'; END IF; END $$"
    )
    store.claim_is_live(0).result()
    store.core.script(script).result()


def test_many_threads_share_a_store(run: Run) -> None:
    keys = [f"t{n}" for n in range(40)]
    run.store.enqueue(run.id, run.generation, [(key, 1, run.queue) for key in keys]).result()
    claims: list[Any] = []

    def work(mine: list[str]) -> None:
        for key in mine:
            claims.append(run.claim(key))

    threads = [threading.Thread(target=work, args=(keys[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({c.generation for c in claims if c.outcome == "claimed"}) == 40
