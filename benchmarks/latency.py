#!/usr/bin/env python3
"""Measures how long a step takes from its publication to its first instruction, and each leg of its way.

Runs chains on this executor: each step is published while the worker is idle.  All clocks are this host's.  The legs
come from what is there anyway: the times of Dagster's events, of the attempt's row, of the SQS server's journal
(stub_sqs.py), of the worker's log (milliseconds), and what the op notes with its first instruction (timed_jobs.py).

Between the chains it measures the emulator's own send and receive: this package's client sends a message to a queue on
which it has a long poll, against the same server.  *Above send and receive* is the step's time less that: both count
from the moment at which the server has the message.

    python latency.py
    python latency.py --rounds 5 --size 30 --json latency.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bed import Bed, bed, percentile, spread
from common import columns, machine, write_json
from steps import cpu_seconds
from waterfall import waterfall

from dagster_taskiq import _bridge, _core, sqs
from dagster_taskiq.store import IdempotencyStore

POINTS = (
    ("starting", "STEP_WORKER_STARTING: the run worker has chosen the step"),
    ("queued", "its row is inserted"),
    ("sent", "the SQS server has its message"),
    ("given", "the SQS server gives it to the worker's poll"),
    ("claimed", "the worker claims the row"),
    ("started", "the worker sets started_at; the step process is there and waits"),
    ("go", "the step process gets its attempt"),
    ("first_event", "STEP_WORKER_STARTED: the first event of the step process"),
    ("step_start", "STEP_START"),
    ("op", "the op's first instruction"),
    ("success", "STEP_SUCCESS"),
    ("finished", "the completion row; the step process is dead"),
    ("told", "the run worker has the outcome"),
    ("next", "STEP_WORKER_STARTING of the next step"),
)
LEGS = (
    ("write the row", "starting", "queued"),
    ("send", "queued", "sent"),
    ("wait in the queue", "sent", "given"),
    ("receive", "given", "claimed"),
    ("claim, hand over", "claimed", "started"),
    ("start", "started", "go"),
    ("to the first event", "go", "first_event"),
    ("to STEP_START", "first_event", "step_start"),
    ("to the op", "step_start", "op"),
    ("op to STEP_SUCCESS", "op", "success"),
    ("end, completion", "success", "finished"),
    ("notify", "finished", "told"),
    ("next step", "told", "next"),
    ("from step to step", "starting", "next"),
)
PUBLISHED = "publish to first instruction"
HANDED_OVER = "publish to the step process"
WAY = "send and receive alone"
ABOVE = "above send and receive"
QUEUE = "dagster"
PROBES = "probes"
REAP_SECONDS = 0.2
"""After a run, until what ends with it is counted."""

PAUSE = 0.02
"""Seconds between two probes, so that the poll is at the server."""


class Journal:
    """What the SQS server has noted: message id -> when."""

    def __init__(self, file: Path) -> None:
        self.sent: dict[str, float] = {}
        self.given: dict[str, float] = {}
        self.requests: Counter[str] = Counter()
        for line in file.read_text().splitlines():
            at, what, message_id = line.split(" ")
            if what in ("sent", "given"):
                getattr(self, what).setdefault(message_id, float(at))
            elif what != "deleted":
                self.requests[what] += 1


async def probe(url: str, count: int) -> list[tuple[str, float, float]]:
    """(message id, before the call of send, when it is received) of each message."""
    loop = _core.Loop()
    client = sqs.make_client(loop)
    found = []
    try:
        for _ in range(count):
            receiving = asyncio.ensure_future(_receive(client, url))
            await asyncio.sleep(PAUSE)
            before = time.time()
            (sent,) = await client.send(url, [{"body": "probe"}])
            message, received = await receiving
            assert message["message_id"] == sent["message_id"]
            found.append((message["message_id"], before, received))
            await client.delete(url, [message["receipt_handle"]])
    finally:
        await _bridge.close(loop)
    return found


async def _receive(client: _core.SqsClient, url: str) -> tuple[dict[str, Any], float]:
    (message,) = await client.receive(url, wait=5, max_messages=1)
    return message, time.time()


def run_chain(instance: Any, size: int) -> str:
    """The id of the run."""
    import timed_jobs
    from dagster import execute_job, reconstructable

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    result = execute_job(reconstructable(getattr(timed_jobs, f"chain_{size}")), instance, run_config=quiet)
    if not result.success:
        raise SystemExit(f"run {result.run_id} failed")
    return result.run_id


def event_times(instance: Any, run_id: str) -> dict[str, dict[str, float]]:
    """Step key -> point -> when, as Dagster's log has it."""
    names = {
        "STEP_WORKER_STARTING": "starting",
        "STEP_WORKER_STARTED": "first_event",
        "STEP_START": "step_start",
        "STEP_SUCCESS": "success",
        # The executor's own, of the finished row.
        "ENGINE_EVENT": "told",
    }
    times: dict[str, dict[str, float]] = {}
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is not None and event.step_key is not None and event.event_type_value in names:
            point = names[event.event_type_value]
            times.setdefault(event.step_key, {}).setdefault(point, entry.timestamp)
    return times


def row_times(store: IdempotencyStore, run_id: str) -> dict[str, tuple[str | None, dict[str, float | None]]]:
    """Step key -> message id, point -> when."""
    return {
        row.step_key: (
            row.delivery_id,
            {
                "queued": row.queued_at,
                "claimed": row.claimed_at,
                "started": row.started_at,
                "finished": row.finished_at,
            },
        )
        for row in store.steps(run_id).result()
    }


def log_times(log: str) -> dict[tuple[str, str], float]:
    """(Run id, step key) -> when the worker has let the step go."""
    times = {}
    for line in log.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            if entry["message"] == "the step starts":
                at = datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))
                times[entry["run_id"], entry["step_key"]] = at.timestamp()
    return times


def op_times(file: Path) -> dict[tuple[str, str], float]:
    """(Run id, step key) -> when its op began."""
    times = {}
    for line in file.read_text().splitlines():
        run_id, step_key, at = line.split(" ")
        times[run_id, step_key] = float(at)
    return times


class Rounds:
    """What was measured, round by round: the name of a leg -> milliseconds."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, list[float]]] = []

    def add(self, steps: Sequence[Mapping[str, float]], probes: Sequence[tuple[float, float]]) -> None:
        """``steps``: point -> when.  ``probes``: from the call of send, and from the server's receipt, to Python."""
        found: dict[str, list[float]] = {}
        for name, begin, end in LEGS:
            found[name] = [(one[end] - one[begin]) * 1000 for one in steps if begin in one and end in one]
        published = [(one["op"] - one["sent"]) * 1000 for one in steps]
        received = [after * 1000 for _, after in probes]
        found[HANDED_OVER] = [(one["go"] - one["sent"]) * 1000 for one in steps if "go" in one]
        found[PUBLISHED] = published
        found[WAY] = [whole * 1000 for whole, _ in probes]
        found[ABOVE] = [one - statistics.median(received) for one in published]
        self.rounds.append(found)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for name in (*(leg for leg, _, _ in LEGS), HANDED_OVER, PUBLISHED, WAY, ABOVE):
            values = [value for found in self.rounds for value in found[name]]
            medians = [statistics.median(found[name]) for found in self.rounds if found[name]]
            if values:
                parts = {f"p{round(part * 100)}_ms": percentile(values, part) for part in (0.5, 0.95, 0.99)}
                rows.append({"leg": name, **parts, "round_medians_ms": medians})
        return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with bed(journal=True) as made:
        for queue in (QUEUE, PROBES):
            made.make_queue(queue)
        notes = made.folder / "notes"
        made.environment["BENCH_NOTES"] = str(notes)
        # This process is the run worker.
        for name in [name for name in os.environ if name.startswith(("AWS_", "DAGSTER", "PG"))]:
            del os.environ[name]
        os.environ.update(made.environment)
        arguments = [word for lever in options.without for word in ("--without", lever)]
        made.start_worker("--log-format", "json", *arguments)
        return _run(made, notes, options)


def _run(made: Bed, notes: Path, options: argparse.Namespace) -> dict[str, Any]:
    from dagster import DagsterInstance

    loop = _core.Loop()
    store = IdempotencyStore(loop, made.url)
    url = made.make_queue(PROBES)
    rounds = Rounds()
    used: Counter[str] = Counter()
    cpu: Counter[str] = Counter()
    transactions = size = 0
    ((worker,),) = made.ask("SELECT pid FROM dagster_taskiq_workers")
    roots = {"PostgreSQL": [made.postgres_pid], "worker, step processes": [worker]}
    try:
        with DagsterInstance.get() as instance:
            for number in range(options.rounds + 1):
                probes = asyncio.run(probe(url, options.probes))
                before, cpu_before = Journal(made.journal).requests, _cpu(roots)
                run_id = run_chain(instance, options.size)
                time.sleep(REAP_SECONDS)
                cpu_used = _cpu(roots) - cpu_before
                print(f"{'round ' + str(number) if number else 'warm-up'}: {run_id}", file=sys.stderr)
                if not number:
                    transactions, size = made.settled_transactions(), made.size()
                    continue
                journal = Journal(made.journal)
                used += journal.requests - before
                cpu += cpu_used
                steps = _points(instance, store, run_id, journal, made, notes)
                rounds.add(steps, [(end - begin, end - journal.sent[one]) for one, begin, end in probes])
            transactions, size = made.settled_transactions() - transactions, made.size() - size
    finally:
        loop.close()
    steps_in_all = options.rounds * (options.size + 1)
    return {
        "steps": options.rounds * options.size,
        "rows": rounds.rows(),
        "transactions_per_step": transactions / steps_in_all,
        "stored_kb_per_step": size / 1000 / steps_in_all,
        "requests_per_step": {name: round(count / steps_in_all, 2) for name, count in used.items()},
        "cpu_ms_per_step": {name: seconds * 1000 / steps_in_all for name, seconds in cpu.items()},
    }


def _cpu(roots: Mapping[str, list[int]]) -> Counter[str]:
    """Seconds so far, of this process (the run worker) and of others with all that they have started."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return Counter({**cpu_seconds(dict(roots)), "run worker": own.ru_utime + own.ru_stime})


def _points(
    instance: Any, store: IdempotencyStore, run_id: str, journal: Journal, made: Bed, notes: Path
) -> list[dict[str, float]]:
    """Of each step whose op notes its time: point -> when."""
    events = event_times(instance, run_id)
    rows = row_times(store, run_id)
    gone = log_times((made.folder / "worker.log").read_text(errors="replace"))
    ops = op_times(notes)
    order = sorted(events, key=lambda key: events[key]["starting"])
    steps = []
    for place, key in enumerate(order):
        if (run_id, key) not in ops:
            continue
        message_id, row = rows[key]
        points: dict[str, float | None] = {**events[key], **row, "op": ops[run_id, key]}
        points["sent"] = journal.sent[message_id or ""]
        points["given"] = journal.given[message_id or ""]
        points["go"] = gone.get((run_id, key))
        if place + 1 < len(order):
            points["next"] = events[order[place + 1]]["starting"]
        steps.append({name: value for name, value in points.items() if value is not None})
    return steps


def table(result: Mapping[str, Any]) -> str:
    rows = [
        (row["leg"], *(f"{row[f'p{part}_ms']:.1f}" for part in (50, 95, 99)), spread(row["round_medians_ms"]))
        for row in result["rows"]
    ]
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in result["cpu_ms_per_step"].items())
    requests = ", ".join(f"{name} {value:.2f}" for name, value in result["requests_per_step"].items())
    return "\n".join(
        [
            f"milliseconds, {result['steps']} steps",
            columns(("", "p50", "p95", "p99", "median of a round"), rows),
            f"for each step: {result['transactions_per_step']:.1f} transactions of PostgreSQL and"
            f" {result['stored_kb_per_step']:.0f} kB in its tables, Dagster's and the run's own included",
            f"requests to SQS: {requests}; CPU ms: {cpu}",
        ]
    )


def picture(result: Mapping[str, Any]) -> str:
    """SVG, of each leg's median."""
    medians = {row["leg"]: row["p50_ms"] for row in result["rows"]}
    legs = [(name, medians[name]) for name, _, _ in LEGS[:-1] if name in medians]
    return waterfall("A step of a chain, leg by leg: medians in milliseconds", legs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured chains (default: 5)")
    parser.add_argument("--size", type=int, default=20, help="steps of a chain (default: 20)")
    parser.add_argument("--probes", type=int, default=30, help="messages sent alone, before each chain (default: 30)")
    parser.add_argument(
        "--without", action="append", default=[], metavar="LEVER", help="switch one of the worker's levers off"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the legs there")
    options = parser.parse_args()
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before = machine()
    result = {"machine": before, "points": dict(POINTS), **measure(options)}
    write_json(options.json, result)
    if options.svg:
        options.svg.write_text(picture(result))
    print(json.dumps(before))
    print(table(result))


if __name__ == "__main__":
    main()
