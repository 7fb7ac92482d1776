"""The moves of transitions.json are those of the model, of the documentation, and of the SQL as PostgreSQL runs it.

The last is shown by trying: every statement on a row in every state, with every guard kept and broken."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import services

from dagster_taskiq import _core, migrations
from dagster_taskiq.store import IdempotencyStore

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRANSITIONS: list[dict[str, Any]] = json.loads((HERE / "transitions.json").read_text())
TERMINAL = ("succeeded", "failed", "cancelled", "lost")
STATEMENTS = sorted({move["statement"] for move in TRANSITIONS})

Move = tuple[str, str, str]
"""(from, to, statement)."""


def moves_of_the_table(*, aside: bool = True) -> set[Move]:
    """``aside``: with the moves of a run that is not active, which the documentation has in a footnote."""
    return {(move["from"], move["to"], move["statement"]) for move in TRANSITIONS if aside or not move["aside"]}


def moves_of_the_model() -> set[Move]:
    found: set[Move] = set()
    for line in (HERE / "protocol.pml").read_text().splitlines():
        for old, new, statement in re.findall(r"\bMOVE\([^,]+, (\w+), (\w+), (\w+)\)", line):
            found.add((old.replace("0", "-"), new, statement))
        for state, statement in re.findall(r"\bKEEP\([^,]+, (\w+), (\w+)\)", line):
            found.add((state, state, statement))
        for statement in re.findall(r"\bREQUEUE\([^,]+, (\w+)\)", line):
            found |= {("claimed", "queued", statement), ("claimed", "cancelled", statement)}
        for statement in re.findall(r"\bLOSE\([^,]+, (\w+)\)", line):
            found.add(("claimed", "lost", statement))
    return {move for move in found if move[2] != "statement"}


def moves_of_the_documentation() -> tuple[set[Move], set[str]]:
    """The moves, and the statements with the footnote."""
    text = (ROOT / "docs/internals/protocol.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| ([a-z]+)(¹?) \| `(\w+)` \|", text, re.MULTILINE)
    return {(old.replace("none", "-"), new, name) for old, new, _, name in rows}, {row[3] for row in rows if row[2]}


def test_the_model_makes_the_moves_of_the_table() -> None:
    assert moves_of_the_model() == moves_of_the_table()


def test_the_documentation_has_the_moves_of_the_table() -> None:
    moves, footnoted = moves_of_the_documentation()
    assert moves == moves_of_the_table(aside=False)
    assert footnoted == {move["statement"] for move in TRANSITIONS if move["aside"]}


# ---- the SQL ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A row, its run, and what the caller of a statement says."""

    state: str
    """Of attempt 1; "-": there is no row."""
    run_state: str = "active"
    started: bool = False
    lease_past: bool = False
    cancel_requested: bool = False
    run_lease_past: bool = False
    run_mine: bool = True
    generation_mine: bool = True
    same_nonce: bool = False
    other_attempt: bool = False
    """Attempt 2 is in the queue."""
    due: bool = True
    result: str = "failed"

    def holds(self, guard: str) -> bool:
        return {
            "run_mine": self.run_mine,
            "run_active": self.run_state == "active",
            "run_attended": not self.run_lease_past,
            "run_not_active": self.run_state != "active",
            "run_ended": self.run_state == "ended",
            "run_not_ended": self.run_state != "ended",
            "no_live_attempt": not self.other_attempt,
            "due": self.due,
            "generation": self.generation_mine,
            "same_nonce": self.same_nonce,
            "other_nonce": not self.same_nonce,
            "lease_past": self.lease_past,
            "lease_ahead": not self.lease_past,
            "started": self.started,
            "never_started": not self.started,
            "cancel_requested": self.cancel_requested,
            "result_succeeded": self.result == "succeeded",
            "result_failed": self.result == "failed",
            "result_cancelled": self.result == "cancelled",
        }[guard]


VARIED = {
    "enqueue": ("run_mine", "other_attempt"),
    "resend": ("run_mine", "due"),
    "claim": ("same_nonce", "run_lease_past"),
    "complete": ("generation_mine", "result"),
    "renew": ("generation_mine",),
    "start": ("generation_mine",),
    "hand_back": ("generation_mine",),
    "mark_lost": ("generation_mine",),
    "cancel_run": (),
    "end_run": ("run_mine",),
    "cancel_queued": ("run_mine",),
    "request_cancel": ("run_mine",),
    "sweep_lost": ("run_mine",),
    "settle_ended": (),
}
"""What the caller of each statement can get wrong."""


def cases(statement: str) -> Iterator[Case]:
    rows = [
        {"state": "-"},
        {"state": "queued"},
        *(
            {"state": "claimed", "started": started, "lease_past": past, "cancel_requested": cancel}
            for started, past, cancel in itertools.product((False, True), repeat=3)
        ),
        *({"state": state, "started": True, "cancel_requested": state == "cancelled"} for state in TERMINAL),
    ]
    choices = {name: TERMINAL[:3] if name == "result" else (False, True) for name in VARIED[statement]}
    for row, run_state in itertools.product(rows, ("active", "cancelling", "ended")):
        for values in itertools.product(*choices.values()):
            case = Case(**row, run_state=run_state, **dict(zip(choices, values, strict=True)))  # type: ignore[arg-type]
            if not (case.other_attempt and case.state in ("queued", "claimed")):
                yield case


def expected(case: Case, statement: str) -> str | None:
    """The state that the table says; None: no move."""
    found = {
        move["to"]
        for move in TRANSITIONS
        if move["statement"] == statement and move["from"] == case.state and all(map(case.holds, move["guards"]))
    }
    assert len(found) <= 1, (case, found)
    return found.pop() if found else None


class Bench:
    """One case after the other on a real server; nothing is committed."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.cursor = self.connection.cursor()
        for name, (_, _, sql) in _core.statements().items():
            if name in STATEMENTS:
                self.cursor.execute(f"PREPARE {name} AS {sql}")
        self.connection.commit()

    def set_up(self, case: Case) -> tuple[str, int, int]:
        run_id = str(uuid.uuid4())
        self.cursor.execute(
            "INSERT INTO dagster_taskiq_runs (run_id, generation, coordinator, state, lease, ended_at) VALUES "
            "(%s, nextval('dagster_taskiq_generations'), 'me', %s, now() + %s::interval, "
            "CASE WHEN %s = 'ended' THEN now() END) "
            "RETURNING generation, nextval('dagster_taskiq_generations')",
            (run_id, case.run_state, "-1 s" if case.run_lease_past else "60 s", case.run_state),
        )
        run_generation, generation = self.cursor.fetchone()
        if case.other_attempt:
            self.cursor.execute(
                "INSERT INTO dagster_taskiq_steps (run_id, step_key, attempt, queue, enqueued_by) "
                "VALUES (%s, 's', 2, 'q', 'before')",
                (run_id,),
            )
        if case.state != "-":
            held = case.state != "queued"
            self.cursor.execute(
                "INSERT INTO dagster_taskiq_steps (run_id, step_key, attempt, state, queue, enqueued_by, queued_at, "
                "generation, lease, owner, nonce, cancel_requested, claimed_at, started_at, finished_at, reason) "
                "VALUES (%(run)s, 's', 1, %(state)s, 'q', 'before', now() - %(age)s::interval, %(generation)s, "
                "CASE WHEN %(held)s THEN now() + %(left)s::interval END, CASE WHEN %(held)s THEN 'w' END, "
                "CASE WHEN %(held)s THEN 'nonce' END, %(cancel)s, CASE WHEN %(held)s THEN now() END, "
                "CASE WHEN %(started)s THEN now() END, CASE WHEN %(over)s THEN now() END, "
                "CASE WHEN %(over)s THEN 'reason' END)",
                {
                    "run": run_id,
                    "state": case.state,
                    "age": "1 hour" if case.due else "0 s",
                    "generation": generation if held else None,
                    "held": held,
                    "left": "-1 s" if case.lease_past else "60 s",
                    "cancel": case.cancel_requested,
                    "started": case.started,
                    "over": case.state in TERMINAL,
                },
            )
        return run_id, run_generation, generation

    def row(self, run_id: str) -> tuple[str, str]:
        """State and the whole row as text."""
        self.cursor.execute(
            "SELECT s.state, s::text FROM dagster_taskiq_steps s WHERE run_id = %s AND attempt = 1", (run_id,)
        )
        return self.cursor.fetchone() or ("-", "")

    def execute(self, case: Case, statement: str, run_id: str, run_generation: int, generation: int) -> None:
        run = run_generation if case.run_mine else run_generation - 1
        claim = generation if case.generation_mine else generation - 1
        key = (run_id, "s", 1)
        arguments: dict[str, tuple[Any, ...]] = {
            "enqueue": (run_id, run, "now", ["s"], [1], ["q"]),
            "resend": (run_id, run, 30.0, 600.0, 10),
            "claim": (*key, "w2", "nonce" if case.same_nonce else "other", 60.0, "h", "b", "d", 1),
            "complete": (*key, claim, case.result, "[]", None, None),
            "renew": ([run_id], ["s"], [1], [claim], [90.0]),
            "start": (*key, claim, 1, "1"),
            "hand_back": (*key, claim),
            "mark_lost": (*key, claim, "reason"),
            "cancel_run": (run_id,),
            "end_run": (run_id, run),
            "cancel_queued": (run_id, run, None, None),
            "request_cancel": (run_id, run, None, None),
            "sweep_lost": (run_id, run),
            "settle_ended": (),
        }
        values = arguments[statement]
        placeholders = f" ({', '.join(['%s'] * len(values))})" if values else ""
        self.cursor.execute(f"EXECUTE {statement}{placeholders}", values)


@pytest.fixture(scope="module")
def bench(database_server: services.Databases) -> Iterator[Bench]:
    with database_server.fresh() as url:
        loop = _core.Loop()
        try:
            migrations.migrate(IdempotencyStore(loop, url))
        finally:
            loop.close()
        bench = Bench(url)
        yield bench
        bench.connection.close()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_sql_makes_the_moves_of_the_table_and_no_other(bench: Bench, statement: str) -> None:
    seen = set()
    for case in cases(statement):
        ids = bench.set_up(case)
        before = bench.row(ids[0])
        bench.execute(case, statement, *ids)
        after = bench.row(ids[0])
        bench.connection.rollback()
        target = expected(case, statement)
        if target is None:
            assert after == before, case
        else:
            assert after[0] == target, case
            seen.add((case.state, target, statement))
    assert seen == {move for move in moves_of_the_table() if move[2] == statement}


def test_only_these_statements_change_a_step_row() -> None:
    """Each statement that writes to the table of steps is in the table of moves."""
    writers = {
        name
        for name, (_, _, sql) in _core.statements().items()
        if re.search(r"(UPDATE|INSERT INTO|DELETE FROM) dagster_taskiq_steps\b", sql)
    }
    assert writers == set(STATEMENTS)
