"""A worker that is started again when it was killed."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import services

LONG = 3600.0


def child_of(pid: int) -> int:
    """Its one child, whatever that has started."""
    below = services.descendants(pid)
    (child,) = set(below) - {grandchild for one in below for grandchild in services.descendants(one)}
    return child


def test_a_killed_worker_is_started_again(stage: Any, start_worker: Any) -> None:
    """It settles what was left, and works on; SIGTERM drains it."""
    supervisor = start_worker(slots=1, args=["--supervise"])
    stage.send("slow", lease=LONG)
    stage.wait_for_note("start", "slow")
    os.kill(child_of(supervisor.pid), signal.SIGKILL)
    stage.wait_for_state("slow", "lost")
    assert "signal 9" in supervisor.output
    stage.send("quick", lease=LONG)
    stage.wait_for_state("quick", "succeeded")
    supervisor.send(signal.SIGTERM)
    supervisor.wait_for_log("draining")
    assert supervisor.stop() == 0
    assert len(re.findall(r"worker \S+ serves ", supervisor.output)) == 2


def test_a_warm_parent_outlives_its_worker(stage: Any, start_worker: Any) -> None:
    """What it ran does not; the next workers adopt it, and it ends with the last of them."""
    # A killed worker has no slot free, so that no long poll of its is left, which would take the next message.
    supervisor = start_worker(slots=1, args=["--supervise"])
    stage.send("family", lease=LONG)
    (_, _, _, _, pid) = stage.wait_for_note("start", "family")
    worker = child_of(supervisor.pid)
    (parent,) = set(services.descendants(worker)) - {int(pid), int((stage.folder / "child").read_text())}
    for key, following in (("family", "slow"), ("slow", "slow_too")):
        below = services.descendants(parent)
        os.kill(worker, signal.SIGKILL)
        stage.wait_for_state(key, "lost")
        services.wait_for(lambda below=below: not any(map(services.alive, below)), "the death of all it had started")
        stage.send(following, lease=LONG)
        stage.wait_for_note("start", following)
        worker = child_of(supervisor.pid)
    stage.release()
    stage.wait_for_state("slow_too", "succeeded")
    assert supervisor.output.count("a warm parent is ready") == 1
    assert supervisor.output.count("of the last worker goes on") == 2
    assert services.alive(parent)
    supervisor.send(signal.SIGTERM)
    assert supervisor.stop() == 0
    services.wait_for(lambda: not services.alive(parent), "the warm parent's end")


def test_a_warm_parent_that_nobody_will_adopt_leaves(stage: Any, start_worker: Any) -> None:
    supervisor = start_worker(slots=1, args=["--supervise"])
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    worker = child_of(supervisor.pid)
    parent = child_of(worker)
    supervisor.kill()
    os.kill(worker, signal.SIGKILL)
    services.wait_for(lambda: not services.alive(parent), "the warm parent's end")


def test_a_warm_parent_that_was_killed_too_is_not_missed(stage: Any, start_worker: Any) -> None:
    supervisor = start_worker(slots=1, args=["--supervise"])
    stage.send("slow", lease=LONG)
    (_, _, _, _, pid) = stage.wait_for_note("start", "slow")
    worker = child_of(supervisor.pid)
    (parent,) = set(services.descendants(worker)) - {int(pid)}
    os.kill(worker, signal.SIGSTOP)
    for one in (parent, worker):
        os.kill(one, signal.SIGKILL)
    stage.wait_for_state("slow", "lost")
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    assert supervisor.output.count("a warm parent is ready") == 2


def test_a_worker_that_cannot_start_is_not_started_again(stage: Any, start_worker: Any) -> None:
    supervisor = start_worker(queues=["no-such-queue"], args=["--supervise"], wait=False)
    assert supervisor.wait() == 1
    assert supervisor.output.count("there is no queue 'no-such-queue'") == 1


@pytest.mark.parametrize(
    ("number", "passed"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)],
)
def test_signals_are_passed_on(
    processes: services.Processes, tmp_path: Path, number: signal.Signals, passed: signal.Signals
) -> None:
    """And between two starts they end it."""
    child = "import signal, sys, time; signal.signal(int(sys.argv[1]), lambda *_: sys.exit(3)); print('up', flush=True)"
    code = (
        "import sys; from dagster_taskiq.supervisor import Supervisor;"
        "sys.exit(Supervisor([sys.executable, '-c', *sys.argv[1:]]).run())"
    )
    supervisor = processes.start("one", [sys.executable, "-c", code, f"{child}; time.sleep(1000)", str(int(passed))])
    supervisor.wait_for_log("up")
    supervisor.send(number)
    assert supervisor.wait() == 3
    crashing = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    supervisor = processes.start("two", [sys.executable, "-c", code, crashing])
    supervisor.wait_for_log("(signal 9[^$]*){3}")
    supervisor.send(number)
    assert supervisor.wait() in (0, 128 + signal.SIGKILL)


def test_a_hangup_that_is_ignored_stays_ignored(processes: services.Processes) -> None:
    """As under ``nohup``."""
    code = (
        "import signal, sys; from dagster_taskiq.supervisor import Supervisor;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "sys.exit(Supervisor([sys.executable, '-c', *sys.argv[1:]]).run())"
    )
    child = "import signal, time; print('ignored:', signal.getsignal(signal.SIGHUP), flush=True); time.sleep(1000)"
    supervisor = processes.start("one", [sys.executable, "-c", code, child])
    supervisor.wait_for_log("ignored: .*SIG_IGN|ignored: 1")
    supervisor.send(signal.SIGHUP)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 128 + signal.SIGTERM
