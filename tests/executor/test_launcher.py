"""The run launcher: runs travel over the queue, and each run worker runs once, whatever dies."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import services
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from executor_bench import FAST, Bench

from dagster_taskiq import TaskIQRunLauncher
from dagster_taskiq._core import Loop
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.launcher import launch_id
from dagster_taskiq.sqs import create_queue_pair, make_client
from dagster_taskiq.tags import RUN_QUEUE_TAG, TASK_ID_TAG


@dataclass
class Launching:
    """A bench whose Dagster instance has our run launcher."""

    bench: Bench
    runs: services.Queue

    @property
    def launcher(self) -> TaskIQRunLauncher:
        found = self.bench.instance.run_launcher
        assert isinstance(found, TaskIQRunLauncher)
        return found

    def worker(self, slots: int = 3, **options: Any) -> services.WorkerHandle:
        """Of runs and steps."""
        return self.bench.processes.start_worker([self.runs.name, self.bench.queue.name], slots, **options)

    def daemon(self) -> services.ProcessHandle:
        """Dagster's daemon, with no code location."""
        workspace = self.bench.processes.folder / "workspace.yaml"
        workspace.write_text("load_from: []")
        command = [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", str(workspace)]
        return self.bench.processes.start("daemon", command)

    def launch(self, name: str, tags: dict[str, str] | None = None) -> DagsterRun:
        run = self.bench.create(name)
        self.bench.instance.add_run_tags(run.run_id, tags or {})
        self.launcher.launch_run(self.context(run))
        return run

    def execute(self, name: str) -> tuple[DagsterRun, services.ProcessHandle]:
        """A run and its process, which nobody launched, as that of `dagster job execute`; its first step waits."""
        run = replace(self.bench, location="").create(name)
        process = self.bench.run_worker(run)
        self.bench.wait_for_notes("waits")
        return run, process

    def resume(self, run: DagsterRun) -> None:
        self.launcher.resume_run(self.context(run))

    def context(self, run: DagsterRun) -> Any:
        """What Dagster hands to a launcher."""
        return SimpleNamespace(dagster_run=run, job_code_origin=run.job_code_origin, workspace=None)

    def health(self, run: DagsterRun) -> str:
        return str(self.launcher.check_run_worker_health(run).status.name)

    def wait_for_status(self, run: DagsterRun, status: DagsterRunStatus) -> None:
        services.wait_for(lambda: self.bench.status(run) == status.value, f"status {status.value}", deadline=90)

    def run_workers(self, run: DagsterRun) -> list[tuple[int, str]]:
        return [(attempt, state) for _, attempt, state in self.bench.rows(launch_id(run.run_id))]

    def wait_for_run_worker(self, run: DagsterRun, attempt: int, state: str) -> None:
        services.wait_for(
            lambda: (attempt, state) in self.run_workers(run), f"run worker {attempt} {state}", deadline=60
        )


@pytest.fixture
def launching(bench: Bench, make_queue: Callable[[], services.Queue]) -> Iterator[Launching]:
    runs = make_queue()
    path = Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml"
    launcher = {
        "module": "dagster_taskiq",
        "class": "TaskIQRunLauncher",
        "config": {**FAST, "run_queue": runs.name, "backoff": {"base": 1, "cap": 2}},
    }
    monitoring = {"enabled": True, "max_resume_run_attempts": 3, "poll_interval_seconds": 1}
    changes = {"run_launcher": launcher, "run_monitoring": monitoring}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with DagsterInstance.get() as instance:
        yield Launching(replace(bench, instance=instance, location="here"), runs)


def test_a_run_goes_to_a_worker_and_its_steps_follow(launching: Launching) -> None:
    launching.worker()
    run = launching.launch("chain")
    launching.wait_for_status(run, DagsterRunStatus.SUCCESS)
    launching.wait_for_run_worker(run, 1, "succeeded")
    assert launching.health(run) == "SUCCESS"
    stored = launching.bench.instance.get_run_by_id(run.run_id)
    assert stored is not None and stored.tags[TASK_ID_TAG]
    assert any("has been sent to queue" in text for text in launching.bench.messages(run.run_id))
    assert {state for _, _, state in launching.bench.rows(run.run_id)} == {"succeeded"}
    services.wait_for(lambda: launching.runs.counts() == (0, 0), "the end of the run's message")


def test_a_run_that_fails_leaves_a_run_worker_that_failed(launching: Launching) -> None:
    launching.worker()
    run = launching.launch("failing")
    launching.wait_for_status(run, DagsterRunStatus.FAILURE)
    launching.wait_for_run_worker(run, 1, "failed")
    assert "failed: the run failed" in (launching.launcher.get_run_worker_debug_info(run) or "")


def test_copies_of_a_message_start_one_run_worker(launching: Launching) -> None:
    run = launching.launch("chain")
    (message,) = launching.runs.call("ReceiveMessage", VisibilityTimeout=0)["Messages"]
    for _ in range(2):
        launching.runs.call("SendMessage", MessageBody=message["Body"])
    launching.worker(slots=4)
    launching.wait_for_status(run, DagsterRunStatus.SUCCESS)
    services.wait_for(lambda: launching.runs.counts() == (0, 0), "the end of all copies")
    assert launching.run_workers(run) == [(1, "succeeded")]
    types = [
        entry.dagster_event.event_type_value
        for entry in launching.bench.instance.all_logs(run.run_id)
        if entry.dagster_event
    ]
    assert types.count("PIPELINE_START") == types.count("PIPELINE_SUCCESS") == 1


def test_a_lost_message_is_sent_again(launching: Launching) -> None:
    run = launching.launch("single")
    launching.runs.call("PurgeQueue")
    assert launching.health(run) == "RUNNING"
    launching.worker()
    launching.wait_for_status(run, DagsterRunStatus.SUCCESS)


def test_runs_travel_over_a_fifo_queue(launching: Launching, sqs_endpoint: str) -> None:
    """Where a message is lost, too: its copy is not taken for a doubled one."""
    loop = Loop()
    pair = create_queue_pair(make_client(loop, endpoint=sqs_endpoint), "runs.fifo").result(30)
    loop.close()
    runs = services.Queue(sqs_endpoint, "runs.fifo", pair.url, pair.dead_url)
    try:
        created = launching.bench.create("single", {RUN_QUEUE_TAG: runs.name})
        launching.launcher.launch_run(launching.context(created))
        runs.call("PurgeQueue")
        launching.bench.processes.start_worker([runs.name, launching.bench.queue.name], 2)
        launching.wait_for_status(created, DagsterRunStatus.SUCCESS)
        services.wait_for(lambda: runs.counts() == (0, 0), "the end of its messages")
    finally:
        for url in (pair.url, pair.dead_url):
            runs.call("DeleteQueue", QueueUrl=url)


def test_a_run_whose_worker_dies_is_resumed(launching: Launching) -> None:
    bench = launching.bench
    of_runs = bench.processes.start_worker([launching.runs.name], 1)
    bench.worker()
    run = launching.launch("waiting")
    bench.wait_for_notes("waits")
    assert launching.health(run) == "RUNNING"
    of_runs.kill()
    services.wait_for(lambda: launching.health(run) == "FAILED", "the run worker's death", deadline=60)
    assert "lost" in launching.launcher.get_run_worker_debug_info(run)
    bench.processes.start_worker([launching.runs.name], 1)
    launching.resume(run)
    launching.wait_for_run_worker(run, 2, "claimed")
    bench.let_go()
    launching.wait_for_status(run, DagsterRunStatus.SUCCESS)
    assert len(bench.notes("waits")) == 1
    launching.wait_for_run_worker(run, 2, "succeeded")
    assert launching.run_workers(run) == [(1, "lost"), (2, "succeeded")]


def test_run_monitoring(launching: Launching) -> None:
    """Dagster's own daemon resumes the run whose worker died, and ends the one that takes too long."""
    bench = launching.bench
    of_runs = bench.processes.start_worker([launching.runs.name], 2)
    bench.worker()
    daemon = launching.daemon()
    resumed = launching.launch("waiting")
    bench.wait_for_notes("waits")
    of_runs.kill()
    bench.processes.start_worker([launching.runs.name], 2)
    launching.wait_for_run_worker(resumed, 2, "claimed")
    too_long = launching.launch("waiting", {"dagster/max_runtime": "1"})
    launching.wait_for_status(too_long, DagsterRunStatus.FAILURE)
    launching.wait_for_run_worker(too_long, 1, "cancelled")
    assert bench.status(too_long) == "FAILURE"
    bench.let_go()
    launching.wait_for_status(resumed, DagsterRunStatus.SUCCESS)
    launching.wait_for_run_worker(resumed, 2, "succeeded")
    assert launching.run_workers(resumed) == [(1, "lost"), (2, "succeeded")]
    assert bench.rows(resumed.run_id) == [("plus_one", 1, "succeeded"), ("waits", 1, "succeeded")]
    assert any("Exceeded maximum runtime of 1 seconds" in text for text in bench.messages(too_long.run_id))
    assert {state for _, _, state in bench.rows(too_long.run_id)} == {"cancelled"}
    assert daemon.popen.poll() is None


def test_steps_that_died_with_their_run_worker_do_not_run_again(launching: Launching) -> None:
    bench = launching.bench
    worker = launching.worker()
    run = launching.launch("waiting_in_the_run_worker")
    bench.wait_for_notes("waits")
    worker.kill()
    launching.worker()
    services.wait_for(lambda: launching.health(run) == "FAILED", "the run worker's death", deadline=60)
    launching.resume(run)
    assert bench.status(run) == DagsterRunStatus.FAILURE.value
    assert any("Re-execute it from failure" in text for text in bench.messages(run.run_id))
    assert launching.run_workers(run) == [(1, "lost")]


def test_termination_stops_the_run_worker_and_its_steps(launching: Launching) -> None:
    launching.worker()
    run = launching.launch("waiting")
    launching.bench.wait_for_notes("waits")
    assert launching.launcher.terminate(run.run_id)
    launching.wait_for_status(run, DagsterRunStatus.CANCELED)
    assert not launching.launcher.terminate(run.run_id)


def test_a_run_that_ends_while_it_is_terminated_stays_as_it_ended(
    launching: Launching, monkeypatch: pytest.MonkeyPatch
) -> None:
    launching.worker()
    run = launching.launch("waiting_in_the_run_worker")
    launching.bench.wait_for_notes("waits")
    instance = launching.bench.instance
    report = instance.report_run_canceling

    def report_and_see_it_end(canceling: DagsterRun) -> None:
        report(canceling)
        launching.bench.let_go()
        launching.wait_for_run_worker(run, 1, "succeeded")

    monkeypatch.setattr(instance, "report_run_canceling", report_and_see_it_end)
    assert launching.launcher.terminate(run.run_id)
    assert launching.bench.status(run) == DagsterRunStatus.SUCCESS.value


def test_a_run_that_is_terminated_in_the_queue_never_starts(launching: Launching) -> None:
    run = launching.launch("single")
    assert launching.launcher.terminate(run.run_id)
    assert launching.bench.status(run) == DagsterRunStatus.CANCELED.value
    launching.worker()
    launching.wait_for_run_worker(run, 1, "cancelled")
    services.wait_for(lambda: launching.runs.counts() == (0, 0), "the end of its message")
    assert launching.bench.status(run) == DagsterRunStatus.CANCELED.value


def test_a_run_that_was_not_launched_can_be_terminated(launching: Launching) -> None:
    launching.worker()
    run, process = launching.execute("waiting")
    assert launching.health(run) == "RUNNING"
    assert launching.launcher.terminate(run.run_id)
    process.wait()
    assert launching.bench.status(run) == DagsterRunStatus.CANCELED.value, process.output


def test_a_run_whose_process_was_not_launched_and_is_dead(launching: Launching) -> None:
    bench = launching.bench
    launching.worker()
    run, process = launching.execute("waiting")
    process.kill()
    services.wait_for(lambda: launching.health(run) == "FAILED", "the end of its lease", deadline=60)
    assert launching.launcher.terminate(run.run_id)
    assert bench.status(run) == DagsterRunStatus.CANCELED.value
    services.wait_for(lambda: bench.rows(run.run_id) == [("waits", 1, "cancelled")], "the end of its step")


def test_a_run_whose_process_was_not_launched_and_is_dead_is_resumed(launching: Launching) -> None:
    bench = launching.bench
    bench.processes.start_worker([launching.runs.name], 1)
    bench.worker()
    run, process = launching.execute("waiting")
    process.kill()
    launching.daemon()
    launching.wait_for_run_worker(run, 1, "claimed")
    bench.let_go()
    launching.wait_for_status(run, DagsterRunStatus.SUCCESS)
    assert bench.rows(run.run_id) == [("plus_one", 1, "succeeded"), ("waits", 1, "succeeded")]


def test_a_missing_queue_is_named_with_the_command_that_makes_it(launching: Launching) -> None:
    run = launching.bench.create("single")
    launching.bench.instance.add_run_tags(run.run_id, {RUN_QUEUE_TAG: "not-there"})
    tagged = launching.bench.instance.get_run_by_id(run.run_id)
    assert tagged is not None
    with pytest.raises(ConfigError, match="dagster-taskiq queue create not-there"):
        launching.launcher.launch_run(launching.context(tagged))


def test_runs_of_another_launcher_are_left_alone(launching: Launching) -> None:
    run = launching.bench.create("single")
    assert not launching.launcher.terminate(run.run_id)
    with pytest.raises(Exception, match="was not launched by"):
        launching.health(run)
