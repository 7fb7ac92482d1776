"""Losses that are noticed at once, runs that nobody waits for, messages and queues that vanish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import services
from dagster import DagsterRunStatus
from executor_bench import Bench

LONG = {"lease_ttl": 600, "heartbeat_interval": 10}
"""Leases that no test waits for."""


@pytest.mark.parametrize("other", ["sibling", "successor"])
def test_a_worker_that_dies_alone_costs_no_lease(bench: Bench, other: str) -> None:
    """Its long poll may take the next attempt's message along."""
    first = bench.worker(slots=2)
    run = bench.create("waiting", **LONG)
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    if other == "sibling":
        bench.worker()
    first.kill()
    if other == "successor":
        bench.worker()
    bench.wait_for_notes("waits", 2)
    bench.let_go()
    assert run_worker.wait() == 0
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, bench.messages(run.run_id)
    assert bench.rows(run.run_id) == [("plus_one", 1, "succeeded"), ("waits", 1, "lost"), ("waits", 2, "succeeded")]
    assert any("on the same host" in text for text in bench.messages(run.run_id))


def test_a_run_that_nobody_waits_for(bench: Bench) -> None:
    """Its queued step does not start; when it is resumed, it does."""
    run = bench.create("waiting")
    first = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    first.kill()
    services.wait_for_rows(bench.database_url, "SELECT 1 FROM dagster_taskiq_runs WHERE lease < now()")
    worker = bench.worker()
    worker.wait_for_log("nobody coordinates the run")
    assert bench.rows(run.run_id) == [("waits", 1, "queued")]
    assert bench.notes("waits") == []
    second = bench.run_worker(run, resume=True)
    bench.let_go()
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert len(bench.notes("waits")) == 1


@contextmanager
def consumer(queue: services.Queue) -> Iterator[None]:
    """Receives without end and hides nothing, as one that crashes each time would: the redrive policy takes over."""
    ended = threading.Event()

    def consume() -> None:
        while not ended.is_set():
            queue.call("ReceiveMessage", MaxNumberOfMessages=10, VisibilityTimeout=0, WaitTimeSeconds=1)

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_step_whose_messages_go_to_the_dead_letter_queue_fails(bench: Bench) -> None:
    run = bench.create("single", backoff={"base": 0.5, "cap": 1})
    with consumer(bench.queue):
        run_worker = bench.run_worker(run)
        run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value, run_worker.output
    assert bench.rows(run.run_id) == [("one", 1, "cancelled")]
    assert any("dead-letter queue" in text and bench.queue.name in text for text in bench.messages(run.run_id))
    assert bench.queue.counts(bench.queue.dead_url)[0] > 3


def test_a_step_that_waits_long_for_a_slot_is_not_given_up(bench: Bench) -> None:
    bench.worker(slots=1)
    run = bench.create("waiting_crowd", backoff={"base": 0.1, "cap": 0.2})
    run_worker = bench.run_worker(run)
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'queued' AND sends > 12"
    services.wait_for_rows(bench.database_url, sql, deadline=120)
    bench.let_go()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output


def test_a_queue_that_is_deleted_and_made_again(bench: Bench) -> None:
    """Under a worker and a run: the step that waited is sent again."""
    worker = bench.worker()
    run = bench.create("waiting", backoff={"base": 1, "cap": 2})
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    redrive = bench.queue.call("GetQueueAttributes", AttributeNames=["RedrivePolicy"])["Attributes"]
    bench.queue.call("DeleteQueue")
    worker.wait_for_log("receiving failed")
    bench.let_go()
    services.wait_for_rows(bench.database_url, "SELECT 1 FROM dagster_taskiq_steps WHERE step_key = 'plus_one'")
    bench.queue.call("CreateQueue", QueueName=bench.queue.name, Attributes=redrive)
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    assert len(bench.notes("waits")) == 1
