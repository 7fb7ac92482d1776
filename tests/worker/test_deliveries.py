"""What a worker makes of each kind of delivery."""

from __future__ import annotations

import json
from typing import Any

import services


def reasons(queue: services.Queue, count: int) -> dict[str, dict[str, Any]]:
    """Reason -> message, of ``count`` messages in the dead-letter queue."""
    found: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        for message in queue.dead_messages():
            found[message["MessageAttributes"]["DagsterTaskiqReason"]["StringValue"]] = message
        return len(found) >= count

    services.wait_for(look, f"{count} messages in the dead-letter queue")
    return found


def test_a_step_runs_and_its_message_goes(stage: Any, start_worker: Any) -> None:
    start_worker()
    stage.send("quick")
    row = stage.wait_for_state("quick", "succeeded")
    assert (row.worker_name, row.deliveries) == ("worker-1", 1)
    assert row.started_at is not None
    assert row.started_at <= row.finished_at
    stage.wait_for_messages(0, 0)
    (start, end) = stage.history()
    assert start == ["start", "quick", "1", str(row.generation), str(row.pid)]
    assert end[0] == "end"
    events = json.loads(stage.outcome("quick").events)
    sent = [event["event_type_value"] for event in events if event["step_key"] == "quick"]
    assert sent == stage.logged("quick")
    assert sent[-1] == "STEP_SUCCESS"
    assert not services.alive(row.pid)


def test_copies_of_a_message_on_two_workers_run_once(stage: Any, start_worker: Any) -> None:
    workers = [start_worker(), start_worker()]
    stage.send("slow", copies=3)
    stage.wait_for_note("start", "slow")
    services.wait_for(
        lambda: sum(worker.output.count("another claim holds") for worker in workers) >= 2, "two hidden deliveries"
    )
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    stage.wait_for_messages(0, 0)
    assert stage.starts("slow") == 1
    assert stage.logged("slow").count("STEP_START") == 1


def test_what_cannot_be_understood_goes_to_the_dead_letter_queue(stage: Any, start_worker: Any) -> None:
    worker = start_worker(env={"DAGSTER_TASKIQ_SIGNING_KEY": "the key"})
    task = {"task_id": "1", "labels": {}, "args": [], "kwargs": {}}
    bodies = {
        "garbage": "no JSON at all",
        "foreign": json.dumps({**task, "task_name": "somebody:task"}),
        "unsigned": stage.message("quick").decode(),
        "forged": stage.message("quick", signing_key="another key").decode(),
        "missing": stage.message("quick", signing_key="the key").decode(),
    }
    for body in bodies.values():
        stage.post(body)
    found = reasons(stage.queue, 5)
    by_body = {message["Body"]: reason for reason, message in found.items()}
    told = {name: by_body[body] for name, body in bodies.items()}
    assert told["foreign"] == "unknown_task"
    assert told["missing"] == "missing"
    assert len(set(told.values())) == 5, told
    attributes = found["missing"]["MessageAttributes"]
    assert attributes["DagsterTaskiqWorker"]["StringValue"] == "worker-1"
    assert attributes["DagsterTaskiqQueue"]["StringValue"].endswith(stage.queue.name)
    stage.wait_for_messages(0, 0)
    assert stage.history() == []
    assert "the key" not in worker.output


def test_a_dead_letter_queue_that_is_made_later_is_found(stage: Any, start_worker: Any) -> None:
    policy = stage.queue.call("GetQueueAttributes", AttributeNames=["RedrivePolicy"])["Attributes"]
    stage.queue.call("SetQueueAttributes", Attributes={"RedrivePolicy": ""})
    worker = start_worker()
    stage.post("no JSON at all")
    worker.wait_for_log("has no dead-letter queue")
    stage.queue.call("SetQueueAttributes", Attributes=policy)
    stage.post("no JSON either")
    (message,) = reasons(stage.queue, 1).values()
    assert message["Body"] == "no JSON either"


def test_a_signed_step_runs(stage: Any, start_worker: Any) -> None:
    start_worker(env={"DAGSTER_TASKIQ_SIGNING_KEY": "the key"})
    stage.enqueue("quick")
    stage.post(stage.message("quick", signing_key="the key"))
    stage.wait_for_state("quick", "succeeded")


def test_late_deliveries_are_deleted(stage: Any, start_worker: Any) -> None:
    start_worker()
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    stage.post(stage.message("quick"))
    stage.enqueue("other")
    assert stage.store.cancel_run(stage.run_id).result(10)
    stage.post(stage.message("other"))
    stage.wait_for_state("other", "cancelled")
    stage.wait_for_messages(0, 0)
    assert stage.starts("quick") == 1
    assert stage.starts("other") == 0


def test_a_claim_whose_lease_is_past(stage: Any, start_worker: Any) -> None:
    """Started: it is lost, and not run.  Never started: it runs."""
    stage.enqueue("quick")
    stage.enqueue("other")
    generation = stage.claim("quick", lease=0.2).generation
    assert stage.store.start(stage.run_id, "quick", 1, generation).result(10)
    stage.claim("other", lease=0.2)
    for key in ("quick", "other"):
        services.wait_for(lambda key=key: stage.row(key).lease_left < 0, f"the end of the lease of {key}")
        stage.post(stage.message(key))
    start_worker()
    assert "lease" in stage.wait_for_state("quick", "lost").reason
    stage.wait_for_state("other", "succeeded")
    stage.wait_for_messages(0, 0)
    assert stage.starts("quick") == 0


def test_a_run_that_nobody_coordinates(stage: Any, start_worker: Any) -> None:
    """What runs goes on; what is queued does not start, until the coordinator's lease runs again."""
    worker = start_worker()
    stage.send("slow")
    stage.wait_for_note("start", "slow")
    services.rows(stage.database_url, "UPDATE dagster_taskiq_runs SET lease = now() - interval '1 s'")
    stage.send("quick")
    worker.wait_for_log("nobody coordinates the run")
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    stage.wait_for_messages(0, 1)
    assert stage.row("quick").state == "queued"
    assert stage.store.renew_run(stage.run_id, stage.generation, 3600.0).result(10) == "active"
    stage.wait_for_state("quick", "succeeded")
    stage.wait_for_messages(0, 0)


def test_no_more_is_received_than_there_are_slots(stage: Any, start_worker: Any) -> None:
    start_worker(slots=1)
    stage.send("slow")
    stage.send("slow_too")
    stage.send("quick")
    services.wait_for(lambda: len(stage.history()) >= 1, "a first step")
    assert stage.queue.counts() == (2, 1)
    stage.release()
    for key in ("slow", "slow_too", "quick"):
        stage.wait_for_state(key, "succeeded")
    assert len({line[4] for line in stage.history()}) == 3


def test_several_queues(stage: Any, start_worker: Any, make_queue: Any) -> None:
    """With fewer slots than queues each is served."""
    second, third = make_queue(), make_queue()
    start_worker(slots=1, queues=[stage.queue.name, second.name, third.name])
    for queue, key in ((third, "quick"), (second, "other")):
        stage.enqueue(key)
        queue.call("SendMessage", MessageBody=stage.message(key).decode())
    for key in ("quick", "other"):
        stage.wait_for_state(key, "succeeded")


def test_a_running_step_keeps_its_message_hidden(stage: Any, start_worker: Any) -> None:
    """For longer than the visibility timeout, and its lease for longer than the ttl."""
    timing = {"visibility_timeout": 3, "heartbeat_interval": 0.5, "lease_ttl": 20.0}
    worker = start_worker(config={"database_url": stage.database_url, **timing})
    stage.enqueue("slow")
    stage.post(stage.message("slow", lease=4.0, visibility=3))
    stage.wait_for_note("start", "slow")
    services.wait_for_rows(
        stage.database_url,
        "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'claimed' AND claimed_at < now() - interval '8 s'",
    )
    assert stage.queue.counts() == (0, 1)
    assert "another claim" not in worker.output
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    stage.wait_for_messages(0, 0)


def test_a_missing_queue_is_named(stage: Any, start_worker: Any) -> None:
    worker = start_worker(queues=["no-such-queue"], wait=False)
    assert worker.wait() != 0
    assert "no-such-queue" in worker.output
    assert "Traceback" not in worker.output
