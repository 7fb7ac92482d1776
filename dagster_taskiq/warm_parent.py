"""The warm parent: a process that has Dagster and one code location imported, and forks a step process for each
attempt.

``python -m dagster_taskiq.warm_parent``, started (by exec) by a worker, which speaks to it in frames
(:mod:`dagster_taskiq.frames`) over ``--control``:

======== ================================================ ==========================================================
from     frame                                            meaning
======== ================================================ ==========================================================
worker   ``load`` job_origin, instance_ref, isolation,    import; answered by ``ready``
         levers
worker   ``step`` id; the step's channel as descriptor    make a step process; answered by ``started`` or ``refused``
worker   ``job`` name                                     steps of this job come: prepare for them
worker   ``signal`` id, signal                            to the step's process group, if it still lives
worker   ``leave``                                        kill every step process and leave
worker   end of stream                                    the same; under a supervisor, wait for the next worker
worker   ``adopt`` worker, over ``--keeper``; control     answered by ``adopted`` (:mod:`dagster_taskiq.kept_parents`)
         socket and board as descriptors
parent   ``ready`` isolation, warnings, files,            what was decided, and why; what was imported
         resident_kib
parent   ``started`` id, pid, pid_start                   it waits for its attempt on its channel
parent   ``refused`` id, error                            there is no such process
parent   ``exited`` id, exit_code or signal, max_rss_kib, reaped; its process group has been killed
         cpu_seconds, resident_kib (of the warm parent)
======== ================================================ ==========================================================

It has one thread, no event loop and no connection, because it forks: a lock that another thread holds, or a socket that
two processes use, would break the child. It counts its threads and sockets after the import; where that is not so the
steps of this code location run as fresh processes (slower, correct). It never ends by a signal that was meant for the
worker: whether steps may go on is the worker's decision.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dagster_taskiq import _core, step_process, warm_jobs
from dagster_taskiq.code_files import imported_files
from dagster_taskiq.connection_reuse import leaves_nothing
from dagster_taskiq.errors import CoreError, LeaseLostError, UnsupportedError
from dagster_taskiq.frames import FrameSocket
from dagster_taskiq.lent_connections import Lender
from dagster_taskiq.levers import (
    CONNECTION_REUSE,
    HUGE_PAGES,
    LENT_CONNECTIONS,
    PREFAULT,
    REHEARSAL,
    WARM_INSTANCE,
    WARM_JOBS,
)
from dagster_taskiq.prefault import Prefault
from dagster_taskiq.trial import trial

if TYPE_CHECKING:
    from dagster_taskiq import rehearsal

ISOLATIONS = ("auto", "fork", "spawn")

AHEAD_SECONDS = 5
"""For what is done once ahead of all steps.  Those that are running may wait for this process meanwhile."""

HUGE_PAGES_MAX = 256 * 1024 * 1024
"""Bytes of memory that are moved into huge pages at most, which takes about 0.5 s.  Dagster alone has 70 MB."""


@dataclass(slots=True)
class _Child:
    id: int
    pid: int
    process: subprocess.Popen[bytes] | None


class WarmParent:
    """One code location, its step processes, and the worker at the other end of ``control``; ``keeper``: the line by
    which a next worker may come, None: there will be none.
    """

    def __init__(self, control: socket.socket, board: int, worker: int, keeper: socket.socket | None = None) -> None:
        self._control = FrameSocket(control)
        self._keeper = None if keeper is None else FrameSocket(keeper)
        self._worker = worker
        self._board = board
        self._children: dict[int, _Child] = {}
        self._instance: Any = None
        self._target: Any = None
        self._first_job = ""
        self._jobs: set[str] = set()
        self._entry_point: Callable[[], Any] | None = None
        self._forks = False
        self._files: dict[str, int] = {}
        self._levers: frozenset[str] = frozenset()
        self._harmless: frozenset[str] = frozenset()
        self._prefault: Prefault | None = None
        self._lender: Lender | None = None
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def run(self) -> None:
        """Serve until the worker goes away, and the next ones if there are any."""
        self._take_signals()
        try:
            while self._serve() and self._wait_for_worker():
                pass
        finally:
            self._end_children()

    def _serve(self) -> bool:
        """Until the worker lets this process go (False) or is dead."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        try:
            while True:
                patience = None if self._lender is None else self._lender.close_idle()
                timeout = None if patience is None else patience * 1000 + 1
                ready = {descriptor for descriptor, _ in poll.poll(timeout)}
                if self._wakeup.fileno() in ready:
                    self._wakeup.recv(4096)
                    self._reap()
                if self._control.fileno() in ready:
                    if not self._control.fill():
                        return True
                    while (frame := self._control.take()) is not None:
                        if frame["op"] == "leave":
                            return False
                        self._handle(frame)
        except (BrokenPipeError, ConnectionResetError):
            return True

    def _wait_for_worker(self) -> bool:
        """The worker is dead, and what it ran dies with it.  False: no other will come."""
        self._end_children()
        self._control.close()
        frame = None if self._keeper is None else self._keeper.recv()
        if self._keeper is None or frame is None:
            return False
        self._control = FrameSocket(socket.socket(fileno=self._keeper.take_descriptor()))
        os.close(self._board)
        self._board = self._keeper.take_descriptor()
        self._worker = frame["worker"]
        # Bytes of signals that came meanwhile; there is no child.
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send({"op": "adopted", "resident_kib": resident_kib(), "files": self._files})
        return True

    def _take_signals(self) -> None:
        for descriptor in (self._wakeup, self._wakeup_writer):
            descriptor.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        # Handlers that do nothing, not SIG_IGN: they do not outlast an exec.
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda _signum, _frame: None)

    def _handle(self, frame: dict[str, Any]) -> None:
        kind = frame["op"]
        if kind == "load":
            self._load(frame)
        elif kind == "job":
            self._work_out(frame["name"])
        elif kind == "step":
            self._start(frame["id"], self._control.take_descriptor())
        elif kind == "signal":
            for child in self._children.values():
                if child.id == frame["id"]:
                    _signal_group(child.pid, frame["signal"])

    # ---- loading ----------------------------------------------------------------------------------------------------

    def _load(self, frame: dict[str, Any]) -> None:
        warnings: list[str] = []
        isolation = frame["isolation"]
        self._levers = frozenset(frame["levers"])
        if isolation != "spawn":
            with self._dying_with_worker():
                warnings += self._import(frame["job_origin"], frame["instance_ref"], frame["watch"])
            reason = _why_not_fork()
            if reason and isolation == "auto":
                warnings.append(
                    f"{reason}, so forking is not safe: the steps of this code location run as fresh processes, which"
                    " costs about a second each. Move what starts it from import time into resources or ops; or set"
                    " isolation to spawn, which says so in silence, or to fork, which overrides it."
                )
            self._forks = not reason or isolation == "fork"
            if self._forks:
                with self._dying_with_worker():
                    warnings += self._prepare(frame["instance_ref"], safe=not reason)
        # The user's modules may have installed handlers of their own.
        self._take_signals()
        self._reap()
        how = "fork" if self._forks else "spawn"
        self._control.send(
            {
                "op": "ready",
                "isolation": how,
                "warnings": warnings,
                "files": self._files,
                "resident_kib": resident_kib(),
            }
        )

    @contextlib.contextmanager
    def _dying_with_worker(self) -> Iterator[None]:
        """An import that hangs takes in no end of stream.  Only for as long as there is no step process: those, and
        what they started, are to be killed first.
        """
        try:
            _core.die_with_parent(self._worker)
        except UnsupportedError:
            yield
            return
        except LeaseLostError:
            os._exit(0)
        yield
        _core.outlive_parent()

    def _import(self, job_origin: str, instance_ref: str, watch: bool) -> list[str]:
        """Dagster, the code location, the instance.  What fails here fails again, and is reported, in the step; returns
        the failures.
        """
        warnings = []
        begun = time.time_ns()
        failure: BaseException | None = None
        import dagster

        from dagster_taskiq._dagster import remember_columns

        self._entry_point = step_process.load_entry_point()
        pointer: Any = None
        try:
            origin: Any = dagster.deserialize_value(job_origin)
            self._first_job = origin.job_name
            pointer = origin.repository_origin.code_pointer
            self._target = pointer.load_target()
        except BaseException as error:
            failure = error
            warnings.append(f"the code location could not be preloaded: {type(error).__name__}: {error}")
        if watch:
            self._files = imported_files(begun, failure)
        if failure is not None:
            _forget_half_imported(pointer)
        if WARM_INSTANCE not in self._levers:
            return warnings
        try:
            ref: Any = dagster.deserialize_value(instance_ref)
            self._instance = dagster.DagsterInstance.from_ref(ref)
            remember_columns(self._instance)
        except BaseException as error:
            warnings.append(f"the Dagster instance could not be built ahead: {type(error).__name__}: {error}")
        return warnings

    def _prepare(self, instance_ref: str, safe: bool) -> list[str]:
        """What step processes are to have by the fork; returns what could not be had.  ``safe``: nothing stands against
        forking."""
        warnings = []
        if safe:
            warnings += self._rehearse(instance_ref) if REHEARSAL in self._levers else []
            self._build_compute_logs()
        self._prefault = Prefault() if PREFAULT in self._levers else None
        gc.collect()
        gc.freeze()
        self._work_out(self._first_job)
        if HUGE_PAGES in self._levers:
            with contextlib.suppress(CoreError):
                _core.collapse_pages(HUGE_PAGES_MAX)
        return warnings

    def _rehearse(self, instance_ref: str) -> list[str]:
        """Go through a step; returns why that was not possible."""
        try:
            from dagster_taskiq import rehearsal

            assert self._entry_point is not None
            run = partial(step_process.run_console_script, self._entry_point)
            play = partial(rehearsal.play, run, self._instance, instance_ref)
            problem = trial(play, _why_not_fork)
            if not problem:
                self._remember(play())
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        return [f"steps start without a rehearsal, and so a little slower: {problem}"] if problem else []

    def _build_compute_logs(self) -> None:
        """The instance makes its compute log manager at the first use; with it come imports and clients, as of S3."""
        if self._instance is not None:
            self._do_ahead(partial(getattr, self._instance, "compute_log_manager"))

    def _work_out(self, job: str) -> None:
        """What Dagster works out of the definitions of ``job``, unless that has been tried already."""
        if job not in self._jobs and self._forks and WARM_JOBS in self._levers:
            self._jobs.add(job)
            self._do_ahead(partial(warm_jobs.work_out, self._target, job))
            gc.freeze()

    def _do_ahead(self, work: Callable[[], object]) -> None:
        """Where that is possible; else each step does it, and tells of its failure."""
        if not trial(work, _why_not_fork, AHEAD_SECONDS):
            with contextlib.suppress(Exception):
                work()

    def _remember(self, storage: rehearsal.Storage) -> None:
        """How Dagster uses its storage, for connections to it."""
        self._harmless = frozenset(filter(leaves_nothing, storage.statements))
        if storage.connections and {CONNECTION_REUSE, LENT_CONNECTIONS} <= self._levers:
            # The last is the event log's.
            self._lender = Lender(*storage.connections[-1])

    # ---- step processes ---------------------------------------------------------------------------------------------

    def _start(self, id_: int, channel: int) -> None:
        try:
            child = self._fork(id_, channel) if self._forks else self._spawn(id_, channel)
        except OSError as error:
            self._control.send({"op": "refused", "id": id_, "error": str(error)})
            return
        finally:
            os.close(channel)
        self._children[child.pid] = child
        self._control.send({"op": "started", "id": id_, "pid": child.pid, "pid_start": process_start(child.pid)})

    def _fork(self, id_: int, channel: int) -> _Child:
        # What lies in a buffer at the fork would be written by both.
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        loan = None if self._lender is None else self._lender.lend()
        inherited = step_process.Inherited(
            levers=self._levers,
            entry_point=self._entry_point,
            instance=self._instance,
            harmless=self._harmless,
            prefault=self._prefault,
            tells=self._prefault is not None and self._prefault.asks,
            lender=self._lender,
            loan=loan,
        )
        try:
            pid = os.fork()
        except OSError:
            if self._lender is not None and loan is not None:
                self._lender.refused(loan)
            raise
        if pid == 0:
            try:
                self._control.close()
                if self._keeper is not None:
                    self._keeper.close()
                self._wakeup.close()
                signal.set_wakeup_fd(-1)
                self._wakeup_writer.close()
                step_process.run_forked(socket.socket(fileno=channel), self._board, parent, inherited)
            finally:
                # An exception must not carry the child back into the parent's loop.
                os._exit(1)
        if self._prefault is not None:
            self._prefault.forked(pid)
        if self._lender is not None and loan is not None:
            self._lender.forked(pid, loan)
        return _Child(id_, pid, None)

    def _spawn(self, id_: int, channel: int) -> _Child:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster_taskiq.step_process"),
                *("--channel", str(channel), "--board", str(self._board), "--parent", str(os.getpid())),
                *("--levers", *sorted(self._levers)),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel, self._board),
            start_new_session=True,
        )
        return _Child(id_, process.pid, process)

    def _reap(self) -> None:
        for pid, child in list(self._children.items()):
            # Look first and reap last: as long as the dead leader is there nobody else can have its process group's
            # number.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            del self._children[pid]
            self._reaped(pid)
            if child.process is not None:
                child.process.returncode = os.waitstatus_to_exitcode(status)
            self._control.send(
                {
                    "op": "exited",
                    "id": child.id,
                    "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                    "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                    "max_rss_kib": usage.ru_maxrss if sys.platform == "linux" else usage.ru_maxrss // 1024,
                    "cpu_seconds": usage.ru_utime + usage.ru_stime,
                    "resident_kib": resident_kib(),
                }
            )

    def _end_children(self) -> None:
        for pid in self._children:
            _signal_group(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
            self._reaped(pid)
        self._children.clear()

    def _reaped(self, pid: int) -> None:
        if self._prefault is not None:
            self._prefault.reaped(pid)
        if self._lender is not None:
            self._lender.reaped(pid)


def _forget_half_imported(pointer: Any) -> None:
    """Python drops a module whose import has failed, but Dagster keeps that of a file: steps would take it for whole
    instead of running into the same error.
    """
    path = getattr(pointer, "python_file", None)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if path and file and os.path.abspath(file) == os.path.abspath(path):
            del sys.modules[name]


def process_start(pid: int) -> str:
    """The kernel's start time of a process, in clock ticks since boot: with its number it names a process for good.
    Empty where there is no /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""


def resident_kib() -> int:
    """Memory of this process; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * (os.sysconf("SC_PAGESIZE") // 1024)
    except OSError:
        return 0


def _signal_group(pid: int, signum: int) -> None:
    """Signal the group that ``pid`` leads; itself when it has not come to make the group.  ``pid`` is a child that has
    not been reaped.
    """
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    except PermissionError:
        # Nothing but the dead leader is left in the group (macOS says it so).
        pass


def _why_not_fork() -> str:
    """Empty when this process may fork; else what stands against it."""
    if not hasattr(os, "fork") or not os.path.isdir("/proc/self/task"):
        return "this platform does not tell how many threads a process has"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"importing the code location left {threads - 1} threads running"
    connected = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode) and _is_internet(int(name)):
                connected += 1
        except OSError:
            continue
    if connected:
        return f"importing the code location left {connected} network connections open"
    return ""


def _is_internet(descriptor: int) -> bool:
    probe = socket.socket(fileno=os.dup(descriptor))
    with probe:
        return probe.family in (socket.AF_INET, socket.AF_INET6)


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(
        prog="python -m dagster_taskiq.warm_parent", description="Forks step processes; started by a worker."
    )
    parser.add_argument("--control", type=int, required=True, help="descriptor of the socket to the worker")
    parser.add_argument("--board", type=int, required=True, help="descriptor of the fence board")
    parser.add_argument("--worker", type=int, required=True, help="process id of the worker")
    parser.add_argument("--keeper", type=int, help="descriptor of the socket by which another worker may come")
    options = parser.parse_args(argv)
    for descriptor in (options.control, options.board, options.keeper):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    keeper = None if options.keeper is None else socket.socket(fileno=options.keeper)
    status = 1
    try:
        WarmParent(socket.socket(fileno=options.control), options.board, options.worker, keeper).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Threads and exit handlers of the user's modules must not keep it alive without its worker.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
