"""A worker that has no file descriptors left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, serialize_value

from dagster_taskiq import _core
from dagster_taskiq.errors import WarmParentError
from dagster_taskiq.kept_parents import Keeper
from dagster_taskiq.processes import WarmParents

Origins = tuple[str, str, str]


@pytest.fixture
def origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origins:
    """Code location, job origin, instance reference; nothing is imported for them."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as instance:
        return "", json.dumps({"repository_origin": {"name": "made up"}}), serialize_value(instance.get_ref())


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many; afterwards it has opened none."""
    before = set(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    limit = os.open("/dev/null", os.O_RDONLY)
    for descriptor in (*spare, limit):
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("left", [0, 2, 4])
def test_no_warm_parent_can_be_started(origins: Origins, left: int) -> None:
    """For want of its control socket, of its line to the next worker, and of what starting a process takes."""

    async def start() -> None:
        supervisor, link = socket.socketpair()
        keeper = Keeper(link.detach())
        parents = WarmParents(_core.FenceBoard(1), isolation="spawn", keeper=keeper)
        with descriptors_left(left), pytest.raises(WarmParentError, match=r"could be started: .*Too many open files"):
            await parents.get(*origins)
        await parents.close()
        keeper.close()
        supervisor.close()

    asyncio.run(start())


def test_no_step_process_can_be_made(origins: Origins) -> None:
    """And the next one can, when there are descriptors again."""

    async def take() -> None:
        parents = WarmParents(_core.FenceBoard(1), isolation="spawn")
        try:
            parent = await parents.get(*origins)
            with descriptors_left(0), pytest.raises(WarmParentError, match=r"could be made: .*Too many open files"):
                await parent.take_step()
            (await parent.take_step()).dismiss()
        finally:
            await parents.close()

    asyncio.run(take())
