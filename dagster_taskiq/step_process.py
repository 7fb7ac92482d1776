"""The step process: one step attempt (or one run worker, which is started in the same way), from the fork to
``os._exit``.

Started by the warm parent, as its fork (:func:`run_forked`) or, where forking is not safe, as a fresh interpreter
(``python -m dagster_taskiq.step_process``).  It waits on its channel for the worker's word "go", which brings the
attempt; until then it has touched nothing of the run.  Then, in this order: fence, environment, instance, Dagster's own
console entry point ``dagster api execute_step`` (``execute_run``, ``resume_run``).

The channel carries frames (:mod:`dagster_taskiq.frames`) back: ``warning``, ``raised`` (what the entry point raised),
``event`` (the type of a Dagster event that this process has stored, where the run wants to know at once), and ``end``,
with all events, which is its last word: what is left to it then is to end.  A stream without ``end`` is that of a
process that died; its events are in Dagster's log.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.metadata
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

from dagster_taskiq import _core, fencing
from dagster_taskiq.compute_logs import without_mirrors
from dagster_taskiq.connection_reuse import ConnectionReuse
from dagster_taskiq.errors import LeaseLostError, StepTimeLimitError, UnsupportedError
from dagster_taskiq.frames import FrameSocket
from dagster_taskiq.lent_connections import Lender, Loan
from dagster_taskiq.levers import COMPUTE_LOGS, CONNECTION_REUSE
from dagster_taskiq.limits import limit_memory
from dagster_taskiq.payload import EXECUTE_STEP
from dagster_taskiq.prefault import Prefault

SEND_TIMEOUT = 30.0
"""Seconds that storing an event may wait for a worker that does not read; then this process stops reporting and the
executor reads Dagster's log.
"""

EVENTS_BYTES_MAX = 1024 * 1024
"""Characters of one attempt's events that travel in its completion row; of an attempt with more the executor reads
Dagster's log.
"""

RAISED_MAX = 2000
"""Characters of an exception's text that go into the attempt's row; the worker's log has all of it."""

EXIT_NOT_STARTED = 0
"""Exit code of a process that was let go before it had an attempt."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a step process has of its warm parent."""

    levers: frozenset[str]
    entry_point: Callable[[], Any] | None = None
    """The function behind the console script ``dagster``; None: it has to be loaded."""
    instance: Any = None
    """The warm DagsterInstance, if there is one."""
    harmless: frozenset[str] = frozenset()
    """See :class:`~dagster_taskiq.connection_reuse.ConnectionReuse`."""
    prefault: Prefault | None = None
    tells: bool = False
    """It is to tell ``prefault`` what it has copied."""
    lender: Lender | None = None
    loan: Loan | None = None


class _End(NamedTuple):
    """What is left to do when the step has been run."""

    exit_code: int
    last_word: Callable[[], None] | None = None


def run_forked(channel: socket.socket, board: int, parent: int, inherited: Inherited) -> NoReturn:
    """Go on as a step process in the child of a fork of the warm parent ``parent``."""
    end = _End(1)
    try:
        os.setsid()
        _reset_signals()
        _reseed()
        end = _serve(channel, board, parent, inherited)
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(end)


def main(argv: list[str] | None = None) -> NoReturn:
    """Be a step process in an interpreter of its own; the session is new already."""
    parser = argparse.ArgumentParser(
        prog="python -m dagster_taskiq.step_process", description="Runs one step; started by a warm parent."
    )
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the channel to the worker")
    parser.add_argument("--board", type=int, required=True, help="descriptor of the fence board")
    parser.add_argument("--parent", type=int, required=True, help="process id of the warm parent")
    parser.add_argument("--levers", nargs="*", default=[], help="see dagster_taskiq.levers")
    options = parser.parse_args(argv)
    end = _End(1)
    try:
        for descriptor in (options.channel, options.board):
            os.set_inheritable(descriptor, False)
        _reset_signals()
        channel = socket.socket(fileno=options.channel)
        end = _serve(channel, options.board, options.parent, Inherited(frozenset(options.levers)))
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(end)


def load_entry_point() -> Callable[[], Any]:
    """The function behind the console script ``dagster``: its public name, whatever module it lives in."""
    for candidate in importlib.metadata.distribution("dagster").entry_points:
        if candidate.group == "console_scripts" and candidate.name == "dagster":
            entry_point: Callable[[], Any] = candidate.load()
            return entry_point
    raise RuntimeError("the installed dagster has no console script named dagster")


def _serve(channel: socket.socket, board: int, parent: int, inherited: Inherited) -> _End:
    """Wait for the attempt and run it."""
    try:
        _core.die_with_parent(parent)
    except UnsupportedError:
        pass
    except LeaseLostError:
        return _End(EXIT_NOT_STARTED)  # the warm parent is gone already
    connections = _Connections(inherited)
    if inherited.prefault is not None:
        inherited.prefault.copy()
    frames = FrameSocket(channel)
    attempt = frames.recv()
    if attempt is None:
        connections.close()
        return _End(EXIT_NOT_STARTED)
    try:
        _core.fence_arm(board, attempt["slot"], attempt["generation"])
    except LeaseLostError:
        # As the fence would have done a moment later: the worker recognizes that.
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(board)
    os.environ.update(
        {
            fencing.TOKEN_VARIABLE: str(attempt["generation"]),
            fencing.RUN_VARIABLE: attempt["run_id"],
            fencing.STEP_VARIABLE: attempt["step_key"],
            fencing.ATTEMPT_VARIABLE: str(attempt["attempt"]),
            fencing.WORKER_VARIABLE: attempt["worker"],
            # libpq reads it for every connection that does not name itself: the executor ends the backends of a lost
            # generation by this name.
            "PGAPPNAME": attempt["application_name"],
        }
    )
    reporter = _Reporter(frames, live=attempt["live"])
    connections.begin(attempt["application_name"], reporter.warning)
    # A run worker's events are not its worker's to know.
    run_id = attempt["run_id"] if attempt["command"] == EXECUTE_STEP else None
    hand_over(inherited.instance, run_id, reporter, inherited.levers)
    argv = ["dagster", "api", attempt["command"], attempt["arguments"]]
    limit_time(attempt["time_limit"])
    limit_memory(attempt["memory_limit"])
    code = run_console_script(inherited.entry_point or load_entry_point(), argv, reporter.raised)
    limit_memory(None)
    limit_time(None)
    connections.close()
    if inherited.prefault is not None and inherited.tells:
        inherited.prefault.tell()
    return _End(code, reporter.end)


class _Connections:
    """What the step process has for Dagster's PostgreSQL storage."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._reuse: ConnectionReuse | None = None
        self._ahead = None
        if inherited.lender is not None:
            inherited.lender.keep_only(inherited.loan)
            self._ahead = inherited.lender.ahead(inherited.loan)

    def begin(self, name: str, warn: Callable[[str], None]) -> None:
        """They are the attempt's from now on."""
        self._reuse = ConnectionReuse(warn, self._inherited.harmless)
        if CONNECTION_REUSE in self._inherited.levers:
            self._reuse.install()
        if self._inherited.lender is not None and self._ahead is not None:
            # The server may have hung up on it: then Dagster opens its own.
            with contextlib.suppress(Exception):
                self._inherited.lender.begin(self._ahead, name, self._reuse)

    def close(self) -> None:
        """Whether or not an attempt came."""
        left = [self._ahead] if self._reuse is None else self._reuse.release()
        for connection in left:
            if connection is not None and not self._give_back(connection):
                connection.really_close()

    def _give_back(self, connection: Any) -> bool:
        lender, loan = self._inherited.lender, self._inherited.loan
        return lender is not None and loan is not None and connection is loan.connection and lender.give_back(loan)


class _Reporter:
    """Tells the worker what the instance has stored, as long as that works.  ``live``: of each event at once, too."""

    def __init__(self, frames: FrameSocket, *, live: bool) -> None:
        self._frames = frames
        self._live = live
        self._events: list[str] = []
        self._bytes = 0
        self._pid = os.getpid()
        self._broken = False
        self._attached = False
        frames.socket.settimeout(SEND_TIMEOUT)

    def attached(self) -> None:
        """From now on every event that is stored comes by here."""
        self._attached = True

    def event(self, entry: Any) -> None:
        """An event log entry has been stored (``DagsterInstance.add_event_listener``)."""
        import dagster

        if entry.dagster_event is None:
            return
        if self._live:
            self._send({"op": "event", "type": entry.dagster_event.event_type_value})
        if self._bytes <= EVENTS_BYTES_MAX:
            text = dagster.serialize_value(entry.dagster_event)
            self._events.append(text)
            self._bytes += len(text)

    def warning(self, text: str) -> None:
        self._send({"op": "warning", "text": text})

    def raised(self, error: BaseException) -> None:
        """Dagster writes no event for what is raised before the step begins, as by an import of the user's code."""
        self._send({"op": "raised", "text": f"{type(error).__name__}: {error}"[:RAISED_MAX]})

    def end(self) -> None:
        """The last word: see the module."""
        complete = self._attached and self._bytes <= EVENTS_BYTES_MAX
        self._send({"op": "end", "events": self._events if complete else None})

    def _send(self, frame: dict[str, Any]) -> None:
        # A child that op code forked has this very channel; only one process may write to it.
        if self._broken or os.getpid() != self._pid:
            return
        # An interrupt must not cut a frame in half.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._frames.send(frame)
        except Exception:
            self._broken = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Listener(Protocol):
    """Who hears of a step's events.  See :class:`_Reporter`."""

    def attached(self) -> None: ...
    def event(self, entry: Any) -> None: ...
    def warning(self, text: str) -> None: ...


def hand_over(instance: Any, run_id: str | None, reporter: Listener, levers: frozenset[str]) -> None:
    """Make the next ``DagsterInstance.from_ref`` return ``instance`` (built there when None), with a listener on it for
    the events of ``run_id``.

    Only this process sees it.  When Dagster has no such function any more, or does not call it, the step runs all the
    same: the last frame's ``events`` are then null, and the executor reads Dagster's log.
    """
    import dagster

    original = dagster.DagsterInstance.__dict__.get("from_ref")
    if not isinstance(original, staticmethod):
        reporter.warning(
            "DagsterInstance.from_ref is not what it was: steps build their instance and report through the event log"
        )
        return
    build = original.__func__

    def from_ref(ref: Any) -> Any:
        warm = instance
        dagster.DagsterInstance.from_ref = original  # type: ignore[method-assign]
        if warm is None or warm.get_ref() != ref:
            warm = build(ref)
        if COMPUTE_LOGS in levers:
            without_mirrors(warm.compute_log_manager, reporter.warning)
        if run_id is not None:
            warm.add_event_listener(run_id, reporter.event)
            reporter.attached()
        return warm

    dagster.DagsterInstance.from_ref = staticmethod(from_ref)  # type: ignore[assignment]


def run_console_script(
    entry_point: Callable[[], Any], argv: list[str], on_error: Callable[[BaseException], None] | None = None
) -> int:
    """What the installed script does: call, and exit with what comes out.  ``on_error`` is told of an exception."""
    sys.argv = argv
    try:
        status = entry_point()
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        traceback.print_exc()
        if on_error is not None:
            on_error(error)
        status = 1
    if status is None:
        return 0
    if isinstance(status, int):
        return status & 0xFF
    print(status, file=sys.stderr)
    return 1


def limit_time(seconds: float | None) -> None:
    """After ``seconds`` raise ``StepTimeLimitError`` in the main thread, where the op runs, so that Dagster tears its
    resources down, logs the failure and applies the op's retry policy.  None: no longer.  By ITIMER_REAL and SIGALRM;
    op code that uses these itself is left to the worker, which kills it a little later.
    """
    if seconds is None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return

    def over(signum: int, frame: Any) -> NoReturn:
        raise StepTimeLimitError(f"the step has run longer than its time limit of {seconds:g} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _reset_signals() -> None:
    """The signal state of a fresh Python process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _reseed() -> None:
    """Python reseeds ``random`` after a fork; numpy's global generator would repeat itself in every step."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _finish(end: _End) -> NoReturn:
    """End as an interpreter does, without tearing down its modules (tens of ms): wait for threads, run exit handlers,
    flush.  The last word comes after all that, and before the kernel takes the memory apart (some ms).
    """
    try:
        # Both are what the interpreter itself calls at its end; multiprocessing ends its forks the same way.
        shutdown: Callable[[], None] | None = getattr(threading, "_shutdown", None)
        if shutdown is not None:
            shutdown()
        run_exit_handlers: Callable[[], None] | None = getattr(atexit, "_run_exitfuncs", None)
        if run_exit_handlers is not None:
            run_exit_handlers()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if end.last_word is not None:
        end.last_word()
    os._exit(end.exit_code)


if __name__ == "__main__":
    main()
