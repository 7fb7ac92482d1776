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


def test_a_worker_that_cannot_start_is_not_started_again(stage: Any, start_worker: Any) -> None:
    supervisor = start_worker(queues=["no-such-queue"], args=["--supervise"], wait=False)
    assert supervisor.wait() == 1
    assert supervisor.output.count("there is no queue 'no-such-queue'") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(processes: services.Processes, tmp_path: Path, number: signal.Signals) -> None:
    """And between two starts they end it."""
    child = "import signal, sys, time; signal.signal(int(sys.argv[1]), lambda *_: sys.exit(3)); print('up', flush=True)"
    code = (
        "import sys; from dagster_taskiq.supervisor import Supervisor;"
        "sys.exit(Supervisor([sys.executable, '-c', *sys.argv[1:]]).run())"
    )
    supervisor = processes.start("one", [sys.executable, "-c", code, f"{child}; time.sleep(1000)", str(int(number))])
    supervisor.wait_for_log("up")
    supervisor.send(number)
    assert supervisor.wait() == 3
    crashing = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    supervisor = processes.start("two", [sys.executable, "-c", code, crashing])
    supervisor.wait_for_log("(signal 9[^$]*){3}")
    supervisor.send(number)
    assert supervisor.wait() in (0, 128 + signal.SIGKILL)
