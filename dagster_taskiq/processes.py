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
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from dagster_taskiq import _core
from dagster_taskiq.code_files import CodeFiles, changed_file
from dagster_taskiq.errors import WarmParentError
from dagster_taskiq.frames import READ_BYTES, FrameDecoder, encode
from dagster_taskiq.kept_parents import AdoptedProcess, Keeper, Kept, Key
from dagster_taskiq.levers import LEVERS
from dagster_taskiq.logs import fields
from dagster_taskiq.step_handle import Exit, StepProcess
from dagster_taskiq.warm_parent import process_start

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds for a fork; a warm parent that takes longer is given up."""

ADOPT_TIMEOUT = 10.0
"""Seconds for a warm parent that was kept from a dead worker to answer its new one."""

EXIT_TIMEOUT = 10.0
"""Seconds for a warm parent to tell of a step process that is dead."""

STEPS_MAX = 10_000
"""Step processes of one warm parent."""

GROWTH_MAX_MIB = 128
"""By how much a warm parent may grow."""

SPARE_SECONDS = 10.0
"""How long a spare step process is kept unused.  Steps of a run come closer together than that; a worker without work
has none.
"""


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
        self._made = 0
        self._resident_kib = 0
        self._grown_kib = 0
        self._jobs: set[str] = set()
        self._spare: StepProcess | None = None
        self._making_spare = False
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
        """No step process of it has an attempt, or is to get one."""
        return all(step is self._spare for step in self._steps.values())

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
        try:
            process, ours, line = self._exec(kept)
        except OSError as error:
            raise WarmParentError(f"no warm parent could be started: {error}") from error
        self._process = process
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
            process.kill()
            _close(line)
            raise WarmParentError(
                f"the code location was not imported within {load_timeout:g} s: raise load_timeout, or find what"
                " hangs at import"
            ) from None
        except BaseException:
            _close(line)
            raise
        return line

    def _exec(self, kept: bool) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket | None]:
        """Its process, and our ends of the control socket and of the line."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            control, its_control = _socket_pair(ours, theirs)
            passed = [its_control.fileno(), self._board.fileno()]
            options = ["--control", str(its_control.fileno()), "--board", str(self._board.fileno())]
            line: socket.socket | None = None
            if kept:
                line, its_line = _socket_pair(ours, theirs)
                passed.append(its_line.fileno())
                options += ["--keeper", str(its_line.fileno())]
            process = subprocess.Popen(
                [sys.executable, "-m", "dagster_taskiq.warm_parent", *options, "--worker", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
            ours.pop_all()
        return process, control, line

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

    async def take_step(self) -> StepProcess:
        """A step process that waits for its attempt: the spare one, else a new one.  Raises ``WarmParentError``."""
        if (step := self._spare) is not None:
            if not step.is_dead():
                self._spare = None
                return step
            self._let_go(step)
        return await self._start_step()

    async def _start_step(self) -> StepProcess:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise WarmParentError(f"no step process could be made: {error}") from error
        ours.setblocking(False)
        self._made += 1
        step = StepProcess(self, self._made, ours)
        self._steps[step.id] = step
        try:
            with theirs:
                await self._send({"op": "step", "id": step.id}, theirs.fileno())
            await asyncio.wait_for(asyncio.shield(step.started), START_TIMEOUT)
        except asyncio.TimeoutError:
            self._steps.pop(step.id, None)
            ours.close()
            self.give_up(f"it has made no step process for {START_TIMEOUT:g} s")
            raise WarmParentError(f"the warm parent has not answered within {START_TIMEOUT:g} s") from None
        except BaseException:
            if not step.pid:
                self._steps.pop(step.id, None)
            ours.close()
            raise
        return step

    def expect_job(self, name: str) -> None:
        """Steps of this job come: have it prepare for the next ones, in the background, unless it has."""
        if self.alive and name not in self._jobs:
            self._jobs.add(name)
            self._in_background(self._send_quietly({"op": "job", "name": name}))

    @property
    def has_spare(self) -> bool:
        return self._spare is not None

    def keep_spare(self) -> None:
        """Have a step process made ahead of need, in the background, unless there is one."""
        if self.alive and not self.has_spare and not self._making_spare:
            self._making_spare = True
            self._in_background(self._make_spare())

    async def _make_spare(self) -> None:
        # What stands against a spare also stands against the next step, which reports it.
        with contextlib.suppress(WarmParentError):
            try:
                step = await self._start_step()
            finally:
                self._making_spare = False
            if not self.alive:
                step.dismiss()
                return
            self._spare = step
            asyncio.get_running_loop().call_later(SPARE_SECONDS, self._let_go, step)

    def _let_go(self, step: StepProcess | None) -> None:
        """If it is the spare."""
        if step is not None and step is self._spare:
            self._spare = None
            step.dismiss()

    def give_up(self, why: str) -> None:
        """It does not answer, and that is no fault of its step processes: they go on to their ends, another warm parent
        makes the next ones, and this one is ended after the last of them.
        """
        if self._silent or self._control is None:
            return
        self._silent = True
        self._let_go(self._spare)
        logger.warning("a warm parent is silent (%s): it gets no more steps", why, extra=fields(pid=self.pid))
        for step in [step for step in self._steps.values() if step.seen_dead]:
            self._end_unseen(step)
        self._end_if_of_no_use()

    def retire_if_due(self) -> None:
        """Another warm parent makes the next steps when the code that this one has imported has changed, or when it has
        made many or has grown: whatever it leaks, each of its step processes has.
        """
        why = None if self.leaving else self._why_retire()
        if why is not None:
            logger.info("%s: importing the code location again", why, extra=fields(pid=self.pid))
            self._retired = True
            self._let_go(self._spare)
            self._end_if_of_no_use()

    def _why_retire(self) -> str | None:
        if (path := changed_file(self._files)) is not None:
            return f"{path} has changed"
        if self._made >= STEPS_MAX:
            return f"a warm parent has made {self._made} step processes"
        if self._grown_kib > GROWTH_MAX_MIB * 1024:
            return f"a warm parent has grown by {self._grown_kib // 1024} MiB"
        return None

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
        self._forget(step)
        step.end_unseen()

    def _forget(self, step: StepProcess) -> None:
        self._steps.pop(step.id, None)
        self._let_go(step)

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
        self._let_go(self._spare)
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
            self._resident_kib = frame["resident_kib"]
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
            self._grown_kib = frame["resident_kib"] - self._resident_kib
            self._forget(step)
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
        self._let_go(self._spare)
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
            task.result().retire_if_due()
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


def _socket_pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    our_end, their_end = socket.socketpair()
    return ours.enter_context(our_end), theirs.enter_context(their_end)


def _close(line: socket.socket | None) -> None:
    if line is not None:
        line.close()


def _succeeded(task: asyncio.Task[WarmParentHandle]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _is_over(task: asyncio.Task[WarmParentHandle]) -> bool:
    """It could not be started, or has died since."""
    return task.done() and not (_succeeded(task) and task.result().alive)
