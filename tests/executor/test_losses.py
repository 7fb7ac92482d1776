"""What happens when a worker or a run worker dies in the middle."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
import services
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, serialize_value
from executor_bench import Bench, telling

from dagster_taskiq import payload


def test_a_step_whose_worker_is_killed_runs_again(bench: Bench) -> None:
    first = bench.worker(slots=1)
    run = bench.create("waiting")
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    first.kill()
    bench.worker(slots=1)
    bench.wait_for_notes("waits", 2)
    bench.let_go()
    assert run_worker.wait() == 0
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, bench.messages(run.run_id)
    assert bench.rows(run.run_id) == [("plus_one", 1, "succeeded"), ("waits", 1, "lost"), ("waits", 2, "succeeded")]
    assert len(set(bench.notes("waits"))) == 2
    events = telling(bench.logged(run.run_id)["waits"])
    assert events == [
        "WORKER_STARTING",
        "WORKER_STARTED",
        "START",
        "UP_FOR_RETRY",
        "WORKER_STARTING",
        "WORKER_STARTED",
        "START",
        "SUCCESS",
    ]


def test_a_step_that_is_lost_too_often_fails(bench: Bench) -> None:
    worker = bench.worker(slots=1)
    run = bench.create("waiting", worker_loss_retries=0)
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    worker.kill()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value
    assert bench.rows(run.run_id) == [("waits", 1, "lost")]
    assert any("worker_loss_retries is 0" in text for text in bench.messages(run.run_id))


def test_a_resumed_run_adopts_what_runs_and_what_has_ended(bench: Bench) -> None:
    bench.worker()
    run = bench.create("waiting")
    first = bench.run_worker(run)
    bench.wait_for_notes("waits")
    first.kill()
    second = bench.run_worker(run, resume=True)
    second.wait_for_log("Taking the run over")
    bench.let_go()
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert len(bench.notes("waits")) == 1
    assert bench.rows(run.run_id) == [("plus_one", 1, "succeeded"), ("waits", 1, "succeeded")]
    assert telling(bench.logged(run.run_id)["waits"]) == ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]


def test_a_resumed_run_finds_what_ended_while_nobody_looked(bench: Bench) -> None:
    bench.worker()
    run = bench.create("waiting")
    first = bench.run_worker(run)
    bench.wait_for_notes("waits")
    first.kill()
    bench.let_go()
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'succeeded'"
    services.wait_for_rows(bench.database_url, sql)
    second = bench.run_worker(run, resume=True)
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert len(bench.notes("waits")) == 1


def test_a_resumed_run_sends_again_what_is_queued(bench: Bench) -> None:
    run = bench.create("waiting")
    first = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    first.kill()
    bench.queue.call("PurgeQueue")
    bench.let_go()
    bench.worker()
    second = bench.run_worker(run, resume=True)
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output


def test_a_message_that_vanished_is_sent_again(bench: Bench) -> None:
    run = bench.create("chain", backoff={"base": 1, "cap": 2})
    run_worker = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    bench.queue.call("PurgeQueue")
    bench.worker()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output


def test_a_run_worker_that_is_superseded_leaves_without_a_word(bench: Bench) -> None:
    bench.worker()
    run = bench.create("waiting")
    first = bench.run_worker(run)
    bench.wait_for_notes("waits")
    second = bench.run_worker(run, resume=True)
    assert first.wait() == 70
    assert "superseded" in first.output
    bench.let_go()
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert len(bench.notes("waits")) == 1


def test_a_resumed_run_knows_retries_skips_failures_and_mapped_steps(bench: Bench) -> None:
    bench.worker(slots=3)
    run = bench.create("mixed")
    first = bench.run_worker(run)
    bench.wait_for_notes("waits")
    sql = "SELECT count(*) FROM dagster_taskiq_steps WHERE state IN ('queued', 'claimed')"
    done = "SELECT 1 FROM dagster_taskiq_steps WHERE step_key = %s AND state = 'succeeded'"
    for step_key in ("collected", "taken"):
        services.wait_for_rows(bench.database_url, done, [step_key])
    services.wait_for(lambda: services.rows(bench.database_url, sql) == [(1,)], "one step in flight")
    first.kill()
    second = bench.run_worker(run, resume=True)
    second.wait_for_log("Taking the run over")
    bench.let_go()
    second.wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value, second.output
    logged = bench.logged(run.run_id)
    assert logged["skipped"] == logged["after_skipped"] == ["STEP_SKIPPED"]
    assert telling(logged["total"])[-1] == "SUCCESS"
    assert telling(logged["waits"]).count("START") == 1
    assert telling(logged["breaks"]).count("FAILURE") == 1
    assert "never" not in logged
    assert all(types.count("STEP_SUCCESS") <= 1 for types in logged.values())
    assert [row for row in bench.rows(run.run_id) if row[0] == "fails_once_slowly"] == [
        ("fails_once_slowly", 1, "failed"),
        ("fails_once_slowly", 2, "succeeded"),
    ]


def test_a_resumed_run_waits_out_the_delay_of_a_retry(bench: Bench) -> None:
    worker = bench.worker(slots=1)
    run = bench.create("slow_retry")
    first = bench.run_worker(run)
    services.wait_for(
        lambda: "STEP_UP_FOR_RETRY" in bench.logged(run.run_id).get("retries_late", []), "the retry event"
    )
    first.kill()
    second = bench.run_worker(run, resume=True)
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert len(bench.notes("retries_late")) == 2
    assert "retries_late" in worker.output


def test_limits_hold_in_a_resumed_run(bench: Bench) -> None:
    bench.instance.event_log_storage.set_concurrency_slots("narrow", 1)
    bench.worker(slots=3)
    limits = [{"key": "kind", "value": "lonely", "limit": 1}]
    run = bench.create("limited", max_concurrent=3, tag_concurrency_limits=limits)
    first = bench.run_worker(run)
    bench.wait_for_notes("waits")
    first.kill()
    bench.let_go()
    second = bench.run_worker(run, resume=True)
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    for name in ("in_pool", "lonely"):
        assert len(bench.notes(name)) == 3
        assert bench.most_at_once(run.run_id, name) == 1
    assert bench.instance.event_log_storage.get_concurrency_info("narrow").active_slot_count == 0


def test_connections_that_drop_cost_nothing(bench: Bench) -> None:
    bench.worker()
    run = bench.create("waiting")
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    mine = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'dagster-taskiq%%'"
    )
    services.rows(bench.database_url, mine)
    bench.let_go()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    assert len(bench.notes("waits")) == 1


def test_a_notification_that_is_lost_is_made_up_for(bench: Bench) -> None:
    """The outcome is written by hand, without its NOTIFY."""
    run = bench.create("chain")
    run_worker = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    by_hand = """
        UPDATE dagster_taskiq_steps
        SET state = 'failed', generation = 999, owner = 'x', nonce = 'x', lease = now(), claimed_at = now(),
            started_at = now(), finished_at = now(), error = '{"message": "by hand"}'
        WHERE run_id = %s
    """
    services.rows(bench.database_url, by_hand, [run.run_id])
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value
    assert any("by hand" in text for text in bench.messages(run.run_id))


@contextmanager
def resuming(bench: Bench) -> Iterator[Bench]:
    """Of an instance that resumes runs."""
    path = Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml"
    changes = {
        "run_monitoring": {"enabled": True, "max_resume_run_attempts": 3},
        "run_launcher": {"module": "executor_launcher", "class": "ResumingLauncher"},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with DagsterInstance.get() as instance:
        yield replace(bench, instance=instance, location="here")


def test_a_run_that_nobody_launched_ends_with_its_run_worker(bench: Bench) -> None:
    """As by Ctrl-C on `dagster job execute`: it is not resumed."""
    bench.worker()
    with resuming(bench) as resumed:
        bench = replace(resumed, location="")
        run = bench.create("waiting")
        first = bench.run_worker(run)
        bench.wait_for_notes("waits")
        first.stop()
        assert bench.status(run) == DagsterRunStatus.CANCELED.value, first.output
        services.wait_for(lambda: bench.rows(run.run_id) == [("waits", 1, "cancelled")], "the end of its step")


def test_an_interrupted_run_worker_whose_run_will_be_resumed_leaves_its_steps_alone(bench: Bench) -> None:
    bench.worker()
    with resuming(bench) as bench:
        run = bench.create("waiting")
        first = bench.run_worker(run)
        bench.wait_for_notes("waits")
        first.stop()
        assert bench.status(run) == DagsterRunStatus.STARTED.value, first.output
        assert bench.rows(run.run_id) == [("waits", 1, "claimed")]
        second = bench.run_worker(run, resume=True)
        second.wait_for_log("Taking the run over")
        bench.let_go()
        second.wait()
        assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
        assert len(bench.notes("waits")) == 1


def run_step_by_hand(bench: Bench) -> None:
    """Run the step of the one message that is in the queue, without its row."""
    (message,) = bench.queue.call("ReceiveMessage", MaxNumberOfMessages=1)["Messages"]
    task = payload.unpack(message["Body"])
    stored = dict(services.rows(bench.database_url, "SELECT digest, content FROM dagster_taskiq_parts"))
    command = [sys.executable, "-m", "dagster", "api", "execute_step", payload.command_args(task, stored)]
    assert bench.processes.start("step", command).wait() == 0


@pytest.mark.parametrize("state", ["lost", "failed"])
def test_an_end_that_is_in_the_log_is_adopted(bench: Bench, state: str) -> None:
    """The step process logged its success and died before its worker could write the row."""
    run = bench.create("single")
    run_worker = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    run_step_by_hand(bench)
    settle = """
        UPDATE dagster_taskiq_steps
        SET state = %s, generation = 999, owner = 'x', nonce = 'x', lease = now(), claimed_at = now(),
            started_at = now(), finished_at = now(), reason = 'by hand'
        WHERE run_id = %s
    """
    services.rows(bench.database_url, settle, [state, run.run_id])
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    assert bench.rows(run.run_id) == [("one", 1, state)]
    assert telling(bench.logged(run.run_id)["one"]) == ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]


def test_a_step_that_was_taken_back_without_a_word_fails(bench: Bench) -> None:
    """Its run worker died between the row's cancellation and the event that says why."""
    run = bench.create("single")
    first = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    first.kill()
    take_back = """
        UPDATE dagster_taskiq_steps SET state = 'cancelled', finished_at = now(), reason = 'cancelled by hand'
        WHERE run_id = %s
    """
    services.rows(bench.database_url, take_back, [run.run_id])
    bench.run_worker(run, resume=True).wait()
    assert bench.status(run) == DagsterRunStatus.FAILURE.value
    assert telling(bench.logged(run.run_id)["one"]) == ["WORKER_STARTING", "FAILURE"]
    assert any("never started: cancelled by hand" in text for text in bench.messages(run.run_id))


CLAIM = """
    UPDATE dagster_taskiq_steps
    SET state = 'claimed', generation = 999, owner = 'x', nonce = 'x', lease = now() + interval '1 hour',
        claimed_at = now(), started_at = now()
    WHERE run_id = %s
"""
EXPIRE = "UPDATE dagster_taskiq_steps SET lease = now() WHERE run_id = %s AND state = 'claimed'"


@pytest.mark.parametrize("job", ["single", "retried"])
def test_an_end_that_is_in_the_log_waits_for_its_row(bench: Bench, job: str) -> None:
    """The step process has logged how it ended, its worker has not written the row yet, and never will."""
    run = bench.create(job)
    first = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    run_step_by_hand(bench)
    services.rows(bench.database_url, CLAIM, [run.run_id])
    first.kill()
    second = bench.run_worker(run, resume=True)
    second.wait_for_log("Taking the run over")
    bench.worker()
    services.rows(bench.database_url, EXPIRE, [run.run_id])
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    if job == "single":
        assert bench.rows(run.run_id) == [("one", 1, "lost")]
        assert telling(bench.logged(run.run_id)["one"]) == ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]
    else:
        assert bench.rows(run.run_id) == [("fails_once", 1, "lost"), ("fails_once", 2, "succeeded")]
        ends = [name for name in telling(bench.logged(run.run_id)["fails_once"]) if name in ("UP_FOR_RETRY", "SUCCESS")]
        assert ends == ["UP_FOR_RETRY", "SUCCESS"]


SUCCEEDED = """
    WITH done AS (
        UPDATE dagster_taskiq_steps
        SET state = 'succeeded', generation = 999, owner = 'x', nonce = 'x', lease = now(), claimed_at = now(),
            started_at = now(), finished_at = now(), events = %s
        WHERE run_id = %s RETURNING run_id)
    SELECT pg_notify('dtq_run_' || replace(run_id, '-', ''), '{}') FROM done
"""
END_OF_WRITERS = (
    "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
    " WHERE application_name LIKE 'dagster-taskiq-run:%%' AND datname = current_database()"
)


def success_of(bench: Bench, run: DagsterRun) -> str:
    """The events of the step's output and success as its worker would write them into the row."""
    entries = [entry.dagster_event for entry in bench.instance.all_logs(run.run_id)]
    told = [event for event in entries if event is not None and (event.is_successful_output or event.is_step_success)]
    return json.dumps([serialize_value(event) for event in told])


def test_a_superseded_run_worker_opens_no_connection_to_the_log(bench: Bench) -> None:
    """It has not heard of it yet, and has something to write."""
    run = bench.create("single", lease_ttl=600, heartbeat_interval=10)
    first = bench.run_worker(run)
    services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
    run_step_by_hand(bench)
    take_over = "UPDATE dagster_taskiq_runs SET generation = nextval('dagster_taskiq_generations'), coordinator = 'x'"
    connection = psycopg2.connect(bench.database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(take_over)
        cursor.execute(END_OF_WRITERS)
        cursor.execute(SUCCEEDED, [success_of(bench, run), run.run_id])
    connection.close()
    assert first.wait() == 70
    assert "superseded" in first.output
    assert not any("ran on worker" in text for text in bench.messages(run.run_id))


@contextmanager
def no_new_connections(database_url: str) -> Iterator[None]:
    """To that database, by anybody."""
    name = psycopg2.extensions.parse_dsn(database_url)["dbname"]
    elsewhere = psycopg2.extensions.make_dsn(database_url, dbname="postgres")
    services.rows(elsewhere, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        yield
    finally:
        services.rows(elsewhere, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_an_outage_under_an_event_leaves_the_run_to_the_next_run_worker(bench: Bench) -> None:
    with resuming(bench) as bench:
        run = bench.create("chain")
        first = bench.run_worker(run)
        services.wait_for(lambda: bench.queue.counts()[0] == 1, "the step's message")
        run_step_by_hand(bench)
        events = success_of(bench, run)
        connection = psycopg2.connect(bench.database_url)
        with no_new_connections(bench.database_url):
            with connection, connection.cursor() as cursor:
                cursor.execute(END_OF_WRITERS)
                cursor.execute(SUCCEEDED, [events, run.run_id])
            connection.close()
            first.wait_for_log("Exception while writing logger call to event log")
        assert first.wait() == 70, first.output
        assert bench.status(run) == DagsterRunStatus.STARTED.value, first.output
        bench.worker()
        second = bench.run_worker(run, resume=True)
        second.wait()
        assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
        assert telling(bench.logged(run.run_id)["one"]).count("SUCCESS") == 1
        # Its row was there, and the event that comes before its message was not.
        assert telling(bench.logged(run.run_id)["second"]) == ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]
