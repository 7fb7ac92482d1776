#!/usr/bin/env python3
"""Measures what a step's message and a request's signature cost: CPU time of one.

encode and decode: the message of one step attempt (--bytes), a JSON text within TaskIQ's JSON message.  Ours, from
Python (pack, unpack) and from C, checks every field; json, orjson and msgspec only build and read it.  sign: SigV4 of a
request of --body bytes; ours beside botocore and awscrt.  All are processes of their own (payload_peers.py, payload.c)
and take turns; a first round is not counted.  What is not installed is left out; --peers-python names an interpreter
that has it.

    python payload.py
    python payload.py --peers-python venv/bin/python --json payload.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import CORE, columns, compile_c, interpreter_with, machine, write_json

from dagster_taskiq.payload import StepTask, pack

HERE = Path(__file__).resolve().parent
CODING, SIGNING = ("encode", "decode"), ("sign",)
PYTHON_PEERS = {
    "ours": ("dagster_taskiq", CODING + SIGNING),
    "json": ("json", CODING),
    "orjson": ("orjson", CODING),
    "msgspec": ("msgspec", CODING),
    "botocore": ("botocore", SIGNING),
    "awscrt": ("awscrt", SIGNING),
}
C_PEER = "ours, C"
PEERS = ("ours", C_PEER, *list(PYTHON_PEERS)[1:])
FIRST_COUNT = 200
"""Of the round that warms up; the number for later rounds is made from it."""


class Driver:
    """The process of one peer."""

    def __init__(self, peer: str, operations: tuple[str, ...], command: list[Any]) -> None:
        self.peer, self.operations = peer, operations
        words = [str(word) for word in command]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, operation: str, count: int) -> float:
        """CPU seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{operation} {count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.peer} ended without a result")
        return float(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def step_message(size: int) -> bytes:
    """A message of about so many bytes, with parts as Dagster writes them: JSON as text."""
    origin = {"__class__": "JobPythonOrigin", "job_name": "nightly", "repository_origin": {"text": ""}}
    task = StepTask(
        run_id="3f1c4d5e-7c1b-4c44-9d0f-0d3a8a0d1c11",
        step_key="load.orders",
        attempt=1,
        job_name="nightly",
        queue="dagster",
        code_location="warehouse",
        lease_ttl=120.0,
        heartbeat=10.0,
        visibility=120,
        sent_at=time.time(),
        retry_mode="DEFERRED",
        parts={"job_origin": json.dumps(origin), "instance_ref": ("a" * 64, 1200), "known_state": ("b" * 64, 40000)},
    )
    origin["repository_origin"]["text"] = "some text " * max(0, (size - len(pack(task))) // 10)  # type: ignore[index]
    task.parts["job_origin"] = json.dumps(origin)  # type: ignore[index]
    return pack(task)


def start(options: argparse.Namespace, stack: ExitStack) -> list[Driver]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagster-taskiq-bench-")))
    message, body = folder / "message", folder / "body"
    message.write_bytes(step_message(options.bytes))
    body.write_bytes(b"x" * options.body)
    drivers = []
    for peer in options.peers:
        if peer == C_PEER:
            program = compile_c(folder / "payload", [HERE / "payload.c", *sorted(CORE.glob("*.c"))])
            drivers.append(Driver(peer, CODING + SIGNING, [program, message, body]))
        else:
            package, operations = PYTHON_PEERS[peer]
            python = interpreter_with(package, options.peers_python)
            if not python:
                print(f"{peer} is left out: pip install {package}, or name --peers-python", file=sys.stderr)
                continue
            drivers.append(Driver(peer, operations, [python, HERE / "payload_peers.py", peer, message, body]))
        stack.callback(drivers[-1].close)
    return drivers


def measure(options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """(peer, operation) -> CPU microseconds of one, round by round."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    counts: dict[tuple[str, str], int] = {}
    with ExitStack() as stack:
        drivers = start(options, stack)
        for number in range(options.rounds + 1):
            for operation in CODING + SIGNING:
                for driver in drivers:
                    if operation not in driver.operations:
                        continue
                    place = (driver.peer, operation)
                    count = counts.get(place, FIRST_COUNT)
                    seconds = driver.run(operation, count)
                    if number:
                        found[place].append(seconds / count * 1e6)
                    else:
                        counts[place] = max(10, round(options.seconds / max(seconds, 1e-6) * count))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    header = ["CPU us of one"]
    for operation in CODING + SIGNING:
        header += [operation, "(spread)"]
    lines = []
    for peer in dict.fromkeys(row["peer"] for row in rows):
        line = [peer]
        for operation in CODING + SIGNING:
            row = next((row for row in rows if (row["peer"], row["operation"]) == (peer, operation)), None)
            line += [f"{row['us']:.2f}", "({:.2f}..{:.2f})".format(*row["spread_us"])] if row else ["-", ""]
        lines.append(line)
    return columns(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--bytes", type=int, default=1800, help="of a step's message (default: 1800)")
    parser.add_argument("--body", type=int, default=1000, help="of a request to sign (default: 1000)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one measurement (default: 0.2)")
    parser.add_argument("--peers-python", metavar="PYTHON", help="interpreter of an environment with other peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    before = machine()
    rows = [
        {"peer": peer, "operation": operation, "us": statistics.median(us), "spread_us": [min(us), max(us)]}
        for (peer, operation), us in measure(options).items()
    ]
    settings = {name: getattr(options, name) for name in ("rounds", "bytes", "body", "seconds")}
    write_json(options.json, {"machine": before, "load_average_after": os.getloadavg(), **settings, "rows": rows})
    print(json.dumps(before))
    print(table(rows))


if __name__ == "__main__":
    main()
