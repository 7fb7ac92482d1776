"""The worker's side of warm parents and step processes.

The worker never forks: a child would inherit the sockets to PostgreSQL and keep the server from seeing that the worker
died.  It starts a warm parent by exec, and the warm parent forks.  Each step process has a channel of its own to the
worker; its end in the warm parent is closed once the child has it.

All of this runs on the worker's event loop, in its main thread: a parent-death signal belongs to the *thread* that
started the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dagster_taskiq import _core
from dagster_taskiq.code_files import CodeFiles, changed_file
from dagster_taskiq.errors import WarmParentError
from dagster_taskiq.frames import READ_BYTES, FrameDecoder, FrameError, encode
from dagster_taskiq.kept_parents import AdoptedProcess, Keeper, Kept, Key
from dagster_taskiq.levers import LEVERS
from dagster_taskiq.logs import fields
from dagster_taskiq.warm_parent import process_start

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds for a fork; a warm parent that takes longer is given up."""

ADOPT_TIMEOUT = 10.0
"""Seconds for a warm parent that was kept from a dead worker to answer its new one."""

EXIT_TIMEOUT = 10.0
"""Seconds for a warm parent to tell of a step process that is dead."""

EVENTS_BYTES_MAX = 1024 * 1024
"""Bytes of one attempt's events that travel in its completion row; of an attempt with more the executor reads Dagster's
log.
"""


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


class StepProcess:
    """One step process, from its fork to its death."""

    def __init__(self, parent: WarmParentHandle, id_: int, channel: socket.socket) -> None:
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
        """Called with each serialized event as it comes."""
        self._events: list[str] = []
        self._events_bytes = 0
        self._complete = False
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

    async def wait(self) -> Exit:
        """Until it is dead, reaped, its process group killed, and all that it has sent is read."""
        result = await asyncio.shield(self._exited)
        if self._reading is not None:
            # What it has sent lies in our socket's queue and is still read.  A grandchild that left the group may hold
            # the other end open: so end
            # the stream from here.
            self._channel.shutdown(socket.SHUT_RD)
            done, _ = await asyncio.wait({self._reading}, timeout=5)
            if not done:
                self._reading.cancel()
        self._channel.close()
        return result

    @property
    def events(self) -> list[str] | None:
        """The serialized Dagster events that it stored, in order; None when there may be others (it died, or there were
        too many bytes).
        """
        return self._events if self._complete and self._events_bytes <= EVENTS_BYTES_MAX else None

    async def _read(self) -> None:
        decoder = FrameDecoder()
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._channel, READ_BYTES):
                for frame in decoder.feed(data):
                    self._take(frame)
        except (OSError, FrameError, KeyError) as error:
            self._complete = False
            logger.warning(
                "the channel of a step process broke: %s", error, extra=fields(generation=self.id, pid=self.pid)
            )

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["op"]
        if kind == "event":
            self._events_bytes += len(frame["event"])
            if self._events_bytes <= EVENTS_BYTES_MAX:
                self._events.append(frame["event"])
            else:
                self._events.clear()
            if self.on_event is not None:
                self.on_event(frame["event"])
        elif kind == "warning":
            self.warnings.append(frame["text"])
        elif kind == "raised":
            self.raised = frame["text"]
        elif kind == "end":
            self._complete = bool(frame["complete"])

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


class _Process(Protocol):
    """What a handle needs of its process: ``subprocess.Popen``, or a process that another worker had started."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class WarmParentHandle:
    """One warm parent process."""

    def __init__(self, board: _core.FenceBoard, on_warning: Callable[[str], None]) -> None:
        self._board = board
        self._on_warning = on_warning
        self._steps: dict[int, StepProcess] = {}
        self._process: _Process | None = None
        self._control: socket.socket | None = None
        self._decoder = FrameDecoder()
        self._sending = asyncio.Lock()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._silent = False
        self._retired = False
        self._files: CodeFiles = {}
        self._background: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        return not self._steps

    @property
    def alive(self) -> bool:
        """Step processes can be asked for."""
        return self._control is not None and not self._silent and not self._retired

    @property
    def leaving(self) -> bool:
        """It gets no more steps, and ends after the last of those that it has."""
        return self._silent or self._retired

    @property
    def silent(self) -> bool:
        """It was given up because it did not answer; its step processes go on to their ends."""
        return self._silent

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(
        self,
        job_origin: str,
        instance_ref: str,
        isolation: str,
        levers: Iterable[str],
        load_timeout: float,
        *,
        kept: bool = False,
        watch: bool = False,
    ) -> socket.socket | None:
        """Exec it and have it import.  ``kept``: returns the line by which another worker can adopt it.  ``watch``:
        it tells which files it has imported.  Raises ``WarmParentError`` when it dies of that, or takes too long.
        """
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            passed = [theirs.fileno(), self._board.fileno()]
            line: socket.socket | None = None
            options = ["--control", str(theirs.fileno()), "--board", str(self._board.fileno())]
            if kept:
                line, its_end = socket.socketpair()
                stack.enter_context(its_end)
                passed.append(its_end.fileno())
                options += ["--keeper", str(its_end.fileno())]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dagster_taskiq.warm_parent", *options, "--worker", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
        self._listen(ours)
        try:
            await self._send(
                {
                    "op": "load",
                    "job_origin": job_origin,
                    "instance_ref": instance_ref,
                    "isolation": isolation,
                    "levers": sorted(levers),
                    "watch": watch,
                }
            )
            await asyncio.wait_for(asyncio.shield(self._ready), load_timeout)
        except asyncio.TimeoutError:
            self._process.kill()
            _close(line)
            raise WarmParentError(
                f"the code location was not imported within {load_timeout:g} s: raise load_timeout, or find what"
                " hangs at import"
            ) from None
        except BaseException:
            _close(line)
            raise
        return line

    async def adopt(self, kept: Kept) -> None:
        """Take over one that has imported for a worker that is dead.  Raises ``WarmParentError``."""
        try:
            with kept.line:
                self._process = AdoptedProcess(kept.pid, kept.pid_start)
                ours, theirs = socket.socketpair()
                self._listen(ours)
                with theirs:
                    frame = encode({"op": "adopt", "worker": os.getpid()})
                    socket.send_fds(kept.line, [frame], [theirs.fileno(), self._board.fileno()])
            await asyncio.wait_for(asyncio.shield(self._ready), ADOPT_TIMEOUT)
        except (OSError, asyncio.TimeoutError) as error:
            if self._process is not None:
                self._process.kill()
            raise WarmParentError(f"the warm parent of the last worker cannot be had: {error}") from error

    def _listen(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        asyncio.get_running_loop().add_reader(control, self._readable)

    async def start_step(self, id_: int) -> StepProcess:
        """A new step process that waits for its attempt.  Raises ``WarmParentError``."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        step = StepProcess(self, id_, ours)
        self._steps[id_] = step
        try:
            with theirs:
                await self._send({"op": "step", "id": id_}, theirs.fileno())
            await asyncio.wait_for(asyncio.shield(step.started), START_TIMEOUT)
        except asyncio.TimeoutError:
            self._steps.pop(id_, None)
            ours.close()
            self.give_up(f"it has made no step process for {START_TIMEOUT:g} s")
            raise WarmParentError(f"the warm parent has not answered within {START_TIMEOUT:g} s") from None
        except BaseException:
            if not step.pid:
                self._steps.pop(id_, None)
            ours.close()
            raise
        return step

    def give_up(self, why: str) -> None:
        """It does not answer, and that is no fault of its step processes: they go on to their ends, another warm parent
        makes the next ones, and this one is ended after the last of them.
        """
        if self._silent or self._control is None:
            return
        self._silent = True
        logger.warning("a warm parent is silent (%s): it gets no more steps", why, extra=fields(pid=self.pid))
        for step in [step for step in self._steps.values() if step.seen_dead]:
            self._end_unseen(step)
        self._end_if_of_no_use()

    def retire_if_outdated(self) -> None:
        """Another warm parent makes the next steps when the code that this one has imported has changed."""
        path = None if self.leaving else changed_file(self._files)
        if path is not None:
            logger.info("%s has changed: importing the code location again", path, extra=fields(pid=self.pid))
            self._retired = True
            self._end_if_of_no_use()

    def on_seen_dead(self, step: StepProcess) -> None:
        """The kernel says that a step process is dead; this parent is to say so too."""
        if self._steps.get(step.id) is not step:
            return
        if self._silent:
            self._end_unseen(step)
            self._end_if_of_no_use()
        else:
            asyncio.get_running_loop().call_later(EXIT_TIMEOUT, self._exit_is_overdue, step)

    def _exit_is_overdue(self, step: StepProcess) -> None:
        if self._steps.get(step.id) is step:
            self.give_up(f"a step process is dead for {EXIT_TIMEOUT:g} s")

    def _end_unseen(self, step: StepProcess) -> None:
        del self._steps[step.id]
        step.end_unseen()

    def _end_if_of_no_use(self) -> None:
        if self.leaving and not self._steps and self._control is not None:
            self._in_background(self.close())

    def signal(self, step: StepProcess, signum: int) -> None:
        if self._silent:
            step.signal_group(signum)
        elif self._control is not None and step.id in self._steps:
            self._in_background(self._send_quietly({"op": "signal", "id": step.id, "signal": int(signum)}))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Let it kill what it still has, and wait until it is gone."""
        if self._control is not None:
            # The end of the stream alone says that the worker is dead, and another may come.  Half a frame does no harm
            # here: what it cannot read makes it leave too.
            with contextlib.suppress(OSError):
                self._control.send(encode({"op": "leave"}))
        self._hang_up("the worker let its warm parent go")
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._wait_gone(), 5)
        except asyncio.TimeoutError:
            self._process.kill()
            self._process.wait()

    async def _wait_gone(self) -> None:
        assert self._process is not None
        delay = 0.002
        while self._process.poll() is None:
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.05)

    async def _send_quietly(self, frame: dict[str, Any]) -> None:
        with contextlib.suppress(WarmParentError):
            await self._send(frame)

    async def _send(self, frame: dict[str, Any], descriptor: int = -1) -> None:
        loop = asyncio.get_running_loop()
        data = encode(frame)
        async with self._sending:
            control = self._control
            if control is None:
                raise WarmParentError("the warm parent is gone")
            try:
                if descriptor >= 0:
                    sent = 0
                    while not sent:
                        try:
                            sent = socket.send_fds(control, [data], [descriptor])
                        except BlockingIOError:
                            await asyncio.sleep(0.005)
                    data = data[sent:]
                if data:
                    await loop.sock_sendall(control, data)
            except OSError as error:
                raise WarmParentError(f"the warm parent is gone: {error}") from error

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up("the warm parent died")
            return
        for frame in self._decoder.feed(data):
            self._take(frame)

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["op"]
        if kind in ("ready", "adopted"):
            for text in frame.get("warnings", ()):
                self._on_warning(text)
            self._files = frame.get("files", {})
            if not self._ready.done():
                self._ready.set_result(None)
            return
        step = self._steps.get(frame["id"])
        if step is None:
            return
        if kind == "started":
            step.on_started(frame["pid"], frame["pid_start"])
        elif kind == "refused":
            self._steps.pop(step.id, None)
            step.on_refused(frame["error"])
        elif kind == "exited":
            self._steps.pop(step.id, None)
            step.on_exited(Exit(frame["exit_code"], frame["signal"], frame["max_rss_kib"], frame["cpu_seconds"]))
            self._end_if_of_no_use()

    def _hang_up(self, text: str) -> None:
        control, self._control = self._control, None
        if control is None:
            return
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        if not self._ready.done():
            self._ready.set_exception(WarmParentError(f"{text} while it imported the code location"))
            self._ready.exception()
        for step in self._steps.values():
            step.on_orphaned(text)
        self._steps.clear()
        if self._process is not None:
            self._in_background(self._wait_gone())


class WarmParents:
    """The warm parents of a worker, by code location and instance; the ones that are idle longest go first when there
    are more than ``limit``.  ``reload``: each imports files that have changed anew, that is, another one does.
    """

    def __init__(
        self,
        board: _core.FenceBoard,
        *,
        isolation: str = "auto",
        levers: Iterable[str] = LEVERS,
        load_timeout: float = 300.0,
        limit: int = 8,
        keeper: Keeper | None = None,
        reload: bool = False,
    ) -> None:
        self._board = board
        self._keeper = keeper
        self._reload = reload
        self._isolation = isolation
        self._levers = frozenset(levers)
        self._load_timeout = load_timeout
        self._limit = limit
        self._parents: OrderedDict[Key, asyncio.Task[WarmParentHandle]] = OrderedDict()
        self._adoptions: set[asyncio.Task[WarmParentHandle]] = set()
        self._leaving: set[WarmParentHandle] = set()
        self._said: set[str] = set()

    def adopt(self, kept: Kept) -> None:
        """Take over a warm parent of the worker before this one, in the background."""
        if kept.key in self._parents:
            kept.line.close()
            return
        task = asyncio.get_running_loop().create_task(self._adopt(kept))
        self._parents[kept.key] = task
        self._adoptions.add(task)

    async def get(self, code_location: str, job_origin: str, instance_ref: str) -> WarmParentHandle:
        """The warm parent for this code location, ready.  Raises ``WarmParentError``; the next call tries anew."""
        repository = json.dumps(json.loads(job_origin)["repository_origin"], sort_keys=True)
        key = (code_location, _core.sha256_hex(repository), _core.sha256_hex(instance_ref))
        while True:
            await self._make_room(key)
            # From here to the new task nothing else runs, so that two who ask at once get the same one.
            task = self._parents.get(key)
            if task is None:
                task = asyncio.get_running_loop().create_task(self._start(key, job_origin, instance_ref))
                self._parents[key] = task
            self._parents.move_to_end(key)
            try:
                return await asyncio.shield(task)
            except WarmParentError:
                if task not in self._adoptions:
                    raise

    async def close(self) -> None:
        """End all of them, and the step processes that they still have."""
        for key in list(self._parents):
            await self._drop(key)
        for parent in self._leaving:
            await parent.close()

    def warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    async def _start(self, key: Key, job_origin: str, instance_ref: str) -> WarmParentHandle:
        parent = WarmParentHandle(self._board, self.warn_once)
        try:
            line = await parent.start(
                *(job_origin, instance_ref, self._isolation, self._levers, self._load_timeout),
                kept=self._keeper is not None,
                watch=self._reload,
            )
        except BaseException:
            await parent.close()
            raise
        if line is not None and self._keeper is not None:
            with line:
                self._keeper.keep(Kept(key, parent.pid, process_start(parent.pid), line))
        logger.info("a warm parent is ready", extra=fields(pid=parent.pid))
        return parent

    async def _adopt(self, kept: Kept) -> WarmParentHandle:
        parent = WarmParentHandle(self._board, self.warn_once)
        try:
            await parent.adopt(kept)
        except BaseException as error:
            if isinstance(error, WarmParentError):
                logger.warning("%s", error, extra=fields(pid=kept.pid))
            await parent.close()
            raise
        logger.info("a warm parent of the last worker goes on", extra=fields(pid=parent.pid))
        return parent

    async def _make_room(self, wanted: Key) -> None:
        """Drop what is of no use any more, and idle ones when there is no room for the one that is wanted."""
        if (task := self._parents.get(wanted)) is not None and _succeeded(task):
            task.result().retire_if_outdated()
        while (task := self._parents.get(wanted)) is not None and _is_over(task):
            await self._drop(wanted)
        for key, task in list(self._parents.items()):
            if wanted in self._parents or len(self._parents) < self._limit:
                return
            given_up = _is_over(task) or (task.done() and task.result().idle)
            if given_up and self._parents.get(key) is task:
                await self._drop(key)

    async def _drop(self, key: Key) -> None:
        task = self._parents.pop(key, None)
        if task is None:
            return
        if not task.done():
            task.cancel()
        await asyncio.wait({task})
        if not _succeeded(task):
            return
        parent = task.result()
        if parent.leaving and not parent.idle:
            self._leaving = {one for one in self._leaving if not one.idle} | {parent}
        else:
            await parent.close()


def _close(line: socket.socket | None) -> None:
    if line is not None:
        line.close()


def _succeeded(task: asyncio.Task[WarmParentHandle]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _is_over(task: asyncio.Task[WarmParentHandle]) -> bool:
    """It could not be started, or has died since."""
    return task.done() and not (_succeeded(task) and task.result().alive)
