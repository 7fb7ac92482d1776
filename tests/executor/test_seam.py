"""One test for each thing that the package gets from Dagster without an exported name; each says what broke."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterExecutionInterruptedError,
    DagsterInstance,
    DagsterRun,
    DynamicOut,
    DynamicOutput,
    Executor,
    ExecutorDefinition,
    InputContext,
    IOManager,
    JobExecutionResult,
    Nothing,
    Out,
    Output,
    OutputContext,
    RetryPolicy,
    deserialize_value,
    execute_job,
    executor,
    in_process_executor,
    io_manager,
    job,
    multiple_process_executor_requirements,
    op,
    reconstructable,
    serialize_value,
)

from dagster_taskiq import _dagster, orchestration, payload, requests
from dagster_taskiq.step_process import load_entry_point


class Probe(Executor):
    """Calls a test's function in the place of an executor."""

    script: Any = None

    @property
    def retries(self) -> Any:
        return _dagster.retry_mode("ENABLED")

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        yield from Probe.script(self, plan_context, execution_plan)


@executor(name="probe", requirements=multiple_process_executor_requirements())
def probe_executor(_: Any) -> Probe:
    return Probe()


@op(tags={"color": "red"})
def first() -> int:
    return 1


@op(retry_policy=RetryPolicy(max_retries=1, delay=3))
def second(value: int) -> int:
    return value


@job(executor_def=probe_executor)
def chain() -> None:
    second(first())


@op(out=DynamicOut())
def many() -> Iterator[DynamicOutput[int]]:
    yield DynamicOutput(1, "a")


@op
def each(value: int) -> None:
    pass


@job(executor_def=probe_executor)
def mapped() -> None:
    many().map(each)


@job(executor_def=in_process_executor)
def maps_by_itself() -> None:
    many().map(each)


@op(pool="narrow")
def pooled() -> None:
    pass


@job(executor_def=probe_executor)
def pooled_twice() -> None:
    pooled.alias("one")()
    pooled.alias("two")()


class Forgetful(IOManager):
    def handle_output(self, context: OutputContext, obj: object) -> None:
        if context.name == "lost":
            raise RuntimeError("cannot be stored")

    def load_input(self, context: InputContext) -> object:
        raise NotImplementedError


@io_manager
def forgetful(_: Any) -> Forgetful:
    return Forgetful()


@op(out={"nothing": Out(Nothing), "kept": Out(int), "lost": Out(int)})
def gives() -> Iterator[Output[Any]]:
    yield Output(None, "nothing")
    yield Output(1, "kept")
    yield Output(2, "lost")


@job(executor_def=in_process_executor, resource_defs={"io_manager": forgetful})
def gives_by_itself() -> None:
    gives()


@job(executor_def=probe_executor, resource_defs={"io_manager": forgetful})
def gives_probed() -> None:
    gives()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as made:
        yield made


def run(instance: DagsterInstance, script: Any, which: Any = chain) -> JobExecutionResult:
    Probe.script = script
    try:
        return execute_job(reconstructable(which), instance, raise_on_error=True)
    finally:
        Probe.script = None


def start(plan: Any, pools: Any, **changes: Any) -> Any:
    arguments = {
        "sort_key": lambda step: 0,
        "tag_concurrency_limits": [],
        "pools": pools,
        "step_dependency_config": _dagster.step_dependency_config(None),
    }
    return _dagster.start_plan(plan, **{**arguments, **changes})


def finish(active: Any, context: Any) -> Iterator[DagsterEvent]:
    """End a plan as if its steps had failed."""
    while not active.is_complete:
        for step in active.get_steps_to_execute():
            event = _dagster.step_failure_event(context.for_step(step), _dagster.error_info("ended by the test"))
            active.handle_event(event)
            yield event
        yield from active.plan_events_iterator(context)


def test_error_info_is_the_record_that_events_carry() -> None:
    error = _dagster.error_info("it broke", "SomeError")
    assert error.message == "it broke"
    assert error.cls_name == "SomeError", "SerializableErrorInfo no longer takes message, stack and cls_name"
    assert json.loads(serialize_value(error))["__class__"] == "SerializableErrorInfo"


def test_engine_event_data_takes_plain_metadata() -> None:
    data = _dagster.engine_event_data({"queue": "q", "deliveries": 2, "waited": 0.5})
    kinds = {name: value.value for name, value in data.metadata.items()}
    assert kinds == {"queue": "q", "deliveries": 2, "waited": 0.5}, "EngineEventData no longer normalizes metadata"


@pytest.mark.parametrize("name", ["ENABLED", "DISABLED", "DEFERRED"])
def test_retry_modes_have_the_names_that_messages_carry(name: str) -> None:
    assert _dagster.retry_mode_name(_dagster.retry_mode(name)) == name, "RetryMode's wire form changed"


def test_a_step_process_gets_the_inner_plans_retry_mode() -> None:
    inner = {
        name: _dagster.retry_mode_name(_dagster.retry_mode(name).for_inner_plan()) for name in ("ENABLED", "DISABLED")
    }
    assert inner == {"ENABLED": "DEFERRED", "DISABLED": "DISABLED"}, "RetryMode.for_inner_plan changed"


def test_a_missing_record_is_named() -> None:
    with pytest.raises(_dagster.DagsterSeamError, match="NoSuchRecord"):
        _dagster._class_of('{"__class__": "NoSuchRecord"}', "NoSuchRecord")


def test_steps_come_ready_in_our_order_and_none_is_taken_with_limit_0(instance: DagsterInstance) -> None:
    seen: list[str] = []

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools, sort_key=lambda step: seen.append(step.key) or 0) as active:
            assert active.get_steps_to_execute(limit=0) == []
            assert seen == ["first"], "ActiveExecution no longer asks sort_key_fn of every step that is ready"
            assert [step.key for step in active.get_steps_to_execute(limit=1)] == ["first"]
            active.mark_interrupted()
            raise DagsterExecutionInterruptedError

    with pytest.raises(DagsterExecutionInterruptedError):
        run(instance, script)


def test_a_tag_limit_that_is_put_into_the_list_later_acts(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        limits = [dict(orchestration.NEUTRAL_LIMIT)]
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools, tag_concurrency_limits=limits) as active:
            limits[:] = [{"key": "color", "value": "red", "limit": 0}]
            assert active.get_steps_to_execute() == [], "ActiveExecution copies tag_concurrency_limits now"
            limits[:] = [dict(orchestration.NEUTRAL_LIMIT)]
            yield from finish(active, context)

    assert not run(instance, script).success


def test_known_state_hides_losses_and_names_only_what_is_upstream(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools) as active:
            (step,) = active.get_steps_to_execute()
            event = _dagster.step_lost_event(context.for_step(step), "lost")
            yield event
            assert _dagster.is_lost_event(event), "the error class of a retry event cannot be read back"
            active.handle_event(event)
            (step,) = active.get_steps_to_execute()
            states = _dagster.KnownStates(plan)
            assert active.retry_state.get_attempt_count("first") == 1, "ActiveExecution.retry_state changed"
            assert states.known(active, step, 1).previous_retry_attempts == {}
            assert states.known(active, step, 0).previous_retry_attempts == {"first": 1}
            assert states.known(active, step, 0).ready_outputs == set()
            assert json.loads(states.text(active, step, 1))["__class__"] == "KnownExecutionState"
            active.mark_interrupted()
            raise DagsterExecutionInterruptedError

    with pytest.raises(DagsterExecutionInterruptedError):
        run(instance, script)


def test_a_crash_becomes_a_retry_by_the_ops_policy_then_a_failure(instance: DagsterInstance) -> None:
    kinds: list[Any] = []

    def script(this: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        step = plan.get_step_by_key("second")
        known = plan.known_state
        for attempts in (0, 1):
            state = known._replace(previous_retry_attempts={"second": attempts} if attempts else {})
            event = _dagster.failure_or_retry_event(this, context.for_step(step), _dagster.error_info("crash"), state)
            kinds.append(
                (event.event_type, event.step_retry_data.seconds_to_wait if event.is_step_up_for_retry else None)
            )
            yield event

    run(instance, script)
    assert kinds == [(DagsterEventType.STEP_UP_FOR_RETRY, 3.0), (DagsterEventType.STEP_FAILURE, None)]


def test_the_interrupt_of_a_signal_reaches_the_plan_and_wakes_a_wait(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        import select

        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools) as active, requests.signal_wakeup() as wake_fd:
            assert threading.current_thread() is threading.main_thread()
            os.kill(os.getpid(), signal.SIGTERM)
            assert select.select([wake_fd], [], [], 30)[0], "a signal does not wake a wait"
            assert active.check_for_interrupts(), "ActiveExecution.check_for_interrupts no longer tells of SIGTERM"
            active.mark_interrupted()
            raise DagsterExecutionInterruptedError
        yield

    with pytest.raises(DagsterExecutionInterruptedError):
        run(instance, script)


def test_what_a_step_process_needs_can_be_read_from_the_context(instance: DagsterInstance) -> None:
    found: dict[str, Any] = {}

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        found["origin"] = json.loads(_dagster.job_origin_of(context))
        found["ref"] = json.loads(serialize_value(context.instance.get_ref()))
        found["location"] = _dagster.code_location_of(context.dagster_run)
        found["resume"] = context.resume_from_failure
        data = context.for_step(plan.get_step_by_key("first")).plan_data
        assert data.execution_plan is plan, "step contexts no longer have the plan"
        assert _dagster.retry_mode_name(data.retry_mode.for_inner_plan()) in payload.RETRY_MODES
        assert context.job.get_python_origin() == context.reconstructable_job.get_python_origin()
        assert isinstance(plan.artifacts_persisted, bool), "the plan no longer says whether its artifacts are persisted"
        yield from ()

    run(instance, script)
    assert {"repository_origin"} <= set(found["origin"]), "reconstructable_job.get_python_origin changed"
    assert found["ref"]["__class__"] == "InstanceRef"
    assert found["location"] == ""
    assert found["resume"] is False


def test_an_attempt_is_read_back_from_the_log_by_its_number(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        step = context.for_step(plan.get_step_by_key("first"))
        for attempt in (1, 2):
            yield _dagster.step_worker_starting(step, "sending", {_dagster.ATTEMPT_METADATA: attempt})
            if attempt == 1:
                yield _dagster.step_lost_event(step, "lost")
        yield _dagster.step_failure_event(step, _dagster.error_info("failed"))

    result = run(instance, script)
    found = _dagster.attempt_events(instance, result.run_id, [("first", 1), ("first", 2), ("second", 1)])
    assert [event.event_type for event in found["first", 1]] == [DagsterEventType.STEP_UP_FOR_RETRY]
    assert [event.event_type for event in found["first", 2]] == [DagsterEventType.STEP_FAILURE]
    assert found["second", 1] == []
    logged = _dagster.logged_steps(instance, result.run_id)["first"]
    assert [_dagster.is_lost_event(event) for event, _ in logged.retries] == [True]
    assert logged.final is not None
    assert logged.final.event_type is DagsterEventType.STEP_FAILURE


def test_an_output_counts_when_it_has_been_stored(instance: DagsterInstance) -> None:
    """Dagster says that it is there before that."""
    ran = execute_job(reconstructable(gives_by_itself), instance, raise_on_error=False)
    events = [event for event in ran.all_events if event.step_key == "gives"]
    found: list[list[str]] = []

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        step = plan.get_step_by_key("gives")
        for end in range(len(events) + 1):
            stored = _dagster.stored_outputs(step, events[:end])
            found.append([event.step_output_data.output_name for event in stored])
        yield from ()

    run(instance, script, gives_probed)
    changes = [names for before, names in zip([None, *found], found, strict=False) if names != before]
    assert changes == [[], ["nothing"], ["nothing", "kept"]], "the third could not be stored"
    first_with_kept = events[found.index(["nothing", "kept"]) - 1]
    assert first_with_kept.event_type is DagsterEventType.HANDLED_OUTPUT


def test_the_log_is_read_page_by_page(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        for key in ("first", "second"):
            step = context.for_step(plan.get_step_by_key(key))
            yield _dagster.step_worker_starting(step, "sending", {_dagster.ATTEMPT_METADATA: 1})
            yield _dagster.step_failure_event(step, _dagster.error_info("failed"))

    result = run(instance, script)
    monkeypatch.setattr(_dagster, "_LOG_PAGE", 1)
    found = _dagster.attempt_events(instance, result.run_id, [("first", 1)])
    assert [event.event_type for event in found["first", 1]] == [DagsterEventType.STEP_FAILURE]
    assert set(_dagster.logged_steps(instance, result.run_id)) == {"first", "second"}


def test_events_travel_as_a_json_array(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        yield _dagster.step_failure_event(context.for_step(plan.get_step_by_key("first")), _dagster.error_info("x"))

    event = next(event for event in run(instance, script).all_events if event.is_step_failure)
    (back,) = _dagster.events_of_json(f"[{serialize_value(event)}]")
    assert back == event
    assert _dagster.terminal_event([back]) is back


def test_events_that_an_executor_writes_are_in_the_log_and_are_given_back(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        step = context.for_step(plan.get_step_by_key("first"))
        yield _dagster.engine_event(context, "of the run", {"queue": "q"})
        yield _dagster.engine_event(step, "of the step", error=_dagster.error_info("it broke"))
        yield _dagster.step_skipped_event(step)

    result = run(instance, script)
    logged = [entry.dagster_event for entry in instance.all_logs(result.run_id) if entry.dagster_event]
    written = [event for event in logged if event.message in ("of the run", "of the step") or event.is_step_skipped]
    assert [event.step_key for event in written] == [None, "first", "first"], "an event is logged twice or not at all"
    assert written[0].engine_event_data.metadata["queue"].value == "q"
    assert written[1].engine_event_data.error.message == "it broke"
    assert [event for event in result.all_events if event in written] == written


def test_a_plan_can_be_brought_to_where_a_dead_run_worker_left_it(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools) as active:
            (step,) = active.get_steps_to_execute()
            active.retry_state.mark_attempt(step.key)
            assert active.retry_state.get_attempt_count(step.key) == 1, "RetryState.mark_attempt changed"
            active.mark_up_for_retry(step.key, 0.0)
            (step,) = active.get_steps_to_execute()
            assert step.key == "first", "ActiveExecution.mark_up_for_retry does not bring a step back"
            assert active.get_steps_to_skip() == []
            event = _dagster.step_failure_event(context.for_step(step), _dagster.error_info("failed"))
            active.handle_event(event)
            yield event
            abandoned = active.get_steps_to_abandon()
            assert [step.key for step in abandoned] == ["second"]
            active.mark_abandoned("second")
            assert active.is_complete

    assert not run(instance, script).success


def test_a_skipped_step_is_marked_without_an_event(instance: DagsterInstance) -> None:
    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools) as active:
            (step,) = active.get_steps_to_execute()
            active.mark_skipped(step.key)
            assert [step.key for step in active.get_steps_to_skip()] == ["second"], "nothing follows a skip"
            active.mark_skipped("second")
            assert active.is_complete
        yield from ()

    assert run(instance, script).success


def test_a_mapped_step_says_whose_key_it_has(instance: DagsterInstance) -> None:
    many_ran = execute_job(reconstructable(maps_by_itself), instance).all_events
    sources: list[Any] = []

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        pools = _dagster.PoolSlots(context.instance, context.dagster_run)
        with start(plan, pools) as active:
            active.get_steps_to_execute()
            for event in many_ran:
                if event.step_key == "many" and (event.is_successful_output or event.is_step_success):
                    active.handle_event(event)
            (step,) = active.get_steps_to_execute()
            assert step.handle.mapping_key == "a", "the handle of a mapped step has no mapping_key"
            unresolved = plan.get_step_by_key(step.handle.unresolved_form.to_key())
            sources.append((unresolved.resolved_by_step_key, unresolved.resolved_by_output_name))
            assert _dagster.KnownStates(plan).known(active, step, 0).dynamic_mappings == {"many": {"result": ["a"]}}
            active.mark_interrupted()
            raise DagsterExecutionInterruptedError
        yield

    with pytest.raises(DagsterExecutionInterruptedError):
        run(instance, script, mapped)
    assert sources == [("many", "result")], "the plan's unresolved steps do not say what they are mapped over"


def test_pool_slots_are_claimed_freed_and_waited_for(instance: DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("narrow", 1)
    now = [0.0]

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        with (
            _dagster.PoolSlots(context.instance, context.dagster_run, clock=lambda: now[0]) as pools,
            start(plan, pools) as active,
        ):
            (step,) = active.get_steps_to_execute()
            assert step.pool == "narrow"
            blocked = [event.event_type_value for event in active.concurrency_event_iterator(context)]
            assert len(blocked) == 1, "no event says that a step waits for its pool"
            assert pools.has_pending_claims()
            assert 0 < pools.interval_to_next_pending_claim_check() <= _dagster.PoolSlots.LAST_CHECK
            event = _dagster.step_failure_event(context.for_step(step), _dagster.error_info("x"))
            active.handle_event(event)
            yield event
            (other,) = active.get_steps_to_execute()
            assert other.key != step.key, "a freed slot is not given to the step that waits for it"
            event = _dagster.step_failure_event(context.for_step(other), _dagster.error_info("x"))
            active.handle_event(event)
            yield event

    run(instance, script, pooled_twice)
    assert instance.event_log_storage.get_concurrency_info("narrow").active_slot_count == 0


def test_few_of_many_steps_wait_for_a_pool_at_a_time(instance: DagsterInstance) -> None:
    """The others do not ask the storage, unless they come before those that wait."""
    instance.event_log_storage.set_concurrency_slots("pool", 1)
    with _dagster.PoolSlots(instance, DagsterRun("a_job")) as pools:
        keys = [f"s{number}" for number in range(pools.AHEAD + 5)]
        assert [key for key in keys if pools.claim("pool", key)] == ["s0"]
        waiting = keys[1 : pools.AHEAD + 1]
        assert pools.pending_claim_steps() == waiting
        assert not pools.claim("pool", "urgent", 1)
        assert pools.pending_claim_steps() == [*waiting, "urgent"]
        taken = []
        held = "s0"
        while rest := [key for key in ("urgent", *keys) if key not in ("s0", *taken)]:
            pools.free_step(held)
            (held,) = [key for key in rest if pools.claim("pool", key)]
            taken.append(held)
        assert sorted(taken) == sorted(["urgent", *keys[1:]])
        assert taken[0] == "urgent"
        assert not pools.has_pending_claims()


def test_the_pool_context_grants_what_is_held_already_while_a_run_is_taken_over(instance: DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("narrow", 1)

    def script(_: Executor, context: Any, plan: Any) -> Iterator[DagsterEvent]:
        with _dagster.PoolSlots(context.instance, context.dagster_run) as pools:
            pools.adopting = True
            assert pools.claim("narrow", "one")
            assert pools.claim("narrow", "two")
        yield from ()

    run(instance, script, pooled_twice)


@pytest.mark.parametrize(
    ("pools", "limited"), [({"granularity": "run", "default_limit": 1}, False), ({"default_limit": 1}, True)]
)
def test_the_instances_settings_of_pools_count(tmp_path: Path, pools: dict[str, Any], limited: bool) -> None:
    overrides = {"telemetry": {"enabled": False}, "concurrency": {"pools": pools}}
    with (
        DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance,
        _dagster.PoolSlots(instance, DagsterRun("a_job")) as slots,
    ):
        assert slots.claim("any", "one")
        assert slots.claim("any", "two") is not limited, "get_pool_config() or get_pool_limits() changed"


def test_step_dependency_config_is_made_from_config() -> None:
    made = _dagster.step_dependency_config({"require_upstream_step_success": False})
    if "step_dependency_config" in Executor.__dict__:
        assert made.require_upstream_step_success is False, "StepDependencyConfig.from_config changed"
        assert _dagster.feeds_outputs_live(made)
        assert not _dagster.feeds_outputs_live(_dagster.step_dependency_config({}))
    else:
        assert made is None
        assert not _dagster.feeds_outputs_live(made)


def test_the_url_of_the_instances_postgresql(dagster_home: Path, database_url: str) -> None:
    with DagsterInstance.get() as instance:
        assert _dagster.instance_postgres_url(instance) == database_url, (
            "dagster-postgres's storage has no postgres_url"
        )


def test_an_instance_on_files_has_no_postgresql(instance: DagsterInstance) -> None:
    assert _dagster.instance_postgres_url(instance) is None


def test_the_code_location_of_a_run_that_was_launched_through_one() -> None:
    load_entry_point()  # before 1.11 the records below are not known until then
    location = {"__class__": "RegisteredRepositoryLocationOrigin", "location_name": "here"}
    repository = {
        "__class__": "ExternalRepositoryOrigin",
        "repository_location_origin": location,
        "repository_name": "a_repository",
    }
    origin = {
        "__class__": "ExternalPipelineOrigin",
        "external_repository_origin": repository,
        "pipeline_name": "a_job",
    }
    made: Any = deserialize_value(json.dumps(origin))
    assert _dagster.code_location_of(DagsterRun("a_job", remote_job_origin=made)) == "here"


@pytest.mark.parametrize("status", ["RUNNING", "SUCCESS", "FAILED"])
def test_the_health_of_a_run_worker_is_told_in_dagsters_words(status: str) -> None:
    health = _dagster.run_worker_health(status, "said", "a-worker")
    assert json.loads(serialize_value(health.status)) == {"__enum__": f"WorkerStatus.{status}"}
    assert (health.msg, health.run_worker_id) == ("said", "a-worker"), "CheckRunHealthResult changed"


def test_the_console_script_is_found_and_runs_one_step() -> None:
    script = "import sys; sys.argv[0] = 'dagster'; from dagster_taskiq.step_process import load_entry_point as f; f()()"
    command = [sys.executable, "-c", script, "api", "execute_step", "--help"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"`dagster api execute_step` is gone: {made.stderr}"
    assert "INPUT_JSON" in made.stdout


def test_executor_definitions_take_our_schema() -> None:
    from dagster_taskiq import taskiq_executor

    assert isinstance(taskiq_executor, ExecutorDefinition)
    fields = taskiq_executor.config_schema.config_type.fields
    assert {"retries", "tag_concurrency_limits"} <= set(fields), "multiprocess_executor's config schema changed"
