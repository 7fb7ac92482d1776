"""Run workers in moments that a schedule of faults seldom hits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import fault_checker
import pytest
import services
from fault_stack import RunHandle, Stack, wait_until_stopped

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", workers=1) as made:
        made.wait_until_ready()
        yield made


def until_ended(stack: Stack, run: RunHandle) -> None:
    def ended() -> bool:
        stack.supervise()
        return run.status is not None

    services.wait_for(ended, "the end of the run", 180)


def test_death_between_the_last_row_and_the_last_event(stack: Stack) -> None:
    """The resumed run worker finds all rows settled, and the run not ended: it says what the log says."""
    run = stack.launch("mixed_25", preload="die_at_the_end")
    until_ended(stack, run)
    assert run.resumes == 1
    assert run.status == "SUCCESS", run.process.output[-3000:]
    assert fault_checker.check(stack.evidence()) == []


def test_resuming_a_run_that_ends_meanwhile(stack: Stack, tmp_path: Path) -> None:
    """The first run worker lives, though somebody took it for dead, and is quicker: nothing is added to the run."""
    release = tmp_path / "release"
    run = stack.launch("holding", held={"file": str(release)})
    services.wait_for(stack.history_lines, "the start of the step")
    first = run.process
    stack.resume(run, preload="stop_before_begin")
    second = run.process
    wait_until_stopped(second.pid)
    release.touch()
    assert first.wait() == 0
    second.send(signal.SIGCONT)
    assert second.wait() == 70
    until_ended(stack, run)
    assert run.status == "SUCCESS", second.output[-3000:]
    ends = "SELECT count(*) FROM event_logs WHERE run_id = %s AND dagster_event_type IN (%s, %s, %s)"
    assert stack.rows(ends, run.id, "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED") == [(1,)]
    assert fault_checker.check(stack.evidence()) == []


def test_an_outage_when_the_log_is_to_be_read(stack: Stack, tmp_path: Path) -> None:
    """A step process has died, and how it ended must be looked up in Dagster's log: PostgreSQL is away at first."""
    release = tmp_path / "release"
    run = stack.launch("holding", preload="reads_fail", held={"file": str(release)})
    (line, *_) = services.wait_for(stack.history_lines, "the start of the step")
    os.kill(line["pid"], signal.SIGKILL)
    release.touch()
    until_ended(stack, run)
    assert run.process.output.count("trying again to read Dagster's log") == 3
    assert run.status == "SUCCESS", run.process.output[-3000:]
    assert fault_checker.check(stack.evidence()) == []
