"""The core's operations and events in asyncio.

Each :class:`~dagster_taskiq._core.Loop` has one bridge, kept by the Loop itself.  The bridge has one reader on the
Loop's descriptor in each event loop that uses it, and takes everything that is ready with one ``drain`` for each
wake-up: futures are set, events go to the subscribers.

The reader holds the Loop, so the descriptor cannot be closed, and its number given to another file, while a selector
still watches it; once the Loop is closed and nobody waits any more, the reader is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from dagster_taskiq._core import Event, Loop, Operation

T = TypeVar("T")

_Future = asyncio.Future[None]
_Callback = Callable[[Event], object]


class _Bridge:
    """Futures and subscribers of one Loop, in any number of event loops."""

    def __init__(self) -> None:
        self._readers: set[asyncio.AbstractEventLoop] = set()
        self._futures: dict[Operation[Any], list[_Future]] = {}
        self._subscribers: list[tuple[asyncio.AbstractEventLoop, _Callback]] = []

    def read_in(self, event_loop: asyncio.AbstractEventLoop, loop: Loop) -> None:
        """Have ``event_loop`` watch ``loop``."""
        if event_loop not in self._readers:
            # A closed event loop has dropped its readers by itself.
            self._readers = {one for one in self._readers if not one.is_closed()}
            event_loop.add_reader(loop.fileno(), self._ready, event_loop, loop)
            self._readers.add(event_loop)

    def _ready(self, event_loop: asyncio.AbstractEventLoop, loop: Loop) -> None:
        for item in loop.drain():
            if isinstance(item, Event):
                for subscriber in tuple(self._subscribers):
                    self._deliver(event_loop, subscriber, item)
            else:
                for future in self._futures.pop(item, ()):
                    _wake(event_loop, future)
        if loop.closed and not self._futures:
            event_loop.remove_reader(loop.fileno())
            self._readers.discard(event_loop)

    def _deliver(
        self,
        here: asyncio.AbstractEventLoop,
        subscriber: tuple[asyncio.AbstractEventLoop, _Callback],
        event: Event,
    ) -> None:
        home, callback = subscriber
        if home is not here:
            if not home.is_closed():
                home.call_soon_threadsafe(callback, event)
            return
        try:
            callback(event)
        except Exception as error:
            context = {"message": f"the subscriber of {event!r} failed", "exception": error}
            here.call_exception_handler(context)

    def future(self, operation: Operation[Any]) -> _Future:
        """A future of the running event loop that is set when ``operation`` is done."""
        event_loop = asyncio.get_running_loop()
        loop = operation.loop
        self.read_in(event_loop, loop)
        future = event_loop.create_future()
        self._futures.setdefault(operation, []).append(future)
        operation.watch()
        return future

    def forget(self, operation: Operation[Any], future: _Future) -> bool:
        """``future`` is no longer waited for; whether nobody else waits for ``operation`` either."""
        waiting = self._futures.get(operation, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._futures.pop(operation, None)
        return not waiting

    def add(self, loop: Loop, callback: _Callback) -> Callable[[], None]:
        """Subscribe the running event loop; the way to unsubscribe comes back."""
        event_loop = asyncio.get_running_loop()
        self.read_in(event_loop, loop)
        subscriber = (event_loop, callback)
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe


def _wake(here: asyncio.AbstractEventLoop, future: _Future) -> None:
    home = future.get_loop()
    if home is here:
        _set(future)
    elif not home.is_closed():
        home.call_soon_threadsafe(_set, future)


def _set(future: _Future) -> None:
    if not future.done():
        future.set_result(None)


def _bridge_of(loop: Loop) -> _Bridge:
    if loop._bridge is None:
        loop._bridge = _Bridge()
    bridge: _Bridge = loop._bridge
    return bridge


async def wait(operation: Operation[T]) -> T:
    """The operation's result; ``await operation`` comes here.

    When the awaiting task is cancelled, the core is asked to end the operation, unless another task awaits it too.
    It may be done by then all the same: who must not lose its result keeps the operation and looks.
    """
    if not operation.done():
        bridge = _bridge_of(operation.loop)
        future = bridge.future(operation)
        try:
            await future
        except asyncio.CancelledError:
            if bridge.forget(operation, future):
                operation.cancel()
            raise
        except BaseException:
            bridge.forget(operation, future)
            raise
    return operation.result(0)


def subscribe(loop: Loop, callback: Callable[[Event], object]) -> Callable[[], None]:
    """Call ``callback(event)`` on the running event loop for each event of ``loop``; returns the way to unsubscribe.

    Events that come while nobody is subscribed are dropped, so subscribe before you listen or add a beat.  An
    exception of the callback goes to the event loop's exception handler.
    """
    return _bridge_of(loop).add(loop, callback)


async def close(loop: Loop, timeout: float = 0.0) -> None:
    """``loop.close(timeout)`` without blocking the event loop; all that is still awaited ends with ``ClosedError``."""
    await asyncio.get_running_loop().run_in_executor(None, partial(loop.close, timeout))
    if loop._bridge is not None:
        bridge: _Bridge = loop._bridge
        bridge._ready(asyncio.get_running_loop(), loop)
