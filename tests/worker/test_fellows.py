"""Workers of one host: who dies alone is noticed by the others, or by its successor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import services

from dagster_taskiq import fellows
from dagster_taskiq.warm_parent import process_start

LONG = 3600.0
"""Seconds of a lease that no test waits for."""


def sleeper(**options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], **options)


def test_another_worker_settles_the_claims_of_a_killed_one(stage: Any, start_worker: Any) -> None:
    first = start_worker(slots=1)
    stage.send("slow", lease=LONG)
    (_, _, _, generation, pid) = stage.wait_for_note("start", "slow")
    second = start_worker(slots=1)
    first.kill()
    row = stage.wait_for_state("slow", "lost")
    assert row.generation == int(generation)
    assert row.lease_left > LONG / 2
    assert all(name in row.reason for name in (first.name, second.name, "same host"))
    assert not services.alive(int(pid))
    services.wait_for(
        lambda: [worker.name for worker in stage.store.list_workers().result(10)] == [second.name], "the dead one's row"
    )


def test_a_worker_that_is_started_again_settles_what_was_left(stage: Any, start_worker: Any) -> None:
    """The step process and its child have outlived the worker, for the warm parent did not notice."""
    first = start_worker(slots=1)
    stage.send("family", lease=LONG)
    (_, _, _, _, pid) = stage.wait_for_note("start", "family")
    child = int((stage.folder / "child").read_text())
    (parent,) = [one for one in services.descendants(first.pid) if int(pid) in services.descendants(one)]
    os.kill(parent, signal.SIGSTOP)
    try:
        first.kill()
        assert services.alive(int(pid))
        start_worker(slots=1)
        stage.wait_for_state("family", "lost")
        assert not services.alive(int(pid))
        assert not services.alive(child)
    finally:
        os.kill(parent, signal.SIGCONT)
    services.wait_for(lambda: not services.alive(parent), "the warm parent's end")


def test_what_had_not_started_is_handed_back(stage: Any, start_worker: Any) -> None:
    """The worker dies while its warm parent does not answer."""
    first = start_worker(slots=1, args=["--without", "spares"])
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    stage.wait_for_messages(0, 0)
    (parent,) = services.descendants(first.pid)
    os.kill(parent, signal.SIGSTOP)
    try:
        stage.send("other", lease=LONG)
        stage.wait_for_state("other", "claimed")
        first.kill()
    finally:
        os.kill(parent, signal.SIGCONT)
    start_worker(slots=1)
    row = stage.wait_for_state("other", "queued", "succeeded")
    assert row.state == "succeeded" or row.owner is None
    stage.post(stage.message("other"))
    stage.wait_for_state("other", "succeeded")
    assert stage.starts("other") == 1


def test_workers_that_live_or_left_are_left_alone(stage: Any, start_worker: Any) -> None:
    first = start_worker(slots=1)
    stage.send("slow", lease=LONG)
    stage.wait_for_note("start", "slow")
    second = start_worker(slots=1)
    second.send(signal.SIGTERM)
    second.wait_for_log("draining")
    assert second.stop() == 0
    assert stage.row("slow").state == "claimed"
    assert "is dead" not in first.output + second.output


def test_a_process_by_its_number_and_start() -> None:
    with sleeper() as process:
        start = process_start(process.pid)
        descriptor = fellows.open_process(process.pid, start)
        assert descriptor >= 0
        os.close(descriptor)
        assert fellows.open_process(process.pid, start + "0") == -1
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert fellows.open_process(process.pid, start) == -1  # a zombie
    assert fellows.open_process(process.pid, start) == -1


def test_a_group_is_killed_with_or_without_its_leader() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '1000']).pid, flush=True); sys.stdin.read()"
    for leader_dies in (False, True):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            assert process.stdout
            child = int(process.stdout.readline())
            start = process_start(process.pid)
            if leader_dies:
                process.kill()
                process.wait()
                assert services.alive(child)
            assert fellows.end_group(process.pid, start)
            assert not services.alive(child)
            assert not services.alive(process.pid)


def test_a_number_that_has_been_given_away_is_left_alone() -> None:
    with sleeper(start_new_session=True) as process:
        assert fellows.end_group(process.pid, "1")
        assert services.alive(process.pid)
        process.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="another user's process")
def test_a_group_that_may_not_be_killed_is_not_certified() -> None:
    code = (
        "import os, sys; from dagster_taskiq import fellows; from dagster_taskiq.warm_parent import process_start;"
        "os.setuid(65534); pid = int(sys.argv[1]); print(fellows.end_group(pid, process_start(pid)))"
    )
    with sleeper(start_new_session=True) as process:
        told = subprocess.run(
            [sys.executable, "-c", code, str(process.pid)], stdout=subprocess.PIPE, text=True, check=True
        )
        assert told.stdout == "False\n"
        assert services.alive(process.pid)
        process.kill()
