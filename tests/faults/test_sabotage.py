"""The checker catches a product without its fence, and one without its generation guard.

Each story is told twice: with the sabotage (tests/faults/preload), which must be caught, and without, which must pass.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import services
from fault_checker import check
from fault_stack import Stack, Timing, wait_until_stopped

pytestmark = pytest.mark.faults


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    made: list[Stack] = []

    def make(lease: float) -> Stack:
        stack = Stack(tmp_path / "stack", workers=0, timing=Timing(lease_ttl=lease))
        made.append(stack.__enter__())
        return made[-1]

    yield make
    for stack in made:
        stack.__exit__(None, None, None)


def held_rows(stack: Stack, run_id: str) -> list[tuple[object, ...]]:
    return stack.rows(
        "SELECT attempt, state, generation, worker_name, started_at IS NOT NULL FROM dagster_taskiq_steps"
        " WHERE run_id = %s AND step_key = 'held' ORDER BY attempt",
        run_id,
    )


def starts(stack: Stack) -> list[tuple[int, int]]:
    """(attempt, generation) of each start of the step that is held up."""
    lines = stack.history_lines()
    return [
        (line["attempt"], line["generation"]) for line in lines if (line["what"], line["step"]) == ("start", "held")
    ]


def finish(stack: Stack, run_id: str, release: Path) -> set[str]:
    """Let everything end; the rules that were violated."""
    release.touch()

    def ended() -> bool:
        stack.supervise()
        return not stack.open_runs

    services.wait_for(ended, "the end of the run", 120)
    found = check(stack.evidence())
    print(*found, sep="\n")
    return {violation.rule for violation in found}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preload", ["no_fence", None])
def test_a_missing_fence_is_caught(make_stack: Callable[..., Stack], tmp_path: Path, preload: str | None) -> None:
    """A worker is stopped for longer than its lease; its step process must be dead before the step runs elsewhere."""
    stack = make_stack(8.0)
    first = stack.add_worker(slots=1, preload=preload)
    stack.wait_until_ready()
    release = tmp_path / "release"
    run = stack.launch("holding", held={"file": str(release)})
    services.wait_for(lambda: len(starts(stack)) == 1, "the first start")
    assert first.process is not None
    first.process.send(signal.SIGSTOP)
    stack.add_worker(slots=1)
    services.wait_for(lambda: len(starts(stack)) == 2, "the second start")
    first.process.send(signal.SIGCONT)
    assert [attempt for attempt, _ in starts(stack)] == [1, 2]
    caught = finish(stack, run.id, release)
    assert caught == ({"overlap"} if preload else set())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preload", ["no_guard", "guard"])
def test_a_missing_generation_guard_is_caught(make_stack: Callable[..., Stack], tmp_path: Path, preload: str) -> None:
    """A worker stops between claim and start until the attempt has been given to another worker, and has started
    there.  Without the guard it then settles an attempt that is no longer its own."""
    stack = make_stack(16.0)
    first = stack.add_worker(slots=1, preload=preload)
    stack.wait_until_ready()
    release = tmp_path / "release"
    run = stack.launch("holding", held={"file": str(release)})
    assert first.process is not None
    sleeper = first.process.pid
    wait_until_stopped(sleeper)
    second = stack.add_worker(slots=1)
    stack.wait_until_ready()
    services.wait_for(lambda: len(starts(stack)) == 1, "the start under the second claim")
    # Nobody tells the second worker that its row was taken away, until the step has started once more.
    assert second.process is not None
    second.process.send(signal.SIGSTOP)
    os.kill(sleeper, signal.SIGCONT)
    if preload == "guard":
        services.wait_for(lambda: not stack.step_processes(first), "the end of the process that was made for it")
    else:
        services.wait_for(lambda: len(starts(stack)) == 2, "the start of the attempt after it")
    second.process.send(signal.SIGCONT)
    caught = finish(stack, run.id, release)
    assert caught >= {"overlap"} if preload == "no_guard" else caught == set()
