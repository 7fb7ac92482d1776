"""The in-process mode that users test their jobs with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import executor_jobs as jobs
import pytest
from dagster import DagsterInstance, execute_job, reconstructable

from dagster_taskiq import orchestration
from dagster_taskiq.testing import taskiq_instance

__all__ = ["taskiq_instance"]


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jobs.SCRATCH, str(tmp_path))


def types_of(instance: DagsterInstance, run_id: str, step_key: str) -> list[str]:
    return [
        entry.dagster_event.event_type_value
        for entry in instance.all_logs(run_id)
        if entry.dagster_event is not None and entry.dagster_event.step_key == step_key
    ]


@pytest.mark.parametrize("name", ["single", "chain", "fan_out", "dynamic", "branching"])
def test_jobs_succeed(taskiq_instance: DagsterInstance, name: str) -> None:
    before = dict(os.environ), sys.argv
    result = execute_job(reconstructable(getattr(jobs, name)), taskiq_instance)
    assert result.success
    assert (dict(os.environ), sys.argv) == before


@pytest.mark.parametrize("name", ["fan_out", "dynamic"])
def test_steps_that_are_not_sent_all_at_once(
    taskiq_instance: DagsterInstance, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestration, "SUBMIT_AT_ONCE", 2)
    assert execute_job(reconstructable(getattr(jobs, name)), taskiq_instance).success


def test_a_step_has_the_events_that_it_has_on_a_worker(taskiq_instance: DagsterInstance) -> None:
    result = execute_job(reconstructable(jobs.single), taskiq_instance)
    assert types_of(taskiq_instance, result.run_id, "one") == [
        "STEP_WORKER_STARTING",
        "STEP_WORKER_STARTED",
        "RESOURCE_INIT_STARTED",
        "RESOURCE_INIT_SUCCESS",
        "STEP_START",
        "STEP_OUTPUT",
        "HANDLED_OUTPUT",
        "STEP_SUCCESS",
        "ENGINE_EVENT",
    ]


def test_failures_and_retries(taskiq_instance: DagsterInstance) -> None:
    failed = execute_job(reconstructable(jobs.failing), taskiq_instance, raise_on_error=False)
    assert not failed.success
    retried = execute_job(reconstructable(jobs.retried), taskiq_instance)
    assert retried.success


def test_the_signing_key_is_used(taskiq_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_TASKIQ_SIGNING_KEY", "a key")
    assert execute_job(reconstructable(jobs.single), taskiq_instance).success


def test_tags_of_dagster_celery_are_honoured_with_a_notice(taskiq_instance: DagsterInstance) -> None:
    result = execute_job(reconstructable(jobs.from_celery), taskiq_instance)
    messages = [entry.dagster_event.message for entry in taskiq_instance.all_logs(result.run_id) if entry.dagster_event]
    assert 'Sending step "one" to queue "of-celery" (attempt 1).' in messages
    (notice,) = [message for message in messages if message and "dagster-celery" in message]
    assert "dagster-celery/queue (dagster-taskiq/queue)" in notice


def test_a_tag_that_makes_no_sense_fails_the_run_before_anything_starts(taskiq_instance: DagsterInstance) -> None:
    result = execute_job(reconstructable(jobs.badly_tagged), taskiq_instance, raise_on_error=False)
    assert not result.success
    (failure,) = [
        entry.dagster_event
        for entry in taskiq_instance.all_logs(result.run_id)
        if entry.dagster_event and entry.dagster_event.is_failure
    ]
    assert "dagster-taskiq/time_limit" in failure.event_specific_data.error.message
    assert types_of(taskiq_instance, result.run_id, "one") == []


def test_the_inline_worker_needs_no_pytest() -> None:
    without = "import sys; sys.modules['pytest'] = None"
    code = f"{without}; from dagster_taskiq.testing import *; inline_worker().__enter__()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
