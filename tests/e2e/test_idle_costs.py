"""A run that waits on a long step costs no polling."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import services
from proxies import PostgresProxy, SqsProxy

from dagster_taskiq.broker import LONG_POLL

JOBS = Path(__file__).with_name("jobs.py")
HEARTBEAT = 2.0
BEATS = 6
"""Heartbeats of the worker to watch."""


@pytest.mark.timeout(240)
def test_waiting_sends_no_more_than_the_heartbeats(
    tmp_path: Path,
    dagster_home: Path,
    database_url: str,
    queue: services.Queue,
    processes: services.Processes,
    worker_process: Callable[..., services.WorkerHandle],
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    timing = {"lease_ttl": 60, "heartbeat_interval": HEARTBEAT, "visibility_timeout": 30}
    with (
        SqsProxy(queue.endpoint) as worker_sqs,
        SqsProxy(queue.endpoint) as executor_sqs,
        PostgresProxy(database_url) as worker_sql,
        PostgresProxy(database_url) as executor_sql,
    ):
        shared = {"queue": queue.name, **timing}
        worker_process(
            [queue.name],
            slots=2,
            config={**shared, "endpoint_url": worker_sqs.endpoint, "database_url": worker_sql.url},
        )
        config = tmp_path / "run.yaml"
        executor = {**shared, "endpoint_url": executor_sqs.endpoint, "database_url": executor_sql.url}
        ops = {"wait_for_gate": {"config": {"folder": str(gate)}}}
        config.write_text(json.dumps({"execution": {"config": executor}, "ops": ops}))
        run = processes.start(
            "run",
            [sys.executable, "-m", "dagster", "job", "execute", "-f", str(JOBS), "-j", "gated", "-c", str(config)],
        )
        services.wait_for((gate / "running").exists, "the step's start")

        begin = time.monotonic()
        before = [worker_sqs.counts(), executor_sqs.counts()]
        sql_before = [worker_sql.statements(), executor_sql.statements()]
        lease = "SELECT count(*) FROM dagster_taskiq_steps WHERE state = 'claimed' AND lease > %s"
        for _ in range(BEATS):
            # A renewal moves the lease's end.
            (end,) = services.rows(database_url, "SELECT max(lease) FROM dagster_taskiq_steps")[0]
            services.wait_for(lambda end=end: services.rows(database_url, lease, [end])[0][0], "a heartbeat")
        sql_after = [worker_sql.statements(), executor_sql.statements()]
        after = [worker_sqs.counts(), executor_sqs.counts()]
        beats = (time.monotonic() - begin) / HEARTBEAT + 1

        (gate / "open").touch()
        assert run.wait() == 0, run.output

    sent_by_worker = after[0] - before[0]
    polls = sent_by_worker.pop("ReceiveMessage", 0)
    assert polls <= beats * HEARTBEAT / LONG_POLL + 2
    assert sent_by_worker.total() <= beats, sent_by_worker
    assert (after[1] - before[1]).total() <= beats, after[1] - before[1]
    # A visit of the worker renews its leases and, now and then, its own row; one of the run worker renews its lease,
    # looks for leases that ran out and for outcomes of which it was not told.  Its pauses are up to a fifth shorter.
    assert sql_after[0] - sql_before[0] <= 2 * beats
    assert sql_after[1] - sql_before[1] <= 3 * (beats / 0.8 + 1)
