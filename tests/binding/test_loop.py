"""Loop, Operation, the asyncio bridge: what does not depend on a service's answers."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dagster_taskiq import _bridge, _core, errors


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def waiting(loop: _core.Loop, silent: str) -> _core.SqsClient:
    """A client whose requests never end by themselves."""
    return _core.SqsClient(loop, region="eu-central-1", endpoint=silent, access_key_id="a", secret_access_key="b")


def ask(client: _core.SqsClient, **options: Any) -> _core.Operation[dict[str, Any]]:
    return client.call("ListQueues", {}, **options)


class TestBlocking:
    def test_times_out_and_goes_on(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        for timeout in (0, 0.01, 0.12):
            with pytest.raises(errors.OperationTimeoutError):
                operation.result(timeout)
        assert not operation.done()

    def test_has_a_deadline_of_its_own(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting, timeout=0.05)
        with pytest.raises(errors.OperationTimeoutError):
            operation.result()
        assert operation.done()

    @pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
    def test_refuses_wrong_times(self, waiting: _core.SqsClient, timeout: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            ask(waiting).result(timeout)
        with pytest.raises((ValueError, TypeError)):
            ask(waiting, timeout=timeout)

    def test_no_deadline_of_zero(self, waiting: _core.SqsClient) -> None:
        with pytest.raises(ValueError, match="more than 0"):
            ask(waiting, timeout=0)

    def test_signal_handlers_run_and_may_raise(self, waiting: _core.SqsClient) -> None:
        class Stop(Exception):
            pass

        def stop(*_: object) -> None:
            raise Stop

        previous = signal.signal(signal.SIGUSR1, stop)
        try:
            operation = ask(waiting)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Stop):
                operation.result()
        finally:
            signal.signal(signal.SIGUSR1, previous)

    def test_other_threads_run_meanwhile(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        threading.Timer(0.01, operation.cancel).start()
        with pytest.raises(errors.OperationCancelledError):
            operation.result()

    def test_two_threads_wait_for_one(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        raised: list[type] = []

        def wait() -> None:
            try:
                operation.result()
            except errors.OperationCancelledError as error:
                raised.append(type(error))

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        operation.cancel()
        for thread in threads:
            thread.join()
        assert raised == [errors.OperationCancelledError] * 3


class TestClose:
    def test_ends_what_waits(self, loop: _core.Loop, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        loop.close()
        assert loop.closed
        with pytest.raises(errors.ClosedError):
            operation.result()

    def test_refuses_afterwards(self, loop: _core.Loop, waiting: _core.SqsClient) -> None:
        loop.close()
        loop.close()
        with pytest.raises(errors.ClosedError):
            ask(waiting)
        with pytest.raises(errors.ClosedError):
            _core.SqsClient(loop, region="eu-central-1")

    def test_before_anything_started(self) -> None:
        loop = _core.Loop()
        assert not loop.closed
        loop.close(timeout=5)
        assert loop.drain() == []

    def test_at_exit(self, silent: str) -> None:
        """A process that ends with an open loop ends well, whatever its threads do."""
        script = f"""
from dagster_taskiq import _core
loop = _core.Loop()
client = _core.SqsClient(loop, region="eu-central-1", endpoint={silent!r}, access_key_id="a", secret_access_key="b")
operation = client.call("ListQueues")
cycle = [loop]; cycle.append(cycle)
print("made")
"""
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "made\n", "")


class TestDrain:
    def test_gives_watched_operations_that_are_done(self, loop: _core.Loop, waiting: _core.SqsClient) -> None:
        watched, unwatched = ask(waiting), ask(waiting)
        watched.watch()
        watched.watch()
        assert loop.drain() == []
        watched.cancel()
        unwatched.cancel()
        assert select.select([loop.fileno()], [], [], 30)[0]
        assert loop.drain() == [watched]
        assert select.select([loop.fileno()], [], [], 0)[0] == []
        watched.watch()
        assert loop.drain() == []

    def test_watched_when_done_already(self, loop: _core.Loop, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        operation.cancel()
        with pytest.raises(errors.OperationCancelledError):
            operation.result()
        operation.watch()
        assert loop.drain() == [operation]


class TestBridge:
    async def test_close_ends_awaiting_tasks(self, loop: _core.Loop, waiting: _core.SqsClient) -> None:
        tasks = [asyncio.ensure_future(_result(ask(waiting))) for _ in range(5)]
        await asyncio.sleep(0)
        await _bridge.close(loop)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [errors.ClosedError] * 5
        assert not asyncio.get_running_loop().remove_reader(loop.fileno()), "the reader was left behind"

    async def test_cancelling_the_task_cancels_the_operation(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        task = asyncio.ensure_future(_result(operation))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(errors.OperationCancelledError):
            await operation

    async def test_an_operation_that_others_await_goes_on(self, waiting: _core.SqsClient) -> None:
        operation = ask(waiting)
        first, second = (asyncio.ensure_future(_result(operation)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.05)
        assert not operation.done()
        operation.cancel()
        with pytest.raises(errors.OperationCancelledError):
            await second

    async def test_asyncio_timeout(self, waiting: _core.SqsClient) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_result(ask(waiting)), 0.02)

    def test_event_loops_in_several_threads_share_a_loop(self, waiting: _core.SqsClient) -> None:
        operations = [ask(waiting) for _ in range(6)]
        ready = threading.Barrier(4)
        failures: list[BaseException] = []

        def run(mine: list[_core.Operation[Any]]) -> None:
            async def main() -> None:
                tasks = [asyncio.ensure_future(_result(operation)) for operation in mine]
                await asyncio.sleep(0)
                await asyncio.to_thread(ready.wait)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(result, errors.OperationCancelledError)

            try:
                asyncio.run(main())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(operations[i::3],)) for i in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        for operation in operations:
            operation.cancel()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_event_loops_one_after_the_other(self, waiting: _core.SqsClient) -> None:
        for _ in range(3):
            with pytest.raises(errors.OperationTimeoutError):
                asyncio.run(_result(ask(waiting, timeout=0.01)))


async def _result(operation: _core.Operation[Any]) -> Any:
    return await operation


def test_nobody_makes_operations_or_events() -> None:
    for kind in (_core.Operation, _core.Event):
        with pytest.raises(TypeError):
            kind()
