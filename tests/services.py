"""What the tests run on: real servers, real processes, and waiting by condition."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psycopg2

from dagster_taskiq.dev.postgres import EmbeddedPostgres
from dagster_taskiq.dev.sqs import REGION, EmbeddedSqs, call

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds after which a condition that a test waits for has failed; generous, the machines are slow and shared."""

DATABASE_OVERRIDE = "DAGSTER_TASKIQ_TEST_DATABASE_URL"
SQS_OVERRIDE = "DAGSTER_TASKIQ_TEST_SQS_ENDPOINT"


# Waiting


def wait_for(condition: Callable[[], T], what: str = "the condition", deadline: float = DEADLINE) -> T:
    """Return the first true value of ``condition()``; AssertionError after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what}: not within {deadline:g} s"
        time.sleep(0.02)


def rows(database_url: str, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Rows of one statement, over a connection of its own; commits."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def wait_for_rows(
    database_url: str, sql: str, parameters: Sequence[Any] = (), *, deadline: float = DEADLINE
) -> list[tuple[Any, ...]]:
    """The rows of ``sql`` as soon as there are any."""
    return wait_for(lambda: rows(database_url, sql, parameters), f"rows of {sql!r}", deadline)


def alive(pid: int) -> bool:
    """Whether a process (not a zombie) has this pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def descendants(pid: int) -> list[int]:
    """Pids below a process, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    wave = children.get(pid, [])
    while wave:
        found += wave
        wave = [child for parent in wave for child in children.get(parent, [])]
    return found


def most_at_once(events: Iterable[tuple[str | None, str]]) -> int:
    """How many steps were under way at once at most, by events in their order (step key, type): sent to a worker, and
    not ended."""
    under_way: set[str | None] = set()
    most = 0
    for key, kind in events:
        if kind == "STEP_WORKER_STARTING":
            under_way.add(key)
        elif kind in ("STEP_SUCCESS", "STEP_FAILURE"):
            under_way.discard(key)
        most = max(most, len(under_way))
    return most


# Processes


def die_with_test_run() -> None:
    """In a child, before exec: SIGKILL when the test process dies (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class ProcessHandle:
    """A process that a test started, with its output in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """All it has written so far, stdout and stderr."""
        return self.log.read_text(errors="replace")

    def wait_for_log(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """The first match of a regular expression in the output; fails at once when the process ends without it."""

        def look() -> re.Match[str] | None:
            ended = self.popen.poll()
            found = re.search(pattern, self.output, re.MULTILINE)
            assert found or ended is None, f"{self.name} ended with status {ended}:\n{self.output}"
            return found

        try:
            return wait_for(look, f"{pattern!r} in the log of {self.name}", deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-4000:]}") from None

    def wait(self, deadline: float = DEADLINE) -> int:
        """The exit status (negative: a signal)."""
        try:
            return self.popen.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {deadline:g} s:\n{self.output[-4000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        if self.popen.poll() is None:
            os.kill(self.pid, number)

    def stop(self, deadline: float = DEADLINE) -> int:
        """SIGTERM, then wait; the exit status."""
        self.send(signal.SIGTERM)
        return self.wait(deadline)

    def kill(self) -> None:
        """SIGKILL to the process itself (not to what it started), then wait."""
        self.send(signal.SIGKILL)
        self.popen.wait()


class WorkerHandle(ProcessHandle):
    """A worker process."""

    def wait_until_ready(self, deadline: float = DEADLINE) -> WorkerHandle:
        """Return when the worker takes messages."""
        self.wait_for_log(r"worker \S+ serves ", deadline)
        return self


def start_process(
    name: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to ``log`` and which dies with the test run."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
            preexec_fn=die_with_test_run,
        )


class Processes:
    """Starts processes in a folder and ends those that still run at the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: list[ProcessHandle] = []

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> ProcessHandle:
        """Start any command."""
        return self._started(ProcessHandle, name, command, env)

    def start_worker(
        self,
        queues: Sequence[str],
        slots: int = 2,
        *,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        wait: bool = True,
    ) -> WorkerHandle:
        """``dagster-taskiq worker start``; ``config`` is the executor's configuration block.

        ``wait``: return when it takes messages.
        """
        name = f"worker-{len(self._handles) + 1}"
        command = [sys.executable, "-m", "dagster_taskiq.cli", "worker", "start", "--slots", str(slots), "--name", name]
        for queue in queues:
            command += ["--queue", queue]
        if config:
            # JSON is YAML.
            path = self.folder / f"{name}.yaml"
            path.write_text(json.dumps({"execution": {"config": dict(config)}}))
            command += ["--config-yaml", str(path)]
        handle = self._started(WorkerHandle, name, [*command, *args], env)
        return handle.wait_until_ready() if wait else handle

    def _started(
        self, kind: Callable[..., Any], name: str, command: Sequence[str], env: Mapping[str, str] | None
    ) -> Any:
        log = self.folder / f"{name}.log"
        handle = kind(name, start_process(name, command, log, env=env), log)
        self._handles.append(handle)
        return handle

    def end(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not listen, and to all that they started."""
        families = [[*descendants(handle.pid)] for handle in self._handles if handle.popen.poll() is None]
        for _ in range(2):
            # The second one tells a worker not to wait for its long polls.
            for handle in self._handles:
                handle.send(signal.SIGTERM)
            for handle in self._handles:
                with suppress(subprocess.TimeoutExpired):
                    handle.popen.wait(0.3)
        for handle in self._handles:
            try:
                handle.popen.wait(20)
            except subprocess.TimeoutExpired:
                families.append(descendants(handle.pid))
                handle.kill()
        for pid in {pid for family in families for pid in family if alive(pid)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# Servers


@dataclass
class Databases:
    """Fresh databases of one server."""

    server_url: str
    _template: str | None = field(default=None)

    def _statement(self, sql: str) -> None:
        rows(self.server_url, sql)

    def _url(self, name: str) -> str:
        return urlunsplit(urlsplit(self.server_url)._replace(path=f"/{name}"))

    def dagster_template(self) -> str:
        """A database that holds Dagster's tables, made once: copying it is a tenth of making them."""
        if self._template is None:
            name = f"dtq_template_{uuid.uuid4().hex[:12]}"
            self._statement(f'CREATE DATABASE "{name}"')
            self._template = name
            with tempfile.TemporaryDirectory(prefix="dtq-template-") as folder:
                write_dagster_yaml(Path(folder), self._url(name))
                made = subprocess.run(
                    [sys.executable, "-c", "from dagster import DagsterInstance as D; D.get().dispose()"],
                    env={**os.environ, "DAGSTER_HOME": folder, "DAGSTER_DISABLE_TELEMETRY": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            assert made.returncode == 0, made.stderr
        return self._template

    @contextmanager
    def fresh(self, *, with_dagster: bool = False) -> Iterator[str]:
        """The URL of a new database, dropped afterwards."""
        name = f"dtq_test_{uuid.uuid4().hex[:12]}"
        template = f' TEMPLATE "{self.dagster_template()}"' if with_dagster else ""
        self._statement(f'CREATE DATABASE "{name}"{template}')
        try:
            yield self._url(name)
        finally:
            self._statement(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def close(self) -> None:
        """Drop the template."""
        if self._template:
            self._statement(f'DROP DATABASE IF EXISTS "{self._template}" WITH (FORCE)')


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder that the server's unprivileged user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="dtq-test-servers-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database_server() -> Iterator[Databases]:
    """An embedded PostgreSQL, or the server that the environment names."""
    given = os.environ.get(DATABASE_OVERRIDE)
    if given:
        databases = Databases(given)
        try:
            yield databases
        finally:
            databases.close()
        return
    with server_folder() as folder, EmbeddedPostgres(folder, durable=False) as server:
        yield Databases(server.url("postgres"))


@contextmanager
def sqs_server() -> Iterator[str]:
    """The endpoint of an embedded SQS, or the one that the environment names."""
    given = os.environ.get(SQS_OVERRIDE)
    if given:
        yield given
        return
    with server_folder() as folder, EmbeddedSqs(folder) as server:
        yield server.endpoint


def write_dagster_yaml(home: Path, database_url: str) -> None:
    """A dagster.yaml with its storage in PostgreSQL and no telemetry."""
    home.mkdir(parents=True, exist_ok=True)
    config = {
        "storage": {"postgres": {"postgres_url": database_url}},
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }
    (home / "dagster.yaml").write_text(json.dumps(config))


@dataclass(frozen=True)
class Queue:
    """A queue of the emulator with its dead-letter queue."""

    endpoint: str
    name: str
    url: str
    dead_url: str

    def __str__(self) -> str:
        return self.name

    def call(self, action: str, **arguments: Any) -> dict[str, Any]:
        """One request about this queue, past our own client."""
        return call(self.endpoint, action, **{"QueueUrl": self.url, **arguments})

    def counts(self, url: str | None = None) -> tuple[int, int]:
        """(visible, in flight) of the queue, or of another."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.call("GetQueueAttributes", QueueUrl=url or self.url, AttributeNames=names)["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    def dead_messages(self) -> list[dict[str, Any]]:
        """What lies in the dead-letter queue; received, so hidden for a minute afterwards."""
        found = self.call(
            "ReceiveMessage",
            QueueUrl=self.dead_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
            VisibilityTimeout=60,
        )
        messages: list[dict[str, Any]] = found.get("Messages", [])
        return messages


@contextmanager
def fresh_queue(endpoint: str) -> Iterator[Queue]:
    """A new queue with its dead-letter queue (maxReceiveCount 10), deleted afterwards."""
    name = f"dtq-test-{uuid.uuid4().hex[:12]}"
    dead_url = call(endpoint, "CreateQueue", QueueName=f"{name}-dead")["QueueUrl"]
    arn = call(endpoint, "GetQueueAttributes", QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "10"})
    url = call(endpoint, "CreateQueue", QueueName=name, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    try:
        yield Queue(endpoint, name, url, dead_url)
    finally:
        for one in (url, dead_url):
            call(endpoint, "DeleteQueue", QueueUrl=one)


def dummy_environment() -> dict[str, str]:
    """Dummy AWS settings for every test and every process that it starts."""
    return {
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
