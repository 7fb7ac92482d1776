"""Warm parents that outlive a worker: its supervisor keeps a line to each, over which the next worker adopts them.

A new worker's way to its first step is long because of one thing, the import of the code location.  When a worker is
killed, its warm parents kill their step processes, as always; what is left has imported the code location and nothing
else, and is as good as new.  So under a supervisor (:mod:`dagster_taskiq.supervisor`) each waits for the next worker
then, instead of leaving.

======================= ============================================= =================================================
from, to                frame                                         meaning
======================= ============================================= =================================================
worker, supervisor      ``keep`` key, pid, pid_start; the line as     a warm parent is ready
                        descriptor
supervisor, next worker ``kept``, the same; then ``end``              what there is to adopt; written before its start
next worker, parent     ``adopt`` worker; its control socket and      answered by ``adopted``, on the new socket
                        its fence board as descriptors
======================= ============================================= =================================================

The other end of the line is the warm parent's: its end of stream says that nobody is left who could adopt it, and it
leaves.  A worker that ends in order dismisses its warm parents itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import Any

from dagster_taskiq.fellows import open_process
from dagster_taskiq.frames import FrameError, FrameSocket, encode

READ_TIMEOUT = 5.0
"""Seconds for what the supervisor had written before it started this worker."""

Key = tuple[str, str, str]
"""Of a warm parent: code location, digests of its repository and of the instance."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A warm parent that waits to be adopted.  Whoever has it closes ``line``."""

    key: Key
    pid: int
    pid_start: str
    line: socket.socket


def send_kept(link: socket.socket, kind: str, kept: Kept) -> None:
    """Raises ``OSError``."""
    frame = encode({"op": kind, "key": kept.key, "pid": kept.pid, "pid_start": kept.pid_start})
    sent = socket.send_fds(link, [frame], [kept.line.fileno()])
    if sent < len(frame):
        raise OSError("the link between supervisor and worker is full")


def take_kept(frame: dict[str, Any], frames: FrameSocket) -> Kept:
    """What a frame, just taken, tells.  Raises ``FrameError``."""
    code_location, repository, instance = frame["key"]
    line = socket.socket(fileno=frames.take_descriptor())
    return Kept((code_location, repository, instance), frame["pid"], frame["pid_start"], line)


class Keeper:
    """A worker's link to its supervisor."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._frames = FrameSocket(socket.socket(fileno=descriptor))

    def inherited(self) -> list[Kept]:
        """The warm parents of the worker before this one."""
        found: list[Kept] = []
        self._frames.socket.settimeout(READ_TIMEOUT)
        with contextlib.suppress(OSError, FrameError):
            while (frame := self._frames.recv()) is not None and frame["op"] == "kept":
                found.append(take_kept(frame, self._frames))
        self._frames.socket.setblocking(False)
        return found

    def keep(self, kept: Kept) -> None:
        """Tell the supervisor of a warm parent that is ready; without a supervisor it ends with this worker."""
        with contextlib.suppress(OSError):
            send_kept(self._frames.socket, "keep", kept)

    def close(self) -> None:
        self._frames.close()


class AdoptedProcess:
    """A process that is no child of this one; as much of ``subprocess.Popen`` as is needed.  The constructor raises
    ``OSError`` when it is dead.
    """

    def __init__(self, pid: int, pid_start: str) -> None:
        self.pid = pid
        self._descriptor = open_process(pid, pid_start)
        if self._descriptor < 0:
            raise ProcessLookupError(f"process {pid} is gone")

    def poll(self) -> int | None:
        """0 when it is dead, however it ended."""
        return self._wait(0)

    def wait(self) -> int:
        self._wait(None)
        return 0

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _wait(self, timeout: int | None) -> int | None:
        if self._descriptor >= 0:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if not poll.poll(timeout):
                return None
            os.close(self._descriptor)
            self._descriptor = -1
        return 0
