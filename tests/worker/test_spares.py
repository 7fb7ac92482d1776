"""Step processes that are made ahead of need."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import services
from dagster import DagsterInstance, serialize_value

from dagster_taskiq import _core, processes
from dagster_taskiq.processes import WarmParentHandle, WarmParents

Origins = tuple[str, str, str]
Test = Callable[[WarmParents, WarmParentHandle], Awaitable[None]]


@pytest.fixture
def origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origins:
    """Code location, job origin, instance reference; nothing is imported for them."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as instance:
        return "", json.dumps({"repository_origin": {"name": "made up"}}), serialize_value(instance.get_ref())


def run(origins: Origins, test: Test) -> None:
    """``test`` with a warm parent, which starts its steps as fresh processes: it imports nothing itself."""

    async def with_parent() -> None:
        parents = WarmParents(_core.FenceBoard(4), isolation="spawn")
        try:
            await test(parents, await parents.get(*origins))
        finally:
            await parents.close()

    asyncio.run(with_parent())


async def until(condition: Callable[[], bool]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), services.DEADLINE)


async def spare_of(parent: WarmParentHandle) -> int:
    """Have one made; its process id."""
    before = set(services.descendants(parent.pid))
    parent.keep_spare()
    parent.keep_spare()
    await until(lambda: parent.has_spare)
    (pid,) = set(services.descendants(parent.pid)) - before
    return pid


def test_the_next_step_gets_it(origins: Origins) -> None:
    async def test(_parents: WarmParents, parent: WarmParentHandle) -> None:
        pid = await spare_of(parent)
        assert parent.idle
        step = await parent.take_step()
        assert step.pid == pid
        assert not parent.idle
        other = await parent.take_step()
        assert other.pid != pid
        for one in (step, other):
            one.dismiss()
            assert (await one.wait()).exit_code == 0

    run(origins, test)


def test_a_dead_one_is_not_used(origins: Origins) -> None:
    async def test(_parents: WarmParents, parent: WarmParentHandle) -> None:
        pid = await spare_of(parent)
        os.kill(pid, signal.SIGKILL)
        # Without a turn of the event loop: nobody has told of it yet.
        services.wait_for(lambda: not services.alive(pid), "its death")
        step = await parent.take_step()
        assert step.pid != pid
        step.dismiss()
        await step.wait()

    run(origins, test)


def test_it_is_not_kept_for_long(origins: Origins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SPARE_SECONDS", 0.0)

    async def test(_parents: WarmParents, parent: WarmParentHandle) -> None:
        parent.keep_spare()
        await until(lambda: bool(services.descendants(parent.pid)))
        await until(lambda: not services.descendants(parent.pid))
        assert parent.alive
        assert not parent.has_spare

    run(origins, test)


def test_it_goes_with_a_warm_parent_that_is_given_up(origins: Origins) -> None:
    async def test(_parents: WarmParents, parent: WarmParentHandle) -> None:
        pid = await spare_of(parent)
        parent.give_up("for a test")
        await until(lambda: not services.alive(pid))
        parent.keep_spare()
        assert not parent.has_spare

    run(origins, test)


@pytest.mark.parametrize(("limit", "value"), [("STEPS_MAX", 1), ("GROWTH_MAX_MIB", -1)])
def test_a_warm_parent_that_has_done_enough(
    origins: Origins, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Another one takes its place, and its last step goes on to its end."""

    async def test(parents: WarmParents, parent: WarmParentHandle) -> None:
        # How much it has grown is told when a step process has ended.
        first = await parent.take_step()
        first.dismiss()
        await first.wait()
        assert await parents.get(*origins) is parent
        step = await parent.take_step()
        monkeypatch.setattr(processes, limit, value)
        successor = await parents.get(*origins)
        assert successor is not parent
        assert not parent.alive
        assert services.alive(step.pid)
        step.dismiss()
        assert (await step.wait()).exit_code == 0
        await until(lambda: not services.alive(parent.pid))

    run(origins, test)


def test_a_worker_keeps_one_where_it_has_a_slot_for_it(stage: Any, start_worker: Any) -> None:
    worker = start_worker(slots=2)
    stage.send("slow")
    (_, _, _, _, pid) = stage.wait_for_note("start", "slow")
    services.wait_for(lambda: len(services.descendants(worker.pid)) == 3, "a spare step process")
    (spare,) = {
        one for one in services.descendants(worker.pid) if one != int(pid) and int(pid) not in services.descendants(one)
    }
    stage.send("other")
    row = stage.wait_for_state("other", "succeeded")
    assert row.pid == spare
    stage.release()
    stage.wait_for_state("slow", "succeeded")
