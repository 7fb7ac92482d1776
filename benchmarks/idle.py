#!/usr/bin/env python3
"""Measures what a worker costs that has nothing to do: CPU time, and memory.

The worker has run a few steps, so that it has a warm parent, which has imported Dagster and a code location.  CPU time
is what the kernel's scheduler counts (schedstat), in percent of a core.  Memory is the proportional set size
(smaps_rollup): pages that processes share are divided among them.  A process that has only imported Dagster stands
beside them and shares the same files; *beyond* is what the warm parent, with the step processes that it keeps ahead of
need, has more than that.

    python idle.py
    python idle.py --seconds 20 --slots 8 --json idle.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bed import Bed, bed, spread
from common import columns, machine, write_json
from steps import Driver, children

QUEUE = "dagster"
JOB = "chain_4"
BARE = "import sys, dagster; print(flush=True); sys.stdin.read()"
SETTLE = 15.0
"""Seconds until what a run leaves behind has ended, step processes ahead of need among it."""

WHO = ("worker", "warm parent", "spare step processes", "bare import dagster", "PostgreSQL", "SQS stub")


def pss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"the kernel does not tell the proportional set size of process {pid}")


def cpu_seconds(pid: int) -> float:
    """Of all threads that a process has."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def bare_process(stack: ExitStack) -> int:
    process = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def family_of(made: Bed, bare: int, sqs: int) -> dict[str, list[int]]:
    ((worker,),) = made.ask("SELECT pid FROM dagster_taskiq_workers")
    parents = children(worker)
    return {
        "worker": [worker],
        "warm parent": parents,
        "spare step processes": [pid for parent in parents for pid in children(parent)],
        "bare import dagster": [bare],
        "PostgreSQL": [made.postgres_pid, *children(made.postgres_pid)],
        "SQS stub": [sqs],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        bare = bare_process(stack)
        made = stack.enter_context(bed())
        made.make_queue(QUEUE)
        made.environment["BENCH_EXECUTOR"] = "taskiq"
        arguments = [word for lever in options.without for word in ("--without", lever)]
        made.start_worker(*arguments, slots=options.slots)
        driver = Driver("taskiq", sys.executable, made.folder, made.environment)
        driver.run(JOB)
        driver.close()
        time.sleep(SETTLE)
        sqs = _listener(int(made.endpoint.rpartition(":")[2]))
        rounds = []
        for number in range(options.rounds):
            family = family_of(made, bare, sqs)
            memory = {who: sum(map(pss, pids)) for who, pids in family.items()}
            before = {pid: cpu_seconds(pid) for pids in family.values() for pid in pids}
            time.sleep(options.seconds)
            percent = {who: sum(_since(pid, before[pid]) for pid in pids) for who, pids in family.items()}
            rounds.append(
                {
                    "cpu_percent": {who: used * 100 / options.seconds for who, used in percent.items()},
                    "pss_mib": memory,
                    "processes": {who: len(pids) for who, pids in family.items()},
                }
            )
            print(f"round {number + 1} done", file=sys.stderr)
    return {"rounds": rounds}


def _since(pid: int, before: float) -> float:
    """What a process has used since; nothing is known of one that has ended meanwhile."""
    return cpu_seconds(pid) - before if os.path.exists(f"/proc/{pid}") else 0.0


def _listener(port: int) -> int:
    """Of the processes below this one, the one that was told this port."""
    family = [os.getpid()]
    for pid in family:
        family += children(pid)
    for pid in reversed(family):
        if f"\0{port}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise SystemExit("the SQS server is not there")


def table(result: dict[str, Any]) -> str:
    rounds = result["rounds"]
    rows = [
        (
            who,
            str(rounds[-1]["processes"][who]),
            spread([one["cpu_percent"][who] for one in rounds], 3),
            spread([one["pss_mib"][who] for one in rounds]),
        )
        for who in WHO
    ]
    beyond = [
        one["pss_mib"]["warm parent"] + one["pss_mib"]["spare step processes"] - one["pss_mib"]["bare import dagster"]
        for one in rounds
    ]
    ours = [sum(one["cpu_percent"][who] for who in WHO[:3]) for one in rounds]
    return "\n".join(
        [
            columns(("", "processes", "CPU, % of a core", "PSS, MiB"), rows),
            f"worker, warm parent and spares: {spread(ours, 3)} % of a core",
            f"a warm code location beyond a bare import dagster: {spread(beyond)} MiB",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=2, help="measurements, one after the other (default: 2)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of them (default: 60)")
    parser.add_argument("--slots", type=int, default=2, help="of the worker (default: 2)")
    parser.add_argument(
        "--without", action="append", default=[], metavar="LEVER", help="switch one of the worker's levers off"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before = machine()
    result = {"machine": before, "seconds": options.seconds, "slots": options.slots, **measure(options)}
    write_json(options.json, result)
    print(json.dumps(before))
    print(table(result))


if __name__ == "__main__":
    main()
