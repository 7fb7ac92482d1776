"""Settings that only workers read: keys, code locations, times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import services

HERE = Path(__file__).parent


def hang_at_import(stage: Any) -> None:
    stage.origin["repository_origin"]["code_pointer"] = {
        "__class__": "ModuleCodePointer",
        "fn_name": "work",
        "module": "hanging_jobs",
        "working_directory": str(HERE),
    }


def importing(stage: Any) -> int:
    path = stage.folder / "importing"
    return int(services.wait_for(lambda: path.exists() and path.read_text(), "the import"))


def refused(stage: Any) -> dict[str, Any]:
    """The attributes of the one message in the dead-letter queue."""
    (message,) = services.wait_for(stage.queue.dead_messages, "a message in the dead-letter queue")
    return {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}


def test_a_key_is_changed(stage: Any, start_worker: Any) -> None:
    """The new key and the one before it are accepted, no other."""
    worker = start_worker(
        env={"DAGSTER_TASKIQ_SIGNING_KEY": "new-s3cret", "DAGSTER_TASKIQ_PREVIOUS_SIGNING_KEYS": "old-s3cret"}
    )
    for key, signing_key in (("quick", "new-s3cret"), ("other", "old-s3cret"), ("slow", "older-s3cret")):
        stage.enqueue(key)
        stage.post(stage.message(key, signing_key=signing_key))
    for key in ("quick", "other"):
        stage.wait_for_state(key, "succeeded")
    assert refused(stage)["DagsterTaskiqReason"] == "signature"
    assert stage.row("slow").state == "queued"
    assert "s3cret" not in worker.output


def test_other_code_locations_are_left_to_other_workers(stage: Any, start_worker: Any) -> None:
    """Before anything of theirs is imported."""
    first = start_worker(args=["--code-location", "ours", "--code-location", "ours too"])
    stage.send("quick")
    first.wait_for_log("runs no steps of code location ''")
    assert stage.row("quick").state == "queued"
    first.stop()
    start_worker()
    assert stage.wait_for_state("quick", "succeeded").worker_name == "worker-2"
    stage.wait_for_messages(0, 0)
    assert stage.queue.dead_messages() == []
    assert "was imported" not in first.output


def test_what_a_worker_leaves_another_one_has_soon(stage: Any, start_worker: Any) -> None:
    """Though the first goes on asking: if it took the message each time, the test would run out of time."""
    first = start_worker(args=["--code-location", "ours"])
    start_worker()
    for _ in range(100):
        stage.begin_run()
        stage.send("quick")
        assert stage.wait_for_state("quick", "succeeded").worker_name == "worker-2"
        if "runs no steps of code location ''" in first.output:
            return
    raise AssertionError("the first worker was never given a message")


def test_code_locations_that_are_listed_run(stage: Any, start_worker: Any) -> None:
    start_worker(config={"database_url": stage.database_url, "code_locations": ["ours", ""]})
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")


def test_an_import_that_takes_too_long(stage: Any, start_worker: Any) -> None:
    """Where the time runs out, in the code location or before it, depends on the machine."""
    worker = start_worker(config={"database_url": stage.database_url, "load_timeout": 2})
    hang_at_import(stage)
    stage.send("quick")
    stage.wait_for_state("quick", "failed")
    assert "load_timeout" in json.loads(stage.outcome("quick").error)["message"]
    services.wait_for(lambda: not services.descendants(worker.pid), "the warm parent's death")


def test_an_import_that_hangs_ends_with_the_worker(stage: Any, start_worker: Any) -> None:
    worker = start_worker()
    hang_at_import(stage)
    stage.send("quick")
    pid = importing(stage)
    worker.kill()
    services.wait_for(lambda: not services.alive(pid), "the warm parent's death")


def test_old_rows_are_removed(stage: Any, start_worker: Any) -> None:
    old = stage.store.begin_run("an-old-run", "nonce", 60.0).result(10)
    stage.store.end_run("an-old-run", old.generation).result(10)
    services.rows(
        stage.database_url,
        "UPDATE dagster_taskiq_runs SET ended_at = now() - interval '20 days' WHERE run_id = 'an-old-run'",
    )
    start_worker().wait_for_log("removed 1 old runs")
    left = services.rows(stage.database_url, "SELECT run_id FROM dagster_taskiq_runs")
    assert left == [(stage.run_id,)]


def test_left_over_claims_are_settled_though_nothing_is_removed(stage: Any, start_worker: Any) -> None:
    stage.enqueue("quick")
    assert stage.store.start(stage.run_id, "quick", 1, stage.claim("quick", lease=0.2).generation).result(10)
    stage.store.end_run(stage.run_id, stage.generation).result(10)
    services.wait_for(lambda: stage.row("quick").lease_left < 0, "the end of the lease")
    start_worker(config={"database_url": stage.database_url, "retention": None})
    stage.wait_for_state("quick", "lost")


def test_a_queue_that_is_given_by_its_url_is_served_by_name(stage: Any, processes: Any) -> None:
    """Executors have rows under the queue's name, and fail steps of queues that nobody serves."""
    config = {"queue": "steps", "queue_url": stage.queue.url}
    worker = processes.start_worker([], config=config, env={"DAGSTER_TASKIQ_DATABASE_URL": stage.database_url})
    assert stage.store.queue_depth("steps").result(10).workers == 1
    worker.stop()
    worker = processes.start_worker(["steps"], config=config, env={"DAGSTER_TASKIQ_DATABASE_URL": stage.database_url})
    assert stage.store.queue_depth("steps").result(10).workers == 1
    worker.stop()
    processes.start_worker([stage.queue.url], env={"DAGSTER_TASKIQ_DATABASE_URL": stage.database_url})
    assert stage.store.queue_depth(stage.queue.name).result(10).workers == 1
