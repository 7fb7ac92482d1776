"""FIFO queues, from the tag of an op to the order in which steps run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import services
from executor_bench import Bench

from dagster_taskiq._core import Loop
from dagster_taskiq.sqs import create_queue_pair, make_client


@pytest.fixture
def queue(sqs_endpoint: str) -> Iterator[services.Queue]:
    loop = Loop()
    pair = create_queue_pair(make_client(loop, endpoint=sqs_endpoint), "steps.fifo").result(30)
    loop.close()
    made = services.Queue(sqs_endpoint, "steps.fifo", pair.url, pair.dead_url)
    try:
        yield made
    finally:
        for url in (pair.url, pair.dead_url):
            made.call("DeleteQueue", QueueUrl=url)


def test_steps_of_a_group_run_one_after_the_other_and_others_do_not_wait(bench: Bench) -> None:
    bench.worker(slots=2)
    result = bench.run("grouped")
    assert result.success
    sql = """
        SELECT step_key, claimed_at, finished_at FROM dagster_taskiq_steps
        WHERE step_key IN ('first', 'second', 'third') ORDER BY claimed_at
    """
    (_, _, ended), *later = services.rows(bench.database_url, sql)
    assert len(later) == 2
    for _, claimed, finished in later:
        assert claimed >= ended
        ended = finished
    services.wait_for(lambda: bench.queue.counts() == (0, 0), "the end of the messages")
    assert bench.queue.dead_url.endswith("/steps-dead.fifo")
