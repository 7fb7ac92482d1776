"""Single steps on workers, for executors and tools of your own: :func:`execute_step`, :class:`StepBridge`.

A bridge coordinates one run.  :class:`~dagster_taskiq.coordinator.RunCoordinator` belongs to one thread: the bridge has
one for it, which takes calls from a queue and hands outcomes back as futures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NoReturn, TypeAlias

from dagster import DagsterEvent, serialize_value

from dagster_taskiq import _dagster, payload, tags
from dagster_taskiq.config import Settings
from dagster_taskiq.coordinator import CLEAR_GRACE, RunCoordinator
from dagster_taskiq.errors import ConfigError, DagsterTaskiqError
from dagster_taskiq.notices import (
    Cancelling,
    Declined,
    Ended,
    Key,
    Notice,
    Refused,
    Rejected,
    Trouble,
    Unserved,
    Untaken,
)
from dagster_taskiq.orchestration import open_coordinator, read_patiently, step_message
from dagster_taskiq.refusals import sentence
from dagster_taskiq.sender import Message
from dagster_taskiq.store import Outcome

log = logging.getLogger(__name__)

SettingsLike: TypeAlias = Settings | Mapping[str, Any] | None
"""Settings, or a config block of the executor; None: from the environment alone."""

State: TypeAlias = Literal["succeeded", "failed", "cancelled", "lost", "not_started"]
_STATES: Final[Mapping[str, State]] = {
    "STEP_SUCCESS": "succeeded",
    "STEP_SKIPPED": "succeeded",
    "STEP_FAILURE": "failed",
    "STEP_UP_FOR_RETRY": "failed",
}


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """How one attempt of a step ended.

    ``lost``: its worker vanished, or its lease ran out; nothing of it runs any more, and the step may be run again
    under the next attempt number.  ``not_started``: no worker took it, and none will; ``error`` says why."""

    step_key: str
    attempt: int
    state: State
    events: list[DagsterEvent]
    """What the attempt has logged, in order.  They are in Dagster's log already; an executor yields them."""
    error: str | None = None
    """Why there is no event that ends the step; in words."""
    worker: str | None = None
    host: str | None = None
    generation: int | None = None
    """The attempt's fencing token."""
    waited_seconds: float | None = None
    """From the queue to the claim."""
    ran_seconds: float | None = None

    @property
    def final_event(self) -> DagsterEvent | None:
        """The event that ended the attempt.  None: it could not log one (it crashed, was lost or stopped), so the
        caller logs a failure, or runs the step again."""
        return _dagster.terminal_event(self.events)


class StepBridge:
    """Executes steps of one run on workers; an async context manager.

    ``context``: any of the run's contexts, as an executor gets them.  The bridge is the run's coordinator while it is
    open: one at a time for each run, and not beside :data:`~dagster_taskiq.taskiq_executor`.  A second one takes the
    run over from the first, whose calls then raise.  Attempts that are under way when the bridge closes are stopped.

    Raises ``ConfigError``, ``SqsError`` or ``StoreError`` where the servers cannot be used."""

    def __init__(self, context: Any, settings: SettingsLike = None) -> None:
        self._context = context
        self._settings = _settings(settings)
        self._run = context.dagster_run
        self._ready: Future[None] = Future()
        self._waiting: dict[Key, Future[StepOutcome]] = {}
        self._messages: dict[Key, Message] = {}
        self._commands: deque[Callable[[RunCoordinator], None]] = deque()
        self._closing = False
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drive, name="dagster-taskiq-bridge", daemon=True)
        self._texts: dict[str, str] = {}

    async def __aenter__(self) -> StepBridge:
        self._texts = {
            payload.JOB_ORIGIN: serialize_value(self._context.job.get_python_origin()),
            payload.INSTANCE_REF: serialize_value(self._context.instance.get_ref()),
        }
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        self._thread.start()
        try:
            await asyncio.wrap_future(self._ready)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        self._closing = True
        self._wake()
        joined = asyncio.ensure_future(asyncio.to_thread(self._thread.join))
        try:
            await asyncio.shield(joined)
        finally:
            # Also when this is cancelled: the thread ends by itself, and needs the descriptors until then.
            joined.add_done_callback(lambda _: self._close_pipe())

    async def execute_step(
        self, step_context: Any, *, known_state: Any = None, attempt: int | None = None
    ) -> StepOutcome:
        """Run one attempt of a step on a worker and wait for its end.

        ``known_state``: Dagster's KnownExecutionState for the step; by default the step context's own, which only a
        context made with one has.  ``attempt``: by default one more than the known state counts.  An attempt that an
        earlier bridge has begun already is not run twice: this waits for its outcome.

        A coroutine that is cancelled has the attempt stopped; it does not wait for that."""
        self._check_open()
        step = step_context.step
        known = step_context.get_known_state() if known_state is None else known_state
        known = _dagster.KnownStates(step_context.plan_data.execution_plan).reduced(known, step, 0)
        number = attempt or known.previous_retry_attempts.get(step.key, 0) + 1
        own = tags.step_settings(step.key, step.tags, self._run.tags, self._settings)
        key = (step.key, number)
        if key in self._waiting:
            raise ValueError(f"attempt {number} of step {step.key!r} is under way already")
        stored: dict[str, str] = {}
        message = step_message(
            self._run,
            *key,
            payload.spill({**self._texts, payload.KNOWN_STATE: serialize_value(known)}, stored),
            stored,
            settings=self._settings,
            own=own,
            retry_mode=_dagster.retry_mode_name(step_context.plan_data.retry_mode.for_inner_plan()),
        )
        starting = _dagster.step_worker_starting(
            step_context,
            f'Sending step "{step.key}" to queue "{own.queue}" (attempt {number}).',
            {"queue": own.queue, _dagster.ATTEMPT_METADATA: number},
        )
        future: Future[StepOutcome] = Future()
        self._messages[key] = message
        self._waiting[key] = future
        self._call(lambda coordinator: coordinator.submit([(*key, own.queue)]))
        try:
            outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._call(lambda coordinator: coordinator.cancel_attempts([key]))
            raise
        outcome.events.insert(0, starting)
        return outcome

    def _check_open(self) -> None:
        """Before anything is logged of a step that would not be sent."""
        if self._error is not None:
            raise self._error
        if self._closing:
            raise DagsterTaskiqError("the step bridge is closed")
        if not self._ready.done():
            raise DagsterTaskiqError("the step bridge is not open: execute steps inside `async with StepBridge(...)`")

    def _call(self, command: Callable[[RunCoordinator], None]) -> None:
        with self._lock:
            if self._error is None:
                self._commands.append(command)
        self._wake()
        if self._error is not None:
            self._fail(self._error)

    def _wake(self) -> None:
        with self._lock:
            if self._wake_writer >= 0:
                os.write(self._wake_writer, b"x")

    def _close_pipe(self) -> None:
        with self._lock:
            if self._wake_writer >= 0:
                os.close(self._wake_reader)
                os.close(self._wake_writer)
                self._wake_writer = -1

    # ---- in the thread ----------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        error: BaseException = DagsterTaskiqError("the step bridge is closed")
        try:
            with ExitStack() as stack:
                coordinator = open_coordinator(
                    stack,
                    self._settings,
                    self._context,
                    lambda step_key, attempt: self._messages[step_key, attempt],
                    self._wake_reader,
                    on_superseded=_superseded,
                )
                self._begin(coordinator)
                self._ready.set_result(None)
                self._serve(coordinator)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._error = error
        self._fail(error)

    def _begin(self, coordinator: RunCoordinator) -> None:
        row = coordinator.begin()
        if row.state == "ended":
            raise DagsterTaskiqError(f"run {row.run_id} has ended; its steps cannot be executed any more")
        if row.previous_generation is not None:
            coordinator.take_over(row.unfenced)

    def _serve(self, coordinator: RunCoordinator) -> None:
        """Until the bridge closes, and what is under way then has been stopped."""
        while not self._closing:
            while self._commands:
                self._commands.popleft()(coordinator)
            self._take(coordinator, coordinator.wait(None))
        coordinator.cancel_attempts(list(self._messages))
        deadline = time.monotonic() + self._settings.lease_ttl + CLEAR_GRACE
        while coordinator.in_flight and (left := deadline - time.monotonic()) > 0:
            self._take(coordinator, coordinator.wait(left))

    def _take(self, coordinator: RunCoordinator, notices: list[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Ended):
                self._finish(self._ended(coordinator, notice.outcome))
            elif isinstance(notice, Refused):
                self._not_started((notice.step_key, notice.attempt), "the run is being cancelled")
            elif isinstance(notice, Rejected):
                self._not_started((notice.step_key, notice.attempt), f"SQS refused the message: {notice.reason}")
            elif isinstance(notice, Untaken):
                why = f"{notice.sends} messages to queue {notice.queue!r} vanished, and no worker claimed the step"
                self._not_started((notice.step_key, notice.attempt), why)
            elif isinstance(notice, Unserved):
                why = f"no worker serves queue {notice.queue!r}"
                log.warning("run %s: %s", self._run.run_id, why)
                for key in notice.attempts:
                    self._not_started(key, why)
            elif isinstance(notice, Declined):
                log.warning("run %s: %s", self._run.run_id, sentence(notice))
            elif isinstance(notice, Trouble):
                log.warning("run %s: %s", self._run.run_id, notice.message)
            elif isinstance(notice, Cancelling):
                coordinator.cancel()

    def _ended(self, coordinator: RunCoordinator, outcome: Outcome) -> StepOutcome:
        key = (outcome.step_key, outcome.attempt)
        events = _dagster.events_of_json(outcome.events or "[]")
        if outcome.claimed_at is not None and _dagster.terminal_event(events) is None:
            # Its process may have logged an end that it could not report: no statement of it may be under way.
            coordinator.fence([outcome.generation] if outcome.generation is not None else [])
            events = read_patiently(
                lambda: _dagster.attempt_events(self._context.instance, self._run.run_id, [key])[key],
                coordinator.idle,
                self._run.run_id,
            )
        return _outcome(outcome, events)

    def _not_started(self, key: Key, why: str) -> None:
        self._finish(StepOutcome(*key, "not_started", [], f"Step {key[0]!r} never started: {why}."))

    def _finish(self, outcome: StepOutcome) -> None:
        key = (outcome.step_key, outcome.attempt)
        self._messages.pop(key, None)
        future = self._waiting.pop(key, None)
        if future is not None:
            with contextlib.suppress(InvalidStateError):  # its coroutine was cancelled
                future.set_result(outcome)

    def _fail(self, error: BaseException) -> None:
        futures: list[Future[Any]] = [self._ready, *list(self._waiting.values())]
        for future in futures:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        self._waiting.clear()


def _superseded(run_id: str, generation: int) -> NoReturn:
    raise DagsterTaskiqError(f"run {run_id}: coordinator generation {generation} is superseded by another")


def _outcome(row: Outcome, events: list[DagsterEvent]) -> StepOutcome:
    final = _dagster.terminal_event(events)
    state: State = "failed" if final is None else _STATES[final.event_type_value]
    if row.claimed_at is None:
        state = "not_started"
    elif row.state == "cancelled" and state == "failed":
        state = "cancelled"
    elif row.state == "lost" and final is None:
        state = "lost"
    error = None
    if final is None:
        error = (json.loads(row.error).get("message") if row.error else None) or row.reason or row.state
    return StepOutcome(
        step_key=row.step_key,
        attempt=row.attempt,
        state=state,
        events=events,
        error=error,
        worker=row.worker_name or row.owner,
        host=row.host,
        generation=row.generation,
        waited_seconds=None if row.claimed_at is None else row.claimed_at - row.queued_at,
        ran_seconds=None if row.started_at is None or row.finished_at is None else row.finished_at - row.started_at,
    )


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Shared:
    """A bridge of several calls for one run."""

    bridge: StepBridge
    settings: Settings
    opening: asyncio.Task[StepBridge]
    users: int = field(default=0)


_shared: dict[tuple[asyncio.AbstractEventLoop, str], _Shared] = {}


async def execute_step(
    step_context: Any, settings: SettingsLike = None, *, known_state: Any = None, attempt: int | None = None
) -> StepOutcome:
    """:meth:`StepBridge.execute_step` with a bridge that is opened for it.  Calls for one run that are made on one
    event loop at the same time share it, so they must have the same settings; where many follow each other, open a
    :class:`StepBridge`, which costs one connection and not one for each step."""
    wanted = _settings(settings)
    key = (asyncio.get_running_loop(), step_context.dagster_run.run_id)
    shared = _shared.get(key)
    if shared is None:
        bridge = StepBridge(step_context, wanted)
        shared = _shared[key] = _Shared(bridge, wanted, asyncio.ensure_future(bridge.__aenter__()))
    elif differing := _differing(wanted, shared.settings):
        raise ConfigError(
            f"a step of run {key[1]} is under way with other settings ({', '.join(differing)}): give calls of"
            " execute_step that overlap the same ones"
        )
    shared.users += 1
    try:
        await asyncio.shield(shared.opening)
        return await shared.bridge.execute_step(step_context, known_state=known_state, attempt=attempt)
    finally:
        shared.users -= 1
        if not shared.users:
            _shared.pop(key, None)
            await _end(shared)


def _settings(given: SettingsLike) -> Settings:
    return given if isinstance(given, Settings) else Settings.from_config(given or {})


def _differing(one: Settings, other: Settings) -> list[str]:
    return [each.name for each in fields(Settings) if getattr(one, each.name) != getattr(other, each.name)]


async def _end(shared: _Shared) -> None:
    """Also one that is still being opened, or could not be."""
    await asyncio.wait({shared.opening})
    if not shared.opening.cancelled() and shared.opening.exception() is None:
        await shared.bridge.__aexit__()
