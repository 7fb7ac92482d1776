"""The bundled example under our executor does what it does under Dagster's own ones."""

from __future__ import annotations

import json
import pickle
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import services
from dagster import DagsterInstance, RunsFilter

JOBS = Path(__file__).with_name("jobs.py")


def execute(processes: services.Processes, job: str, config: dict[str, Any] | None = None) -> str:
    """Run a job of jobs.py in a process of its own to its end; its run id."""
    tag = uuid.uuid4().hex
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", str(JOBS), "-j", job]
    command += ["--tags", json.dumps({"test": tag})]
    if config:
        path = processes.folder / f"{tag}.yaml"
        path.write_text(json.dumps(config))
        command += ["-c", str(path)]
    handle = processes.start(job, command)
    status = handle.wait(300)
    assert status == 0, handle.output[-6000:]
    with DagsterInstance.get() as instance:
        runs = instance.get_runs(filters=RunsFilter(tags={"test": tag}))
    assert [run.status.value for run in runs] == ["SUCCESS"]
    return runs[0].run_id


def step_events(run_id: str) -> dict[str, list[str]]:
    """Event types of each step in their order, engine events aside."""
    events: dict[str, list[str]] = {}
    with DagsterInstance.get() as instance:
        for entry in instance.all_logs(run_id):
            event = entry.dagster_event
            if event and event.step_key and not event.is_engine_event:
                events.setdefault(event.step_key, []).append(event.event_type_value)
    return events


def outputs(home: Path, run_id: str) -> dict[str, Any]:
    """All that the IO manager has stored in a run."""
    folder = home / "storage" / run_id
    files = [path for path in folder.rglob("*") if path.is_file() and "compute_logs" not in path.parts]
    return {str(path.relative_to(folder)): pickle.loads(path.read_bytes()) for path in files}


@pytest.mark.timeout(900)
def test_same_result_and_events(
    dagster_home: Path,
    database_url: str,
    queue: services.Queue,
    processes: services.Processes,
    worker_process: Callable[..., services.WorkerHandle],
) -> None:
    settings = {"queue": queue.name, "database_url": database_url}
    workers = [worker_process([queue.name], slots=2, config=settings) for _ in range(2)]
    in_process = execute(processes, "weather_in_process")
    multiprocess = execute(processes, "weather_multiprocess")
    ours = execute(processes, "weather_taskiq", {"execution": {"config": settings}})

    assert outputs(dagster_home, ours) == outputs(dagster_home, in_process)
    assert len(outputs(dagster_home, ours)) >= 30
    assert step_events(ours) == step_events(multiprocess)

    rows = services.rows(
        database_url,
        "SELECT step_key, attempt, state, worker_name FROM dagster_taskiq_steps WHERE run_id::text = %s",
        [ours],
    )
    states = {(key, attempt): state for key, attempt, state, _ in rows}
    assert states.pop(("fetch_climate_normal", 1)) == "failed"
    assert set(states.values()) == {"succeeded"}
    assert {name for *_, name in rows} <= {worker.name for worker in workers}
    ran = {key for key, types in step_events(ours).items() if "STEP_START" in types}
    assert {key for key, _ in states} == ran
    services.wait_for(lambda: queue.counts() == (0, 0), "an empty queue")
    assert queue.dead_messages() == []
    assert [worker.stop() for worker in workers] == [0, 0]
