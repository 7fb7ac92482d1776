"""The whole stack on one machine: PostgreSQL, an SQS emulator, workers, and Dagster's web UI and daemon if wanted."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from .postgres import EmbeddedPostgres
from .service import DevServerError, Service, free_port
from .sqs import EmbeddedSqs

QUEUE = "dagster"
RUN_QUEUE = "dagster-runs"
RUNS = 10
"""Runs at a time, as Dagster has it by default.  Others wait in Dagster's own queue, where no start timeout counts."""

WORKER_TIMEOUT = 120.0
WORKER_GRACE = 15.0
"""Seconds that a worker gets to finish its steps when the stack is stopped."""

UI_TIMEOUT = 180.0

READY_LINE = " serves "
"""What a worker logs once it takes messages."""

STATUS_QUERY = """{
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus
    locationOrLoadError { ... on PythonError { message stack errorChain { error { message stack } } } } } } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""


class Stack:
    """Everything that ``dagster-taskiq dev`` and ``demo`` run; a context manager that stops what it started.

    ``folder`` keeps the data: PostgreSQL's, the Dagster home and the logs.  ``say`` gets one line for each thing that
    is up.
    """

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        self.folder = folder.absolute()
        self.home = self.folder / "dagster_home"
        self.logs = self.folder / "logs"
        self.ui_url = ""
        self.database_url = ""
        self._say = say
        self._postgres = EmbeddedPostgres(self.folder)
        self._sqs = EmbeddedSqs(self.folder)
        self._workers: list[Service] = []
        self._ui: list[Service] = []

    @property
    def endpoint(self) -> str:
        """The SQS endpoint."""
        return self._sqs.endpoint

    @property
    def services(self) -> Sequence[Service]:
        """Workers, web UI and daemon, as far as started."""
        return [*self._workers, *self._ui]

    def start_servers(self) -> None:
        """PostgreSQL, SQS with its queue, and the Dagster home on them."""
        self._take_folder()
        self._postgres.start()
        self.database_url = self._postgres.ensure_database("dagster")
        self._say(f"PostgreSQL    127.0.0.1:{self._postgres.port}, data in {self._postgres.data}")
        self._sqs.start()
        for queue in (QUEUE, RUN_QUEUE):
            self._sqs.create_queue_pair(queue)
        self._say(f"SQS           {self._sqs.endpoint}, queues {QUEUE!r} and {RUN_QUEUE!r}")
        self._write_home()

    def _take_folder(self) -> None:
        """Not one with other files in it.  It holds passwords and must not get into a repository by chance."""
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "lock").exists():
            raise DevServerError(
                f"{self.folder} has other files in it: choose a folder that is empty or not there yet (--data-dir of"
                " dev, --keep of demo)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")

    def environment(self) -> dict[str, str]:
        """What a process needs to be part of the stack."""
        return {**os.environ, **self._settings()}

    def start_run_host(self) -> None:
        """Start the worker in which runs that the web UI or the daemon has launched have their run workers: one apart,
        so that these never hold a slot that their own steps wait for.  When the stack is stopped they are lost at once,
        and resumed at its next start."""
        self._start_worker("runs", RUNS, RUN_QUEUE, drain_timeout=0)

    def start_worker(self, name: str, slots: int) -> None:
        """Start one worker of steps without waiting for it."""
        self._start_worker(name, slots, QUEUE, drain_timeout=WORKER_GRACE - 5)

    def _start_worker(self, name: str, slots: int, queue: str, drain_timeout: float) -> None:
        """One that is killed comes back, and changed code is imported again."""
        command = [sys.executable, "-m", "dagster_taskiq.cli", "worker", "start", "--name", name, "--queue", queue]
        command += ["--slots", str(slots), "--drain-timeout", f"{drain_timeout:g}", "--supervise", "--reload"]
        log = self.logs / f"{name}.log"
        log.unlink(missing_ok=True)
        worker = Service(name, command, log=log, env=self.environment(), grace=WORKER_GRACE)
        worker.start()
        self._workers.append(worker)

    def wait_for_workers(self) -> None:
        """Return when every worker takes messages."""
        for worker in self._workers:
            worker.wait_until(partial(_logged, worker, READY_LINE), WORKER_TIMEOUT)
        self._say(f"workers       {', '.join(worker.name for worker in self._workers)}")

    def start_ui(self, target: Sequence[str], port: int | None) -> None:
        """Start Dagster's web server and daemon on ``target`` (their own options: ``-m module`` or ``-f file``)."""
        port = port or free_port()
        self.ui_url = f"http://127.0.0.1:{port}"
        scripts = Path(sys.executable).parent
        web: list[str | Path] = [scripts / "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), *target]
        daemon: list[str | Path] = [scripts / "dagster-daemon", "run", *target]
        for name, command in (("webserver", web), ("daemon", daemon)):
            if not Path(command[0]).exists():
                raise DevServerError(f"{Path(command[0]).name} is missing: pip install 'dagster-taskiq[dev]'")
            service = Service(name, command, log=self.logs / f"{name}.log", env=self.environment())
            service.log.unlink(missing_ok=True)
            service.start()
            self._ui.append(service)

    def wait_for_ui(self) -> None:
        """Return when the web UI answers, the code location is loaded and the daemon is well."""
        web, daemon = self._ui
        web.wait_until(self._code_loaded, UI_TIMEOUT)
        daemon.wait_until(self._daemon_well, UI_TIMEOUT)
        self._say(f"web UI        {self.ui_url}")

    def watch(self) -> None:
        """Block until a service ends by itself; raises DevServerError then."""
        while True:
            for service in self.services:
                if not service.running:
                    raise DevServerError(
                        f"{service.name} ended with status {service.exit_status}; its log: {service.log}\n"
                        f"{service.last_lines()}"
                    )
            time.sleep(0.3)

    def stop(self) -> None:
        """Stop everything: first what starts runs, then the workers, then what they all need.

        SQS goes while the workers finish their steps: a worker lets its long poll end, which could take 5 seconds.
        """
        for service in self._ui:
            service.ask_to_stop()
        for service in self._ui:
            service.stop()
        for service in self._workers:
            service.ask_to_stop()
        self._sqs.stop()
        for service in self._workers:
            service.stop()
        self._postgres.stop()

    def _settings(self) -> dict[str, str]:
        return {
            **self._sqs.environment(),
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_TASKIQ_DATABASE_URL": self.database_url,
            "DAGSTER_TASKIQ_QUEUE": QUEUE,
        }

    def _write_home(self) -> None:
        """dagster.yaml, and a file to source in another terminal; both hold the password, so mode 0600."""
        self.home.mkdir(parents=True, exist_ok=True)
        config = {
            "storage": {"postgres": {"postgres_url": self.database_url}},
            "run_launcher": {
                "module": "dagster_taskiq",
                "class": "TaskIQRunLauncher",
                "config": {"run_queue": RUN_QUEUE},
            },
            "run_coordinator": {
                "module": "dagster",
                "class": "QueuedRunCoordinator",
                "config": {"max_concurrent_runs": RUNS, "dequeue_interval_seconds": 1},
            },
            "run_monitoring": {"enabled": True, "poll_interval_seconds": 10, "max_resume_run_attempts": 10},
            "telemetry": {"enabled": False},
            "nux": {"enabled": False},
        }
        _write_private(self.home / "dagster.yaml", json.dumps(config, indent=2) + "\n")
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self._settings().items()]
        _write_private(self.folder / "env", "\n".join(exports) + "\n")

    def _status(self) -> dict[str, Any] | None:
        request = urllib.request.Request(
            f"{self.ui_url}/graphql",
            data=json.dumps({"query": STATUS_QUERY}).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                data: dict[str, Any] | None = json.loads(response.read()).get("data")
        except (urllib.error.URLError, OSError, ValueError):
            return None
        return data

    def _code_loaded(self) -> bool:
        status = self._status()
        entries = status and status["workspaceOrError"].get("locationEntries")
        if not entries or any(entry["loadStatus"] != "LOADED" for entry in entries):
            return False
        for entry in entries:
            error = entry["locationOrLoadError"] or {}
            if "message" in error:
                raise DevServerError(f"the code location {entry['name']} could not be loaded:\n{_error_text(error)}")
        return True

    def _daemon_well(self) -> bool:
        status = self._status()
        daemons = status["instance"]["daemonHealth"]["allDaemonStatuses"] if status else []
        required = [daemon for daemon in daemons if daemon["required"]]
        return bool(required) and all(daemon["healthy"] for daemon in required)

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _error_text(error: dict[str, Any]) -> str:
    """Dagster's own words do not say why: its causes do, the first of them last, with the place where it was raised."""
    causes = [link["error"] for link in error["errorChain"]]
    texts = [one["message"].strip() for one in (error, *causes)]
    place = [line.strip() for line in (causes or [error])[-1]["stack"][-1:] if "<frozen" not in line]
    return "\n".join([*texts[:-1], *place, texts[-1]])


def _logged(service: Service, text: str) -> bool:
    return text in service.last_lines(1000)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
