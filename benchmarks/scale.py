#!/usr/bin/env python3
"""Measures what happens when there is more of everything: workers, and steps of a run.

*workers*: 2 to 64 simulated workers (simulated_workers.py) on one PostgreSQL and one queue, for a run coordinator of
this package's own.  Steps sleep; what is asked for is how many end in a second beside what the slots allow, and what
each costs PostgreSQL, SQS and the run worker.  Neither Dagster nor step processes take part.

*run worker*: runs of 100, 1,000 and 10,000 mapped steps of Dagster, its storage in PostgreSQL, executed by this
process.  Simulated workers answer at once, with the events that a real worker has written for the same steps.  What is
asked for is the run worker's CPU time for each step, and whether message and completion row grow.

    python scale.py
    python scale.py --only workers --workers 2 8 32 --json scale.json
    python scale.py --only run-worker --sizes 100 1000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bed import Bed, bed
from common import columns, machine, write_json
from steps import cpu_seconds, stop

HERE = Path(__file__).resolve().parent
QUEUE = "dagster"
WORKERS = (2, 4, 8, 16, 32, 64)
SIZES = (100, 1000, 10_000)
TEMPLATE = "mapped_2"
"""The job from whose steps the events are taken."""

SUBMIT = 10
"""Steps that get their rows and messages together, as under Dagster."""


def cpu() -> float:
    """Seconds of this process, its I/O thread included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def simulated(made: Bed, **orders: Any) -> Iterator[dict[str, Any]]:
    """Workers, and at the end what they have used."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "simulated_workers.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=made.environment,
    )
    assert process.stdin is not None and process.stdout is not None
    used: dict[str, Any] = {}
    try:
        orders = {"url": made.url, "queue_url": made.make_queue(QUEUE), **orders}
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the simulated workers have failed")
        yield used
        process.stdin.close()
        used.update(json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


# ---- workers --------------------------------------------------------------------------------------------------------


def make_tables(made: Bed) -> None:
    from dagster_taskiq import _core, migrations
    from dagster_taskiq.store import IdempotencyStore

    loop = _core.Loop()
    migrations.migrate(IdempotencyStore(loop, made.url))
    loop.close()


def measure_workers(made: Bed, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    steps = count * options.slots * options.per_slot
    server = {"server": [made.postgres_pid]}
    transactions, server_before = made.transactions(), cpu_seconds(server)["server"]
    with simulated(made, workers=count, slots=options.slots, seconds=options.step) as used:
        coordinator = run_coordinator(made, steps, options.heartbeat)
    ideal = count * options.slots / options.step
    server_cpu = cpu_seconds(server)["server"] - server_before
    return {
        "workers": count,
        "steps": steps,
        "per_second": steps / coordinator["wall"],
        "of_ideal": steps / coordinator["wall"] / ideal,
        # Those of connecting and of this question included.
        "transactions": (made.transactions() - transactions) / steps,
        "postgres_cpu_ms": server_cpu * 1000 / steps,
        "requests": (coordinator["requests"] + used["requests"]) / steps,
        "coordinator_cpu_ms": coordinator["cpu"] * 1000 / steps,
        "workers_cpu_ms": used["cpu"] * 1000 / steps,
        "claimed": used["claimed"],
    }


def run_coordinator(made: Bed, steps: int, heartbeat: float) -> dict[str, float]:
    """A run of so many steps, none of which waits for another."""
    from dagster_taskiq import _core, sqs
    from dagster_taskiq.config import Settings
    from dagster_taskiq.coordinator import RunCoordinator
    from dagster_taskiq.notices import Ended
    from dagster_taskiq.payload import StepTask, pack
    from dagster_taskiq.sender import Message
    from dagster_taskiq.store import IdempotencyStore

    run_id = str(uuid.uuid4())
    settings = Settings(queue=QUEUE, heartbeat_interval=heartbeat)

    def message(step_key: str, attempt: int) -> Message:
        task = StepTask(
            run_id=run_id,
            step_key=step_key,
            attempt=attempt,
            job_name="job",
            queue=QUEUE,
            code_location="location",
            lease_ttl=settings.lease_ttl,
            heartbeat=settings.heartbeat_interval,
            visibility=settings.visibility_timeout,
            sent_at=time.time(),
            retry_mode="ENABLED",
            parts={"job_origin": "x" * 700, "known_state": "x" * 300},
        )
        return Message(pack(task), {})

    loop = _core.Loop()
    try:
        store = IdempotencyStore(loop, made.url)
        client = sqs.make_client(loop)
        coordinator = RunCoordinator(settings, run_id, loop=loop, store=store, sqs=client, make_message=message)
        coordinator.begin()
        cpu_before, begin = cpu(), time.monotonic()
        attempts = [(f"step_{number}", 1, QUEUE) for number in range(steps)]
        for place in range(0, steps, SUBMIT):
            coordinator.submit(attempts[place : place + SUBMIT])
            coordinator.poll()
        left = steps
        while left:
            for notice in coordinator.wait(None):
                if not isinstance(notice, Ended) or notice.outcome.state != "succeeded":
                    raise SystemExit(f"unexpected: {notice}")
                left -= 1
        result = {"wall": time.monotonic() - begin, "cpu": cpu() - cpu_before}
        coordinator.end()
        return {**result, "requests": client.stats()["requests"]}
    finally:
        loop.close()


# ---- the run worker -------------------------------------------------------------------------------------------------


def real_events(made: Bed) -> dict[str, Any]:
    """What a real worker writes into the completion rows of a small run."""
    worker = made.start_worker()
    run_id = run_job(TEMPLATE)
    stop(worker)
    rows = made.ask(f"SELECT step_key, events FROM dagster_taskiq_steps WHERE run_id = '{run_id}'")
    return {"run_id": run_id, "job_name": TEMPLATE, "events": dict(rows), "first_key": "k0"}


def run_job(name: str) -> str:
    """The id of the run."""
    import mapped_jobs
    from dagster import DagsterInstance, execute_job, reconstructable

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with DagsterInstance.get() as instance:
        result = execute_job(reconstructable(getattr(mapped_jobs, name)), instance, run_config=quiet)
    if not result.success:
        raise SystemExit(f"run {result.run_id} failed")
    return result.run_id


def measure_run_worker(made: Bed, size: int, events: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    server = {"server": [made.postgres_pid]}
    answering = {**events, "keys": size, "workers": 1, "slots": options.answering, "seconds": 0.0}
    with simulated(made, **answering) as used:
        before, server_before, begin = cpu(), cpu_seconds(server)["server"], time.monotonic()
        run_job(f"mapped_{size}")
        used_cpu, server_cpu = cpu() - before, cpu_seconds(server)["server"] - server_before
        wall = time.monotonic() - begin
    steps = size + 1
    return {
        "mapped": size,
        "run_worker_cpu_s": used_cpu,
        "run_worker_cpu_ms": used_cpu * 1000 / steps,
        "postgres_cpu_ms": server_cpu * 1000 / steps,
        "wall_s": wall,
        "message_bytes": used["message_bytes"],
        "row_bytes": used["row_bytes"],
    }


# ---- all of it ------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        made = stack.enter_context(bed())
        made.make_queue(QUEUE)
        for name in [name for name in os.environ if name.startswith(("AWS_", "DAGSTER", "PG"))]:
            del os.environ[name]
        os.environ.update(made.environment)
        make_tables(made)
        if options.only != "run-worker":
            # The first one is for warming up.
            counts = [options.workers[0], *options.workers]
            rows = [_told(measure_workers(made, count, options)) for count in counts]
            result["workers"] = rows[1:]
        if options.only != "workers":
            events = real_events(made)
            rows = [_told(measure_run_worker(made, size, events, options)) for size in (SIZES[0], *options.sizes)]
            result["run_worker"] = rows[1:]
    return result


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print({name: round(value, 3) for name, value in row.items()}, file=sys.stderr)
    return row


def tables(result: dict[str, Any]) -> str:
    parts = []
    if "workers" in result:
        header = ("workers", "steps", "steps a second", "of the slots' best", "transactions", "PostgreSQL CPU ms")
        header += ("SQS requests", "coordinator CPU ms", "workers' CPU ms")
        rows = [
            (
                *(str(row["workers"]), str(row["steps"]), f"{row['per_second']:.1f}", f"{row['of_ideal']:.0%}"),
                *(f"{row['transactions']:.2f}", f"{row['postgres_cpu_ms']:.2f}", f"{row['requests']:.2f}"),
                *(f"{row['coordinator_cpu_ms']:.2f}", f"{row['workers_cpu_ms']:.2f}"),
            )
            for row in result["workers"]
        ]
        parts += ["each step's, but for the first columns:", columns(header, rows)]
    if "run_worker" in result:
        header = ("mapped steps", "run worker CPU ms a step", "the further steps' alone", "PostgreSQL CPU ms a step")
        header += ("wall s", "largest message, bytes", "largest row of a mapped step, bytes")
        rows = []
        smaller: dict[str, Any] | None = None
        for row in result["run_worker"]:
            further = "-"
            if smaller:
                more = row["mapped"] - smaller["mapped"]
                further = f"{(row['run_worker_cpu_s'] - smaller['run_worker_cpu_s']) * 1000 / more:.2f}"
            smaller = row
            rows.append(
                (
                    *(str(row["mapped"]), f"{row['run_worker_cpu_ms']:.2f}", further, f"{row['postgres_cpu_ms']:.2f}"),
                    *(f"{row['wall_s']:.1f}", str(row["message_bytes"]), str(row["row_bytes"])),
                )
            )
        parts += [columns(header, rows)]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--only", choices=("workers", "run-worker"), help="default: both")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS), help="default: 2 to 64")
    parser.add_argument("--slots", type=int, default=2, help="of each simulated worker (default: 2)")
    parser.add_argument("--per-slot", type=int, default=6, help="steps for each slot (default: 6)")
    parser.add_argument("--step", type=float, default=2.0, help="seconds that a step sleeps (default: 2)")
    parser.add_argument("--heartbeat", type=float, default=2.0, help="seconds between renewals (default: 2)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="default: 100, 1000 and 10000")
    parser.add_argument("--answering", type=int, default=10, help="slots that answer mapped steps (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before = machine()
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    result = {"machine": before, "options": asked, **measure(options)}
    write_json(options.json, result)
    print(json.dumps(before))
    print(tables(result))


if __name__ == "__main__":
    main()
