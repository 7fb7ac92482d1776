"""A server process that this process starts, waits for, and stops; it never outlives its owner (see keeper.py)."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dagster_taskiq.errors import DagsterTaskiqError

KEEPER = Path(__file__).with_name("keeper.py")


class DevServerError(DagsterTaskiqError):
    """A server of the development stack could not be started; the text says what to do."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_used_port(port: int) -> None:
    """DevServerError when a server has this TCP port of 127.0.0.1: it would answer in place of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DevServerError(
                f"port {port} of 127.0.0.1 cannot be had ({error.strerror}): choose another one with --port"
            ) from error


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run a server as that refuses root; None when this process is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DevServerError(
        "running as root, and there is neither a user 'postgres' nor 'nobody': start it as an ordinary user"
    )


def can_reach(user: pwd.struct_passwd | None, path: Path) -> bool:
    """Whether the user may enter the (existing) folder and read it."""
    if user is None:
        return os.access(path, os.R_OK | os.X_OK)
    check = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(path)],
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        check=False,
    )
    return check.returncode == 0


class Service:
    """One process under a keeper.

    ``stop_signal`` asks it to stop, ``grace`` (seconds) is what it gets before it is killed with all that it started.
    Output is appended to ``log``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: pwd.struct_passwd | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace: float = 10.0,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        self._env = dict(os.environ if env is None else env)
        self._cwd = cwd
        self._user = user
        self._stop_signal = stop_signal
        self._grace = grace
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline = -1

    def start(self) -> None:
        """Start the process; raises DevServerError when its program does not exist."""
        if self._keeper:
            raise RuntimeError(f"{self.name} has been started already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        read_end, self._lifeline = os.pipe()
        identity = f"{self._user.pw_uid}:{self._user.pw_gid}" if self._user else "-"
        settings = [str(read_end), str(int(self._stop_signal)), str(self._grace), identity, "--"]
        try:
            with self.log.open("ab") as output:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(KEEPER), *settings, *self._command],
                    env=self._env,
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[read_end],
                    start_new_session=True,
                )
        finally:
            os.close(read_end)

    @property
    def running(self) -> bool:
        """Whether the process (its keeper) is alive."""
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status, 128 + signal for a signal; None while it runs."""
        return self._keeper.poll() if self._keeper else None

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return when ``ready()`` holds; DevServerError when the process ends first or ``timeout`` seconds pass."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise DevServerError(
                    f"{self.name} ended with status {self.exit_status}; its log: {self.log}\n{self.last_lines()}"
                )
            if time.monotonic() > deadline:
                raise DevServerError(
                    f"{self.name} was not ready within {timeout:g} s; its log: {self.log}\n{self.last_lines()}"
                )
            time.sleep(0.02)

    def last_lines(self, count: int = 15) -> str:
        """The end of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def ask_to_stop(self) -> None:
        """Begin to stop, without waiting."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def stop(self) -> None:
        """Stop the process and all that it started; returns when they are gone."""
        self.ask_to_stop()
        if self._keeper:
            self._keeper.wait()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_on_free_port(
    make: Callable[[int], Service], ready: Callable[[], bool], timeout: float, port: int | None = None
) -> Service:
    """Start the service that ``make`` gives for a port, and return it when ``ready()`` holds.

    Without a ``port`` a free one is chosen.  Before its use another process may take it: then another one is tried, up
    to three.  Raises ``DevServerError`` as :meth:`Service.wait_until` does; nothing is left running then."""
    if port is not None:
        return _start_until(make(port), ready, timeout)
    for _ in range(2):
        service = make(free_port())
        try:
            return _start_until(service, ready, timeout)
        except DevServerError:
            if "Address already in use" not in service.last_lines():
                raise
    return _start_until(make(free_port()), ready, timeout)


def _start_until(service: Service, ready: Callable[[], bool], timeout: float) -> Service:
    service.start()
    try:
        service.wait_until(ready, timeout)
    except BaseException:
        service.stop()
        raise
    return service
