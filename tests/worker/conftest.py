"""A run whose executor is the test: it inserts rows and sends messages, and looks at what workers make of them."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import services

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

LEASE = 6.0
HEARTBEAT = 0.5


class Stage:
    """See the module."""

    def __init__(self, database_url: str, queue: services.Queue, folder: Path) -> None:
        import worker_jobs
        from dagster import DagsterInstance, reconstructable, serialize_value

        from dagster_taskiq import _core, migrations, store

        self.folder = folder
        self.queue = queue
        self.database_url = database_url
        self.loop = _core.Loop()
        self.store = store.IdempotencyStore(self.loop, database_url)
        migrations.migrate(self.store)
        self.instance = DagsterInstance.get()
        origin = reconstructable(worker_jobs.work).get_python_origin()
        self.origin = json.loads(serialize_value(origin))
        self.origin["repository_origin"]["code_pointer"]["working_directory"] = str(HERE)
        self.instance_ref = serialize_value(self.instance.get_ref())
        self.begin_run()

    def begin_run(self) -> None:
        """A new run of the job at ``origin``; from now on messages and rows are of this one."""
        import worker_jobs
        from dagster import deserialize_value

        self.run = self.instance.create_run_for_job(
            worker_jobs.work, job_code_origin=deserialize_value(json.dumps(self.origin))
        )
        self.run_id = self.run.run_id
        self.generation = self.store.begin_run(self.run_id, uuid.uuid4().hex, 3600.0).result(10).generation

    def close(self) -> None:
        self.loop.close()
        self.instance.dispose()

    def message(
        self,
        step_key: str,
        attempt: int = 1,
        *,
        signing_key: str | None = None,
        lease: float = LEASE,
        heartbeat: float = HEARTBEAT,
        visibility: int = 30,
        time_limit: float | None = None,
    ) -> bytes:
        """The message of an attempt; its parts are stored."""
        from dagster_taskiq import payload

        stored: dict[str, str] = {}
        parts = payload.spill(
            {
                payload.JOB_ORIGIN: json.dumps(self.origin),
                payload.INSTANCE_REF: self.instance_ref,
                payload.KNOWN_STATE: "null",
            },
            stored,
        )
        for digest, text in stored.items():
            self.store.put_part(digest, text).result(10)
        task = payload.StepTask(
            run_id=self.run_id,
            step_key=step_key,
            attempt=attempt,
            job_name="work",
            queue=self.queue.name,
            code_location="",
            lease_ttl=lease,
            heartbeat=heartbeat,
            visibility=visibility,
            sent_at=time.time(),
            retry_mode="DEFERRED",
            parts=parts,
            time_limit=time_limit,
        )
        return payload.pack(task, signing_key=signing_key)

    def enqueue(self, step_key: str, attempt: int = 1) -> None:
        """Insert the row."""
        inserted = self.store.enqueue(self.run_id, self.generation, [(step_key, attempt, self.queue.name)]).result(10)
        assert inserted == [(step_key, attempt)]

    def post(self, body: bytes | str) -> None:
        """Send a message."""
        self.queue.call("SendMessage", MessageBody=body if isinstance(body, str) else body.decode())

    def send(
        self,
        step_key: str,
        attempt: int = 1,
        *,
        copies: int = 1,
        lease: float = LEASE,
        heartbeat: float = HEARTBEAT,
        time_limit: float | None = None,
    ) -> None:
        """Insert the row and send its message."""
        self.enqueue(step_key, attempt)
        body = self.message(step_key, attempt, lease=lease, heartbeat=heartbeat, time_limit=time_limit)
        for _ in range(copies):
            self.post(body)

    def claim(self, step_key: str, attempt: int = 1, *, lease: float) -> Any:
        """Claim as somebody else would, who is dead already."""
        return self.store.claim(
            self.run_id,
            step_key,
            attempt,
            owner="a-dead-worker",
            nonce=uuid.uuid4().hex,
            ttl=lease,
            host="elsewhere",
            boot_id="",
            delivery_id="",
            deliveries=1,
        ).result(10)

    def row(self, step_key: str, attempt: int = 1) -> Any:
        rows = self.store.steps(self.run_id).result(10)
        return next((row for row in rows if (row.step_key, row.attempt) == (step_key, attempt)), None)

    def outcome(self, step_key: str, attempt: int = 1) -> Any:
        (outcome,) = self.store.outcomes(self.run_id, [(step_key, attempt)]).result(10)
        return outcome

    def wait_for_state(self, step_key: str, *states: str, attempt: int = 1, deadline: float = 60.0) -> Any:
        """The row as soon as it is in one of the states."""

        def look() -> Any:
            row = self.row(step_key, attempt)
            return row if row is not None and row.state in states else None

        try:
            return services.wait_for(look, f"{step_key} {' or '.join(states)}", deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.row(step_key, attempt)}") from None

    def wait_for_messages(self, visible: int, in_flight: int, deadline: float = 60.0) -> None:
        services.wait_for(
            lambda: self.queue.counts() == (visible, in_flight), f"{visible} visible, {in_flight} in flight", deadline
        )

    def history(self) -> list[list[str]]:
        """Lines: what, step, attempt, generation, pid."""
        path = self.folder / "history"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_note(self, what: str, step_key: str) -> list[str]:
        return services.wait_for(
            lambda: next((line for line in self.history() if line[:2] == [what, step_key]), None),
            f"{what} of {step_key}",
        )

    def starts(self, step_key: str) -> int:
        return sum(line[:2] == ["start", step_key] for line in self.history())

    def release(self) -> None:
        """Let the ops that wait go on."""
        (self.folder / "release").touch()

    def logged(self, step_key: str) -> list[str]:
        """Types of the step's events in Dagster's log."""
        return [
            record.dagster_event.event_type_value
            for record in self.instance.all_logs(self.run_id)
            if record.dagster_event is not None and record.step_key == step_key
        ]


@pytest.fixture
def stage(dagster_home: Path, database_url: str, queue: services.Queue, tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "notes"
    folder.mkdir()
    made = Stage(database_url, queue, folder)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def start_worker(
    stage: Stage, worker_process: Callable[..., services.WorkerHandle], sqs_endpoint: str
) -> Callable[..., services.WorkerHandle]:
    """Start a worker for the stage's queue."""

    def start(slots: int = 2, *, env: dict[str, str] | None = None, **options: Any) -> services.WorkerHandle:
        return worker_process(
            options.pop("queues", [stage.queue.name]),
            slots,
            env={
                "DAGSTER_TASKIQ_DATABASE_URL": stage.database_url,
                "WORKER_TEST_FOLDER": str(stage.folder),
                **(env or {}),
            },
            **options,
        )

    return start
