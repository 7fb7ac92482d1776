"""Tags of ops and runs, from the run to the worker: what they do to a step."""

from __future__ import annotations

from typing import Any

import pytest
import services
from dagster import DagsterRunStatus
from executor_bench import Bench


def test_a_step_that_wants_more_memory_than_its_tag_allows_fails_and_says_so(bench: Bench) -> None:
    """Whether there was memory left to log the failure or not."""
    bench.worker()
    result = bench.run("short_of_memory")
    assert bench.logged(result.run_id)["one"].count("STEP_SUCCESS") == 1
    texts = [text for text in bench.messages(result.run_id) if "dagster-taskiq/memory_limit" in text]
    assert [any(f"{limit} MiB" in text for text in texts) for limit in (301, 302, 303)] == [True, True, False]
    failures = {event.step_key: event.step_failure_data.error for event in result.all_events if event.is_step_failure}
    assert set(failures) == {"takes_blocks", "takes_crumbs"}
    assert failures["takes_blocks"].cause.cls_name == "MemoryError"


@pytest.mark.parametrize("tag", ["dagster-taskiq/run_priority", "dagster/priority"])
def test_the_steps_of_a_run_with_priority_come_first(bench: Bench, make_queue: Any, tag: str) -> None:
    high = make_queue()
    bands = [{"queue": high.name, "priority": 5}]
    runs = [bench.create("single", {tag: priority}, priority_queues=bands) for priority in ("4", "5")]
    run_workers = [bench.run_worker(run) for run in runs]
    for queue in (high, bench.queue):
        services.wait_for(lambda queue=queue: queue.counts() == (1, 0), "a message on each queue")
    bench.processes.start_worker([high.name, bench.queue.name], 1)
    for run, run_worker in zip(runs, run_workers, strict=True):
        run_worker.wait()
        assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    in_order = services.rows(bench.database_url, "SELECT run_id, queue FROM dagster_taskiq_steps ORDER BY claimed_at")
    assert in_order == [(runs[1].run_id, high.name), (runs[0].run_id, bench.queue.name)]
