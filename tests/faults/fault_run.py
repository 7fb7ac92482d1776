"""Runs jobs while processes are killed and stopped, servers restart and connections break; then checks what is left."""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import fault_jobs
from fault_checker import Violation, check
from fault_schedule import EXPLAINED, WEIGHTS, Faults, plan
from fault_stack import RunHandle, Stack, Timing, answers

HANG_SECONDS = 180.0
"""Without any new line in the history, a run that is still open hangs."""

SETTLE_SECONDS = 90.0
"""For what is left over to go by itself: messages become visible again and are deleted, rows of runs end."""


OUTAGE = re.compile(r"OperationalError|InterfaceError|server closed the connection|terminating connection")
"""Dagster itself fails a run whose event it cannot store, which happens while PostgreSQL restarts; nothing else may."""


@dataclass(frozen=True)
class Options:
    steps: int = 500
    seed: int = 1
    gap: float = 1.5
    kinds: tuple[str, ...] = ()
    workers: int = 3
    slots: int = 4
    runs_at_once: int = 6
    long_seconds: float = 1.5
    doubled: float = 0.05
    minutes: float | None = None
    lease_ttl: float = 8.0


@dataclass
class Report:
    seed: int
    steps: int = 0
    """In runs that were launched."""
    steps_run: int = 0
    """Of these, how many had a row: a run that fails or is cancelled leaves the rest out."""
    attempts: int = 0
    started: int = 0
    """Attempts of which the op began."""
    seconds: float = 0.0
    steps_per_minute: float = 0.0
    runs: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    worker_starts: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    attempts_of_a_step: dict[int, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    """Of the faults on links: which."""
    requests: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    trouble: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Why runs failed."""
    violations: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)


def run(options: Options, folder: Path, *, log: Any = None) -> Report:
    """One whole test in ``folder``."""
    say = log or (lambda text: None)
    with Stack(
        folder,
        workers=options.workers,
        slots=options.slots,
        timing=replace(Timing(), lease_ttl=options.lease_ttl),
        long_seconds=options.long_seconds,
        doubled=options.doubled,
    ) as stack:
        stack.wait_until_ready()
        begun = time.monotonic()
        count = max(20, int(options.steps * 4 / options.gap))
        faults = Faults(
            stack, plan(options.seed, gap=options.gap, count=count, kinds=list(options.kinds) or None), options.seed
        )
        extra: list[Violation] = []
        launched = _work(options, stack, faults, extra, say)
        faults.finish()
        say("no more faults; settling")
        extra += _settle(stack)
        report = Report(options.seed, steps=launched, seconds=round(time.monotonic() - begun, 1))
        _conclude(stack, faults, report, extra)
    return report


def _work(options: Options, stack: Stack, faults: Faults, extra: list[Violation], say: Any) -> int:
    """Launch runs one after the other, and break things, until all have ended.  How many steps they had."""
    dice = random.Random(f"jobs of {options.seed}")
    end = None if options.minutes is None else time.monotonic() + options.minutes * 60
    launched = 0
    size = -1
    moved = said = time.monotonic()
    while True:
        stack.supervise()
        now = time.monotonic()
        wanted = launched < options.steps and (end is None or now < end)
        if wanted and len(stack.open_runs) < options.runs_at_once:
            launched += _launch(stack, dice, options.steps - launched)
        elif not wanted and not stack.open_runs:
            return launched
        if wanted or len(stack.open_runs) > 1:
            faults.due()
        else:
            # The last run: what is stopped goes on, and nothing new is broken.
            faults.planned.clear()
            faults.due()
        grown = stack.history.stat().st_size if stack.history.exists() else 0
        if grown != size:
            size, moved = grown, now
        if now - moved > HANG_SECONDS:
            extra += [Violation("hang", f"run {handle.id[:8]}", _where(stack, handle)) for handle in stack.open_runs]
            return launched
        if now - said > 20:
            said = now
            done = Counter(handle.status for handle in stack.runs)
            say(f"{launched} steps launched, runs {dict(done)}, faults {sum(faults.done.values())}")
        time.sleep(0.05)


def _launch(stack: Stack, dice: random.Random, left: int) -> int:
    sizes = [name for name in fault_jobs.SIZES if fault_jobs.steps_of(name) <= max(left, 25)]
    job = dice.choice(sizes)
    if not answers(stack.database_url):
        return 0
    stack.launch(job)
    return fault_jobs.steps_of(job)


def _where(stack: Stack, handle: RunHandle) -> str:
    sql = (
        "SELECT step_key, attempt, state, worker_name FROM dagster_taskiq_steps"
        " WHERE run_id = %s AND state IN ('queued', 'claimed')"
    )
    return f"open rows {stack.rows(sql, handle.id)}, run worker status {handle.process.popen.poll()}"


def _settle(stack: Stack) -> list[Violation]:
    """Wait for what goes away by itself; then see whether every slot still takes a step."""
    found = []
    if not _within(SETTLE_SECONDS, stack, lambda: not _open_rows(stack)):
        found.append(Violation("not settled", "rows", f"after {SETTLE_SECONDS:g} s: {_open_rows(stack)}"))
    last = stack.launch("all_slots")
    if not _within(fault_jobs.MEET_SECONDS + 60, stack, lambda: last.status is not None) or last.status != "SUCCESS":
        found.append(Violation("slot left", "a run that needs every slot", f"ended with {last.status}"))
    _within(SETTLE_SECONDS, stack, lambda: stack.queue.counts() == (0, 0))
    return found


def _open_rows(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.rows(
        "SELECT left(run_id, 8), step_key, attempt, state FROM dagster_taskiq_steps"
        " WHERE state IN ('queued', 'claimed')"
    )


def _within(seconds: float, stack: Stack, condition: Any) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        stack.supervise()
        time.sleep(0.1)
    return True


def _conclude(stack: Stack, faults: Faults, report: Report, extra: list[Violation]) -> None:
    evidence = stack.evidence()
    evidence.messages = sum(stack.queue.counts())
    left = stack.step_processes_left()
    stack.stop_workers()
    # Run workers that have been superseded notice it at their next heartbeat.
    _within(15, stack, lambda: not stack.processes_left())
    evidence.processes = [*left, *stack.processes_left()]
    report.trouble = stack.trouble
    report.attempts = len(evidence.rows)
    report.started = sum(line["what"] == "start" for line in evidence.history)
    report.steps_per_minute = round(report.steps / report.seconds * 60, 1)
    report.runs = dict(Counter(handle.status or "?" for handle in stack.runs))
    report.resumes = sum(handle.resumes for handle in stack.runs)
    report.worker_starts = sum(worker.starts for worker in stack.workers)
    report.rows = dict(Counter(row.state for row in evidence.rows))
    last = {(row.run, row.step): row.attempt for row in sorted(evidence.rows, key=lambda row: row.attempt)}
    report.steps_run = len(last)
    report.attempts_of_a_step = dict(sorted(Counter(last.values()).items()))
    report.faults = {kind: times for kind, times in faults.done.items() if times}
    report.links = dict(faults.on_links)
    links = [stack.run_sqs, *(worker.sqs for worker in stack.workers)]
    report.requests = dict(sum((link.counts for link in links), Counter()))
    report.dead_letters = sum(stack.queue.counts(stack.queue.dead_url))
    report.story = faults.story
    for handle in stack.runs:
        if handle.status not in ("SUCCESS", None) and not handle.cancelled and not handle.forsaken:
            why = _why_failed(stack, handle)
            report.failures.append(f"{handle.id[:8]} ({handle.job}): {why}")
            if not OUTAGE.search(why) and not _never_began(stack, handle):
                extra.append(Violation("run failed", f"run {handle.id[:8]}", why))
    report.violations = [str(violation) for violation in [*extra, *check(evidence)]]


def _never_began(stack: Stack, handle: RunHandle) -> bool:
    """Whether Dagster gave the run up before the executor had it, as when PostgreSQL goes away at its first event."""
    return not stack.rows("SELECT 1 FROM dagster_taskiq_runs WHERE run_id = %s", handle.id)


def _why_failed(stack: Stack, handle: RunHandle) -> str:
    sql = (
        "SELECT event FROM event_logs WHERE run_id = %s AND dagster_event_type IN ('RUN_FAILURE', 'PIPELINE_FAILURE',"
        " 'STEP_FAILURE') ORDER BY id"
    )
    texts = []
    for (event,) in stack.rows(sql, handle.id):
        data = json.loads(event)["dagster_event"]
        error = (data.get("event_specific_data") or {}).get("error") or {}
        texts.append(f"{data.get('step_key') or ''} {data.get('message')} {error.get('message') or ''}".strip()[:400])
    return " | ".join(texts) or handle.process.output[-400:]


def summary(report: Report) -> str:
    """One line for people."""
    return (
        f"seed {report.seed}: {report.steps} steps ({report.steps_run} run), {report.started} starts,"
        f" {sum(report.faults.values())} faults, {report.seconds:.0f} s, runs {report.runs},"
        f" {len(report.violations)} violations"
    )


def main(description: str | None, argv: list[str] | None = None) -> int:
    """The command line."""
    kinds = "\n".join(f"  {kind:20} {EXPLAINED[kind]}" for kind in WEIGHTS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.runner",
        description=description,
        epilog=f"faults:\n{kinds}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Options()
    parser.add_argument("--steps", type=int, default=defaults.steps, help="steps to run (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the faults and jobs (default %(default)s)")
    parser.add_argument("--gap", type=float, default=defaults.gap, help="mean seconds between faults (%(default)s)")
    parser.add_argument("--faults", default="", help="comma-separated kinds, default all that keep runs going")
    parser.add_argument("--workers", type=int, default=defaults.workers, help="(default %(default)s)")
    parser.add_argument("--slots", type=int, default=defaults.slots, help="of each worker (default %(default)s)")
    parser.add_argument("--runs", type=int, default=defaults.runs_at_once, help="runs at once (default %(default)s)")
    parser.add_argument("--lease", type=float, default=defaults.lease_ttl, help="lease_ttl, seconds (%(default)s)")
    parser.add_argument("--long", type=float, default=defaults.long_seconds, help="seconds of long steps (%(default)s)")
    parser.add_argument("--minutes", type=float, help="launch no further run after so many minutes")
    parser.add_argument("--report", type=Path, help="file for the report, as JSON")
    parser.add_argument("--keep", type=Path, help="new folder to keep all logs in (default: a temporary one)")
    options = parser.parse_args(argv)
    chosen = tuple(filter(None, options.faults.split(",")))
    unknown = set(chosen) - set(WEIGHTS)
    if unknown:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    if options.keep and options.keep.exists():
        parser.error(f"{options.keep} exists: --keep wants a new folder")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="dtq-faults-"))
    begun = time.monotonic()
    try:
        report = run(
            Options(
                steps=options.steps,
                seed=options.seed,
                gap=options.gap,
                kinds=chosen,
                workers=options.workers,
                slots=options.slots,
                runs_at_once=options.runs,
                long_seconds=options.long,
                minutes=options.minutes,
                lease_ttl=options.lease,
            ),
            folder,
            log=lambda text: print(f"[{time.monotonic() - begun:7.1f}] {text}", flush=True),
        )
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(asdict(report), indent=2)
    if options.report:
        options.report.write_text(text + "\n")
    else:
        print(text)
    print(summary(report), flush=True)
    for violation in report.violations[:50]:
        print(f"  {violation}")
    return 1 if report.violations else 0
