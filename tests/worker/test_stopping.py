"""Cancelling steps; stopping and killing workers."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import services

from dagster_taskiq.config import Settings
from dagster_taskiq.worker import SQSTaskIQWorker

LONG = 3600.0


def test_cancel(stage: Any, start_worker: Any) -> None:
    """SIGTERM first: the op's finally runs; SIGKILL after the grace for one that does not listen."""
    start_worker(args=["--cancel-grace", "0.5"])
    for key in ("slow", "stubborn"):
        stage.send(key)
        stage.wait_for_note("start", key)
    asked = stage.store.request_cancel(stage.run_id, stage.generation).result(10)
    assert {key for key, _, _ in asked} == {"slow", "stubborn"}
    for key in ("slow", "stubborn"):
        row = stage.wait_for_state(key, "cancelled")
        assert not services.alive(row.pid)
    stage.wait_for_messages(0, 0)
    assert ["finally", "slow"] in [line[:2] for line in stage.history()]
    assert ["end", "slow"] not in [line[:2] for line in stage.history()]
    assert "STEP_FAILURE" in stage.logged("slow")


def test_cancel_by_the_heartbeat(stage: Any, start_worker: Any) -> None:
    """The answer to a renewal covers a lost NOTIFY."""
    start_worker()
    stage.send("slow")
    stage.wait_for_note("start", "slow")
    services.rows(
        stage.database_url, "UPDATE dagster_taskiq_steps SET cancel_requested = true WHERE run_id = %s", (stage.run_id,)
    )
    stage.wait_for_state("slow", "cancelled")


def test_a_killed_worker(stage: Any, start_worker: Any) -> None:
    """Its step and the step's children die with it; another worker finds the lease past and does not run it."""
    first = start_worker(slots=1)  # no poll is left behind that would take the next message
    stage.send("family")
    (_, _, _, generation, pid) = stage.wait_for_note("start", "family")
    child = int((stage.folder / "child").read_text())
    family = services.descendants(first.pid)
    first.kill()
    services.wait_for(
        lambda: not any(map(services.alive, [int(pid), child, *family])), "the death of all it had started"
    )
    start_worker()
    stage.post(stage.message("family"))
    row = stage.wait_for_state("family", "lost")
    assert row.generation == int(generation)
    assert stage.starts("family") == 1


def test_a_stopped_worker_does_not_outlive_its_lease(stage: Any, start_worker: Any) -> None:
    """SIGSTOP: no renewal; the fence kills the step process before another may think it lost."""
    worker = start_worker()
    stage.send("slow", lease=4.0)
    (_, _, _, _, pid) = stage.wait_for_note("start", "slow")
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        services.wait_for(lambda: not services.alive(int(pid)), "the fence", 20)
        assert stage.row("slow").lease_left > 0
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    stage.wait_for_state("slow", "lost")
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")


def test_orders_before_the_start(stage: Any, start_worker: Any) -> None:
    """While no step process can be made, a cancelled attempt ends and a drained one is handed back."""
    worker = start_worker(args=["--without", "spares"])
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    stage.wait_for_messages(0, 0)
    (parent,) = services.descendants(worker.pid)
    os.kill(parent, signal.SIGSTOP)
    try:
        stage.send("slow")
        stage.wait_for_state("slow", "claimed")
        stage.store.request_cancel(stage.run_id, stage.generation, [("slow", 1)]).result(10)
        stage.wait_for_state("slow", "cancelled")
        stage.send("other")
        stage.wait_for_state("other", "claimed")
        worker.send(signal.SIGTERM)
        row = stage.wait_for_state("other", "queued")
        assert row.started_at is None
        services.wait_for(lambda: stage.queue.counts() == (1, 0), "the message to be visible")
        worker.send(signal.SIGTERM)
        worker.wait()
    finally:
        if services.alive(parent):
            os.kill(parent, signal.SIGCONT)
    assert stage.starts("slow") == 0
    assert stage.starts("other") == 0


def test_a_signal_that_comes_late_is_no_failure(start_worker: Any) -> None:
    """While the process of a worker that has ended is on its way out."""
    worker = start_worker()
    worker.send(signal.SIGTERM)
    worker.wait_for_log("has ended")
    while worker.popen.poll() is None:
        worker.send(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_drain_lets_a_step_end(stage: Any, start_worker: Any, number: signal.Signals) -> None:
    worker = start_worker(slots=1)
    stage.send("slow")
    stage.wait_for_note("start", "slow")
    stage.send("quick")
    worker.send(number)
    worker.wait_for_log("draining; running steps: 1")
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    assert worker.wait() == 0
    assert stage.row("quick").state == "queued"
    assert stage.queue.counts()[0] == 1
    assert stage.store.list_workers().result(10) == []


def test_drain_ends(stage: Any, start_worker: Any) -> None:
    """What still runs then is lost at once, without an event that would count as the op's failure."""
    worker = start_worker(slots=1, args=["--drain-timeout", "0.2"])
    # No lease ends within the test.
    stage.send("slow", lease=LONG)
    (_, _, _, _, pid) = stage.wait_for_note("start", "slow")
    worker.send(signal.SIGTERM)
    row = stage.wait_for_state("slow", "lost")
    assert "worker-1" in row.reason
    assert not services.alive(int(pid))
    assert "STEP_FAILURE" not in stage.logged("slow")
    assert worker.wait() == 0
    stage.wait_for_messages(0, 0)


def test_a_second_signal_does_not_wait(stage: Any, start_worker: Any) -> None:
    worker = start_worker(args=["--drain-timeout", "600"])
    stage.send("slow", lease=60.0)
    stage.wait_for_note("start", "slow")
    family = services.descendants(worker.pid)
    worker.send(signal.SIGTERM)
    worker.wait_for_log("draining; running steps: 1")
    worker.send(signal.SIGTERM)
    stage.wait_for_state("slow", "lost")
    worker.wait(30)
    assert not any(map(services.alive, family))


def test_a_worker_that_is_cancelled_leaves_nothing(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside another event loop: what runs is lost at once, as at a second signal."""
    monkeypatch.setenv("WORKER_TEST_FOLDER", str(stage.folder))
    worker = SQSTaskIQWorker(Settings(queue=stage.queue.name, database_url=stage.database_url), slots=1)

    async def cancelled() -> set[Any]:
        before = asyncio.all_tasks()
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(stage.wait_for_note, "start", "slow")
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        left = asyncio.all_tasks() - before
        await worker.broker.shutdown()
        return left

    stage.send("slow", lease=LONG)
    assert asyncio.run(cancelled()) == set()
    row = stage.row("slow")
    assert row.state == "lost"
    assert not services.alive(row.pid)
    assert stage.store.list_workers().result(10) == []


def test_the_workers_row(stage: Any, start_worker: Any) -> None:
    worker = start_worker(slots=3)
    (row,) = stage.store.list_workers().result(10)
    assert (row.name, row.pid, row.slots, row.queues, row.alive) == (
        "worker-1",
        worker.pid,
        3,
        [stage.queue.name],
        True,
    )


def test_a_cancel_that_comes_with_the_claims_own_reply(stage: Any, start_worker: Any) -> None:
    """The worker does not know the generation yet when it is told of it."""
    start_worker(slots=1)
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    # As if somebody had cancelled it within the very transaction of the claim.
    services.rows(
        stage.database_url,
        "CREATE FUNCTION cancel_at_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.state = 'claimed' AND OLD.state = 'queued' AND NEW.step_key = 'slow' THEN"
        " NEW.cancel_requested := true; PERFORM pg_notify('dtq_worker_' || NEW.owner, NEW.generation::text);"
        " END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER cancel_at_once BEFORE UPDATE ON dagster_taskiq_steps"
        " FOR EACH ROW EXECUTE FUNCTION cancel_at_once()",
    )
    # No heartbeat comes in time to tell of it.
    stage.send("slow", lease=3600.0, heartbeat=600.0)
    stage.wait_for_state("slow", "cancelled")
    assert stage.starts("slow") == 0


def test_many_lease_lengths(stage: Any, start_worker: Any) -> None:
    """Each run may have its own; they share one heartbeat."""
    start_worker(slots=1)
    for number in range(70):
        stage.begin_run()
        stage.send("gone", lease=60.0 + number)
    stage.wait_for_messages(0, 0)
