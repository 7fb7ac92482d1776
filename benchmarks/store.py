#!/usr/bin/env python3
"""Measures the idempotency store's moves: how many of them a client does in a second, and the CPU time that each costs.

claim, renew (one lease, and sixteen with one statement) and complete (with 2 kB of events), the very statements of
src/core/dtq_store_sql.h, sent by

- dagster-taskiq: dagster_taskiq.store from asyncio, one connection;
- psycopg 3 (binary format, prepared) and asyncpg, from asyncio, with a connection for each call in flight, in the
  interpreter that --peers names (it needs psycopg[binary] and asyncpg);
- pgbench, prepared, with as many connections: what a client costs that does nothing else.

Each is asked with one and with sixteen calls in flight.  The clients take turns, move by move; a first round is not
counted.  PostgreSQL is the embedded one, over TCP with scram, without fsync, so that the disk is not measured.

    python store.py --peers /path/to/a/venv/bin/python
    python store.py --rounds 5 --calls 4000 --json store.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

MOVES = ("claim", "renew", "renew 16", "complete")
IN_FLIGHT = (1, 16)
CLIENTS = ("dagster-taskiq", "psycopg", "asyncpg", "pgbench")
MANY = 16
"""Leases of "renew 16"."""

OWNER = "benchmark"
TTL = 600.0
EVENTS = json.dumps([{"event": "x" * 240}] * 8)
"""About as long as a small step's."""

Call = Callable[[str, Sequence[Any]], Awaitable[Any]]
Server = Callable[[], float]
"""The CPU seconds that PostgreSQL has used."""


# ---- what is asked, by all of them the same -------------------------------------------------------------------------


def parameters(move: str, run_id: str, number: int, calls: int) -> tuple[str, list[Any]]:
    """Statement and parameters of call ``number``.  A claim's generation is its number plus one (see :func:`rows`)."""
    key = str(number)
    if move == "claim":
        given = [run_id, key, 1, OWNER, uuid.uuid4().hex, TTL, "host", "boot", "message", 1]
        return "claim", given
    if move == "complete":
        return "complete", [run_id, key, 1, number + 1, "succeeded", EVENTS, None, None]
    count = MANY if move == "renew 16" else 1
    numbers = [(number * count + place) % calls for place in range(count)]
    keys = [str(one) for one in numbers]
    generations = [one + 1 for one in numbers]
    return "renew", [[run_id] * count, keys, [1] * count, generations, [TTL] * count]


PREPARE = """
TRUNCATE dagster_taskiq_runs CASCADE;
INSERT INTO dagster_taskiq_runs (run_id, generation, coordinator, state, lease)
    VALUES ('{run}', 0, 'c', 'active', now() + interval '1 day');
INSERT INTO dagster_taskiq_steps (run_id, step_key, attempt, queue, enqueued_by)
    SELECT '{run}', n::text, 1, 'dagster', 'e' FROM generate_series(0, {calls} - 1) n;
"""
CLAIMED = """
UPDATE dagster_taskiq_steps SET state = 'claimed', generation = step_key::bigint + 1, owner = 'benchmark',
    nonce = step_key, lease = now() + interval '600 s', claimed_at = now(), started_at = now();
"""


def prepare(url: str, move: str, run_id: str, calls: int) -> None:
    """Rows that the move finds: queued ones for a claim, claimed ones for the others."""
    import psycopg2

    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(PREPARE.format(run=run_id, calls=calls))
            if move != "claim":
                cursor.execute(CLAIMED)
            for table in ("dagster_taskiq_steps", "dagster_taskiq_runs"):
                cursor.execute(f"VACUUM (FULL, ANALYZE) {table}")
            cursor.execute("CHECKPOINT")
    finally:
        connection.close()


# ---- clients in Python: each in a process of its own, `store.py --client NAME` --------------------------------------


async def drive(call: Call, task: dict[str, Any]) -> dict[str, float]:
    """So many calls, so many of them at a time.  Seconds of wall time, and of this process's CPU time.  All
    connections are there by now; the other side reads the server's CPU time before it says so."""
    numbers = iter(range(task["calls"]))
    print("connected", flush=True)
    sys.stdin.readline()

    async def caller() -> None:
        for number in numbers:
            statement, given = parameters(task["move"], task["run_id"], number, task["calls"])
            await call(statement, given)

    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(task["in_flight"])))
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


async def by_dagster_taskiq(task: dict[str, Any]) -> dict[str, float]:
    from dagster_taskiq import _bridge, _core
    from dagster_taskiq.store import IdempotencyStore

    loop = _core.Loop()
    try:
        store = IdempotencyStore(loop, task["url"])

        async def call(statement: str, given: Sequence[Any]) -> Any:
            if statement == "claim":
                names = ("owner", "nonce", "ttl", "host", "boot_id", "delivery_id", "deliveries")
                return await store.claim(*given[:3], **dict(zip(names, given[3:], strict=True)))
            if statement == "complete":
                return await store.complete(*given[:5], events=given[5])
            return await store.renew(list(zip(*given[:4], strict=True)), given[4])

        await store.claim_is_live(0)
        return await drive(call, task)
    finally:
        await _bridge.close(loop)


async def by_psycopg(task: dict[str, Any]) -> dict[str, float]:
    import psycopg

    statements = {
        name: re.sub(r"\$(\d+)", r"%(p\1)b", sql.replace("%", "%%")) for name, sql in task["statements"].items()
    }
    connections = [
        await psycopg.AsyncConnection.connect(task["url"], autocommit=True) for _ in range(task["in_flight"])
    ]
    free = list(connections)

    async def call(statement: str, given: Sequence[Any]) -> Any:
        connection = free.pop()
        try:
            named = {f"p{place}": value for place, value in enumerate(given, 1)}
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(statements[statement], named, prepare=True)
                return await cursor.fetchall()
        finally:
            free.append(connection)

    try:
        return await drive(call, task)
    finally:
        for connection in connections:
            await connection.close()


async def by_asyncpg(task: dict[str, Any]) -> dict[str, float]:
    import asyncpg

    connections = [await asyncpg.connect(task["url"]) for _ in range(task["in_flight"])]
    free = [
        (connection, {name: await connection.prepare(sql) for name, sql in task["statements"].items()})
        for connection in connections
    ]

    async def call(_statement: str, given: Sequence[Any]) -> Any:
        one = free.pop()
        try:
            return await one[1][_statement].fetch(*given)
        finally:
            free.append(one)

    try:
        return await drive(call, task)
    finally:
        for connection in connections:
            await connection.close()


def client_main(name: str) -> None:
    """Tasks come as lines of JSON, results go as lines of JSON; in between each side says a word (:func:`drive`)."""
    run = {"dagster-taskiq": by_dagster_taskiq, "psycopg": by_psycopg, "asyncpg": by_asyncpg}[name]
    while line := sys.stdin.readline():
        print(json.dumps(asyncio.run(run(json.loads(line)))), flush=True)


# ---- the measuring side ---------------------------------------------------------------------------------------------


class PythonClient:
    def __init__(self, name: str, python: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--client", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, task: dict[str, Any], server: Server) -> dict[str, float]:
        self._ask(json.dumps(task))
        before = server()
        result: dict[str, float] = json.loads(self._ask("go"))
        return {**result, "server": server() - before}

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a client has failed")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Pgbench:
    """The same statements, with their parameters as pgbench's variables."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def run(self, task: dict[str, Any], server: Server) -> dict[str, float]:
        # What it takes to connect is not asked for.
        none = self._run({**task, "calls": task["in_flight"]}, "SELECT 1", server)
        found = self._run(task, self._statement(task), server)
        return {name: found[name] - (none[name] if name != "wall" else 0.0) for name in found}

    def _run(self, task: dict[str, Any], statement: str, server: Server) -> dict[str, float]:
        clients = task["in_flight"]
        script = self._folder / "script.sql"
        # Client c of n does calls c, c + n, c + 2n ...
        script.write_text(
            rf"\set number :client_id + :turn * {clients}"
            "\n"
            rf"\set turn :turn + 1"
            "\n" + statement + ";\n"
        )
        command = [self._program, "-n", "-M", "prepared", "-f", str(script), "-D", "turn=0", "-c", str(clients)]
        command += ["-j", "1", "-t", str(task["calls"] // clients), task["url"]]
        before, server_before = resource.getrusage(resource.RUSAGE_CHILDREN), server()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode or not found or "ERROR" in done.stderr:
            raise SystemExit(f"pgbench failed:\n{done.stdout}\n{done.stderr}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"wall": task["calls"] / float(found[1]), "cpu": cpu, "server": server() - server_before}

    def _statement(self, task: dict[str, Any]) -> str:
        """pgbench's variables are numbers, or words without a quote; what is the same for all calls is written out."""
        move, run_id = task["move"], task["run_id"]
        name, example = parameters(move, run_id, 0, task["calls"])
        given = {place: _literal(value) for place, value in enumerate(example, 1)}
        if move == "claim":
            given.update({2: ":number", 5: "(:number)"})
        elif move == "complete":
            given.update({2: ":number", 4: "(:number + 1)"})
        else:
            count = MANY if move == "renew 16" else 1
            numbers = [f"mod(:number * {count} + {place}, {task['calls']})" for place in range(count)]
            given[2] = "ARRAY[" + ", ".join(numbers) + "]"
            given[4] = "ARRAY[" + ", ".join(f"1 + {one}" for one in numbers) + "]"
        text = re.sub(r"\$(\d+)", lambda found: given[int(found[1])], task["statements"][name])
        # It would take a colon within quotes for a variable, too.
        return re.sub(
            "'[^']*'", lambda found: ("E" + found[0].replace(":", r"\072")) if ":" in found[0] else found[0], text
        )

    def close(self) -> None:
        pass


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "ARRAY[" + ", ".join(map(_literal, value)) + "]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    from steps import cpu_seconds, postgres_pid

    from dagster_taskiq import _core, migrations
    from dagster_taskiq.dev.postgres import EmbeddedPostgres
    from dagster_taskiq.store import IdempotencyStore, statements

    samples: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="dagster-taskiq-bench-"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = stack.enter_context(EmbeddedPostgres(folder, durable=False))
        url = postgres.ensure_database("dagster")
        loop = _core.Loop()
        migrations.migrate(IdempotencyStore(loop, url))
        loop.close()
        clients = {name: _client(name, options, folder) for name in options.clients}
        for client in clients.values():
            stack.callback(client.close)
        sql = {name: text for name, (_, _, text) in statements().items() if name in ("claim", "renew", "complete")}
        server = {"server": [postgres_pid(postgres)]}
        for number in range(options.rounds + 1):
            for move in options.moves:
                for in_flight in IN_FLIGHT:
                    for name, client in clients.items():
                        task = {
                            "url": url,
                            "move": move,
                            "in_flight": in_flight,
                            "statements": sql,
                            "run_id": uuid.uuid4().hex,
                            "calls": options.calls,
                        }
                        prepare(url, move, task["run_id"], options.calls)
                        result = client.run(task, lambda: cpu_seconds(server)["server"])
                        if number:
                            samples.setdefault((move, name, in_flight), []).append(result)
            print(f"{'round ' + str(number) if number else 'warm-up'} done", file=sys.stderr)
    return [_row(*key, found, options.calls) for key, found in samples.items()]


def _client(name: str, options: argparse.Namespace, folder: Path) -> PythonClient | Pgbench:
    if name == "pgbench":
        return Pgbench(options.pgbench, folder)
    return PythonClient(name, sys.executable if name == "dagster-taskiq" else options.peers)


def _row(move: str, client: str, in_flight: int, found: list[dict[str, float]], calls: int) -> dict[str, Any]:
    rates = [calls / one["wall"] for one in found]
    cpu = [one["cpu"] * 1e6 / calls for one in found]
    return {
        "move": move,
        "client": client,
        "in_flight": in_flight,
        "per_second": statistics.median(rates),
        "per_second_spread": [min(rates), max(rates)],
        "client_cpu_us": statistics.median(cpu),
        "client_cpu_us_spread": [min(cpu), max(cpu)],
        "server_cpu_us": statistics.median(one["server"] * 1e6 / calls for one in found),
    }


def table(rows: list[dict[str, Any]]) -> str:
    from common import columns

    header = ("move", "in flight", "client", "a second", "(spread)", "client CPU us", "(spread)", "server CPU us")
    lines = []
    for row in rows:
        low, high = row["per_second_spread"]
        least, most = row["client_cpu_us_spread"]
        lines.append(
            (
                *(
                    row["move"],
                    str(row["in_flight"]),
                    row["client"],
                    f"{row['per_second']:.0f}",
                    f"{low:.0f}..{high:.0f}",
                ),
                *(f"{row['client_cpu_us']:.0f}", f"{least:.0f}..{most:.0f}", f"{row['server_cpu_us']:.0f}"),
            )
        )
    return columns(header, lines)


def find_pgbench() -> str | None:
    """The one beside the server that is used, else the PATH's."""
    from dagster_taskiq.dev.postgres import packaged_installation

    packaged = packaged_installation()
    if packaged is not None and (packaged / "bin" / "pgbench").exists():
        return str(packaged / "bin" / "pgbench")
    return shutil.which("pgbench")


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        client_main(sys.argv[2])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each measurement (default: 2000)")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, help="default: those that are there")
    parser.add_argument("--moves", nargs="+", choices=MOVES, default=list(MOVES), help="default: all")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with psycopg and asyncpg")
    parser.add_argument("--pgbench", metavar="PROGRAM", default=find_pgbench(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    if options.clients is None:
        there = {"dagster-taskiq": True, "pgbench": options.pgbench}
        options.clients = [name for name in CLIENTS if there.get(name, options.peers)]
    if not options.peers and {"psycopg", "asyncpg"} & set(options.clients):
        parser.error("psycopg and asyncpg need --peers PYTHON")
    if options.calls % MANY:
        parser.error(f"--calls must be a multiple of {MANY}")
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from common import machine, write_json

    before = machine()
    rows = measure(options)
    write_json(options.json, {"machine": before, "rounds": options.rounds, "calls": options.calls, "rows": rows})
    print(json.dumps(before))
    print(table(rows))


if __name__ == "__main__":
    main()
