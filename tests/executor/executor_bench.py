"""Runs jobs of the tests on one queue, and looks at what they left."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import executor_jobs as jobs
import services
from dagster import (
    DagsterInstance,
    DagsterRun,
    JobExecutionResult,
    deserialize_value,
    execute_job,
    reconstructable,
    serialize_value,
)

from dagster_taskiq import taskiq_executor

FAST = {"lease_ttl": 12, "heartbeat_interval": 1, "visibility_timeout": 30}
"""Timings for tests in which something is lost: seconds."""


def location_origin(location: str, job: str) -> Any:
    """What Dagster notes of a run that was launched through a code location."""
    repository = {
        "__class__": "ExternalRepositoryOrigin",
        "repository_location_origin": {
            "__class__": "RegisteredRepositoryLocationOrigin",
            "location_name": location,
        },
        "repository_name": "a_repository",
    }
    return deserialize_value(
        json.dumps(
            {"__class__": "ExternalPipelineOrigin", "external_repository_origin": repository, "pipeline_name": job}
        )
    )


@dataclass
class Bench:
    """Runs jobs on one queue."""

    instance: DagsterInstance
    queue: services.Queue
    processes: services.Processes
    scratch: Path
    database_url: str
    location: str = ""
    """Code location through which runs are launched; none: they are like those of `dagster job execute`."""

    def config(self, **settings: Any) -> dict[str, Any]:
        return {"execution": {"config": {"queue": self.queue.name, **FAST, **settings}}}

    def worker(self, slots: int = 2, **options: Any) -> services.WorkerHandle:
        return self.processes.start_worker([self.queue.name], slots, **options)

    def run(self, name: str, **settings: Any) -> JobExecutionResult:
        """Execute a job with this process as its run worker."""
        return execute_job(
            reconstructable(getattr(jobs, name)),
            self.instance,
            run_config=self.config(**settings),
            raise_on_error=False,
        )

    def output(self, result: JobExecutionResult, node: str) -> Any:
        """What a step gave, read by the job's IO manager."""
        with result as opened:
            return opened.output_for_node(node)

    def create(self, name: str, tags: dict[str, str] | None = None, **settings: Any) -> DagsterRun:
        """A run that no run worker has taken yet."""
        reconstructed = reconstructable(getattr(jobs, name))
        job = reconstructed.get_definition()
        return self.instance.create_run_for_job(
            job,
            run_config=self.config(**settings) if job.executor_def is taskiq_executor else {},
            tags=tags,
            job_code_origin=reconstructed.get_python_origin(),
            remote_job_origin=location_origin(self.location, name) if self.location else None,
        )

    def run_worker(self, run: DagsterRun, *, resume: bool = False) -> services.ProcessHandle:
        """Start a run worker process for a run."""
        arguments = {
            "__class__": "ResumeRunArgs" if resume else "ExecuteRunArgs",
            "job_origin": json.loads(serialize_value(run.job_code_origin)),
            "pipeline_run_id": run.run_id,
            "instance_ref": json.loads(serialize_value(self.instance.get_ref())),
        }
        command = [sys.executable, "-m", "dagster", "api", "resume_run" if resume else "execute_run"]
        return self.processes.start("run-worker-resumed" if resume else "run-worker", [*command, json.dumps(arguments)])

    def status(self, run: DagsterRun) -> str:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status.value

    def notes(self, name: str) -> list[str]:
        """One line for each time that a step made this note: its fencing token."""
        path = self.scratch / name
        return path.read_text().split() if path.exists() else []

    def let_go(self) -> None:
        """Let the steps that wait end."""
        (self.scratch / "go").touch()

    def wait_for_notes(self, name: str, count: int = 1) -> list[str]:
        return services.wait_for(lambda: len(self.notes(name)) >= count and self.notes(name), f"{count} notes {name}")

    def rows(self, run_id: str) -> list[tuple[str, int, str]]:
        """Step key, attempt and state of each row."""
        sql = "SELECT step_key, attempt, state FROM dagster_taskiq_steps WHERE run_id = %s ORDER BY 1, 2"
        return [(key, attempt, state) for key, attempt, state in services.rows(self.database_url, sql, [run_id])]

    def logged(self, run_id: str) -> dict[str, list[str]]:
        """Types of the events of each step, in order, as the event log has them."""
        events: dict[str, list[str]] = {}
        for entry in self.instance.all_logs(run_id):
            if entry.dagster_event is not None and entry.dagster_event.step_key is not None:
                events.setdefault(entry.dagster_event.step_key, []).append(entry.dagster_event.event_type_value)
        return events

    def most_at_once(self, run_id: str, prefix: str = "") -> int:
        """How many of the steps whose keys begin so were under way at once at most."""
        events = [entry.dagster_event for entry in self.instance.all_logs(run_id) if entry.dagster_event is not None]
        return services.most_at_once(
            (event.step_key, event.event_type_value) for event in events if (event.step_key or "").startswith(prefix)
        )

    def messages(self, run_id: str) -> list[str]:
        """Messages of all Dagster events of a run, with those of their errors."""
        texts = []
        for entry in self.instance.all_logs(run_id):
            if entry.dagster_event is None:
                continue
            data = entry.dagster_event.event_specific_data
            error = getattr(data, "error", None)
            texts.append(f"{entry.dagster_event.message} {error.message if error else ''}")
        return texts


TELLING = {
    "STEP_WORKER_STARTING",
    "STEP_WORKER_STARTED",
    "STEP_START",
    "STEP_RESTARTED",
    "STEP_SUCCESS",
    "STEP_FAILURE",
    "STEP_UP_FOR_RETRY",
}


def telling(types: list[str]) -> list[str]:
    """Of a step's event types those that say how its attempts went."""
    return [name.removeprefix("STEP_") for name in types if name in TELLING]
