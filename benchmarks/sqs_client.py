#!/usr/bin/env python3
"""Measures what a message costs a client of SQS: CPU time and messages a second, for send, receive and delete.

The server answers canned bodies (stub_canned.c), so that only the client is measured.  Ours, from Python and from C,
takes turns with boto3, aiobotocore, taskiq-aio-sqs, pycurl with SigV4 by hand, a bare libcurl loop in C with cJSON and
SigV4 by hand, and the same loop that builds, signs and reads nothing, which is the floor.  Every client is a process of
its own (sqs_peers.py, sqs_client.c); CPU time is all of that process's.  Each does a number of requests that takes it
about as long as the others (--seconds); a first round is not counted.

"messages/s" is what one process got; boto3 and pycurl wait for each answer, the others have several requests in
flight.  Clients that are not installed are left out; --peers-python names an interpreter that has them.

    python sqs_client.py
    python sqs_client.py --peers-python venv/bin/python --rounds 5 --json sqs.json
    python sqs_client.py --clients ours "ours, C" floor --batches 10
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import CORE, columns, compile_c, interpreter_with, machine, write_json

HERE = Path(__file__).resolve().parent
ACTIONS = ("send", "receive", "delete")
C_CLIENTS = {"ours, C": "core", "libcurl by hand": "by-hand", "floor": "floor"}
PYTHON_CLIENTS = {
    "ours": "dagster_taskiq",
    "boto3": "boto3",
    "aiobotocore": "aiobotocore",
    "taskiq-aio-sqs": "taskiq_aio_sqs",
    "pycurl": "pycurl",
}
CLIENTS = (*PYTHON_CLIENTS, *C_CLIENTS)
FIRST_REQUESTS = 50
"""Of the round that warms up; the number for later rounds is made from it."""


@dataclass(frozen=True)
class Cell:
    """What one client does: one place in the table."""

    client: str
    action: str
    batch: int


@dataclass(frozen=True)
class Sample:
    cell: Cell
    messages: int
    wall: float
    cpu: float


class Driver:
    """The process of one client."""

    def __init__(self, client: str, command: Sequence[str | Path]) -> None:
        self.client = client
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, cell: Cell, requests: int, in_flight: int) -> Sample | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{cell.action} {cell.batch} {requests} {in_flight}\n")
        self._process.stdin.flush()
        words = self._process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{self.client} ended without a result")
        if words == ["-"]:
            return None
        return Sample(cell, requests * cell.batch, *map(float, words))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- what is run ----------------------------------------------------------------------------------------------------


@contextmanager
def stub_server(program: Path, body: Path) -> Iterator[str]:
    """Its endpoint."""
    with subprocess.Popen([program, body], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def body_text(size: int) -> str:
    """JSON within JSON, as the messages of steps are: every tenth character is escaped on the wire."""
    text = '{"task":"' + '"some text' * (size // 10)
    return text[: size - 2] + '"}'


@contextmanager
def drivers(options: argparse.Namespace) -> Iterator[list[Driver]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagster-taskiq-bench-")))
        stub = compile_c(folder / "stub_canned", [HERE / "stub_canned.c"])
        sources = [HERE / "sqs_client.c", HERE / "sqs_by_hand.c", *sorted(CORE.glob("*.c"))]
        clients = compile_c(folder / "sqs_client", sources)
        body = folder / "body"
        body.write_text(body_text(options.bytes))
        endpoint = stack.enter_context(stub_server(stub, body))
        place = [endpoint, f"{endpoint}/123456789012/bench", str(body)]
        started = []
        for client in options.clients:
            if client in C_CLIENTS:
                started.append(Driver(client, [clients, C_CLIENTS[client], *place]))
            elif python := interpreter_with(PYTHON_CLIENTS[client], options.peers_python):
                started.append(Driver(client, [python, HERE / "sqs_peers.py", client, *place]))
            else:
                package = PYTHON_CLIENTS[client].replace("_", "-")
                print(f"{client} is left out: pip install {package}, or name --peers-python", file=sys.stderr)
                continue
            stack.callback(started[-1].close)
        yield started


# ---- measuring and telling ------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> list[Sample]:
    samples = []
    requests: dict[Cell, int] = {}
    with drivers(options) as started:
        for number in range(options.rounds + 1):
            print(f"round {number}" if number else "warming up", file=sys.stderr)
            for action in ACTIONS:
                for batch in options.batches:
                    for driver in started:
                        cell = Cell(driver.client, action, batch)
                        if number and cell not in requests:
                            continue
                        sample = driver.run(cell, requests.get(cell, FIRST_REQUESTS), options.in_flight)
                        if sample and number:
                            samples.append(sample)
                        elif sample:
                            requests[cell] = max(10, round(options.seconds / sample.wall * FIRST_REQUESTS))
    return samples


def summary(samples: list[Sample]) -> list[dict[str, Any]]:
    rows = []
    for cell in dict.fromkeys(sample.cell for sample in samples):
        found = [sample for sample in samples if sample.cell == cell]
        cpu = [sample.cpu / sample.messages * 1e6 for sample in found]
        rate = [sample.messages / sample.wall for sample in found]
        rows.append(
            {
                "action": cell.action,
                "batch": cell.batch,
                "client": cell.client,
                "cpu_us_per_message": statistics.median(cpu),
                "cpu_us_spread": [min(cpu), max(cpu)],
                "messages_per_second": statistics.median(rate),
                "messages_per_second_spread": [min(rate), max(rate)],
            }
        )
    return rows


def table(rows: list[dict[str, Any]], batches: Sequence[int]) -> str:
    """CPU microseconds of a message, with the spread, and messages a second."""
    parts = []
    for batch in batches:
        header = [f"batches of {batch}" if batch > 1 else "single"]
        for action in ACTIONS:
            header += [f"{action} us", "(spread)", "messages/s"]
        lines = []
        for client in dict.fromkeys(row["client"] for row in rows):
            line = [client]
            for action in ACTIONS:
                place = (client, action, batch)
                row = next((row for row in rows if (row["client"], row["action"], row["batch"]) == place), None)
                if row:
                    low, high = row["cpu_us_spread"]
                    line += [f"{row['cpu_us_per_message']:.2f}", f"({low:.2f}..{high:.2f})"]
                    line.append(f"{row['messages_per_second']:,.0f}")
                else:
                    line += ["-", "", "-"]
            lines.append(line)
        parts.append(columns(header, lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="default: all")
    parser.add_argument("--batches", nargs="+", type=int, choices=(1, 10), default=[10, 1], help="default: both")
    parser.add_argument("--bytes", type=int, default=1000, help="of a message's body (default: 1000)")
    parser.add_argument("--in-flight", type=int, default=16, help="requests at a time, up to 24 (default: 16)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one measurement (default: 0.2)")
    parser.add_argument("--peers-python", metavar="PYTHON", help="interpreter of an environment with other clients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    before = machine()
    rows = summary(measure(options))
    names = ("rounds", "bytes", "in_flight", "seconds")
    settings = {name: getattr(options, name) for name in names}
    write_json(options.json, {"machine": before, "load_average_after": os.getloadavg(), **settings, "rows": rows})
    print(json.dumps(before))
    print(table(rows, options.batches))


if __name__ == "__main__":
    main()
