"""Runs the bundled example on a :class:`~dagster_taskiq.dev.stack.Stack`, reports each step as it ends, and sums up."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .service import Service
from .stack import Stack

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

MODULE = "dagster_taskiq.examples.weather"
JOB = "weather_report"
DEMO_TAG = "dagster-taskiq/demo"
START_TIMEOUT = 120.0
PROGRESS_EVENTS = {
    "STEP_SUCCESS": "done",
    "STEP_FAILURE": "FAILED",
    "STEP_UP_FOR_RETRY": "failed, will be tried again",
    "STEP_SKIPPED": "skipped",
}


@dataclass(frozen=True, slots=True)
class StepSummary:
    """One attempt of one step.  Times in seconds."""

    step: str
    attempt: int
    state: str
    worker: str | None
    queue_wait: float | None
    run_time: float | None
    deliveries: int | None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How the run went.  ``seconds``: from the start of the run worker to its end."""

    run_id: str
    status: str
    seconds: float
    steps: list[StepSummary]

    @property
    def success(self) -> bool:
        return self.status == "SUCCESS"


def run_example(stack: Stack, progress: Callable[[str], None]) -> DemoResult:
    """Run the example job on a started stack; DevServerError when the run could not even be started."""
    from dagster import DagsterInstance

    tag = uuid.uuid4().hex
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", MODULE, "-j", JOB]
    command += ["--tags", json.dumps({DEMO_TAG: tag})]
    run_worker = Service("run worker", command, log=stack.logs / "run.log", env=stack.environment())
    run_worker.log.unlink(missing_ok=True)
    os.environ.update(DAGSTER_HOME=str(stack.home))
    begin = time.monotonic()
    with run_worker, DagsterInstance.get() as instance:
        run = _wait_for_run(instance, run_worker, tag)
        for line in _follow(instance, run.run_id, run_worker):
            progress(line)
        seconds = time.monotonic() - begin
        finished = instance.get_run_by_id(run.run_id)
        status = finished.status.value if finished else "MISSING"
        if status != "SUCCESS":
            progress(f"the run ended as {status}; the end of its log ({run_worker.log}):\n{run_worker.last_lines()}")
        return DemoResult(run.run_id, status, round(seconds, 2), _summaries(instance, stack, run.run_id))


def _wait_for_run(instance: DagsterInstance, run_worker: Service, tag: str) -> DagsterRun:
    from dagster import RunsFilter

    found: list[DagsterRun] = []

    def started() -> bool:
        found.extend(instance.get_runs(filters=RunsFilter(tags={DEMO_TAG: tag}), limit=1))
        return bool(found)

    run_worker.wait_until(started, START_TIMEOUT)
    return found[0]


def _follow(instance: DagsterInstance, run_id: str, run_worker: Service) -> Iterator[str]:
    """A line for each step that ends, until the run worker is gone and all is told."""
    cursor: str | None = None
    ended = 0
    while True:
        last_round = not run_worker.running
        while True:
            page = instance.get_records_for_run(run_id, cursor=cursor, limit=200)
            cursor = page.cursor
            for record in page.records:
                event = record.event_log_entry.dagster_event
                word = PROGRESS_EVENTS.get(event.event_type_value) if event else None
                if event and word:
                    ended += event.event_type_value != "STEP_UP_FOR_RETRY"
                    yield f"{ended:3}  {event.step_key}: {word}"
            if not page.has_more:
                break
        if last_round:
            return
        time.sleep(0.1)


def _summaries(instance: DagsterInstance, stack: Stack, run_id: str) -> list[StepSummary]:
    from dagster_taskiq import _core
    from dagster_taskiq.store import IdempotencyStore

    loop = _core.Loop()
    try:
        rows = IdempotencyStore(loop, stack.database_url).steps(run_id).result(30)
    finally:
        loop.close()
    summaries = [
        StepSummary(
            row.step_key,
            row.attempt,
            row.state,
            row.worker_name,
            _difference(row.claimed_at, row.queued_at),
            _difference(row.finished_at, row.started_at),
            row.deliveries,
        )
        for row in sorted(rows, key=lambda row: (row.queued_at, row.step_key, row.attempt))
    ]
    skipped = [
        event.step_key
        for event in (entry.dagster_event for entry in instance.all_logs(run_id))
        if event and event.step_key and event.event_type_value == "STEP_SKIPPED"
    ]
    return summaries + [StepSummary(key, 1, "skipped", None, None, None, None) for key in skipped]


def _difference(end: float | None, begin: float | None) -> float | None:
    return None if end is None or begin is None else round(end - begin, 3)


def reachable_temporary_folder() -> Path:
    """A new folder below the system's temporary one that PostgreSQL's unprivileged user may enter, too."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="dagster-taskiq-demo-"))
    folder.chmod(0o755)
    return folder
