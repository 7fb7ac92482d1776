"""The seam to Dagster.

What the package needs from Dagster that Dagster does not export is obtained here, without importing a private module:
classes through ``type(deserialize_value(...))`` of their documented wire form, the rest through attributes of objects
that Dagster hands to an executor.  Each entry says why it is needed and which public API would replace it;
``tests/executor/test_seam.py`` has a test for each.

Elsewhere is what makes steps cheaper and is done without where Dagster has changed: ``warm_jobs``, ``compute_logs``
and ``step_process.hand_over`` (``docs/internals/dagster-seam.md``)."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultRunLauncher,
    Executor,
    deserialize_value,
    serialize_value,
)

from dagster_taskiq import tags

TERMINAL_EVENTS: Final = frozenset(
    {
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.STEP_SKIPPED,
    }
)
"""Each attempt ends with exactly one of these."""

STATE_EVENTS: Final = TERMINAL_EVENTS | {
    DagsterEventType.STEP_WORKER_STARTING,
    DagsterEventType.STEP_OUTPUT,
    DagsterEventType.RESOURCE_INIT_FAILURE,
}
"""What is read back from the event log: enough to tell how an attempt ended and what it gave."""

PROGRESS_EVENTS: Final = frozenset(
    {DagsterEventType.HANDLED_OUTPUT, DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_OBSERVATION}
)
"""What follows an output in the log when it has been stored."""

_PROOFS: Final = PROGRESS_EVENTS | {DagsterEventType.STEP_OUTPUT, DagsterEventType.STEP_SUCCESS}

ATTEMPT_METADATA: Final = "attempt"
"""Metadata key under which our STEP_WORKER_STARTING events carry the attempt's number."""

LOST_ERROR: Final = "StepAttemptLost"
"""Error class in the retry event of an attempt that was lost with its worker, by which such retries are told from the
op's own."""

_LOG_PAGE: Final = 1000


class DagsterSeamError(RuntimeError):
    """The installed Dagster does not offer something that this package relies on; the message says what."""


# ---- records and enums ----------------------------------------------------------------------------------------------


@cache
def _class_of(wire_form: str, name: str) -> type:
    try:
        return type(deserialize_value(wire_form))
    except Exception as error:
        raise DagsterSeamError(
            f"Dagster's record {name} cannot be built from its wire form in this version: {error}"
        ) from error


def error_info(message: str, cls_name: str | None = None, stack: Sequence[str] = ()) -> Any:
    """Dagster's SerializableErrorInfo.

    Why: retry and failure events carry one.  Would be replaced by: exporting the class."""
    wire = json.dumps(
        {"__class__": "SerializableErrorInfo", "message": "", "stack": [], "cls_name": None, "cause": None}
    )
    return _class_of(wire, "SerializableErrorInfo")(message=message, stack=list(stack), cls_name=cls_name)


def engine_event_data(metadata: Mapping[str, Any] | None = None, error: Any = None) -> Any:
    """Dagster's EngineEventData.

    Why: engine events cannot be made without it.  Would be replaced by: exporting the class."""
    wire = json.dumps(
        {
            "__class__": "EngineEventData",
            "metadata_entries": [],
            "error": None,
            "marker_start": None,
            "marker_end": None,
        }
    )
    return _class_of(wire, "EngineEventData")(metadata=metadata or {}, error=error)


def _step_retry_data(error: Any, seconds_to_wait: float | None) -> Any:
    wire = json.dumps(
        {"__class__": "StepRetryData", "error": json.loads(serialize_value(error)), "seconds_to_wait": None}
    )
    return _class_of(wire, "StepRetryData")(error=error, seconds_to_wait=seconds_to_wait)


def _step_failure_data(error: Any) -> Any:
    wire = json.dumps({"__class__": "StepFailureData", "error": None, "user_failure_data": None})
    return _class_of(wire, "StepFailureData")(error=error, user_failure_data=None)


def retry_mode(name: str) -> Any:
    """Dagster's RetryMode by its name ("ENABLED", "DISABLED", "DEFERRED").

    Why: executors have a retry mode and plans are started with one.  Would be replaced by: exporting the enum."""
    try:
        return deserialize_value(json.dumps({"__enum__": f"RetryMode.{name}"}))
    except Exception as error:
        raise DagsterSeamError(f"Dagster's RetryMode.{name} cannot be had in this version: {error}") from error


def retry_mode_name(mode: Any) -> str:
    """The inverse of :func:`retry_mode`."""
    return str(json.loads(serialize_value(mode))["__enum__"]).rpartition(".")[2]


# ---- events ---------------------------------------------------------------------------------------------------------


def engine_event(
    context: Any, message: str, metadata: Mapping[str, Any] | None = None, error: Any = None
) -> DagsterEvent:
    """Write an engine event of a run or (with a step's context) of a step into the log; the caller yields it.

    Why: ``DagsterEvent.engine_event`` is public but takes EngineEventData.  Would be replaced by: exporting that
    class."""
    return DagsterEvent.engine_event(context, message, engine_event_data(metadata, error))


def step_worker_starting(step_context: Any, message: str, metadata: Mapping[str, Any]) -> DagsterEvent:
    """Log that an attempt is about to be sent; it opens the span that STEP_WORKER_STARTED closes.

    Why: every executor that runs steps elsewhere emits it.  Public on ``DagsterEvent``, undocumented."""
    return DagsterEvent.step_worker_starting(step_context, message, metadata)


def step_failure_event(step_context: Any, error: Any) -> DagsterEvent:
    """Log the failure of a step for which no retry policy applies (it was stopped, or never taken).

    Why: as :func:`step_worker_starting`.  Would be replaced by: exporting StepFailureData."""
    return DagsterEvent.step_failure_event(step_context, _step_failure_data(error))


def step_lost_event(step_context: Any, message: str) -> DagsterEvent:
    """Log that a lost attempt is followed by another.

    Why: the step runs again without its op's retry policy having a say.  Would be replaced by: exporting
    StepRetryData."""
    return DagsterEvent.step_retry_event(step_context, _step_retry_data(error_info(message, LOST_ERROR), None))


def step_skipped_event(step_context: Any) -> DagsterEvent:
    """Log that a step is skipped: in a run that is taken over, a skip that the run worker before had not logged yet."""
    return DagsterEvent.step_skipped_event(step_context)


def is_lost_event(event: DagsterEvent) -> bool:
    """Whether a retry event is one of :func:`step_lost_event`'s."""
    return bool(
        event.is_step_up_for_retry
        and event.step_retry_data.error
        and event.step_retry_data.error.cls_name == LOST_ERROR
    )


def failure_or_retry_event(executor: Executor, step_context: Any, error: Any, known_state: Any) -> DagsterEvent:
    """Log a failure, or a retry where the op's policy has one left.

    Why: the process of the step died and could not say it itself.  Public on ``Executor``, undocumented; renamed in
    1.12."""
    for name in ("log_failure_or_retry_event_after_error", "get_failure_or_retry_event_after_crash"):
        method = getattr(executor, name, None)
        if method is not None:
            event: DagsterEvent = method(step_context, error, known_state)
            return event
    raise DagsterSeamError(
        "dagster.Executor has no method any more that logs the failure or the retry of a step that crashed"
    )


def events_of_json(text: str) -> list[DagsterEvent]:
    """Dagster events from the JSON array of their wire forms, which a worker stores with an attempt.

    Why: a completed attempt's events come from its row and need no query of the event log."""
    items: Any = deserialize_value(text)
    found = (deserialize_value(item) if isinstance(item, str) else item for item in items)
    return [event for item in found if (event := _event_of(item)) is not None]


def _event_of(value: Any) -> DagsterEvent | None:
    return value if isinstance(value, DagsterEvent) else getattr(value, "dagster_event", None)


def terminal_event(events: Iterable[DagsterEvent]) -> DagsterEvent | None:
    """The event that ended an attempt."""
    return next((event for event in events if event.event_type in TERMINAL_EVENTS), None)


# ---- the plan -------------------------------------------------------------------------------------------------------


def start_plan(
    plan: Any,
    *,
    sort_key: Callable[[Any], Any],
    tag_concurrency_limits: list[dict[str, Any]],
    pools: PoolSlots,
    step_dependency_config: Any,
) -> AbstractContextManager[Any]:
    """Dagster's ActiveExecution over a plan, which decides what runs next.

    Retries are always enabled here: a plan started otherwise raises at the retry event of a lost attempt.  Steps are
    told the mode that was configured, so that failures and policies behave by it.

    Why: without it an executor would repeat Dagster's scheduling of steps.  Would be replaced by: a public class for
    writing executors."""
    arguments: dict[str, Any] = {
        "sort_key_fn": sort_key,
        "tag_concurrency_limits": tag_concurrency_limits,
        "instance_concurrency_context": pools,
    }
    try:
        accepted = inspect.signature(plan.start).parameters
    except AttributeError as error:
        raise DagsterSeamError("Dagster's execution plan has no start() in this version") from error
    if step_dependency_config is not None and "step_dependency_config" in accepted:
        arguments["step_dependency_config"] = step_dependency_config
    missing = set(arguments) - set(accepted)
    if missing:
        raise DagsterSeamError(
            f"the execution plan's start() does not take {', '.join(sorted(missing))} in this version"
        )
    active: AbstractContextManager[Any] = plan.start(retry_mode("ENABLED"), **arguments)
    return active


def step_dependency_config(config: Mapping[str, Any] | None) -> Any:
    """Dagster's StepDependencyConfig from an executor's config; None where this version (1.10) has none.

    Why: whether a step waits for its upstream steps or only for their outputs.  Would be replaced by: exporting the
    class."""
    member = Executor.__dict__.get("step_dependency_config")
    return type(member.fget(None)).from_config(config) if member is not None else None


def feeds_outputs_live(config: Any) -> bool:
    """Whether a step may start when the outputs are there that it needs, before the steps that gave them have ended."""
    return getattr(config, "require_upstream_step_success", True) is False


class KnownStates:
    """What Dagster's state of the run looks like to one step attempt: only what that step can need of it, so that it
    does not grow with the run.

    Attempts that were lost do not count, so that they do not use up the op's retry policy.  Of outputs (of this run and
    of those that it re-executes) only the step's own inputs are named.  Of mapping keys a mapped step is told its own,
    a step that collects is told all (once, where a retried dynamic step emitted them twice), any other none: with them
    a step process makes steps of the plan, and it needs no others.

    Why: a step process is started with it.  Relies on KnownExecutionState and PastExecutionState being named tuples, on
    the inputs of a step naming the outputs that they come from, and on the plan keeping each mapped step as it was
    before its keys were known, which says whose keys they are."""

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        self._sources: dict[str, tuple[str, str]] = {}
        self._state: Any = None
        self._given: set[Any] = set()

    def output(self, handle: Any) -> None:
        """An output was given.  To ask the plan for its state takes the longer the more outputs there are."""
        self._given.add(handle)

    def mappings_changed(self) -> None:
        """A step with dynamic outputs has ended."""
        self._state = None

    def known(self, active: Any, step: Any, losses: int) -> Any:
        """As Dagster's record."""
        if self._state is None:
            self._state = active.get_known_state()
        return self._reduced(self._state, step, active.retry_state.get_attempt_count(step.key) - losses)

    def reduced(self, state: Any, step: Any, losses: int) -> Any:
        """The same of a record that there is already."""
        return self._reduced(state, step, state.previous_retry_attempts.get(step.key, 0) - losses)

    def _reduced(self, state: Any, step: Any, attempts: int) -> Any:
        inputs = {handle for one in step.step_inputs for handle in one.get_step_output_handle_dependencies()}
        return state._replace(
            previous_retry_attempts={step.key: attempts} if attempts > 0 else {},
            ready_outputs={handle for handle in inputs if handle in state.ready_outputs or handle in self._given},
            dynamic_mappings=self._mappings(step, inputs, state.dynamic_mappings),
            parent_state=_past_state_of(inputs, state.parent_state),
        )

    def text(self, active: Any, step: Any, losses: int) -> str:
        """As JSON."""
        return serialize_value(self.known(active, step, losses))

    def _mappings(self, step: Any, inputs: Iterable[Any], mappings: Mapping[str, Any]) -> dict[str, Any]:
        own_key = getattr(step.handle, "mapping_key", None)
        if own_key is not None:
            source, output = self._source_of(step)
            return {source: {name: [own_key] if name == output else [] for name in mappings[source]}}
        collected = {handle.step_key if handle.mapping_key else self._source_key(handle.step_key) for handle in inputs}
        # An output without a key has given no input that would tell who collects it: every step is told of it.
        return {
            key: {
                name: keys and (list(dict.fromkeys(keys)) if key in collected else []) for name, keys in outputs.items()
            }
            for key, outputs in mappings.items()
            if key in collected or not all(outputs.values())
        }

    def _source_key(self, step_key: str) -> str | None:
        """The dynamic step that a mapped step is there for; None when it is no mapped step."""
        if not step_key.endswith("]"):
            return None
        step = self._plan.get_step_by_key(step_key)
        return None if getattr(step.handle, "mapping_key", None) is None else self._source_of(step)[0]

    def _source_of(self, step: Any) -> tuple[str, str]:
        """Step and output that a mapped step has its key from."""
        unresolved = step.handle.unresolved_form.to_key()
        found = self._sources.get(unresolved)
        if found is None:
            mapped = self._plan.get_step_by_key(unresolved)
            found = self._sources[unresolved] = mapped.resolved_by_step_key, mapped.resolved_by_output_name
        return found


def _past_state_of(inputs: set[Any], past: Any) -> Any:
    """What a run that is re-executed, and those before it, have given of these outputs."""
    if past is None:
        return None
    return past._replace(
        produced_outputs=inputs & past.produced_outputs, parent_state=_past_state_of(inputs, past.parent_state)
    )


# ---- pools ----------------------------------------------------------------------------------------------------------


class PoolSlots:
    """Slots of Dagster's pools for the steps of a run, as ActiveExecution asks for them.

    While ``adopting`` is true a claim is granted without asking: the steps of a resumed run hold their slots already.

    Why: Dagster's own class for this is private; ActiveExecution takes anything with these methods.  Stands on the
    public storage methods of ``instance.event_log_storage``.  Would be replaced by: exporting
    InstanceConcurrencyContext."""

    FIRST_CHECK: Final = 1.0
    LAST_CHECK: Final = 15.0
    AHEAD: Final = 10
    """Steps that wait for a pool at a time.  Asking takes the storage tens of ms: those behind them ask when one of
    these has its slot."""

    def __init__(self, instance: DagsterInstance, run: DagsterRun, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = instance.event_log_storage
        self._run_id = run.run_id
        self._run_priority = tags.whole_or_zero(run.tags.get(tags.DAGSTER_PRIORITY_TAG))
        self._clock = clock
        self._held: dict[str, str] = {}
        self._waiting: dict[str, _Wait] = {}
        self._limited = bool(self._storage.supports_global_concurrency_limits) and not self._per_run()
        self.adopting = False

    def _per_run(self) -> bool:
        granularity = self._storage.get_pool_config().pool_granularity
        return getattr(granularity, "value", granularity) == "run"

    def __enter__(self) -> PoolSlots:
        return self

    def __exit__(self, *_: object) -> None:
        for step_key in list(self._waiting):
            self._storage.free_concurrency_slot_for_step(self._run_id, step_key)
            del self._waiting[step_key]

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Whether the step may start; asks the storage no more often than a wait that grows."""
        if not self._limited:
            return True
        if self.adopting:
            self._held[step_key] = concurrency_key
            return True
        wait = self._waiting.get(step_key)
        if wait is not None and self._clock() < wait.until:
            return False
        priority = self._run_priority + step_priority
        if wait is None and self._is_crowded(concurrency_key, priority):
            return False
        if not self._has_limit(concurrency_key):
            self._waiting.pop(step_key, None)
            return True
        status = self._storage.claim_concurrency_slot(concurrency_key, self._run_id, step_key, priority)
        if status.is_claimed:
            self._waiting.pop(step_key, None)
            self._held[step_key] = concurrency_key
            return True
        tries = wait.tries + 1 if wait else 0
        pause = status.sleep_interval or min(self.FIRST_CHECK * 1.2**tries, self.LAST_CHECK)
        self._waiting[step_key] = _Wait(concurrency_key, priority, self._clock() + pause, tries)
        return False

    def _is_crowded(self, pool: str, priority: int) -> bool:
        ahead = [wait.priority for wait in self._waiting.values() if wait.pool == pool]
        return len(ahead) >= self.AHEAD and priority <= min(ahead)

    def _has_limit(self, pool: str) -> bool:
        default = self._storage.get_pool_config().default_pool_limit
        limit = self._limit_of(pool)
        stale_default = limit is not None and getattr(limit, "from_default", False) and limit.limit != default
        if (limit is None and default is not None) or stale_default:
            self._storage.initialize_concurrency_limit_to_default(pool)
            limit = self._limit_of(pool)
        return limit is not None

    def _limit_of(self, pool: str) -> Any:
        return next((limit for limit in self._storage.get_pool_limits() if limit.name == pool), None)

    def free_step(self, step_key: str) -> None:
        """Give the slot of a step back; steps of this run that wait for the same pool ask again at once."""
        pool = self._held.pop(step_key, None)
        if pool is None:
            return
        self._storage.free_concurrency_slot_for_step(self._run_id, step_key)
        for waiting, wait in self._waiting.items():
            if wait.pool == pool:
                self._waiting[waiting] = replace(wait, until=self._clock())

    def has_pending_claims(self) -> bool:
        return bool(self._waiting)

    def pending_claim_steps(self) -> list[str]:
        return list(self._waiting)

    def interval_to_next_pending_claim_check(self) -> float:
        """Seconds until a waiting step may ask again; 0 when none waits."""
        if not self._waiting:
            return 0.0
        return max(0.0, min(wait.until for wait in self._waiting.values()) - self._clock())


@dataclass(frozen=True, slots=True)
class _Wait:
    pool: str
    priority: int
    until: float
    tries: int


# ---- reading back ---------------------------------------------------------------------------------------------------


def is_outage(error: BaseException | None) -> bool:
    """Whether an error of Dagster's storage comes from a connection that was lost or could not be made.  The driver
    and the layer above it call that by the same names; the last one is ours, of a connection that asks first whether it
    may be used."""
    while error is not None:
        if type(error).__name__ in ("OperationalError", "InterfaceError", "StoreConnectionError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def attempt_events(
    instance: DagsterInstance, run_id: str, attempts: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], list[DagsterEvent]]:
    """What the event log holds of some attempts, in order: what their processes have logged, and no engine events.

    Events carry no attempt number; an attempt's are those that follow our STEP_WORKER_STARTING with its number, up to
    the next one of the step.  The log is read from its end, no further than needed.

    Why: a worker that was lost cannot say how far its steps had come.  Uses the public ``get_records_for_run``."""
    wanted = set(attempts)
    missing = set(wanted)
    later: dict[str, list[DagsterEvent]] = {}
    found: dict[tuple[str, int], list[DagsterEvent]] = {key: [] for key in wanted}
    step_keys = {step_key for step_key, _ in wanted}
    cursor: str | None = None
    types = set(DagsterEventType) - {DagsterEventType.ENGINE_EVENT}
    while missing:
        page = instance.get_records_for_run(run_id, cursor, of_type=types, limit=_LOG_PAGE, ascending=False)
        for record in page.records:
            event = record.event_log_entry.dagster_event
            if event is None or event.step_key not in step_keys:
                continue
            if event.event_type is not DagsterEventType.STEP_WORKER_STARTING:
                later.setdefault(event.step_key, []).append(event)
                continue
            key = (event.step_key, starting_attempt(event))
            events = later.pop(event.step_key, [])
            if key in missing:
                found[key] = events[::-1]
                missing.discard(key)
        if not page.has_more:
            break
        cursor = page.cursor
    return found


def stored_outputs(step: Any, events: Iterable[DagsterEvent]) -> list[DagsterEvent]:
    """The STEP_OUTPUT events of a step, from what the log has of it so far, whose outputs other steps can read.

    Dagster says that an output was given before the IO manager has stored it.  An op goes on only after that, so what
    follows is proof, unless it is the attempt's failure; of what no IO manager is asked to store, none is needed.
    Outputs with a mapping key are left out: nothing can read them before the step has succeeded.

    Why: steps that wait for outputs, and not for the end of the steps that give them.  Reads attributes of the plan's
    outputs."""
    found = []
    last: DagsterEvent | None = None
    for event in events:
        if last is not None and event.event_type in _PROOFS:
            found.append(last)
        last = None
        if event.is_successful_output and event.step_output_data.mapping_key is None:
            output = step.step_output_named(event.step_output_data.output_name)
            if output.dagster_type_key == "Nothing" or output.properties.asset_check_key is not None:
                found.append(event)
            else:
                last = event
    return found


def starting_attempt(event: DagsterEvent) -> int:
    """The attempt's number in a STEP_WORKER_STARTING event of ours; 0 in another executor's."""
    value = event.engine_event_data.metadata.get(ATTEMPT_METADATA)
    return int(getattr(value, "value", None) or 0)


@dataclass(slots=True)
class LoggedStep:
    """What the event log says of a step in a run that is being resumed."""

    retries: list[tuple[DagsterEvent, float]]
    """Retry events with their time (epoch seconds)."""
    events: list[DagsterEvent]
    """Outputs and the final event of the last attempt."""
    history: list[DagsterEvent] = field(default_factory=list)
    """All that was asked for of all attempts."""

    @property
    def final(self) -> DagsterEvent | None:
        return terminal_event(self.events)


def logged_steps(instance: DagsterInstance, run_id: str, *, progress: bool = False) -> dict[str, LoggedStep]:
    """The whole run as the event log holds it, step by step, the last attempt of each.  With ``progress``
    the history also has what says that outputs are stored.

    Why: a resumed run is rebuilt from it (Dagster's own rebuild refuses retries with a delay and skips)."""
    steps: dict[str, LoggedStep] = {}
    cursor: str | None = None
    types = set(STATE_EVENTS | PROGRESS_EVENTS if progress else STATE_EVENTS)
    while True:
        page = instance.get_records_for_run(run_id, cursor, of_type=types, limit=_LOG_PAGE, ascending=True)
        for record in page.records:
            event = record.event_log_entry.dagster_event
            if event is None or event.step_key is None:
                continue
            step = steps.setdefault(event.step_key, LoggedStep([], []))
            step.history.append(event)
            if event.is_step_up_for_retry:
                step.retries.append((event, record.event_log_entry.timestamp))
                step.events = []
            elif event.event_type in STATE_EVENTS and event.event_type is not DagsterEventType.STEP_WORKER_STARTING:
                step.events.append(event)
        if not page.has_more:
            return steps
        cursor = page.cursor


# ---- the instance and the run ---------------------------------------------------------------------------------------


def instance_postgres_url(instance: DagsterInstance) -> str | None:
    """The libpq URL of the instance's event log when that is PostgreSQL.

    Why: the idempotency store lives beside Dagster's own tables by default, and a lost step's connections to that
    database are ended.  Reads the attribute ``postgres_url`` of dagster-postgres's storage."""
    url = getattr(instance.event_log_storage, "postgres_url", None)
    if not isinstance(url, str):
        return None
    scheme, separator, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}{separator}{rest}" if separator else url


def remember_columns(instance: DagsterInstance) -> None:
    """Have the run storage ask once, now, and not each time that it looks at a run, whether its table has the columns
    of newer versions: they do not go away.

    Why: that is four statements of a step's nineteen.  Shadows the method ``has_run_stats_index_cols``, where there is
    one."""
    storage: Any = instance.run_storage
    ask = getattr(storage, "has_run_stats_index_cols", None)
    if callable(ask) and ask():
        storage.has_run_stats_index_cols = lambda: True


def code_location_of(run: DagsterRun) -> str:
    """The name of the run's code location; "" for a run that was not launched through one.

    Why: workers serve code locations.  An attribute of the public ``DagsterRun``."""
    return getattr(run.remote_job_origin, "location_name", None) or ""


def job_origin_of(plan_context: Any) -> str:
    """The JSON of where the job's code is, for ExecuteStepArgs.

    Why: a step process loads the job from it."""
    return serialize_value(plan_context.reconstructable_job.get_python_origin())


def run_worker_health(status: str, message: str, worker_id: str) -> Any:
    """Dagster's CheckRunHealthResult.  ``status``: RUNNING, SUCCESS or FAILED.

    Why: run monitoring asks the run launcher for it.  Would be replaced by: exporting the class and WorkerStatus."""
    health = DefaultRunLauncher.check_run_worker_health.__annotations__["return"]
    if isinstance(health, str):
        raise DagsterSeamError("the result of check_run_worker_health cannot be had in this version")
    worker_status = deserialize_value(json.dumps({"__enum__": f"WorkerStatus.{status}"}))
    return health(worker_status, message, transient=False, run_worker_id=worker_id)
