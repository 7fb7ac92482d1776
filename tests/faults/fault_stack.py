"""A whole stack to break: PostgreSQL, SQS, workers that are restarted when they die, run workers that are resumed.

Between each worker and its servers, and between the run workers and theirs, stands a link that can be broken
(fault_links.py).  Nothing here waits in the background: :meth:`Stack.supervise` is to be called again and again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import fault_jobs
import psycopg2
import services
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, reconstructable, serialize_value
from fault_checker import WORK, Evidence, Logged, Row, Run
from fault_links import Links, PostgresLink, SqsLink
from fault_names import FAILING, HOST, Certificates, build_resolver

from dagster_taskiq import _core
from dagster_taskiq.dev import postgres as embedded
from dagster_taskiq.dev.service import free_port
from dagster_taskiq.dev.sqs import EmbeddedSqs
from dagster_taskiq.store import IdempotencyStore

HERE = Path(__file__).parent
MARK = "FAULT_TEST_MARK"
"""Variable by which the processes of a stack are found."""

PRELOAD = HERE / "preload"

STORE_ROLE = "store"
"""As whom workers and run workers use their tables; Dagster's storage has a role of its own."""


@dataclass(frozen=True)
class Timing:
    """Of leases; seconds.  The shortest that the settings allow for."""

    lease_ttl: float = 8.0
    heartbeat_interval: float = 0.5
    visibility_timeout: int = 10
    backoff_base: float = 2.0
    backoff_cap: float = 8.0
    worker_loss_retries: int = 1000

    def config(self) -> dict[str, Any]:
        """As the executor's config block."""
        return {
            "lease_ttl": self.lease_ttl,
            "heartbeat_interval": self.heartbeat_interval,
            "visibility_timeout": self.visibility_timeout,
            "backoff": {"base": self.backoff_base, "cap": self.backoff_cap},
            "worker_loss_retries": self.worker_loss_retries,
        }


class RestartablePostgres(embedded.EmbeddedPostgres):
    """Comes back on the same port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, durable=False, port=free_port())

    def restart(self, *, immediate: bool, pause: float = 0.0) -> None:
        """Fast shutdown, or an immediate one (as after a crash: no word to anybody, and recovery at the start); away
        for ``pause`` seconds.
        """
        if immediate:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, signal.SIGQUIT)
            services.wait_for(lambda: not services.alive(pid), "the death of PostgreSQL")
        self.stop()
        time.sleep(pause)
        self.start()


@dataclass
class WorkerSlot:
    """The place of a worker: it is restarted there when it dies."""

    name: str
    postgres: PostgresLink
    sqs: SqsLink
    slots: int
    no_names: Path
    """While this file is there, the worker finds no name."""
    preload: str | None = None
    supervised: bool = False
    process: services.ProcessHandle | None = None
    expected_end: bool = False
    restart_at: float | None = None
    starts: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.popen.poll() is None


@dataclass
class RunHandle:
    """A run, and its run worker of the moment."""

    run: DagsterRun
    job: str
    processes: list[services.ProcessHandle] = field(default_factory=list)
    resumes: int = 0
    forsaken: bool = False
    cancelled: bool = False
    status: str | None = None
    """Dagster's, once it has ended."""

    @property
    def id(self) -> str:
        return self.run.run_id

    @property
    def process(self) -> services.ProcessHandle:
        return self.processes[-1]


class Stack:
    """See the module.  A context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 3,
        slots: int = 2,
        timing: Timing = Timing(),
        long_seconds: float = 3.0,
        doubled: float = 0.05,
        drain_timeout: float = 3.0,
    ) -> None:
        self.folder = folder
        self.timing = timing
        self.slots = workers * slots
        self.history = folder / "history"
        self.trouble: list[str] = []
        self.runs: list[RunHandle] = []
        self.workers: list[WorkerSlot] = []
        self._worker_count = workers
        self._slots_each = slots
        self._long_seconds = long_seconds
        self._doubled = doubled
        self._drain_timeout = drain_timeout
        self._mark = uuid.uuid4().hex
        self._closing = False
        self._numbers = iter(range(1, 1_000_000))
        self._stack = ExitStack()

    def __enter__(self) -> Stack:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        logs = self.folder / "processes"
        logs.mkdir(parents=True)
        servers = stack.enter_context(services.server_folder())
        self.postgres = stack.enter_context(RestartablePostgres(servers))
        sqs = stack.enter_context(EmbeddedSqs(servers))
        self.queue = stack.enter_context(services.fresh_queue(sqs.endpoint))
        databases = services.Databases(self.postgres.url("postgres"))
        self.database_url = stack.enter_context(databases.fresh())
        self.links = stack.enter_context(Links())
        self._make_store_role()
        self.certificates = Certificates.made(self.folder)
        self.run_postgres = self.links.postgres(self.store_url)
        self.run_sqs = self.links.sqs(sqs.endpoint, self.certificates)
        self.run_no_names = self.folder / "no-names"
        self.run_sqs.doubled = self._doubled
        # A run worker says at once that it may not trust SQS, and ends its run; workers wait.
        self.run_sqs.faults = tuple(kind for kind in self.run_sqs.faults if kind != "certificate")
        self.sqs_endpoint = sqs.endpoint
        home = self.folder / "dagster_home"
        services.write_dagster_yaml(home, self.database_url)
        config = json.loads((home / "dagster.yaml").read_text())
        config["run_monitoring"] = {"enabled": True, "max_resume_run_attempts": 1_000_000}
        config["run_launcher"] = {"module": "fault_launcher", "class": "ResumingLauncher"}
        (home / "dagster.yaml").write_text(json.dumps(config))
        profile = self.folder / "aws-config"
        profile.write_text(f"[default]\ncredential_process = sh {HERE / 'fault_credentials.sh'}\n")
        self.environment = {
            **services.dummy_environment(),
            # Empty: credentials that expire, instead of the environment's.
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_CONFIG_FILE": str(profile),
            "AWS_CA_BUNDLE": str(self.certificates.trusted),
            "LD_PRELOAD": str(build_resolver(self.folder)),
            "no_proxy": HOST,
            MARK: self._mark,
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": _path(HERE),
            fault_jobs.HISTORY: str(self.history),
            fault_jobs.SLOTS: str(self.slots),
            fault_jobs.LONG: str(self._long_seconds),
        }
        os.environ["DAGSTER_HOME"] = str(home)
        self.instance = stack.enter_context(DagsterInstance.get())
        stack.callback(self._end_processes)
        for _ in range(self._worker_count):
            self.add_worker()

    def _make_store_role(self) -> None:
        """What the server does to all roles (:meth:`configure_postgres`) does not reach Dagster's own."""
        dagster = embedded.SUPERUSER
        for statement in (
            f"CREATE ROLE {STORE_ROLE} LOGIN SUPERUSER PASSWORD '{STORE_ROLE}'",
            f"ALTER ROLE {dagster} SET default_transaction_read_only = off",
            f"ALTER ROLE {dagster} SET statement_timeout = 0",
        ):
            self.rows(statement)

    @property
    def store_url(self) -> str:
        target = urlsplit(self.database_url)
        address = target.netloc.rpartition("@")[2]
        return urlunsplit(target._replace(netloc=f"{STORE_ROLE}:{STORE_ROLE}@{address}"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ---- PostgreSQL -------------------------------------------------------------------------------------------------

    def configure_postgres(self, name: str, value: str | None) -> None:
        """Change a setting of the server, also for sessions that exist; None: back to what it was."""
        self.rows(f"ALTER SYSTEM SET {name} = '{value}'" if value else f"ALTER SYSTEM RESET {name}")
        self.rows("SELECT pg_reload_conf()")

    def refuse_writes(self, sqlstate: str, share: float, seconds: float) -> None:
        """That share of the statements that change steps fails with an error of the server, for a while."""
        body = (
            f"BEGIN IF current_user = '{STORE_ROLE}' AND random() < {share} AND clock_timestamp() < to_timestamp("
            f"{time.time() + seconds}) THEN RAISE EXCEPTION 'a fault' USING ERRCODE = '{sqlstate}'; END IF;"
            " RETURN NULL; END"
        )
        self.rows(f"CREATE OR REPLACE FUNCTION a_fault() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
        if not self.rows("SELECT 1 FROM pg_trigger WHERE tgname = 'a_fault'"):
            self.rows(
                "CREATE TRIGGER a_fault BEFORE INSERT OR UPDATE ON dagster_taskiq_steps"
                " FOR EACH STATEMENT EXECUTE FUNCTION a_fault()"
            )

    # ---- workers ----------------------------------------------------------------------------------------------------

    def add_worker(
        self, *, slots: int | None = None, preload: str | None = None, supervised: bool = False
    ) -> WorkerSlot:
        """Start one more worker, with links of its own.  ``preload``: what to break in it (preload/).  ``supervised``:
        its process is then that of its supervisor."""
        worker = WorkerSlot(
            f"worker-{len(self.workers) + 1}",
            self.links.postgres(self.store_url),
            self.links.sqs(self.sqs_endpoint, self.certificates),
            slots or self._slots_each,
            self.folder / f"no-names-{len(self.workers) + 1}",
            preload,
            supervised,
        )
        self.workers.append(worker)
        self._start_worker(worker)
        return worker

    def _start_worker(self, worker: WorkerSlot) -> None:
        worker.starts += 1
        config = self.folder / "worker.yaml"
        config.write_text(json.dumps({"execution": {"config": self.timing.config()}}))
        command = [
            *(sys.executable, "-m", "dagster_taskiq.cli", "worker", "start", "--queue", self.queue.name),
            *("--slots", str(worker.slots), "--name", f"{worker.name}.{worker.starts}", "--config-yaml", str(config)),
            *("--drain-timeout", str(self._drain_timeout), "--cancel-grace", "1"),
            *(["--supervise"] if worker.supervised else []),
        ]
        environment = {
            **self.environment,
            "DAGSTER_TASKIQ_DATABASE_URL": worker.postgres.url,
            "AWS_ENDPOINT_URL_SQS": worker.sqs.endpoint,
            FAILING: str(worker.no_names),
            **_preload(worker.preload),
        }
        worker.process = self._start(f"{worker.name}.{worker.starts}", command, environment)
        worker.expected_end = False
        worker.restart_at = None

    def wait_until_ready(self) -> None:
        """All workers take messages."""
        for worker in self.workers:
            assert worker.process is not None
            worker.process.wait_for_log(r"worker \S+ serves ")

    def warm_parents(self, worker: WorkerSlot) -> list[int]:
        return _children(worker.process.pid) if worker.running and worker.process else []

    def step_processes(self, worker: WorkerSlot) -> list[int]:
        return [pid for parent in self.warm_parents(worker) for pid in _children(parent)]

    # ---- runs -------------------------------------------------------------------------------------------------------

    def launch(self, job: str, *, preload: str | None = None, **ops: Mapping[str, Any]) -> RunHandle:
        """Create a run and start its run worker.  ``preload``: what to break in that one; ``ops``: config of ops."""
        reconstructed = reconstructable(getattr(fault_jobs, job))
        config: dict[str, Any] = {
            "execution": {"config": {"queue": self.queue.name, "retries": {"enabled": {}}, **self.timing.config()}}
        }
        if job in fault_jobs.SIZES:
            ops = {"several": {"count": fault_jobs.SIZES[job][1]}}
        config["ops"] = {name: {"config": dict(values)} for name, values in ops.items()}
        run = self.instance.create_run_for_job(
            reconstructed.get_definition(), run_config=config, job_code_origin=reconstructed.get_python_origin()
        )
        handle = RunHandle(run, job)
        self.runs.append(handle)
        self._start_run_worker(handle, resume=False, preload=preload)
        return handle

    def _start_run_worker(self, handle: RunHandle, *, resume: bool, preload: str | None = None) -> None:
        arguments = {
            "__class__": "ResumeRunArgs" if resume else "ExecuteRunArgs",
            "job_origin": json.loads(serialize_value(handle.run.job_code_origin)),
            "pipeline_run_id": handle.id,
            "instance_ref": json.loads(serialize_value(self.instance.get_ref())),
        }
        command = [sys.executable, "-m", "dagster", "api", "resume_run" if resume else "execute_run"]
        environment = {
            **self.environment,
            "DAGSTER_TASKIQ_DATABASE_URL": self.run_postgres.url,
            "AWS_ENDPOINT_URL_SQS": self.run_sqs.endpoint,
            FAILING: str(self.run_no_names),
            **_preload(preload),
        }
        number = len(handle.processes) + 1
        handle.processes.append(
            self._start(f"run-{handle.id[:8]}.{number}", [*command, json.dumps(arguments)], environment)
        )

    def resume(self, handle: RunHandle, *, preload: str | None = None) -> None:
        """Start another run worker, as Dagster's run monitoring does for one that it takes for dead."""
        handle.resumes += 1
        self._start_run_worker(handle, resume=True, preload=preload)

    def cancel_rows(self, handle: RunHandle) -> None:
        """As a launcher does that terminates a run whose run worker is gone."""
        loop = _core.Loop()
        try:
            IdempotencyStore(loop, self.database_url).cancel_run(handle.id).result(30)
        finally:
            loop.close()

    @property
    def open_runs(self) -> list[RunHandle]:
        return [handle for handle in self.runs if handle.status is None]

    # ---- supervision ------------------------------------------------------------------------------------------------

    def supervise(self) -> None:
        """Restart workers that have ended, resume runs whose run worker has died, note which runs have ended."""
        for worker in self.workers:
            self._supervise_worker(worker)
        for handle in self.open_runs:
            self._supervise_run(handle)

    def _supervise_worker(self, worker: WorkerSlot) -> None:
        if worker.running or self._closing:
            return
        if worker.restart_at is None:
            assert worker.process is not None
            if not worker.expected_end:
                status = worker.process.popen.returncode
                self.trouble.append(f"{worker.process.name} ended with status {status}: {worker.process.output[-600:]}")
            worker.restart_at = time.monotonic() + 0.3
        elif time.monotonic() >= worker.restart_at:
            self._start_worker(worker)

    def _supervise_run(self, handle: RunHandle) -> None:
        if handle.process.popen.poll() is None:
            return
        try:
            found = self.instance.get_run_by_id(handle.id)
        except Exception:  # PostgreSQL is away
            return
        assert found is not None
        if found.status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED):
            handle.status = found.status.value
        elif handle.forsaken:
            handle.status = "FORSAKEN"
        elif found.status in (DagsterRunStatus.STARTING, DagsterRunStatus.NOT_STARTED):
            # Killed before it had begun: as the first launch did not take place, there is nothing to resume.
            self._start_run_worker(handle, resume=False)
        else:
            self.resume(handle)

    # ---- evidence ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement, past all links."""
        return services.rows(self.database_url, sql, parameters)

    def history_lines(self) -> list[dict[str, Any]]:
        return fault_jobs.lines_of(self.history)

    def evidence(self) -> Evidence:
        """What the three records say now."""
        steps = self.rows(
            "SELECT run_id, step_key, attempt, state, generation, pid, started_at IS NOT NULL FROM dagster_taskiq_steps"
        )
        states = dict(self.rows("SELECT run_id, state FROM dagster_taskiq_runs"))
        log = self.rows(
            "SELECT run_id, step_key, id, dagster_event_type, event FROM event_logs WHERE step_key IS NOT NULL"
            " AND dagster_event_type = ANY (%s) ORDER BY id",
            list(WORK),
        )
        return Evidence(
            history=self.history_lines(),
            rows=[Row(*row) for row in steps],
            log=[
                Logged(run, step, order, kind, json.loads(event)["dagster_event"]["pid"], _is_outage(kind, event))
                for run, step, order, kind, event in log
            ],
            runs=[
                Run(handle.id, handle.status or "?", states.get(handle.id), forsaken=handle.forsaken)
                for handle in self.runs
            ],
        )

    def step_processes_left(self) -> list[str]:
        """Of the processes that the history names, those that live."""
        born = {(line["pid"], line["pid_start"], line["step"]) for line in self.history_lines()}
        return [f"step process {pid} ({step})" for pid, start, step in born if fault_jobs.process_start(pid) == start]

    def processes_left(self) -> list[str]:
        """Every process that this stack has started, directly or not, and that lives (servers left out)."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with suppress(OSError):
                if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and services.alive(int(entry)):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
                    found.append(f"process {entry} ({command})")
        return found

    # ---- the end ----------------------------------------------------------------------------------------------------

    def stop_workers(self) -> None:
        """Drain; without waiting for the long polls, which bring nothing any more."""
        self._closing = True
        for _ in range(2):
            for worker in self.workers:
                if worker.process is not None:
                    worker.process.send(signal.SIGCONT)
                    worker.process.send(signal.SIGTERM)
            time.sleep(0.3)
        for worker in self.workers:
            if worker.process is not None:
                worker.process.wait()

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> services.ProcessHandle:
        log = self.folder / "processes" / f"{next(self._numbers):04d}-{name}.log"
        return services.ProcessHandle(name, services.start_process(name, command, log, env=environment), log)

    def _end_processes(self) -> None:
        self._closing = True
        handles = [worker.process for worker in self.workers if worker.process is not None]
        handles += [process for handle in self.runs for process in handle.processes]
        for handle in handles:
            family = services.descendants(handle.pid) if handle.popen.poll() is None else []
            handle.kill()
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def _preload(what: str | None) -> dict[str, str]:
    return {"FAULT_TEST_PRELOAD": what, "PYTHONPATH": _path(PRELOAD, HERE)} if what else {}


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split() if services.alive(int(child))]


def wait_until_stopped(pid: int) -> None:
    """Until a process has stopped itself."""
    stat = Path(f"/proc/{pid}/stat")
    services.wait_for(lambda: stat.read_bytes().rpartition(b")")[2].split()[0] == b"T", f"the stop of process {pid}")


def answers(url: str) -> bool:
    """Whether PostgreSQL takes connections."""
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def _is_outage(kind: str, event: str) -> bool:
    """By the error itself, not by its causes."""
    if kind != "STEP_FAILURE":
        return False
    data = json.loads(event)["dagster_event"]["event_specific_data"]
    return str((data.get("error") or {}).get("message", "")).startswith("sqlalchemy.exc.OperationalError")
