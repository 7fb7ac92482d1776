"""One step process as its worker sees it: from its fork to its death.

Not the worker's child but its warm parent's, which tells of its start and its end (:mod:`dagster_taskiq.processes`);
what the step says itself comes over a channel of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dagster_taskiq.errors import WarmParentError
from dagster_taskiq.frames import READ_BYTES, FrameDecoder, FrameError, encode
from dagster_taskiq.logs import fields

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a step process ended: by ``exit_code`` or by ``signal``; both None when its warm parent died before it could
    tell, or (``unseen``) did not tell.
    """

    exit_code: int | None
    signal: int | None
    max_rss_kib: int | None = None
    cpu_seconds: float | None = None
    unseen: bool = False


class Parent(Protocol):
    """What a step process needs of its warm parent's handle."""

    @property
    def silent(self) -> bool: ...
    def signal(self, step: StepProcess, signum: int) -> None: ...
    def on_seen_dead(self, step: StepProcess) -> None: ...


class StepProcess:
    """One step process, from its fork to its death."""

    def __init__(self, parent: Parent, id_: int, channel: socket.socket) -> None:
        self.id = id_
        self.pid = 0
        self.pid_start = ""
        self.warnings: list[str] = []
        self.raised: str | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parent = parent
        self._channel = channel
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.on_event: Callable[[str], None] | None = None
        """Called with the type of each event as it comes, where the process was asked to tell."""
        self._events: list[str] | None = None
        self._has_ended = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._pidfd = -1
        self._seen_dead = False
        self._orphaned = False

    async def go(self, attempt: dict[str, Any]) -> None:
        """Give it its attempt.  Raises ``OSError`` when it is dead already."""
        loop = asyncio.get_running_loop()
        self._reading = loop.create_task(self._read())
        await loop.sock_sendall(self._channel, encode(attempt))

    def dismiss(self) -> None:
        """Let a process that has not been given an attempt leave; it has touched nothing."""
        if self._reading is None:
            self._channel.close()

    def signal(self, signum: int) -> None:
        """To its process group, if it still lives."""
        self._parent.signal(self, signum)

    @property
    def has_ended(self) -> bool:
        """It has said its last word."""
        return self._has_ended.is_set()

    async def last_word(self) -> bool:
        """Until it has run its attempt, and nothing is left to it but to end (True); or is dead without that."""
        ended = asyncio.ensure_future(self._has_ended.wait())
        either: set[asyncio.Future[Any]] = {ended, self._exited}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        return self.has_ended

    async def wait(self) -> Exit:
        """Until it is dead, reaped, its process group killed, and all that it has sent is read."""
        result = await asyncio.shield(self._exited)
        if self._reading is not None:
            # What it has sent lies in our socket's queue and is still read.  A grandchild that left the group may hold
            # the other end open: so end the stream from here.
            self._channel.shutdown(socket.SHUT_RD)
            done, _ = await asyncio.wait({self._reading}, timeout=5)
            if not done:
                self._reading.cancel()
        self._channel.close()
        return result

    @property
    def events(self) -> list[str] | None:
        """The serialized Dagster events that it stored, in order; None when there may be others (it has not said its
        last word, or there were too many bytes).
        """
        return self._events

    async def _read(self) -> None:
        decoder = FrameDecoder()
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._channel, READ_BYTES):
                for frame in decoder.feed(data):
                    self._take(frame)
        except (OSError, FrameError, KeyError) as error:
            self._events = None
            logger.warning("the channel of a step process broke: %s", error, extra=fields(pid=self.pid))

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["op"]
        if kind == "event":
            if self.on_event is not None:
                self.on_event(frame["type"])
        elif kind == "warning":
            self.warnings.append(frame["text"])
        elif kind == "raised":
            self.raised = frame["text"]
        elif kind == "end":
            self._events = frame["events"]
            self._has_ended.set()

    def on_started(self, pid: int, pid_start: str) -> None:
        self.pid, self.pid_start = pid, pid_start
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)
                asyncio.get_running_loop().add_reader(self._pidfd, self._on_pidfd)
        if not self.started.done():
            self.started.set_result(None)

    def on_exited(self, how: Exit) -> None:
        self._fail_start("the step process died before it had started")
        self._end(how)

    def on_refused(self, error: str) -> None:
        self._fail_start(f"no step process could be made: {error}")
        self._end(Exit(None, None))

    def on_orphaned(self, text: str) -> None:
        """Its warm parent is gone, and it dies too (parent-death signal); wait for that without being its parent."""
        self._fail_start(text)
        if self._exited.done():
            return
        self._orphaned = True
        # The leader may be dead already, and the rest of its group alive.  The group's number is not given away while
        # it has a member, and process numbers do not come round within the moment since.
        if self.pid:
            self._kill_group(signal.SIGKILL)
        if self.pid == 0 or self._seen_dead:
            self._end_orphaned()
            return
        if self._pidfd < 0:
            self._look_whether_dead(asyncio.get_running_loop())

    def signal_group(self, signum: int) -> None:
        """Past a warm parent that is silent: as long as that has not reaped it, its group's number is its own."""
        if self.pid and not self._seen_dead and not self._exited.done():
            self._kill_group(signum)

    def end_unseen(self) -> None:
        """It is dead, its warm parent says nothing of it, and has not reaped it: the group's number is still its
        own.
        """
        self._kill_group(signal.SIGKILL)
        self._end(Exit(None, None, unseen=True))

    def _end_orphaned(self) -> None:
        self._end(Exit(None, None, unseen=self._parent.silent))

    @property
    def seen_dead(self) -> bool:
        """The kernel says that it is dead; its warm parent may not have said so yet."""
        return self._seen_dead

    def is_dead(self) -> bool:
        """Asks the kernel, where it can tell."""
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(0))
        return self._seen_dead

    def _fail_start(self, text: str) -> None:
        if not self.started.done():
            self.started.set_exception(WarmParentError(text))
            # Nobody asks any more when the start was interrupted.
            self.started.exception()

    def _end(self, how: Exit) -> None:
        self._forget_pidfd()
        if not self._exited.done():
            self._exited.set_result(how)

    def _kill_group(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def _forget_pidfd(self) -> None:
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _on_pidfd(self) -> None:
        self._forget_pidfd()
        self._seen_dead = True
        if self._orphaned:
            self._end_orphaned()
        else:
            self._parent.on_seen_dead(self)

    def _look_whether_dead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Where there are no process descriptors."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self._end_orphaned()
        else:
            loop.call_later(0.05, self._look_whether_dead, loop)
