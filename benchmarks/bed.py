"""The servers that a measurement needs, on the loopback: PostgreSQL as Dagster's storage and as ours (TCP, scram
passwords), SQS (stub_sqs.py), and workers.  And what their processes have used."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from steps import START_SECONDS, answers, postgres_pid, stop, wait_for

from dagster_taskiq.dev.postgres import EmbeddedPostgres
from dagster_taskiq.dev.service import Service, free_port
from dagster_taskiq.dev.sqs import REGION, call

HERE = Path(__file__).resolve().parent
TELLING_SECONDS = 11.0


class Bed:
    """``journal``: have the SQS server note what it does (:attr:`journal`)."""

    def __init__(self, stack: ExitStack, *, journal: bool = False) -> None:
        self._stack = stack
        self.folder = Path(tempfile.mkdtemp(prefix="dagster-taskiq-bench-"))
        self.folder.chmod(0o755)
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.postgres = stack.enter_context(EmbeddedPostgres(self.folder))
        self.url = self.postgres.ensure_database("dagster")
        self.postgres_pid = postgres_pid(self.postgres)
        self.journal = self.folder / "sqs-journal"
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DAGSTER", "PG"))},
            "DAGSTER_HOME": str(self.make_home("home")),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_TASKIQ_DATABASE_URL": self.url,
            "AWS_ENDPOINT_URL_SQS": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, HERE / "stub_sqs.py", "--port", str(port)]
        self.start("sqs", command + (["--journal", self.journal] if journal else []))
        wait_for(lambda: answers(self.endpoint), "the SQS server")

    def make_home(self, name: str, **settings: Any) -> Path:
        """A DAGSTER_HOME whose storage is this PostgreSQL."""
        home = self.folder / name
        home.mkdir()
        config = {"storage": {"postgres": {"postgres_url": self.url}}, "telemetry": {"enabled": False}, **settings}
        (home / "dagster.yaml").write_text(json.dumps(config))
        return home

    def make_queue(self, name: str) -> str:
        """Its URL."""
        url: str = call(self.endpoint, "CreateQueue", QueueName=name)["QueueUrl"]
        return url

    def start(self, name: str, command: Sequence[Any], environment: Mapping[str, str] | None = None) -> Service:
        """A process that is stopped with the bed."""
        log = self.folder / f"{name}.log"
        service = Service(name, command, log=log, env=environment or self.environment, cwd=HERE)
        service.start()
        self._stack.callback(stop, service)
        return service

    def start_worker(self, *arguments: str, slots: int = 2) -> Service:
        """A worker of ours that takes messages when this returns."""
        command = [sys.executable, "-m", "dagster_taskiq.cli", "worker", "start", "--slots", str(slots), *arguments]
        worker = self.start("worker", command)
        worker.wait_until(lambda: " serves " in worker.last_lines(1000), START_SECONDS)
        return worker

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        import psycopg2

        connection = psycopg2.connect(self.url)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def size(self) -> int:
        """Bytes of the database."""
        ((size,),) = self.ask("SELECT pg_database_size(current_database())")
        return int(size)

    def settled_transactions(self) -> int:
        """:meth:`transactions`, once all connections have told of theirs: one that is idle does so after ten
        seconds."""
        time.sleep(TELLING_SECONDS)
        return self.transactions()

    def transactions(self) -> int:
        """How many PostgreSQL has committed or rolled back, by connections that are closed or have told of it."""
        ((count,),) = self.ask(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return int(count)


@contextmanager
def bed(**options: Any) -> Iterator[Bed]:
    with ExitStack() as stack:
        yield Bed(stack, **options)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part (0..1) of them lies, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``median (least..most)``"""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"
