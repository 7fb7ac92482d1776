"""The run launcher: run workers travel over SQS and run on workers, by the same protocol as steps.

In dagster.yaml::

    run_launcher:
      module: dagster_taskiq
      class: TaskIQRunLauncher

A run worker is an attempt of the one step ``run`` of a run row of its own, ``launch-<run id>``: launching inserts
attempt 1, each resuming inserts the next one, and a claim with its lease and fence holds it while it lives.  So a
message that comes twice starts nothing, and a run worker whose worker died is known to be dead when its lease is past
or its host has said so.

No coordinator waits for these rows.  Whoever launches or resumes keeps an eye on its message until a worker has it; the
health check of Dagster's run monitoring settles leases that are past."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultRunLauncher,
    serialize_value,
)

from dagster_taskiq import _dagster, migrations, payload, tags
from dagster_taskiq._core import Loop, Operation, SqsClient
from dagster_taskiq.config import Settings, executor_config_schema
from dagster_taskiq.errors import ConfigError, DagsterTaskiqError, QueueMissingError
from dagster_taskiq.sqs import make_client, raise_for_entry, resolve_queue_url
from dagster_taskiq.store import RunRow, StepRow, step_application_name
from dagster_taskiq.stores import open_stores

log = logging.getLogger(__name__)

RUN_QUEUE: Final = "dagster-runs"
"""The default queue of run workers.  Not that of steps: a run worker holds a slot for as long as its run lasts, and
would keep the steps waiting that it waits for."""

STEP_KEY: Final = "run"
LAUNCH_LEASE: Final = 14 * 86_400.0
"""Seconds for which a launched run may wait in the queue: as long as SQS keeps messages."""

TIMEOUT: Final = 30.0
"""Seconds that one request to PostgreSQL or SQS may take, with its retries."""

STOP_WAIT: Final = 5.0
"""Seconds for which ``terminate`` waits until the run worker has written its last event."""


def launch_id(run_id: str) -> str:
    """The id of the run row under which the run workers of a Dagster run have their rows."""
    return f"launch-{run_id}"


class TaskIQRunLauncher(DefaultRunLauncher):
    """See the module.  Made by Dagster from dagster.yaml.  ``run_queue``: where run workers are sent, unless the run's
    tag ``dagster-taskiq/run_queue`` names another queue.

    ``config``: takes every setting that executors have, so that one block serves for all.  A launcher uses ``region``,
    ``endpoint_url``, ``database_url``, ``signing_key``, ``backoff``, and for the run worker's claim ``lease_ttl``,
    ``heartbeat_interval`` and ``visibility_timeout``.  The others are checked and have no effect on it.

    Raises ``ConfigError``, ``SqsError`` and ``StoreError``; Dagster then marks the run as failed (launching), or tries
    again later (monitoring)."""

    def __init__(self, inst_data: Any = None, run_queue: str | None = None, **config: Any) -> None:
        super().__init__(inst_data)
        self._settings = Settings.from_config(config)
        self._run_queue = run_queue or RUN_QUEUE
        self._lock = threading.Lock()
        self._post: _Post | None = None

    @classmethod
    def config_type(cls) -> Any:
        from dagster import Field, StringSource

        run_queue = Field(
            StringSource, is_required=False, description=f"Queue that runs are sent to. Default: `{RUN_QUEUE}`."
        )
        return {**executor_config_schema(), "run_queue": run_queue}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> TaskIQRunLauncher:
        return cls(inst_data=inst_data, **config_value)

    def dispose(self) -> None:
        """Close connections; a message that nobody has taken yet is watched no longer."""
        with self._lock:
            post, self._post = self._post, None
        if post is not None:
            post.close()

    # ---- launching and resuming -------------------------------------------------------------------------------------

    def launch_run(self, context: Any) -> None:
        """Send the run to a worker."""
        self._send(context, payload.EXECUTE_RUN, self._newest(context.dagster_run.run_id))

    @property
    def supports_resume_run(self) -> bool:
        return True

    def resume_run(self, context: Any) -> None:
        """Send the run to a worker again, after its run worker has died.  Not a run whose steps have died with it: the
        executor would begin it anew and run those again that had ended, so it fails."""
        run: DagsterRun = context.dagster_run
        newest = self._newest(run.run_id)
        if newest is not None and newest.generation is not None:
            # What the dead one's last statement was must be known before the next one reads the log.
            self._connected().end_backends(step_application_name(newest.generation))
        if _has_begun_elsewhere(self._instance, run.run_id):
            self._instance.report_run_failed(
                run,
                "The run worker died, and with it the steps of this run, which are not on taskiq_executor: the run is"
                " not resumed. Re-execute it from failure.",
            )
            return
        self._send(context, payload.RESUME_RUN, newest)

    def _send(self, context: Any, command: str, newest: StepRow | None) -> None:
        run: DagsterRun = context.dagster_run
        origin = context.job_code_origin
        if origin is None:
            raise ConfigError(
                f"run {run.run_id} does not say where its job's code is, so that no worker can load it: launch it"
                " through a code location"
            )
        attempt = 1 if newest is None else newest.attempt + 1
        queue = run.tags.get(tags.RUN_QUEUE_TAG) or self._run_queue
        stored: dict[str, str] = {}
        task = self._task(run, origin, command, attempt, queue, stored)
        message_id = self._connected().send(task, stored)
        what = "Resuming the run" if command == payload.RESUME_RUN else "The run"
        self._instance.report_engine_event(
            f"{what}: its run worker has been sent to queue {queue!r}.",
            run,
            _dagster.engine_event_data({"queue": queue, "message_id": message_id, "run_worker": attempt}),
            type(self),
        )
        self._instance.add_run_tags(run.run_id, {tags.TASK_ID_TAG: message_id})

    def _task(
        self, run: DagsterRun, origin: Any, command: str, attempt: int, queue: str, stored: dict[str, str]
    ) -> payload.StepTask:
        settings = self._settings
        texts = {
            payload.JOB_ORIGIN: serialize_value(origin),
            payload.INSTANCE_REF: serialize_value(self._instance.get_ref()),
        }
        return payload.StepTask(
            run_id=launch_id(run.run_id),
            step_key=STEP_KEY,
            attempt=attempt,
            job_name=run.job_name,
            queue=queue,
            code_location=_dagster.code_location_of(run),
            lease_ttl=settings.lease_ttl,
            heartbeat=settings.heartbeat_interval,
            visibility=settings.visibility_timeout,
            sent_at=time.time(),
            retry_mode="ENABLED",
            parts=payload.spill(texts, stored),
            command=command,
            dagster_run_id=run.run_id,
        )

    # ---- terminating ------------------------------------------------------------------------------------------------

    def terminate(self, run_id: str) -> bool:
        """Stop the run: its run worker gets SIGTERM from its worker, and one that has not started never will.  A
        process that nobody launched (`dagster job execute`) is told by the run's row.  False when there is nothing to
        stop."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished or (self._newest(run_id) is None and self._executed(run_id) is None):
            return False
        if run.status is not DagsterRunStatus.CANCELING:
            self._instance.report_run_canceling(run)
        store = self._connected().store
        # Also where the run worker is dead: none of the run's steps that are in the queue may start.
        for one in (launch_id(run_id), run_id):
            store.cancel_run(one).result(TIMEOUT)
        newest = self._newest(run_id)
        if newest is not None and newest.state == "claimed":
            self._wait_until_stopped(newest)
            return True
        if newest is None and (own := self._executed(run_id)) is not None and own.lease_left > 0:
            return True
        # Its run worker may have come to its end since the run was read.
        run = self._instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            self._instance.report_run_canceled(run, "No run worker was alive.")
        return True

    def _wait_until_stopped(self, row: StepRow) -> None:
        """Dagster's run monitoring writes that the run has failed as soon as this returns.  Were the run worker to
        write at that moment that it was canceled, chance would say which of the two the run has become.  One that takes
        longer than ``STOP_WAIT`` finds the failure when it comes to its end, and leaves it as it is."""
        store = self._connected().store
        end = time.monotonic() + STOP_WAIT
        while time.monotonic() < end:
            rows = store.steps(row.run_id).result(TIMEOUT)
            if not any(other.attempt == row.attempt and other.state == "claimed" for other in rows):
                return
            time.sleep(0.05)

    # ---- health -----------------------------------------------------------------------------------------------------

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> Any:
        """Whether the run has a run worker or will have one.  Raises where that cannot be told: Dagster takes
        everything else for a dead run worker."""
        newest = self._newest(run.run_id)
        if newest is None:
            own = self._executed(run.run_id)
            if own is None:
                raise DagsterTaskiqError(f"run {run.run_id} was not launched by {type(self).__name__}")
            alive = own.lease_left > 0
            said = f"Process {own.coordinator} executes it, which was not launched"
            return _dagster.run_worker_health(
                "RUNNING" if alive else "FAILED", f"{said}." if alive else f"{said} and is gone.", own.coordinator
            )
        status = {"queued": "RUNNING", "claimed": "RUNNING", "succeeded": "SUCCESS"}.get(newest.state, "FAILED")
        return _dagster.run_worker_health(status, _story(newest), str(newest.attempt))

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        newest = self._newest(run.run_id)
        return None if newest is None else _story(newest)

    def _newest(self, run_id: str) -> StepRow | None:
        """The row of the newest run worker, after leases that are past have been settled."""
        store = self._connected().store
        row = store.get_run(launch_id(run_id)).result(TIMEOUT)
        if row is None:
            return None
        store.renew_run(row.run_id, row.generation, LAUNCH_LEASE).result(TIMEOUT)
        store.sweep_lost(row.run_id, row.generation).result(TIMEOUT)
        return max(store.steps(row.run_id).result(TIMEOUT), key=lambda step: step.attempt, default=None)

    def _executed(self, run_id: str) -> RunRow | None:
        """What the executor has noted of a run, whoever started its process."""
        return self._connected().store.get_run(run_id).result(TIMEOUT)

    def _connected(self) -> _Post:
        with self._lock:
            if self._post is None:
                self._post = _Post(self._settings, self._instance)
            return self._post


@dataclass(slots=True)
class _Letter:
    """A message whose run worker nobody has claimed yet.  ``group``: on a FIFO queue, so that runs do not wait for each
    other; ``due``: monotonic clock; ``pause``: seconds."""

    url: str
    body: bytes
    group: str
    due: float
    pause: float


class _Post:
    """The connections of a launcher, and the thread that sends messages again which nobody takes."""

    def __init__(self, settings: Settings, instance: DagsterInstance) -> None:
        self._settings = settings
        self._loop = Loop()
        try:
            stores = open_stores(
                self._loop, settings, instance, application_name="dagster-taskiq-launcher", whose="run launcher"
            )
            self.store, self._logs = stores[0], stores[-1]
            migrations.migrate(self.store, timeout=TIMEOUT)
            self._sqs: SqsClient = make_client(self._loop, region=settings.region, endpoint=settings.endpoint_url)
        except BaseException:
            self._loop.close()
            raise
        self._letters: dict[tuple[str, int], _Letter] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._loop.close()

    def end_backends(self, application_name: str) -> None:
        left = self._logs.end_backends(application_name, TIMEOUT).result(2 * TIMEOUT)
        if left:
            raise DagsterTaskiqError(f"{left} database connections of {application_name} are still there")

    def send(self, task: payload.StepTask, stored: Mapping[str, str]) -> str:
        """Row and parts (digest -> text), then message.  The message's id."""
        url = self._queue_url(task.queue)
        for digest, text in stored.items():
            self.store.put_part(digest, text).result(TIMEOUT)
        row = self.store.begin_run(task.run_id, uuid.uuid4().hex, LAUNCH_LEASE).result(TIMEOUT)
        key = (task.step_key, task.attempt)
        if not self.store.enqueue(task.run_id, row.generation, [(*key, task.queue)]).result(TIMEOUT):
            raise DagsterTaskiqError(f"run worker {task.attempt} of run {task.dagster_run_id} is refused: {row.state}")
        body = payload.pack(task, signing_key=self._settings.signing_key)
        pause = self._settings.backoff_base
        letter = _Letter(url, body, task.run_id, time.monotonic() + pause, pause)
        try:
            message_id = self._deliver(letter)
        except BaseException:
            self.store.cancel_queued(task.run_id, row.generation, [key]).result(TIMEOUT)
            raise
        self._watch(task, letter)
        return message_id

    def _queue_url(self, queue: str) -> str:
        try:
            return resolve_queue_url(self._sqs, queue).result(TIMEOUT)
        except QueueMissingError as error:
            raise ConfigError(
                f"there is no queue {queue!r} for runs in region and account of these settings ({error}). Make it with"
                f" `dagster-taskiq queue create {queue}`, or correct run_queue, region (AWS_REGION) and endpoint_url"
                " (AWS_ENDPOINT_URL_SQS)."
            ) from error

    def _deliver(self, letter: _Letter) -> str:
        entry: dict[str, Any] = {"body": letter.body}
        if letter.url.endswith(".fifo"):
            # Each sending counts: the copy of a message that is lost must not be taken for a doubled one.
            entry.update(group_id=letter.group, deduplication_id=uuid.uuid4().hex)
        sending: Operation[Any] = self._sqs.send(letter.url, [entry])
        (result,) = sending.result(TIMEOUT)
        raise_for_entry(result)
        return str(result["message_id"])

    # ---- messages that nobody takes ---------------------------------------------------------------------------------

    def _watch(self, task: payload.StepTask, letter: _Letter) -> None:
        with self._lock:
            self._letters[(task.run_id, task.attempt)] = letter
            if self._thread is None:
                self._thread = threading.Thread(target=self._resend, name="dagster-taskiq-launcher", daemon=True)
                self._thread.start()

    def _resend(self) -> None:
        while not self._closing.wait(min(1.0, self._settings.backoff_base / 4)):
            with self._lock:
                due = [(key, letter) for key, letter in self._letters.items() if letter.due <= time.monotonic()]
            for key, letter in due:
                try:
                    self._send_again(key, letter)
                except DagsterTaskiqError as error:
                    log.warning("cannot send the run worker of %s again now: %s", key[0], error)

    def _send_again(self, key: tuple[str, int], letter: _Letter) -> None:
        rows = self.store.steps(key[0]).result(TIMEOUT)
        if not any(row.attempt == key[1] and row.state == "queued" for row in rows):
            with self._lock:
                del self._letters[key]
            return
        letter.pause = min(2 * letter.pause, self._settings.backoff_cap)
        letter.due = time.monotonic() + letter.pause
        self._deliver(letter)


def _has_begun_elsewhere(instance: DagsterInstance, run_id: str) -> bool:
    """Whether steps have started, and not under our executor, whose first event comes before theirs."""
    types = {DagsterEventType.ENGINE_EVENT, DagsterEventType.STEP_START}
    cursor: str | None = None
    while True:
        page = instance.get_records_for_run(run_id, cursor=cursor, of_type=types, limit=100)
        for record in page.records:
            event = record.event_log_entry.dagster_event
            if event is not None and event.event_type is DagsterEventType.STEP_START:
                return True
            if event is not None and "coordinator_generation" in getattr(event.event_specific_data, "metadata", ()):
                return False
        if not page.has_more:
            return False
        cursor = page.cursor


def _story(row: StepRow) -> str:
    """One line about a run worker, for people."""
    where = f", worker {row.worker_name} on {row.host}, pid {row.pid}" if row.worker_name else ""
    why = f": {row.reason}" if row.reason else ""
    return f"Run worker {row.attempt} is {row.state}{why} (queue {row.queue}{where})."
