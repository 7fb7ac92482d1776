"""How a step process can end, what the row says, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import services


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def sockets_of(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return {target for target in found if target.startswith("socket:")}


def zombies_below(pid: int) -> list[int]:
    return [one for one in services.descendants(pid) if not services.alive(one)]


def test_failures_of_the_op(stage: Any, start_worker: Any) -> None:
    worker = start_worker()
    for key in ("boom", "retried", "leaves"):
        stage.send(key)
    for key, terminal in (("boom", "STEP_FAILURE"), ("retried", "STEP_UP_FOR_RETRY"), ("leaves", "STEP_FAILURE")):
        stage.wait_for_state(key, "failed")
        outcome = stage.outcome(key)
        types = [event["event_type_value"] for event in json.loads(outcome.events)]
        assert types[-1] == terminal
        assert outcome.error is None
    stage.wait_for_messages(0, 0)
    assert zombies_below(worker.pid) == []


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_crashes(stage: Any, start_worker: Any, isolation: str) -> None:
    worker = start_worker(slots=1, args=["--isolation", isolation])
    for key in ("exits", "killed", "crashes"):
        stage.send(key)
    expected = {
        "exits": (7, None, "exit code 7"),
        "killed": (None, "SIGKILL", "memory"),
        "crashes": (None, "SIGSEGV", "SIGSEGV"),
    }
    for key, (exit_code, signal_name, words) in expected.items():
        stage.wait_for_state(key, "failed")
        outcome = stage.outcome(key)
        error = json.loads(outcome.error)
        assert (error["exit_code"], error["signal_name"]) == (exit_code, signal_name)
        assert words in error["message"]
        assert error["max_rss_kib"] > 1000
        assert outcome.events is None
        assert outcome.reason == "crash"
        assert not services.alive(outcome.pid)
    stage.wait_for_messages(0, 0)
    assert zombies_below(worker.pid) == []


def test_a_success_does_not_wait_for_the_end_of_its_process(stage: Any, start_worker: Any) -> None:
    """Which nobody tells of while the warm parent stands still."""
    start_worker()
    stage.send("slow")
    pid = int(stage.wait_for_note("start", "slow")[-1])
    parent = parent_of(pid)
    os.kill(parent, signal.SIGSTOP)
    try:
        stage.release()
        stage.wait_for_state("slow", "succeeded")
        assert pid in services.descendants(parent)
        assert json.loads(stage.outcome("slow").events)[-1]["event_type_value"] == "STEP_SUCCESS"
    finally:
        os.kill(parent, signal.SIGCONT)
    stage.wait_for_messages(0, 0)
    services.wait_for(lambda: pid not in services.descendants(parent), "the end of its process")


def test_threads_and_exit_handlers_belong_to_the_step(stage: Any, start_worker: Any) -> None:
    start_worker()
    stage.send("lingers")
    services.wait_for(lambda: "STEP_SUCCESS" in stage.logged("lingers"), "the end of the op")
    for name in ("thread", "handler"):
        assert stage.row("lingers").state == "claimed"
        (stage.folder / f"release_{name}").touch()
        stage.wait_for_note(name, "lingers")
    stage.wait_for_state("lingers", "succeeded")
    assert [line[0] for line in stage.history()] == ["start", "thread", "handler"]


def test_a_step_past_its_time_limit_fails_and_says_so(stage: Any, start_worker: Any) -> None:
    start_worker(args=["--cancel-grace", "0.5"])
    stage.send("slow", time_limit=1.0)
    stage.send("deaf", time_limit=1.0)
    stage.wait_for_state("slow", "failed")
    last = json.loads(stage.outcome("slow").events)[-1]
    assert last["event_type_value"] == "STEP_FAILURE"
    assert "StepTimeLimitError" in json.dumps(last) and "time limit of 1 s" in json.dumps(last)
    row = stage.wait_for_state("deaf", "failed")
    outcome = stage.outcome("deaf")
    assert outcome.reason == "time_limit"
    assert "time limit of 1 s" in json.loads(outcome.error)["message"]
    assert not services.alive(row.pid)


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_code_that_cannot_be_loaded_is_named_in_the_row(stage: Any, start_worker: Any, isolation: str) -> None:
    start_worker(slots=1, args=["--isolation", isolation])
    stage.origin["repository_origin"]["code_pointer"] = {
        "__class__": "ModuleCodePointer",
        "fn_name": "work",
        "module": "no_such_module",
        "working_directory": None,
    }
    stage.begin_run()
    stage.send("exits")
    stage.wait_for_state("exits", "failed")
    outcome = stage.outcome("exits")
    assert outcome.reason == "crash"
    assert "no_such_module" in json.loads(outcome.error)["message"]


def test_children_of_a_step_die_with_it(stage: Any, start_worker: Any) -> None:
    start_worker()
    stage.send("family")
    stage.wait_for_note("start", "family")
    child = int((stage.folder / "child").read_text())
    assert services.alive(child)
    stage.release()
    stage.wait_for_state("family", "succeeded")
    services.wait_for(lambda: not services.alive(child), "the child's death")


def test_a_warm_parent_that_dies(stage: Any, start_worker: Any) -> None:
    """Its steps and their children die with it, and are failures; the next step gets a new one."""
    worker = start_worker()
    stage.send("family")
    (_, _, _, _, pid) = stage.wait_for_note("start", "family")
    child = int((stage.folder / "child").read_text())
    parent = parent_of(int(pid))
    assert parent_of(parent) == worker.pid
    os.kill(parent, signal.SIGKILL)
    stage.wait_for_state("family", "failed")
    assert "warm parent" in json.loads(stage.outcome("family").error)["message"]
    assert not services.alive(int(pid))
    services.wait_for(lambda: not services.alive(child), "the child's death")
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    stage.wait_for_messages(0, 0)
    assert zombies_below(worker.pid) == []


def test_a_warm_parent_that_dies_before_the_fork(stage: Any, start_worker: Any) -> None:
    """The steps that asked it for their processes are no failures; they share its successor."""
    worker = start_worker(args=["--without", "spares"])
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    stage.wait_for_messages(0, 0)
    (parent,) = services.descendants(worker.pid)
    os.kill(parent, signal.SIGSTOP)
    stage.send("slow")
    stage.send("other")
    for key in ("slow", "other"):
        stage.wait_for_state(key, "claimed")
    os.kill(parent, signal.SIGKILL)
    stage.wait_for_note("start", "slow")
    stage.wait_for_state("other", "succeeded")
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    stage.wait_for_messages(0, 0)
    (successor,) = services.descendants(worker.pid)
    assert successor != parent


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_the_world_of_a_step(stage: Any, start_worker: Any, isolation: str) -> None:
    worker = start_worker(args=["--isolation", isolation])
    stage.send("look", 1)
    row = stage.wait_for_state("look", "succeeded")
    seen = json.loads((stage.folder / "seen").read_text())
    assert seen["token"] == row.generation
    assert seen["attempt"] == 1
    environment = seen["environment"]
    assert environment["PGAPPNAME"] == f"dagster-taskiq:{row.generation}"
    assert environment["DAGSTER_TASKIQ_RUN_ID"] == stage.run_id
    assert environment["DAGSTER_TASKIQ_WORKER"] == "worker-1"
    assert seen["argv"][:3] == ["dagster", "api", "execute_step"]
    assert seen["cwd"] == str(Path(f"/proc/{worker.pid}/cwd").readlink())
    assert seen["leader"]
    assert seen["application_name"] == environment["PGAPPNAME"]
    assert seen["blocked"] == []
    assert set(seen["signals"].values()) == {str(signal.SIG_DFL)}
    assert seen["wakeup"] == -1
    assert seen["threads"] == ["MainThread"]
    assert seen["descriptors"]["0"] == "/dev/null"
    # Its own channel, and what Dagster opened there; nothing of the worker's or another step's, and of the warm
    # parent's the connection that it has lent.
    sockets = {target for target in seen["descriptors"].values() if target.startswith("socket:")}
    assert sockets
    stage.wait_for_messages(0, 0)
    below = services.descendants(worker.pid)
    parents = {one for one in below if parent_of(one) == worker.pid}
    for one in {worker.pid, *below}:
        assert len(sockets & sockets_of(one)) == (1 if one in parents and isolation == "fork" else 0)
    assert stage.database_url not in " ".join(seen["argv"][:3])


def test_output_goes_where_dagster_keeps_compute_logs(stage: Any, start_worker: Any) -> None:
    start_worker()
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    captured = next(
        record.dagster_event.logs_captured_data
        for record in stage.instance.all_logs(stage.run_id)
        if record.dagster_event is not None and record.dagster_event.event_type_value == "LOGS_CAPTURED"
    )
    manager = stage.instance.compute_log_manager
    data = manager.get_log_data([stage.run_id, "compute_logs", captured.file_key])
    assert b"quick was here" in data.stdout
