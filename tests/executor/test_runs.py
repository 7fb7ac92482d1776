"""Whole runs on real PostgreSQL, a real SQS emulator and real workers."""

from __future__ import annotations

import pytest
import services
from dagster import DagsterEventType, DagsterRunStatus, DagsterUnmetExecutorRequirementsError
from executor_bench import Bench, telling

ATTEMPT = ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]


def test_a_chain_passes_values_from_step_to_step(bench: Bench) -> None:
    bench.worker()
    result = bench.run("chain")
    assert result.success
    assert bench.output(result, "third") == 3
    assert bench.rows(result.run_id) == [("one", 1, "succeeded"), ("second", 1, "succeeded"), ("third", 1, "succeeded")]
    logged = bench.logged(result.run_id)
    assert {key: telling(types) for key, types in logged.items()} == dict.fromkeys(("one", "second", "third"), ATTEMPT)
    services.wait_for(lambda: bench.queue.counts() == (0, 0), "the end of the messages")


def test_an_ended_step_says_where_and_how_long_it_ran(bench: Bench) -> None:
    bench.worker()
    result = bench.run("chain")
    (event,) = [
        event
        for event in result.all_events
        if event.event_type is DagsterEventType.ENGINE_EVENT
        and event.step_key == "one"
        and event.engine_event_data.metadata
    ]
    details = {name: value.value for name, value in event.engine_event_data.metadata.items()}
    assert {
        "queue",
        "message_id",
        "worker",
        "host",
        "generation",
        "deliveries",
        "waited_seconds",
        "ran_seconds",
    } <= set(details)
    assert details["queue"] == bench.queue.name
    assert details["worker"] == "worker-1"
    assert details["deliveries"] == 1


def test_fan_out_and_in(bench: Bench) -> None:
    bench.worker()
    result = bench.run("fan_out")
    assert result.success
    assert bench.output(result, "total") == 8


def test_dynamic_steps(bench: Bench) -> None:
    bench.worker()
    result = bench.run("dynamic")
    assert result.success
    assert bench.output(result, "total") == 6
    assert ("plus_one[n2]", 1, "succeeded") in bench.rows(result.run_id)


def test_skipped_branches_get_no_row(bench: Bench) -> None:
    bench.worker()
    result = bench.run("branching")
    assert result.success
    assert bench.rows(result.run_id) == [("either", 1, "succeeded"), ("taken", 1, "succeeded")]
    logged = bench.logged(result.run_id)
    assert logged["skipped"] == logged["after_skipped"] == ["STEP_SKIPPED"]


def test_retry_policies_and_requested_retries(bench: Bench) -> None:
    bench.worker()
    result = bench.run("retrying")
    assert result.success
    assert bench.output(result, "fails_once") == 1
    assert bench.logged(result.run_id)["fails_once"].count("STEP_UP_FOR_RETRY") == 1
    assert bench.logged(result.run_id)["fails_once"].count("STEP_RESTARTED") == 1
    assert len(bench.notes("asks_for_a_retry")) == 2
    assert ("fails_once", 2, "succeeded") in bench.rows(result.run_id)


def test_disabled_retries(bench: Bench) -> None:
    bench.worker()
    result = bench.run("retrying", retries={"disabled": {}})
    assert not result.success
    assert bench.notes("fails_once") == bench.notes("fails_once")[:1]
    assert "STEP_FAILURE" in bench.logged(result.run_id)["fails_once"]


def test_a_failure_fails_the_run_and_what_follows_is_not_run(bench: Bench) -> None:
    bench.worker()
    result = bench.run("failing")
    assert not result.success
    assert bench.rows(result.run_id) == [("breaks", 1, "failed"), ("one", 1, "succeeded")]
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "broken on purpose" in failure.step_failure_data.error.to_string()


def test_a_step_process_that_dies_is_a_failure_that_names_the_signal(bench: Bench) -> None:
    bench.worker()
    result = bench.run("crashing")
    assert not result.success
    rows = bench.rows(result.run_id)
    assert rows == [("dies_once", 1, "failed"), ("dies_once", 2, "succeeded"), ("exits", 1, "failed")]
    assert len(bench.notes("dies_once")) == 2
    texts = bench.messages(result.run_id)
    assert any("SIGKILL" in text for text in texts)
    assert any("exit code 3" in text for text in texts)


def test_a_resource_that_cannot_be_had_fails_the_step_with_its_error(bench: Bench) -> None:
    bench.worker()
    result = bench.run("broken_resource")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "the resource cannot be had" in failure.step_failure_data.error.to_string()
    assert "RESOURCE_INIT_FAILURE" in bench.logged(result.run_id)["uses_broken"]


@pytest.mark.parametrize(
    ("name", "note", "settings"),
    [
        ("lonely_job", "lonely", {"tag_concurrency_limits": [{"key": "kind", "value": "lonely", "limit": 1}]}),
        ("lonely_job", "lonely", {"max_concurrent": 1}),
        ("pool_job", "in_pool", {}),
    ],
)
def test_limits_keep_steps_apart(bench: Bench, name: str, note: str, settings: dict[str, object]) -> None:
    bench.instance.event_log_storage.set_concurrency_slots("narrow", 1)
    bench.worker(slots=3)
    result = bench.run(name, **settings)
    assert result.success, bench.messages(result.run_id)
    assert len(bench.notes(note)) == 3
    assert bench.most_at_once(result.run_id) == 1
    assert bench.instance.event_log_storage.get_concurrency_info("narrow").active_slot_count == 0


def test_a_run_that_somebody_has_ended_keeps_its_end(bench: Bench) -> None:
    bench.worker()
    result = bench.run("ended_by_force")
    assert bench.status(result.dagster_run) == DagsterRunStatus.CANCELED.value
    assert not [event for event in result.all_events if event.is_step_failure]
    assert any('"plus_one" was not run, because the run is CANCELED' in text for text in bench.messages(result.run_id))


def test_a_process_that_ends_without_a_word_fails_its_step(bench: Bench) -> None:
    bench.worker()
    result = bench.run("silent")
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "ended with exit code 0 and without an event" in failure.step_failure_data.error.message
    assert any("ended without a result on worker" in text for text in bench.messages(result.run_id))


def test_a_process_that_dies_after_the_success_has_succeeded(bench: Bench) -> None:
    bench.worker()
    result = bench.run("hooked")
    assert result.success
    assert any(
        "It had succeeded when this happened: The step process" in text for text in bench.messages(result.run_id)
    )


def test_a_misspelt_tag_is_told(bench: Bench) -> None:
    bench.worker()
    run = bench.create("single", tags={"dagster-taskiq/prioirty": "3", "dagster-taskiq/run_priority": "1"})
    bench.run_worker(run).wait()
    (told,) = [text for text in bench.messages(run.run_id) if "change nothing" in text]
    assert "dagster-taskiq/prioirty (is dagster-taskiq/priority meant?)" in told
    assert "run_priority" not in told


def test_settings_that_do_not_fit_together_fail_the_run(bench: Bench) -> None:
    run = bench.create("single", heartbeat_interval=60)
    run_worker = bench.run_worker(run)
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value, run_worker.output
    assert any("heartbeat_interval" in text for text in bench.messages(run.run_id))


def test_outputs_in_memory_are_refused(bench: Bench) -> None:
    with pytest.raises(DagsterUnmetExecutorRequirementsError, match="IO manager"):
        bench.run("in_memory")


def test_a_missing_queue_fails_the_run_and_is_named(bench: Bench) -> None:
    result = bench.run("chain", queue="no-such-queue")
    assert not result.success
    assert any("there is no SQS queue 'no-such-queue'" in text for text in bench.messages(result.run_id))
    assert bench.rows(result.run_id) == [("one", 1, "cancelled")]


def test_nobody_serves_the_queue(bench: Bench) -> None:
    result = bench.run("chain", no_worker_warning=0.5, no_worker_timeout=2)
    assert not result.success
    texts = [event.message or "" for event in result.all_events if event.step_key is None]
    assert sum("No worker serves queue" in text for text in texts) == 1
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "No worker serves queue" in failure.step_failure_data.error.message
    assert bench.rows(result.run_id) == [("one", 1, "cancelled")]


def test_termination_stops_running_steps_and_queued_ones_never_start(bench: Bench) -> None:
    bench.worker(slots=2)
    run = bench.create("waiting_crowd")
    run_worker = bench.run_worker(run)
    services.wait_for(
        lambda: sum(len(bench.notes(f"waits_{number}")) for number in range(4)) == 2, "two of the steps to be running"
    )
    bench.instance.report_run_canceling(run)
    run_worker.stop()
    assert bench.status(run) == DagsterRunStatus.CANCELED.value, run_worker.output
    states = sorted(state for _, _, state in bench.rows(run.run_id))
    assert states == ["cancelled"] * 4
    logged = bench.logged(run.run_id)
    started = [key for key, types in logged.items() if "STEP_START" in types]
    assert len(started) == 2
    assert [key for key, types in logged.items() if "STEP_FAILURE" in types] == started
    assert bench.notes("later") == []


def test_a_run_worker_that_is_told_to_stop_without_a_request_fails_the_run(bench: Bench) -> None:
    bench.worker()
    run = bench.create("waiting")
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    run_worker.stop()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value
    assert bench.rows(run.run_id) == [("waits", 1, "cancelled")]
