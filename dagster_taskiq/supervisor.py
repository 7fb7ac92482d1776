"""Starts a worker again that was killed: ``dagster-taskiq worker start --supervise``.

For a host, or a container, where nothing else does that at once: the new worker finds what its predecessor has left and
settles it (:mod:`dagster_taskiq.fellows`), and adopts its warm parents (:mod:`dagster_taskiq.kept_parents`).  In a
container this is the first process and so reaps whatever is left there; that it is small and idle keeps it from being
chosen when memory runs out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Final

from dagster_taskiq.frames import FrameError, FrameSocket
from dagster_taskiq.kept_parents import Kept, send_kept, take_kept
from dagster_taskiq.logs import fields

logger = logging.getLogger(__name__)

SETTLED: Final = 60.0
"""Seconds after which a worker has proved that it can run; one that fails sooner is started again after a pause."""

PAUSE_MAX: Final = 30.0
"""Seconds between two starts at most."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that ask a worker, or its supervisor, to stop.  SIGHUP: its terminal was closed; not under ``nohup``, which
    has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))


class Supervisor:
    """Runs ``command`` until it ends by itself; see :meth:`run`.  In the main thread.

    The command gets the option ``--keeper`` with the descriptor of its link to this process.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._link: FrameSocket | None = None
        self._kept: dict[int, Kept] = {}
        """By the descriptor of the line."""
        self._child = 0
        self._stopping = False
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def run(self) -> int:
        """The exit status of the command's last process.

        Started again: what was ended by a signal, or failed after it had run for a while.  Not: what ended with status
        0, what failed at its start (wrong settings will not be right the next time), and anything after SIGTERM or
        SIGINT, which are passed on, or SIGHUP, which is passed on as SIGTERM.
        """
        for descriptor in (self._wakeup, self._wakeup_writer):
            descriptor.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())
        for signum in (*stop_signals(), signal.SIGCHLD):
            signal.signal(signum, lambda _signum, _frame: None)
        failures = 0
        while True:
            begun = time.monotonic()
            # A session of its own: Ctrl-C at a terminal comes from here only, once.
            with self._new_link() as theirs:
                command = [*self._command, "--keeper", str(theirs.fileno())]
                self._child = os.posix_spawn(command[0], command, os.environ, setsid=True)
            status = self._wait()
            settled = time.monotonic() - begun >= SETTLED
            if self._stopping or status == 0 or (status > 0 and not settled):
                return status if status >= 0 else 128 - status
            failures = 0 if settled else failures + 1
            pause = min(2.0 ** (failures - 2), PAUSE_MAX) if failures > 1 else 0.0
            logger.error("the worker ended (%s): starting it again", _ending(status), extra=fields(pid=self._child))
            self._child = 0
            self._sleep(pause)
            if self._stopping:
                return 0

    def _wait(self) -> int:
        """The exit code of the child (negative: a signal)."""
        while True:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == self._child:
                    return os.waitstatus_to_exitcode(status)
                if pid == 0:
                    break
            self._take_signals(None)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            self._take_signals(left)

    def _take_signals(self, timeout: float | None) -> None:
        """Wait for some, and pass on those that are meant for the worker; meanwhile, keep what is to be kept."""
        poll = select.poll()
        for descriptor in (self._wakeup.fileno(), *([self._link.fileno()] if self._link else []), *self._kept):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)}
        for descriptor in ready & self._kept.keys():
            # A line brings nothing but its end: the warm parent is gone.
            self._kept.pop(descriptor).line.close()
        if self._link and self._link.fileno() in ready:
            self._take_kept(self._link)
        if self._wakeup.fileno() not in ready:
            return
        for signum in self._wakeup.recv(4096):
            if signum in stop_signals():
                self._stopping = True
                if self._child:
                    os.kill(self._child, signal.SIGTERM if signum == signal.SIGHUP else signum)

    # ---- warm parents -----------------------------------------------------------------------------------------------

    def _new_link(self) -> socket.socket:
        """The worker's end of a new link, in which it finds what there is to adopt."""
        if self._link:
            self._take_kept(self._link)
            self._close_link()
        ours, theirs = socket.socketpair()
        self._link = FrameSocket(ours)
        with contextlib.suppress(OSError):
            for kept in self._kept.values():
                send_kept(ours, "kept", kept)
        self._link.send({"op": "end"})
        ours.setblocking(False)
        theirs.set_inheritable(True)
        return theirs

    def _take_kept(self, link: FrameSocket) -> None:
        try:
            while link.fill():
                while (frame := link.take()) is not None:
                    kept = take_kept(frame, link)
                    self._kept[kept.line.fileno()] = kept
        except BlockingIOError:
            return
        except (OSError, FrameError, KeyError, ValueError):
            pass
        self._close_link()

    def _close_link(self) -> None:
        if self._link:
            self._link.close()
            self._link = None


def _ending(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"
