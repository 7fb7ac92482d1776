"""What must be true after any number of faults, whatever they were.

:func:`check` compares three records of the same steps, which are written by different hands: the history file (by the
ops themselves), the rows (by workers and executors) and Dagster's event log.  It gives a list of violations; an empty
one means that no step was lost, none ran twice, and nothing was left over.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "lost"})
CLOSING = {
    "STEP_SUCCESS": "success",
    "STEP_FAILURE": "failure",
    "STEP_SKIPPED": "skipped",
    "STEP_UP_FOR_RETRY": "retry",
}
"""Event type → what it says of the attempt that it closes."""

WORK = frozenset({"STEP_START", "STEP_RESTARTED", "STEP_OUTPUT", *CLOSING})
"""Types that only an attempt itself, or whoever settles it, logs."""

FITTING = {
    "succeeded": {"success", "skipped"},
    "failed": {"retry", "failure", "success"},
    "lost": {"retry", "failure", "success"},
    "cancelled": {"failure", "success", "retry", None},
}
"""State of a row → what the log may say of that attempt.  A process that dies after it has logged its success leaves a
row that is not succeeded; the log's word counts.  Dagster applies an op's retry policy also to an op that it interrupts
because the run is cancelled; that retry never comes.
"""

ENDED_STATUSES = frozenset({"SUCCESS", "FAILURE", "CANCELED"})


@dataclass(frozen=True)
class Row:
    """Of the table of steps."""

    run: str
    step: str
    attempt: int
    state: str
    generation: int | None = None
    pid: int | None = None
    started: bool = False


@dataclass(frozen=True)
class Logged:
    """An event of a step in Dagster's log; ``order`` is its place there.  ``outage``: a failure because of Dagster's
    own connection to PostgreSQL."""

    run: str
    step: str
    order: int
    kind: str
    pid: int | None = None
    outage: bool = False


@dataclass(frozen=True)
class Run:
    """``status``: Dagster's; ``state``: of the run's row.  ``forsaken``: its run worker died and nobody resumed it, so
    that its log may end in the middle; its rows may not.
    """

    run: str
    status: str
    state: str | None
    forsaken: bool = False


@dataclass
class Evidence:
    """All that was written, and what is left when everything should be over."""

    history: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[Row] = ()
    log: Sequence[Logged] = ()
    runs: Sequence[Run] = ()
    messages: int = 0
    """In the queue, visible or not."""
    processes: Sequence[str] = ()
    """That still live after the workers have stopped, or of steps before that."""
    busy: Mapping[str, int] = field(default_factory=dict)
    """Worker → slots that are not free although nothing runs."""


@dataclass(frozen=True)
class Violation:
    rule: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.detail}"


Key = tuple[str, str]


def check(evidence: Evidence) -> list[Violation]:
    """Every rule on all of it."""
    found: list[Violation] = []
    history: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    rows: dict[Key, list[Row]] = defaultdict(list)
    log: dict[Key, list[Logged]] = defaultdict(list)
    for line in evidence.history:
        history[line["run"], line["step"]].append(line)
    for row in evidence.rows:
        rows[row.run, row.step].append(row)
    for event in evidence.log:
        log[event.run, event.step].append(event)
    runs = {run.run: run for run in evidence.runs}
    for key in sorted({*history, *rows, *log}):
        run = runs.get(key[0])
        attempts = sorted(rows[key], key=lambda row: row.attempt)
        events = _without_taken_back(sorted(log[key], key=lambda event: event.order))
        found += _started_at_most_once(key, history[key])
        found += _one_process_at_a_time(key, history[key])
        found += _history_fits_rows(key, history[key], attempts)
        found += _settled(key, attempts)
        found += _one_outcome(key, history[key], attempts, events, run)
        found += _nothing_late(key, attempts, events)
    found += _runs_ended(evidence.runs)
    found += _nothing_left(evidence)
    return found


def _name(key: Key, attempt: object = None) -> str:
    return f"run {key[0][:8]}, step {key[1]}" + (f", attempt {attempt}" if attempt is not None else "")


def _started_at_most_once(key: Key, lines: Iterable[Mapping[str, Any]]) -> list[Violation]:
    starts: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["what"] == "start":
            starts[line["attempt"]].append(line)
    return [
        Violation("started twice", _name(key, attempt), f"generations {[line['generation'] for line in several]}")
        for attempt, several in starts.items()
        if len(several) > 1
    ]


def _one_process_at_a_time(key: Key, lines: Sequence[Mapping[str, Any]]) -> list[Violation]:
    """By what a starting attempt saw of the processes before it, and by the times of the lines."""
    found = [
        Violation("overlap", _name(key, line["attempt"]), f"process {pid} of an earlier attempt was alive at its start")
        for line in lines
        if line["what"] == "start"
        for pid in line.get("alive", ())
    ]
    spans: dict[int, tuple[int, int]] = {}
    for line in lines:
        first, last = spans.get(line["generation"], (line["boot_ns"], line["boot_ns"]))
        spans[line["generation"]] = (min(first, line["boot_ns"]), max(last, line["boot_ns"]))
    ordered = sorted((first, last, generation) for generation, (first, last) in spans.items())
    for (_, end, before), (begin, _, after) in itertools.pairwise(ordered):
        if begin < end:
            detail = f"generation {before} still wrote {(end - begin) / 1e9:.3f} s after the start of {after}"
            found.append(Violation("overlap", _name(key), detail))
    return found


def _history_fits_rows(key: Key, lines: Iterable[Mapping[str, Any]], attempts: Sequence[Row]) -> list[Violation]:
    """Whoever ran had the row, and had it to the end."""
    found = []
    by_attempt = {row.attempt: row for row in attempts}
    for line in lines:
        if line["what"] != "start":
            continue
        where = _name(key, line["attempt"])
        row = by_attempt.get(line["attempt"])
        if row is None:
            found.append(Violation("no row", where, "it ran"))
        elif row.generation != line["generation"]:
            detail = f"ran under generation {line['generation']}, the row was given to {row.generation}"
            found.append(Violation("foreign generation", where, detail))
        elif not row.started:
            found.append(Violation("no row", where, "it ran, and its row says that it never started"))
        elif row.pid != line["pid"]:
            found.append(Violation("no row", where, f"ran as process {line['pid']}, the row says {row.pid}"))
    return found


def _settled(key: Key, attempts: Sequence[Row]) -> list[Violation]:
    found = [
        Violation("not settled", _name(key, row.attempt), f"the row is {row.state}")
        for row in attempts
        if row.state not in TERMINAL_STATES
    ]
    numbers = [row.attempt for row in attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(Violation("attempts", _name(key), f"rows of attempts {numbers}"))
    return found


def _without_taken_back(events: Sequence[Logged]) -> list[Logged]:
    """Dagster stores an event, and then says so with a NOTIFY, in a transaction of its own.  When PostgreSQL goes away
    between the two, the step's process takes it for not stored, and says of a step that has succeeded that it failed.
    """
    return [
        event
        for event, following in itertools.zip_longest(events, events[1:])
        if not (event.kind == "STEP_SUCCESS" and following and following.outage and following.pid == event.pid)
    ]


def _closings(events: Iterable[Logged]) -> list[list[str]]:
    """What the log says of each attempt: an attempt is what follows the last STEP_UP_FOR_RETRY."""
    attempts: list[list[str]] = [[]]
    for event in events:
        if event.kind in CLOSING:
            attempts[-1].append(CLOSING[event.kind])
            if event.kind == "STEP_UP_FOR_RETRY":
                attempts.append([])
    return attempts


def _one_outcome(
    key: Key,
    lines: Sequence[Mapping[str, Any]],
    attempts: Sequence[Row],
    events: Sequence[Logged],
    run: Run | None,
) -> list[Violation]:
    found: list[Violation] = []
    closings = _closings(events)
    unfinished_is_fine = run is not None and (run.forsaken or run.status != "SUCCESS")
    for number, said in enumerate(closings, 1):
        if len(said) > 1:
            found.append(Violation("several outcomes", _name(key, number), f"the log says {' and '.join(said)}"))
    ended = [number for number, said in enumerate(closings, 1) if said]
    if not closings[-1] and not unfinished_is_fine:
        found.append(Violation("no outcome", _name(key, len(closings)), "the log has no event that ends it"))
    if len(attempts) < len(ended) and attempts:
        found.append(Violation("attempts", _name(key), f"{len(attempts)} rows, and {len(ended)} ends in the log"))
    for row in attempts:
        said = closings[row.attempt - 1] if row.attempt <= len(closings) else []
        outcome = said[-1] if said else None
        if outcome is None and unfinished_is_fine:
            continue
        if row.state in FITTING and outcome not in FITTING[row.state]:
            detail = f"the row is {row.state}, the log says {outcome or 'nothing'}"
            found.append(Violation("records differ", _name(key, row.attempt), detail))
        found += _history_fits_outcome(key, row, outcome, lines)
    return found


def _history_fits_outcome(
    key: Key, row: Row, outcome: str | None, lines: Iterable[Mapping[str, Any]]
) -> list[Violation]:
    said = [line["what"] for line in lines if line["attempt"] == row.attempt]
    where = _name(key, row.attempt)
    if outcome == "success" and "end" not in said:
        return [Violation("records differ", where, "the log says success, and its op has not ended")]
    if row.state == "succeeded" and not row.started:
        return [Violation("records differ", where, "the row is succeeded and never started")]
    if "raise" in said and outcome == "success":
        return [Violation("records differ", where, "the log says success, and its op has failed")]
    return []


def _nothing_late(key: Key, attempts: Iterable[Row], events: Iterable[Logged]) -> list[Violation]:
    """No event of an attempt's process after the attempt was closed."""
    attempts_of: dict[int, set[int]] = defaultdict(set)
    for row in attempts:
        if row.pid is not None:
            attempts_of[row.pid].add(row.attempt)
    found = []
    current = 1
    closed = False
    for event in events:
        mine = attempts_of.get(event.pid or 0)
        if event.kind in WORK and mine and (current not in mine or (closed and event.kind != "STEP_UP_FOR_RETRY")):
            found.append(
                Violation("late event", _name(key, min(mine)), f"{event.kind} of process {event.pid} in {current}")
            )
        if event.kind == "STEP_UP_FOR_RETRY":
            current += 1
            closed = False
        elif event.kind in CLOSING:
            closed = True
    return found


def _runs_ended(runs: Iterable[Run]) -> list[Violation]:
    found = []
    for run in runs:
        where = f"run {run.run[:8]}"
        if run.status not in ENDED_STATUSES and not run.forsaken:
            found.append(Violation("run not ended", where, f"Dagster says {run.status}"))
        if run.state not in ("ended", None) and not run.forsaken:
            found.append(Violation("run not ended", where, f"its row says {run.state}"))
    return found


def _nothing_left(evidence: Evidence) -> list[Violation]:
    found = [Violation("process left", name, "it lives") for name in evidence.processes]
    if evidence.messages:
        found.append(Violation("message left", "queue", f"{evidence.messages} messages"))
    found += [Violation("slot left", name, f"{count} slots are busy") for name, count in evidence.busy.items() if count]
    return found
