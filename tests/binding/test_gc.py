"""Each type takes part in garbage collection: cycles through it are collected."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dagster_taskiq import _core, errors


class Canary:
    """Can be referenced weakly, and hold anything."""

    held: Any


@pytest.fixture
def endpoint() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_client(loop: _core.Loop, endpoint: str, **options: Any) -> _core.SqsClient:
    keys = {} if "refresh" in options else {"access_key_id": "a", "secret_access_key": "b"}
    return _core.SqsClient(loop, region="eu-central-1", endpoint=endpoint, **keys, **options)


def collected(make: Callable[[], Canary]) -> None:
    """``make`` returns a canary in a cycle through the type under test."""
    canary = weakref.ref(make())
    assert canary() is not None, "there was no cycle"
    gc.collect()
    assert canary() is None


def test_loop_through_the_bridge_slot() -> None:
    def make() -> Canary:
        canary, loop = Canary(), _core.Loop()
        loop._bridge, canary.held = canary, loop
        return canary

    collected(make)


def test_loop_without_a_cycle_goes_at_once() -> None:
    loop = _core.Loop()
    gone = weakref.ref(loop)
    del loop
    assert gone() is None


def test_client_through_refresh(endpoint: str) -> None:
    def make() -> Canary:
        canary = Canary()

        def refresh() -> tuple[str, str, None, int]:
            return ("a", "b", None, 0) if canary else ("", "", None, 0)

        canary.held = make_client(_core.Loop(), endpoint, refresh=refresh)
        return canary

    collected(make)


def test_watched_operation(endpoint: str) -> None:
    """Loop.watched -> Operation -> Loop."""
    loop = _core.Loop()
    operation = make_client(loop, endpoint).call("ListQueues")
    operation.watch()
    gone = weakref.ref(loop)
    del loop, operation
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_operation_of_a_store_through_convert() -> None:
    def make() -> Canary:
        canary = Canary()
        store = _core.Store(_core.Loop(), "postgresql://127.0.0.1:1/none")
        canary.held = store.run("migrations", [], convert=lambda rows: (rows, canary))
        return canary

    collected(make)


def test_beat_and_board_keep_what_they_need() -> None:
    loop = _core.Loop()
    gone = weakref.ref(loop)
    beat = _core.Beat(_core.Store(loop, "postgresql://127.0.0.1:1/none"), board=_core.FenceBoard(4))
    del loop
    assert gone() is not None
    del beat
    assert gone() is None


def test_awaited_and_cancelled(endpoint: str) -> None:
    """asyncio's selector, the bridge and the Loop hold each other while the event loop lives, and not longer."""
    gone: list[weakref.ref[_core.Loop]] = []

    async def main() -> None:
        loop = _core.Loop()
        gone.append(weakref.ref(loop))
        with pytest.raises(errors.OperationTimeoutError):
            await make_client(loop, endpoint).call("ListQueues", timeout=0.01)

    asyncio.run(main())
    gc.collect()
    assert gone[0]() is None


def test_no_references_leak(endpoint: str) -> None:
    """The number of objects does not grow with the number of rounds."""

    def round_() -> None:
        loop = _core.Loop()
        client = make_client(loop, endpoint)
        operations = [client.call("ListQueues") for _ in range(3)]
        operations[0].watch()
        loop.close()
        assert loop.drain() == [operations[0]]
        for operation in operations:
            with pytest.raises(errors.ClosedError):
                operation.result()
        with pytest.raises(TypeError):
            client.send("http://x/q", [{"body": 1}])

    round_()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5):
        round_()
    gc.collect()
    assert len(gc.get_objects()) - before < 50
