"""A warm parent that does not answer: its step processes are not to blame."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import services
from dagster import DagsterInstance, serialize_value

from dagster_taskiq import _core, processes
from dagster_taskiq.errors import WarmParentError
from dagster_taskiq.kept_parents import Kept
from dagster_taskiq.processes import WarmParentHandle, WarmParents
from dagster_taskiq.step_handle import Exit, StepProcess
from dagster_taskiq.warm_parent import process_start

HERE = Path(__file__).parent


@pytest.fixture
def origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """Code location, job origin, instance reference; nothing is imported for them."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as instance:
        return "", json.dumps({"repository_origin": {"name": "made up"}}), serialize_value(instance.get_ref())


@pytest.fixture
def run(origins: tuple[str, str, str]) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], None]:
    """Runs a test with warm parents, which start their steps as fresh processes: they import nothing themselves."""

    def run_(test: Callable[..., Coroutine[Any, Any, None]]) -> None:
        async def with_parents() -> None:
            parents = WarmParents(_core.FenceBoard(4), isolation="spawn")
            try:
                await test(parents, lambda: parents.get(*origins))
            finally:
                await parents.close()

        asyncio.run(with_parents())

    return run_


def own_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def exit_of(step: StepProcess) -> Exit:
    return await asyncio.wait_for(step.wait(), services.DEADLINE)


def test_its_steps_go_on_and_another_takes_its_place(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT", 0.2)

    async def test(parents: WarmParents, get: Any) -> None:
        first: WarmParentHandle = await get()
        monkeypatch.setattr(processes, "START_TIMEOUT", services.DEADLINE)
        steps = [await first.take_step() for number in (1, 2)]
        monkeypatch.setattr(processes, "START_TIMEOUT", 0.2)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(WarmParentError):
            await first.take_step()
        monkeypatch.setattr(processes, "START_TIMEOUT", services.DEADLINE)
        assert not first.alive
        second: WarmParentHandle = await get()
        assert second is not first
        assert all(services.alive(step.pid) for step in steps)
        # An order reaches it past its parent.
        steps[0].signal(signal.SIGKILL)
        assert (await exit_of(steps[0])).unseen
        assert services.alive(steps[1].pid)
        steps[1].dismiss()
        assert (await exit_of(steps[1])).unseen
        while services.alive(first.pid):
            await asyncio.sleep(0.01)
        third = await second.take_step()
        third.dismiss()
        assert await exit_of(third) == Exit(0, None, third_exit(third).max_rss_kib, third_exit(third).cpu_seconds)

    def third_exit(step: StepProcess) -> Exit:
        return step._exited.result()

    run(test)


def test_a_death_that_it_does_not_tell(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "EXIT_TIMEOUT", 0.2)

    async def test(parents: WarmParents, get: Any) -> None:
        parent: WarmParentHandle = await get()
        step = await parent.take_step()
        os.kill(parent.pid, signal.SIGSTOP)
        os.kill(step.pid, signal.SIGKILL)
        assert (await exit_of(step)).unseen
        assert parent.silent

    run(test)


def test_it_speaks_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(parents: WarmParents, get: Any) -> None:
        parent: WarmParentHandle = await get()
        step = await parent.take_step()
        os.kill(parent.pid, signal.SIGSTOP)
        monkeypatch.setattr(processes, "START_TIMEOUT", 0.2)
        with pytest.raises(WarmParentError):
            await parent.take_step()
        os.kill(parent.pid, signal.SIGCONT)
        assert services.alive(step.pid)
        step.dismiss()
        await exit_of(step)
        while services.alive(parent.pid):
            await asyncio.sleep(0.01)

    run(test)


def test_interrupted_starts_leave_no_descriptor(run: Any) -> None:
    async def test(parents: WarmParents, get: Any) -> None:
        parent: WarmParentHandle = await get()
        before = own_descriptors()
        for number in range(1, 6):
            starting = asyncio.ensure_future(parent.take_step())
            # While the request is under way, or just when the answer is there.
            await asyncio.sleep(0)
            while number % 2 and not parent._steps[number].pid:
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result().dismiss()
        last = await parent.take_step()
        last.dismiss()
        await exit_of(last)
        while own_descriptors() != before:
            await asyncio.sleep(0.01)

    run(test)


def test_one_that_cannot_be_adopted_is_replaced(run: Any, origins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not answer; two who want it get one successor."""
    monkeypatch.setattr(processes, "ADOPT_TIMEOUT", 0.2)

    async def test(parents: WarmParents, get: Any) -> None:
        dumb = await asyncio.create_subprocess_exec("sleep", "1000")
        ours, theirs = socket.socketpair()
        _, job_origin, instance_ref = origins
        repository = json.dumps(json.loads(job_origin)["repository_origin"], sort_keys=True)
        key = ("", _core.sha256_hex(repository), _core.sha256_hex(instance_ref))
        parents.adopt(Kept(key, dumb.pid, process_start(dumb.pid), ours))
        first, second = await asyncio.gather(get(), get())
        assert first is second
        assert first.pid != dumb.pid
        assert await dumb.wait() == -signal.SIGKILL
        theirs.close()

    run(test)
