"""Runs one command and sees to it that nothing of it stays behind.

This file is run as a script (``python -I keeper.py …``), never imported by the package: it must start in milliseconds
and so uses the standard library alone.

    keeper.py LIFELINE STOP_SIGNAL GRACE USER -- COMMAND…

LIFELINE is a descriptor of a pipe whose other end only the caller holds: its end of file says that the caller is
gone, even by SIGKILL.  Then, or on SIGTERM, the command gets STOP_SIGNAL and GRACE seconds; whatever is still there
afterwards, of the command and of all that it started, is killed.  USER is ``uid:gid`` to run the command as, or
``-``.  The exit status is the command's (128 + signal when a signal ended it).

On Linux the keeper is the reaper of all descendants, also of those that left their process group, and the command
itself dies with its keeper.  Elsewhere only the command's own process group is covered.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform.startswith("linux")


def descendants() -> list[int]:
    """Pids below this process, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if LINUX else []:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    wave = children.get(os.getpid(), [])
    while wave:
        found += wave
        wave = [child for parent in wave for child in children.get(parent, [])]
    return found


def kill_rest(group: int) -> None:
    """SIGKILL to the command's group and to every descendant, until none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        rest = descendants()
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if not rest:
            return
        time.sleep(0.01)


def spawn(command: list[str], user: str, stop_signal: int, libc: Any) -> int:
    """Start the command in a session of its own; its pid."""
    identity: dict[str, Any] = {}
    if user != "-":
        uid, gid = user.split(":")
        identity = {"user": int(uid), "group": int(gid), "extra_groups": []}
    return subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=(lambda: libc.prctl(PR_SET_PDEATHSIG, stop_signal)) if libc else None,
        **identity,
    ).pid


def main() -> int:
    lifeline, stop_signal, grace, user = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    os.set_inheritable(lifeline, False)
    libc = ctypes.CDLL(None) if LINUX else None
    if libc:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    stop_asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: stop_asked.append(received))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = spawn(sys.argv[6:], user, stop_signal, libc)

    status: int | None = None
    deadline: float | None = None
    while status is None and (deadline is None or time.monotonic() < deadline):
        watched = [wake_read] if deadline else [wake_read, lifeline]
        ready = select.select(watched, [], [], None if deadline is None else max(0.0, deadline - time.monotonic()))[0]
        if wake_read in ready:
            os.read(wake_read, 4096)
        if deadline is None and (stop_asked or lifeline in ready):
            deadline = time.monotonic() + grace
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, stop_signal)
        try:
            while True:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == child:
                    code = os.waitstatus_to_exitcode(wait_status)
                    status = code if code >= 0 else 128 - code
        except ChildProcessError:
            break
    kill_rest(child)
    return 128 + signal.SIGKILL if status is None else status


if __name__ == "__main__":
    sys.exit(main())
