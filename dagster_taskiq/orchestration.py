"""One run under the executor: Dagster's plan on one side, the coordinator's rows and messages on the other.

Everything that becomes an event of the run goes through here.  The order after a loss: the row is lost, the step's
connections to Dagster's event log are ended, the log is read, and only then is decided: an end that is in the log is
adopted, otherwise the step is run again or has failed."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeVar

from dagster import (
    DagsterEvent,
    DagsterExecutionInterruptedError,
    DagsterRun,
    DagsterRunStatus,
    Executor,
    serialize_value,
)

from dagster_taskiq import _dagster, payload, refusals, stories, tags
from dagster_taskiq._core import Loop
from dagster_taskiq.config import Settings
from dagster_taskiq.connection_guard import ConnectionGuard, marked_connections
from dagster_taskiq.connection_reuse import ConnectionReuse
from dagster_taskiq.coordinator import SUPERSEDED_STATUS, RunCoordinator
from dagster_taskiq.errors import DagsterTaskiqError
from dagster_taskiq.inline import InlineWorker, inline_requested
from dagster_taskiq.migrations import migrate
from dagster_taskiq.notices import (
    Cancelling,
    Declined,
    Ended,
    Key,
    Notice,
    Progressed,
    Refused,
    Rejected,
    Trouble,
    Unserved,
    Untaken,
)
from dagster_taskiq.requests import signal_wakeup
from dagster_taskiq.sender import MakeMessage, Message
from dagster_taskiq.sqs import make_client
from dagster_taskiq.store import NOT_RUN, RunRow, run_application_name
from dagster_taskiq.stores import open_stores
from dagster_taskiq.takeover import RunSoFar, StepSoFar

log = logging.getLogger(__name__)
T = TypeVar("T")

SUBMIT: Final = 10
"""Steps that get their rows and messages together."""

SUBMIT_AT_ONCE: Final = 200
"""Steps that are sent before it is looked what else has happened."""

SEND_PATIENCE: Final = 0.02
"""Seconds to wait for rows, so that their messages are on their way before it is told how other steps ended."""

READ_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)
"""Seconds between attempts to read Dagster's log: a minute, as a fail-over may take."""

NEUTRAL_LIMIT: Final[Mapping[str, Any]] = {"key": "dagster-taskiq/no-such-tag", "limit": 1_000_000}
"""A tag limit that limits nothing: the list may not be empty when the plan starts, else what is put into it later has
no effect."""


def open_coordinator(
    stack: ExitStack, settings: Settings, context: Any, make_message: MakeMessage, wake_fd: int | None, **options: Any
) -> RunCoordinator:
    """The coordinator of the run that ``context`` belongs to, with connections of its own, which ``stack`` closes."""
    loop = Loop()
    stack.callback(loop.close)
    log_stores = open_stores(
        loop, settings, context.instance, application_name="dagster-taskiq-coordinator", whose="executor"
    )
    store = log_stores[0]
    migrate(store)
    return RunCoordinator(
        settings,
        context.dagster_run.run_id,
        loop=loop,
        store=store,
        log_stores=log_stores,
        sqs=make_client(loop, region=settings.region, endpoint=settings.endpoint_url),
        make_message=make_message,
        wake_fd=wake_fd,
        **options,
    )


def step_message(
    run: DagsterRun,
    step_key: str,
    attempt: int,
    parts: Mapping[str, str | payload.StoredPart],
    stored: Mapping[str, str],
    *,
    settings: Settings,
    own: tags.StepSettings,
    retry_mode: str,
    live_outputs: bool = False,
) -> Message:
    """``parts``: of the message; ``stored``: digest -> text of those that it only names; ``own``: the settings of the
    step."""
    task = payload.StepTask(
        run_id=run.run_id,
        step_key=step_key,
        attempt=attempt,
        job_name=run.job_name,
        queue=own.queue,
        code_location=_dagster.code_location_of(run),
        lease_ttl=own.lease_ttl,
        heartbeat=settings.heartbeat_interval,
        visibility=own.visibility_timeout,
        sent_at=time.time(),
        retry_mode=retry_mode,
        parts=parts,
        time_limit=own.time_limit,
        memory_limit=own.memory_limit,
        live_outputs=live_outputs,
    )
    return Message(payload.pack(task, signing_key=settings.signing_key), stored, own.group)


def read_patiently(read: Callable[[], T], idle: Callable[[float], None], run_id: str) -> T:
    """What Dagster's storage says.  While its PostgreSQL is away it is asked again: Dagster itself would not."""
    for pause in READ_PAUSES:
        try:
            return read()
        except Exception as error:
            if not _dagster.is_outage(error):
                raise
            log.warning("run %s: trying again to read Dagster's log: %s", run_id, error)
        idle(pause)
    return read()


class RunOrchestration:
    """Drives one run to its end; :meth:`events` is the executor's generator."""

    def __init__(
        self, executor: Executor, settings: Settings, dependency_config: Any, plan_context: Any, plan: Any
    ) -> None:
        self._executor = executor
        self._settings = settings
        self._context = plan_context
        self._instance = plan_context.instance
        self._run = plan_context.dagster_run
        self._plan = plan
        self._dependency_config = dependency_config
        self._pools = _dagster.PoolSlots(self._instance, self._run)
        self._limits: list[dict[str, Any]] = [dict(NEUTRAL_LIMIT)]
        self._losses: dict[str, int] = {}
        self._retry_times: dict[str, float] = {}
        self._first: set[str] = set()
        self._ready: list[str] = []
        self._sent: dict[str, Any] = {}
        self._known_states = _dagster.KnownStates(plan)
        self._live_outputs = _dagster.feeds_outputs_live(dependency_config)
        self._fed: set[tuple[str, str]] = set()
        self._stopping = False
        self._stored: dict[str, str] = {}
        self._parts = payload.spill(
            {
                payload.JOB_ORIGIN: _dagster.job_origin_of(plan_context),
                payload.INSTANCE_REF: serialize_value(self._instance.get_ref()),
            },
            self._stored,
        )
        self._step_retry_mode = _dagster.retry_mode_name(executor.retries.for_inner_plan())
        self._step_settings: dict[str, tags.StepSettings] = {}
        self._untold: list[tuple[Any, Ended, DagsterEvent]] = []
        self._more_ready = False
        self._uneven = False

    # ---- from the first event to the last ---------------------------------------------------------------------------

    def events(self) -> Iterator[DagsterEvent]:
        self._check_tags()
        with ExitStack() as stack:
            self._coordinator = self._connect(stack)
            row = self._coordinator.begin()
            if row.state == "ended":
                yield from self._after_the_end(stack, row)
                return
            stack.enter_context(marked_connections(run_application_name(row.generation)))
            if self._settings.reuse_connections:
                reuse = ConnectionReuse(log.warning)
                stack.callback(reuse.close)
                reuse.install()
            guard = ConnectionGuard(self._coordinator.leave_if_superseded)
            guard.install()
            stack.callback(guard.close)
            settle = stack.enter_context(ExitStack())
            settle.callback(self._coordinator.end)
            try:
                yield from self._from_begin_to_end(row, stack, settle)
            except Exception as error:
                self._leave_after_outage(error)
                raise

    def _check_tags(self) -> None:
        """Of all steps, before the first one starts.  Raises ``ConfigError``."""
        for step in self._plan.steps:
            self._settings_of(step)

    def _settings_of(self, step: Any) -> tags.StepSettings:
        known = self._step_settings.get(step.key)
        if known is None:
            known = tags.step_settings(step.key, step.tags, self._run.tags, self._settings)
            self._step_settings[step.key] = known
        return known

    def _from_begin_to_end(self, row: RunRow, stack: ExitStack, settle: ExitStack) -> Iterator[DagsterEvent]:
        yield _dagster.engine_event(
            self._context,
            f"Sending steps to queue {self._settings.queue!r} (run worker pid {os.getpid()}, coordinator generation"
            f" {row.generation}).",
            {"queue": self._settings.queue, "coordinator_generation": row.generation, "pid": str(os.getpid())},
        )
        yield from self._about_tags()
        self._start_plan(stack)
        if row.previous_generation is not None:
            yield from self._take_over(row.previous_generation, row.unfenced)
        self._limits[:] = [dict(limit) for limit in self._settings.tag_concurrency_limits]
        yield from self._drive(settle)

    def _about_tags(self) -> Iterator[DagsterEvent]:
        """Those that the user may want to correct."""
        of_steps = [step.tags for step in self._plan.steps]
        if celery := tags.celery_tags_in_use(self._run.tags, of_steps):
            names = ", ".join(f"{theirs} ({ours})" for theirs, ours in sorted(celery.items()))
            yield _dagster.engine_event(
                self._context, f"Tags of dagster-celery are honoured; their names here are in brackets: {names}."
            )
        if unknown := tags.unknown_tags(self._run.tags, of_steps):
            names = ", ".join(
                tag + (f" (is {meant} meant?)" if meant else "") for tag, meant in sorted(unknown.items())
            )
            yield _dagster.engine_event(self._context, f"These tags are not known and change nothing: {names}.")

    def _leave_after_outage(self, error: Exception) -> None:
        """Dagster's database went away under an event, which may or may not be in the log: to write it again could
        write it twice.  A run worker that takes the run over reads how far it came, so leave the run to it, if there
        will be one."""
        if not _dagster.is_outage(error):
            return
        try:
            resumed = self._read(self._is_left_to_another)
        except Exception as second:
            log.warning("run %s: nobody can tell whether it will be resumed: %s", self._run.run_id, second)
            return
        if resumed:
            print(
                f"dagster-taskiq: run {self._run.run_id}: this run worker leaves, for an event could not be written"
                f" ({error}). Its steps go on: another run worker will take the run over.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(SUPERSEDED_STATUS)

    def _is_left_to_another(self) -> bool:
        """Whether Dagster starts another run worker when this one leaves: one that was launched.  It says so of every
        run, but `dagster job execute` is its run's only process."""
        run = self._instance.get_run_by_id(self._run.run_id)
        asked = run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
        launched = bool(_dagster.code_location_of(run))
        return launched and not asked and bool(self._instance.run_will_resume(self._run.run_id))

    def _after_the_end(self, stack: ExitStack, row: RunRow) -> Iterator[DagsterEvent]:
        """A coordinator before this one has ended the run.  There is nothing more to say; or it died before it could
        say so, maybe before the last claim was settled, and the log has how each step ended."""
        self._coordinator.end()
        if self._instance.get_run_by_id(self._run.run_id).is_finished:
            print(
                f"dagster-taskiq: run {self._run.run_id} is over; this run worker leaves.", file=sys.stderr, flush=True
            )
            # An exception would make Dagster write a failure after the run's end.
            os._exit(SUPERSEDED_STATUS)
        self._start_plan(stack)
        yield from self._take_over(row.generation, [*row.unfenced, row.generation])
        if not self._active.is_complete:
            raise DagsterTaskiqError(f"run {self._run.run_id} has ended already; its steps cannot be taken up again.")

    def _start_plan(self, stack: ExitStack) -> None:
        stack.enter_context(self._pools)
        self._active = stack.enter_context(
            _dagster.start_plan(
                self._plan,
                sort_key=self._sort_key,
                tag_concurrency_limits=self._limits,
                pools=self._pools,
                step_dependency_config=self._dependency_config,
            )
        )

    def _connect(self, stack: ExitStack) -> RunCoordinator | InlineWorker:
        settings = self._settings
        if inline_requested():
            return InlineWorker(settings, self._run.run_id, self._message)
        wake_fd = stack.enter_context(signal_wakeup())
        return open_coordinator(stack, settings, self._context, self._message, wake_fd, live_outputs=self._live_outputs)

    def _drive(self, settle: ExitStack) -> Iterator[DagsterEvent]:
        coordinator = self._coordinator
        while True:
            if self._active.check_for_interrupts():
                if self._stopping:
                    raise DagsterExecutionInterruptedError()
                yield from self._interrupted(settle)
            if not self._stopping:
                yield from self._advance()
            yield from self._tell()
            if self._active.is_complete if not self._stopping else not coordinator.in_flight:
                break
            yield from self._handle(coordinator.wait(self._patience()))
        if self._stopping:
            yield _dagster.engine_event(self._context, "No step of this run is running any more.")
            raise DagsterExecutionInterruptedError()
        yield _dagster.engine_event(self._context, f"All steps have ended (run worker pid {os.getpid()}).")

    def _advance(self) -> Iterator[DagsterEvent]:
        """Send what may run now; skip what has to be skipped, which can make further steps ready."""
        while True:
            self._ready.clear()
            limit = self._settings.max_concurrent
            room = SUBMIT_AT_ONCE if limit is None else min(SUBMIT_AT_ONCE, max(0, limit - len(self._sent)))
            steps = self._active.get_steps_to_execute(limit=room)
            yield from self._active.concurrency_event_iterator(self._context)
            yield from self._submit(steps)
            self._more_ready = len(steps) == SUBMIT_AT_ONCE
            # Each question to the plan takes the longer the more steps it has.
            skipped = list(self._active.plan_events_iterator(self._context)) if self._uneven else []
            yield from skipped
            if not skipped:
                return
            self._known_states.mappings_changed()

    def _patience(self) -> float | None:
        """Seconds until a step may be ready without anything having happened; None: never."""
        if self._stopping:
            return None
        if self._more_ready:
            return 0.0
        pauses = [moment - time.time() + 0.01 for moment in self._retry_times.values()]
        if self._pools.has_pending_claims():
            pauses.append(self._pools.interval_to_next_pending_claim_check())
        return max(0.02, min(pauses)) if pauses else None

    # ---- stopping ---------------------------------------------------------------------------------------------------

    def _interrupted(self, settle: ExitStack) -> Iterator[DagsterEvent]:
        """SIGINT or SIGTERM."""
        running = {"steps_in_flight": str(sorted(self._sent))}
        if self._is_left_to_another():
            settle.pop_all()
            self._active.mark_interrupted()
            yield _dagster.engine_event(
                self._context,
                "The run worker was told to stop. Its steps go on: another run worker will take the run over.",
                running,
            )
            raise DagsterExecutionInterruptedError()
        yield _dagster.engine_event(
            self._context, "The run worker was told to stop: stopping the running steps.", running
        )
        self._say_that_it_is_cancelled()
        self._stop()

    def _say_that_it_is_cancelled(self) -> None:
        """Of a run that nobody launched, but that Dagster believes will be resumed: it would leave the status as it is,
        for ever."""
        run = self._instance.get_run_by_id(self._run.run_id)
        if run.status is DagsterRunStatus.STARTED and self._instance.run_will_resume(run.run_id):
            self._instance.report_run_canceling(run, "The run's only process was told to stop.")

    def _stop(self) -> None:
        self._stopping = True
        self._active.mark_interrupted()
        self._coordinator.cancel()

    # ---- sending ----------------------------------------------------------------------------------------------------

    def _sort_key(self, step: Any) -> tuple[int, int]:
        """Asked of every step that could run now, each time the plan is asked for steps."""
        self._ready.append(step.key)
        return (0 if step.key in self._first else 1), -self._settings_of(step).priority

    def _submit(self, steps: Sequence[Any]) -> Iterator[DagsterEvent]:
        for start in range(0, len(steps), SUBMIT):
            attempts = []
            for step in steps[start : start + SUBMIT]:
                self._sent[step.key] = step
                self._retry_times.pop(step.key, None)
                attempts.append((step.key, self._next_attempt(step.key), self._settings_of(step).queue))
            # The rows go into the store while the events are written; a message may go when its event is in the log.
            self._coordinator.submit(attempts, held=True)
            for step_key, attempt, queue in attempts:
                yield self._starting(step_key, attempt, queue)
            self._coordinator.release([(step_key, attempt) for step_key, attempt, _ in attempts])
            self._coordinator.poll()

    def _starting(self, step_key: str, attempt: int, queue: str) -> DagsterEvent:
        return _dagster.step_worker_starting(
            self._context.for_step(self._sent[step_key]),
            f'Sending step "{step_key}" to queue "{queue}" (attempt {attempt}).',
            {"queue": queue, _dagster.ATTEMPT_METADATA: attempt},
        )

    def _next_attempt(self, step_key: str) -> int:
        return int(self._active.retry_state.get_attempt_count(step_key)) + 1

    def _message(self, step_key: str, attempt: int) -> Message:
        step = self._sent[step_key]
        known_state = self._known_states.text(self._active, step, self._losses.get(step_key, 0))
        stored = dict(self._stored)
        return step_message(
            self._run,
            step_key,
            attempt,
            {**self._parts, **payload.spill({payload.KNOWN_STATE: known_state}, stored)},
            stored,
            settings=self._settings,
            own=self._settings_of(step),
            retry_mode=self._step_retry_mode,
            live_outputs=self._live_outputs,
        )

    # ---- outcomes ---------------------------------------------------------------------------------------------------

    def _handle(self, notices: Sequence[Notice]) -> Iterator[DagsterEvent]:
        yield from self._settle([notice for notice in notices if isinstance(notice, Ended)])
        self._look_for_outputs({key for notice in notices if isinstance(notice, Progressed) for key in notice.attempts})
        for notice in notices:
            if isinstance(notice, Cancelling):
                if not self._stopping:
                    yield _dagster.engine_event(
                        self._context, "The run is being cancelled: stopping the running steps."
                    )
                    self._stop()
            elif isinstance(notice, Refused):
                self._forget(notice.step_key)
            elif isinstance(notice, Declined):
                about = {"step_key": notice.step_key, "queue": notice.queue, "worker": notice.worker}
                yield _dagster.engine_event(self._context, refusals.sentence(notice), about)
            elif isinstance(notice, Trouble):
                yield _dagster.engine_event(self._context, notice.message)
            elif isinstance(notice, Unserved):
                yield from self._unserved(notice)
            elif isinstance(notice, Untaken):
                reason = (
                    f"{notice.sends} messages were sent for the step to queue {notice.queue!r}. They vanished, and"
                    " no worker claimed the step. They may be in the queue's dead-letter queue: those that a worker"
                    " refused have the reason as an attribute, others were received too often (maxReceiveCount)."
                )
                yield self._fail(notice.step_key, reason)
            elif isinstance(notice, Rejected):
                yield self._fail(notice.step_key, f"SQS refused the step's message: {notice.reason}")

    def _unserved(self, notice: Unserved) -> Iterator[DagsterEvent]:
        hint = (
            f"No worker serves queue {notice.queue!r}, where steps have waited for up to {notice.waited:.0f} s."
            f" Start one with `dagster-taskiq worker start --queue {notice.queue}` and this run's database and SQS"
            " settings. If one runs, its settings are others than this run's: compare database_url, region,"
            " endpoint_url and queue."
        )
        if not notice.attempts:
            yield _dagster.engine_event(self._context, hint, {"queue": notice.queue, "steps_waiting": notice.waiting})
        for step_key, _ in notice.attempts:
            yield self._fail(step_key, hint)

    def _settle(self, ended: Sequence[Ended]) -> Iterator[DagsterEvent]:
        """Turn terminal rows into events of the run."""
        events = {notice: _dagster.events_of_json(notice.outcome.events or "[]") for notice in ended}
        silent = [
            notice
            for notice in ended
            if notice.outcome.claimed_at is not None and _dagster.terminal_event(events[notice]) is None
        ]
        if silent:
            self._coordinator.fence(
                notice.outcome.generation for notice in silent if notice.outcome.generation is not None
            )
            keys = {notice: (notice.outcome.step_key, notice.outcome.attempt) for notice in silent}
            logged = self._read_attempts(keys.values())
            events.update((notice, logged[key]) for notice, key in keys.items())
        for notice in ended:
            yield from self._settle_one(notice, events[notice])

    def _look_for_outputs(self, keys: Iterable[Key]) -> None:
        """Feed what attempts that go on have given so far."""
        wanted = [key for key in keys if key[0] in self._sent and self._may_give_more(self._sent[key[0]])]
        if wanted and not self._stopping:
            for (step_key, _), events in self._read_attempts(wanted).items():
                self._feed_outputs(_dagster.stored_outputs(self._sent[step_key], events))

    def _may_give_more(self, step: Any) -> bool:
        return any(not one.is_dynamic and (step.key, one.name) not in self._fed for one in step.step_outputs)

    def _read_attempts(self, keys: Iterable[Key]) -> dict[Key, list[DagsterEvent]]:
        return self._read(lambda: _dagster.attempt_events(self._instance, self._run.run_id, keys))

    def _feed_outputs(self, events: Iterable[DagsterEvent]) -> None:
        """Each once: the plan counts mapping keys."""
        for event in events:
            output = event.step_output_data.step_output_handle
            if output.mapping_key is None:
                if (output.step_key, output.output_name) in self._fed:
                    continue
                self._fed.add((output.step_key, output.output_name))
            self._active.handle_event(event)
            self._known_states.output(output)

    def _read(self, read: Callable[[], T]) -> T:
        return read_patiently(read, self._coordinator.idle, self._run.run_id)

    def _settle_one(self, notice: Ended, events: list[DagsterEvent]) -> Iterator[DagsterEvent]:
        outcome = notice.outcome
        step_key = outcome.step_key
        context = self._context.for_step(self._active.get_step_by_key(step_key))
        yield from events
        if outcome.claimed_at is None:
            why = f'Step "{step_key}" never started: {outcome.reason}.'
            if not self._stopping and self._coordinator.is_active():
                # Taken back from the queue by a coordinator that did not come to say so.
                yield self._fail(step_key, why)
                return
            yield _dagster.engine_event(context, why, {"queue": notice.queue})
            self._forget(step_key)
            if not self._stopping:
                self._stop()
            return
        terminal = _dagster.terminal_event(events)
        if terminal is not None and terminal.is_step_success:
            # First let those start that have waited for it.
            self._feed(events, terminal)
            self._untold.append((context, notice, terminal))
            return
        if terminal is None and outcome.reason == NOT_RUN and (status := self._ended_elsewhere()):
            why = f'Step "{step_key}" was not run, because the run is {status.value}.'
            yield _dagster.engine_event(context, why, {"queue": notice.queue})
            self._forget(step_key)
            if not self._stopping:
                self._stop()
            return
        hint = stories.memory_hint(self._settings_of(context.step).memory_limit, events, outcome)
        yield self._story(context, notice, terminal, hint)
        if terminal is None:
            terminal = self._decide(context, notice, events, hint)
            yield terminal
        self._feed(events, terminal)

    def _ended_elsewhere(self) -> DagsterRunStatus | None:
        """How somebody has ended the run, as by "force termination" in Dagster's UI; None: nobody has.  Dagster runs no
        step of such a run, and no event of ours may follow that changes how it ended."""
        status = self._read(lambda: self._instance.get_run_by_id(self._run.run_id)).status
        return None if status is DagsterRunStatus.STARTED else status

    def _tell(self) -> Iterator[DagsterEvent]:
        """Where the steps ran that have succeeded."""
        if self._untold:
            self._coordinator.send_out(SEND_PATIENCE)
        untold, self._untold = self._untold, []
        for context, notice, terminal in untold:
            yield self._story(context, notice, terminal)
            self._coordinator.poll()

    def _story(self, context: Any, notice: Ended, terminal: DagsterEvent | None, hint: str = "") -> DagsterEvent:
        said = stories.story(notice.outcome, terminal) + hint
        return _dagster.engine_event(context, said, stories.details(notice))

    def _decide(self, context: Any, notice: Ended, events: list[DagsterEvent], hint: str) -> DagsterEvent:
        """The event that ends an attempt whose process could not log one."""
        outcome = notice.outcome
        step_key = outcome.step_key
        if outcome.state == "lost" and not self._stopping:
            losses = self._losses[step_key] = self._losses.get(step_key, 0) + 1
            worker = outcome.worker_name or outcome.owner
            lost = f'Attempt {outcome.attempt} of step "{step_key}" was lost with worker {worker}: {outcome.reason}.'
            allowed = self._settings_of(context.step).worker_loss_retries
            if losses <= allowed:
                return _dagster.step_lost_event(context, f"{lost} The step runs again.")
            again = f" It has been lost {losses} time{'s' * (losses > 1)}; worker_loss_retries is {allowed}."
            return _dagster.step_failure_event(context, _dagster.error_info(lost + again, _dagster.LOST_ERROR))
        if self._stopping or outcome.state == "cancelled":
            why = f'Step "{step_key}" was stopped because the run is ending ({outcome.reason or outcome.state}).'
            return _dagster.step_failure_event(context, _dagster.error_info(why, "DagsterExecutionInterruptedError"))
        init = next((event for event in events if event.is_resource_init_failure), None)
        error = (
            init.engine_event_data.error
            if init is not None
            else _dagster.error_info(stories.crash(outcome) + hint, "StepProcessCrashed")
        )
        known = self._known_states.known(self._active, context.step, self._losses.get(step_key, 0))
        return _dagster.failure_or_retry_event(self._executor, context, error, known)

    def _feed(self, events: Sequence[DagsterEvent], terminal: DagsterEvent) -> None:
        """Tell the plan how a step ended.  Outputs count only when the attempt was the last one."""
        step_key = str(terminal.step_key)
        step = self._active.get_step_by_key(step_key)
        if any(output.is_dynamic for output in step.step_outputs):
            self._known_states.mappings_changed()
        if not (terminal.is_step_up_for_retry or (terminal.is_step_success and self._gave_everything(step, events))):
            # From now on steps may have to be skipped, some of them only when further ones have succeeded.
            self._uneven = True
        if terminal.is_step_skipped:
            self._active.mark_skipped(step_key)
            self._pools.free_step(step_key)
        else:
            self._feed_outputs(self._outputs_that_count(events, terminal))
            self._active.handle_event(terminal)
            if terminal.is_step_up_for_retry and terminal.step_retry_data.seconds_to_wait:
                self._retry_times[step_key] = time.time() + terminal.step_retry_data.seconds_to_wait
        self._sent.pop(step_key, None)

    @staticmethod
    def _gave_everything(step: Any, events: Sequence[DagsterEvent]) -> bool:
        given = {event.step_output_data.output_name for event in events if event.is_successful_output}
        return all(output.name in given for output in step.step_outputs)

    def _outputs_that_count(self, events: Sequence[DagsterEvent], terminal: DagsterEvent) -> list[DagsterEvent]:
        if terminal.is_step_up_for_retry and not self._live_outputs:
            return []
        if terminal.is_step_success:
            return [event for event in events if event.is_successful_output]
        return _dagster.stored_outputs(self._active.get_step_by_key(terminal.step_key), events)

    def _fail(self, step_key: str, reason: str) -> DagsterEvent:
        context = self._context.for_step(self._active.get_step_by_key(step_key))
        event = _dagster.step_failure_event(context, _dagster.error_info(reason, "StepNeverStarted"))
        self._feed((), event)
        return event

    def _forget(self, step_key: str) -> None:
        """A step that never started in a run that ends."""
        self._sent.pop(step_key, None)
        self._pools.free_step(step_key)

    # ---- taking over ------------------------------------------------------------------------------------------------

    def _take_over(self, previous: int, unfenced: Sequence[int]) -> Iterator[DagsterEvent]:
        """Continue where another run worker stopped.

        No limit acts meanwhile: only steps that were under way or had ended are taken out of the plan here, and those
        hold what they need."""
        rows = self._coordinator.take_over(unfenced)
        logged = self._read(
            lambda: _dagster.logged_steps(self._instance, self._run.run_id, progress=self._live_outputs)
        )
        so_far = RunSoFar(rows, logged)
        yield _dagster.engine_event(
            self._context, f"Taking the run over from coordinator generation {previous}.", so_far.counts
        )
        self._pools.adopting = True
        try:
            while True:
                yield from self._replay_skips(so_far)
                self._ready.clear()
                self._active.get_steps_to_execute(limit=0)
                self._first = {key for key in self._ready if so_far.knows(key, self._next_attempt(key))}
                if not self._first:
                    return
                for step in self._active.get_steps_to_execute(limit=len(self._first)):
                    yield from self._adopt(step, so_far.take(step.key, self._next_attempt(step.key)))
        finally:
            self._first = set()
            self._pools.adopting = False

    def _adopt(self, step: Any, so_far: StepSoFar) -> Iterator[DagsterEvent]:
        self._losses[step.key] = so_far.losses
        if self._live_outputs:
            self._feed_outputs(_dagster.stored_outputs(step, so_far.history))
        for _ in range(so_far.attempts_over):
            self._active.retry_state.mark_attempt(step.key)
        if so_far.row is not None:
            self._sent[step.key] = step
            if so_far.row.state == "queued" and not so_far.announced:
                yield self._starting(step.key, so_far.row.attempt, so_far.row.queue)
            self._coordinator.adopt(so_far.row)
        elif so_far.final is not None:
            yield from so_far.events
            self._feed(so_far.events, so_far.final)
        else:
            self._active.mark_up_for_retry(step.key, so_far.retry_at)
            self._retry_times[step.key] = so_far.retry_at
            self._pools.free_step(step.key)

    def _replay_skips(self, so_far: RunSoFar) -> Iterator[DagsterEvent]:
        """Skip what has to be skipped, without a second event, and leave out what follows a failure."""
        while steps := self._active.get_steps_to_skip():
            for step in steps:
                if not so_far.has_ended(step.key):
                    yield _dagster.step_skipped_event(self._context.for_step(step))
                self._active.mark_skipped(step.key)
            self._uneven = True
            self._known_states.mappings_changed()
        while steps := self._active.get_steps_to_abandon():
            for step in steps:
                self._active.mark_abandoned(step.key)
