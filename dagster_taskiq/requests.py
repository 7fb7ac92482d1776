"""Requests to the store and SQS that are under way, timers, and the one wait for all of them.

One thread drives it: requests go out without waiting, and what is to be done with their results is called from
:meth:`Requests.pump`."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from dagster_taskiq._core import Event, Loop, Operation
from dagster_taskiq.errors import CredentialsError, DagsterTaskiqError, OperationTimeoutError

FIRST_RETRY: Final = 0.5
LAST_RETRY: Final = 15.0


@dataclass(order=True, slots=True)
class _Timer:
    due: float
    number: int
    call: Callable[[], None] = field(compare=False)


class Requests:
    """``event``: called with what the core says without having been asked.  ``trouble``: called with a sentence when
    something is tried again.  ``wake_fd``: a descriptor that becomes readable when a signal arrived."""

    def __init__(
        self, loop: Loop, event: Callable[[Event], None], trouble: Callable[[str], None], wake_fd: int | None
    ) -> None:
        self._loop = loop
        self._event = event
        self._trouble = trouble
        self._wake_fd = wake_fd
        self._operations: dict[Operation[Any], Callable[[Operation[Any]], None]] = {}
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self.woken = False
        """A signal arrived."""

    def pump(self, timeout: float | None) -> None:
        """Handle what the core has, wait for it up to ``timeout``, or until a signal arrives."""
        # poll: select refuses descriptors from 1024 on.
        watched = select.poll()
        watched.register(self._loop.fileno(), select.POLLIN)
        if self._wake_fd is not None:
            watched.register(self._wake_fd, select.POLLIN)
        ready = watched.poll(None if timeout is None else math.ceil(timeout * 1000))
        if self._wake_fd is not None and any(descriptor == self._wake_fd for descriptor, _ in ready):
            os.read(self._wake_fd, 4096)
            self.woken = True
        self._deliver(self._loop.drain())
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            heapq.heappop(self._timers).call()

    def _deliver(self, items: list[Event | Operation[Any]]) -> None:
        """All of them, for the core tells each once; then raise what the first of them raised."""
        first: BaseException | None = None
        for item in items:
            try:
                if isinstance(item, Event):
                    self._event(item)
                elif (call := self._operations.pop(item, None)) is not None:
                    call(item)
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first

    def pause(self, deadline: float | None) -> float | None:
        moments = [moment for moment in (deadline, self._timers[0].due if self._timers else None) if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def idle(self, seconds: float) -> None:
        """Let time pass; heartbeats go on."""
        deadline = time.monotonic() + seconds
        while (pause := deadline - time.monotonic()) > 0:
            due = self.pause(deadline)
            self.pump(pause if due is None else due)

    def schedule(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, _Timer(time.monotonic() + seconds, next(self._numbers), call))

    def watch(
        self,
        operation: Operation[Any],
        call: Callable[[Any], None],
        failed: Callable[[DagsterTaskiqError], None] | None = None,
        passes: Callable[[DagsterTaskiqError], bool] | None = None,
    ) -> None:
        """Have ``call`` called with the result when it is there, or ``failed`` with an error that may pass; another
        error ends the run."""
        passing = passes or may_pass

        def done(finished: Operation[Any]) -> None:
            try:
                value = finished.result(0)
            except DagsterTaskiqError as error:
                if failed is None or not passing(error):
                    raise
                failed(error)
                return
            call(value)

        self._operations[operation] = done
        operation.watch()

    def ask_sqs(
        self,
        start: Callable[[], Operation[Any]],
        call: Callable[[Any], None],
        failed: Callable[[DagsterTaskiqError], None],
        passes: Callable[[DagsterTaskiqError], bool],
    ) -> None:
        """As :meth:`watch`.  Credentials that expire are renewed when a request is made; that this does not succeed
        may pass, unlike SQS's refusal of credentials."""
        try:
            operation = start()
        except CredentialsError as error:
            failed(error)
            return
        self.watch(operation, call, failed, passes)

    def later(self, error: DagsterTaskiqError) -> None:
        """Of a visit that comes again by itself."""
        self._trouble(f"trying again: {error}")

    def then(self, start: Callable[[], Operation[Any]], call: Callable[[Any], None], failures: int = 0) -> None:
        """Start an operation, as often as it takes, and have ``call`` called with its result."""

        def failed(error: DagsterTaskiqError) -> None:
            self._trouble(f"trying again: {error}")
            self.schedule(retry_pause(failures), lambda: self.then(start, call, failures + 1))

        self.watch(start(), call, failed)

    def gather(
        self,
        operations: list[Operation[Any]],
        call: Callable[[list[Any]], None],
        again: Callable[[], None],
        failures: int,
    ) -> None:
        """Have ``call`` called with the results when all are there, or ``again`` a little later when one may still
        succeed."""
        results: dict[int, Any] = {}
        errors: list[DagsterTaskiqError] = []

        def one_done() -> None:
            if len(results) + len(errors) < len(operations):
                return
            if not errors:
                call([results[number] for number in range(len(operations))])
                return
            self._trouble(f"trying again: {errors[0]}")
            self.schedule(retry_pause(failures), again)

        def watch(number: int) -> None:
            def succeeded(value: Any) -> None:
                results[number] = value
                one_done()

            def failed(error: DagsterTaskiqError) -> None:
                errors.append(error)
                one_done()

            self.watch(operations[number], succeeded, failed)

        if not operations:
            call([])
        for number in range(len(operations)):
            watch(number)


def may_pass(error: DagsterTaskiqError) -> bool:
    """Whether the same call can succeed a little later."""
    return bool(getattr(error, "retryable", False)) or isinstance(error, OperationTimeoutError)


def retry_pause(failures: int) -> float:
    """Capped exponential backoff with full jitter."""
    return random.uniform(0.0, min(FIRST_RETRY * 2.0 ** min(failures, 16), LAST_RETRY)) + 0.05


@contextmanager
def signal_wakeup() -> Iterator[int | None]:
    """A descriptor that becomes readable when a signal arrives: Python restarts a wait that a signal handler did not
    raise from.

    None outside the main thread, where no signal handler runs."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
