"""Executor and worker that do not agree: what the run's log says of it, at once."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import services
from dagster import DagsterRunStatus
from executor_bench import Bench

from dagster_taskiq.config import Settings
from dagster_taskiq.flights import Flight, RunInFlight
from dagster_taskiq.notices import Declined
from dagster_taskiq.refusals import Refusals, sentence, telling
from dagster_taskiq.store import queue_channel

KEY = ("step", 1)


def test_another_signing_key_is_said_at_once(bench: Bench) -> None:
    """And the step runs where the key is right."""
    wrong = bench.worker(env={"DAGSTER_TASKIQ_SIGNING_KEY": "wr0ng-s3cret"})
    run = bench.create("single", signing_key="right-s3cret", backoff={"base": 0.5, "cap": 1})
    run_worker = bench.run_worker(run)
    services.wait_for(lambda: any("signing_key" in text for text in bench.messages(run.run_id)), "the event")
    wrong.kill()
    bench.worker(env={"DAGSTER_TASKIQ_SIGNING_KEY": "right-s3cret"})
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    (text,) = [text for text in bench.messages(run.run_id) if "signing_key" in text]
    assert all(word in text for word in ('"one"', wrong.name, bench.queue.name, "signature"))
    assert "s3cret" not in json.dumps(bench.messages(run.run_id))


def test_a_code_location_that_no_worker_serves_is_said(bench: Bench) -> None:
    """Its message waits for a worker that does."""
    other = bench.worker(args=["--code-location", "elsewhere"])
    run = bench.create("single")
    run_worker = bench.run_worker(run)
    services.wait_for(lambda: any("code_locations" in text for text in bench.messages(run.run_id)), "the event")
    other.stop()
    bench.worker()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    assert any(other.name in text and '"one"' in text for text in bench.messages(run.run_id))
    assert bench.queue.counts(bench.queue.dead_url) == (0, 0)


# ---- one message after the other -------------------------------------------------------------------------------------


@pytest.fixture
def run() -> RunInFlight:
    return RunInFlight("a-run", Settings(), flights={KEY: Flight("a-queue", 0.0)})


def told(**changes: Any) -> dict[str, Any]:
    return {**json.loads(telling("id", "signature", "the detail", "worker-1")), **changes}


def test_a_word_that_comes_before_the_answer_of_sqs(run: RunInFlight) -> None:
    refusals = Refusals(run)
    refusals.heard(told())
    assert run.notices == []
    refusals.sent(KEY, "id")
    assert run.notices == [Declined("step", 1, "a-queue", "worker-1", "signature", "the detail")]


def test_each_worker_and_reason_is_told_once_a_minute(run: RunInFlight) -> None:
    refusals = Refusals(run)
    for message_id in ("id", "id too"):
        refusals.sent(KEY, message_id)
    for payload in (told(), told(), told(message_id="id too"), told(worker="worker-2"), told(reason="missing")):
        refusals.heard(payload)
    assert [(notice.worker, notice.reason) for notice in run.notices if isinstance(notice, Declined)] == [
        ("worker-1", "signature"),
        ("worker-2", "signature"),
        ("worker-1", "missing"),
    ]


@pytest.mark.parametrize("payload", [{}, told(message_id="of another run"), told(message_id=["id"]), told(worker=None)])
def test_what_is_not_about_this_run(run: RunInFlight, payload: dict[str, Any]) -> None:
    refusals = Refusals(run)
    refusals.sent(KEY, "id")
    refusals.heard(payload)
    assert run.notices == []


def test_an_attempt_that_has_ended_is_not_told(run: RunInFlight) -> None:
    refusals = Refusals(run)
    refusals.sent(KEY, "id")
    run.flights.clear()
    refusals.heard(told())
    assert run.notices == []


@pytest.mark.parametrize("reason", ["signature", "unsigned", "version", "code_location", "missing", "damaged"])
def test_every_reason_has_its_advice(reason: str) -> None:
    text = sentence(Declined("a-step", 1, "a-queue", "worker-1", reason, "the detail"))
    assert all(word in text for word in ("a-step", "a-queue", "worker-1", "the detail"))
    assert "{" not in text


def test_names_and_details_of_any_length_fit_into_a_notification() -> None:
    assert len(telling(str(uuid.uuid4()), "code_location", "\U0001f300" * 9999, "\x00" * 9999)) < 8000
    assert len(queue_channel("q" * 80)) <= 63
