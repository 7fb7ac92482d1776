"""What dagster-celery's own tests and its known limits come to here, where no other test shows it (docs/parity.md)."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery_jobs
import pytest
import services
from dagster import DagsterInstance, execute_job, reconstructable

import dagster_taskiq
from dagster_taskiq.testing import taskiq_instance

__all__ = ["taskiq_instance"]

HERE = Path(__file__).parent


@pytest.fixture
def instance(dagster_home: Path, queue: services.Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("DAGSTER_TASKIQ_QUEUE", queue.name)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with DagsterInstance.get() as made:
        yield made


def sent(instance: DagsterInstance, run_id: str) -> list[str]:
    """Step keys in the order in which they were sent to the queue."""
    events = [entry.dagster_event for entry in instance.all_logs(run_id)]
    return [str(event.step_key) for event in events if event and event.event_type_value == "STEP_WORKER_STARTING"]


@pytest.mark.parametrize("name", ["ranked_by_our_tag", "ranked_by_dagsters_tag"])
def test_steps_are_sent_by_their_priority(
    instance: DagsterInstance, worker_process: Callable[..., services.WorkerHandle], queue: services.Queue, name: str
) -> None:
    worker_process([queue.name], slots=1)
    result = execute_job(reconstructable(getattr(celery_jobs, name)), instance)
    assert result.success
    assert sent(instance, result.run_id) == [f"rank_{rank}" for rank in (5, 4, 3, 2, 1, 0)]


def test_steps_without_servers_run_by_their_priority(taskiq_instance: DagsterInstance) -> None:
    result = execute_job(reconstructable(celery_jobs.ranked_by_our_tag), taskiq_instance)
    started = [event.step_key for event in result.all_events if event.event_type_value == "STEP_START"]
    assert started == [f"rank_{rank}" for rank in (5, 4, 3, 2, 1, 0)]


def test_a_step_waits_for_a_worker_of_its_queue(
    instance: DagsterInstance,
    worker_process: Callable[..., services.WorkerHandle],
    queue: services.Queue,
    make_queue: Callable[[], services.Queue],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = make_queue()
    monkeypatch.setenv(celery_jobs.OTHER_QUEUE, other.name)
    jobs = importlib.reload(celery_jobs)
    worker_process([queue.name])
    states = "SELECT step_key, state FROM dagster_taskiq_steps WHERE state = %s"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(execute_job, reconstructable(jobs.two_queues), instance)
        assert services.wait_for_rows(database_url, states, ["succeeded"]) == [("here", "succeeded")]
        assert services.rows(database_url, states, ["queued"]) == [("elsewhere", "queued")]
        worker_process([other.name])
        assert run.result(services.DEADLINE).success


def test_a_run_makes_no_queue(
    instance: DagsterInstance, worker_process: Callable[..., services.WorkerHandle], queue: services.Queue
) -> None:
    before = queue.call("ListQueues")["QueueUrls"]
    worker_process([queue.name])
    assert execute_job(reconstructable(celery_jobs.ranked_by_our_tag), instance).success
    assert queue.call("ListQueues")["QueueUrls"] == before


def test_version() -> None:
    assert dagster_taskiq.__version__ == importlib.metadata.version("dagster-taskiq")
