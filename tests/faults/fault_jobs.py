"""The jobs that run while things break.  Each op leaves lines in a history file; loaded by path in all processes.

A line is one JSON object, written by one ``write`` to a file opened O_APPEND, so lines of several processes do not mix:
``what`` (start, tick, end, raise), ``run``, ``step``, ``attempt``, ``generation`` (the fencing token), ``pid``,
``pid_start`` (with it the pid names a process for good) and ``boot_ns`` (CLOCK_BOOTTIME, which runs on while a process
is stopped).  A start line has ``alive`` too: the pids of earlier processes of the same step that were still there.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dagster import (
    DynamicOut,
    DynamicOutput,
    Failure,
    In,
    Nothing,
    OpExecutionContext,
    RetryPolicy,
    job,
    op,
)

import dagster_taskiq
from dagster_taskiq import taskiq_executor

HISTORY = "FAULT_TEST_HISTORY"
"""Variable with the history file's path, in the environment of the workers."""

SLOTS = "FAULT_TEST_SLOTS"
"""Variable with the number of slots of all workers together."""

LONG = "FAULT_TEST_LONG_SECONDS"
"""Variable with the length of the steps that run for long."""

TICK = 0.1
MEET_SECONDS = 120.0
OFTEN = RetryPolicy(max_retries=30)
"""Killed step processes are failures, and there are many; none of them is to fail a run."""


def process_start(pid: int | str) -> str:
    """The kernel's start time of a process; empty for one that is dead (a zombie is)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def lines_of(path: Path, *, run: str | None = None, step: str | None = None) -> list[dict]:
    """The history, or what it has of one step."""
    if not path.exists():
        return []
    wanted = f'"run": "{run}", "step": {json.dumps(step)},' if run else ""
    return [json.loads(line) for line in path.read_text().splitlines() if wanted in line]


def note(context: OpExecutionContext, what: str, **more: object) -> None:
    """Append one line."""
    line = {
        "what": what,
        "run": context.run_id,
        "step": os.environ["DAGSTER_TASKIQ_STEP_KEY"],
        "attempt": dagster_taskiq.step_attempt(),
        "generation": dagster_taskiq.fencing_token(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        **more,
    }
    descriptor = os.open(os.environ[HISTORY], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{json.dumps(line)}\n".encode())
    os.close(descriptor)


def note_start(context: OpExecutionContext) -> None:
    """The first line of an attempt, with the processes of earlier ones that still live."""
    step_key = os.environ["DAGSTER_TASKIQ_STEP_KEY"]
    before = lines_of(Path(os.environ[HISTORY]), run=context.run_id, step=step_key)
    processes = {(line["pid"], line["pid_start"]) for line in before if line["pid"] != os.getpid()}
    note(context, "start", alive=[pid for pid, born in sorted(processes) if process_start(pid) == born])


def tick_until(context: OpExecutionContext, end: float) -> None:
    while time.monotonic() < end:
        time.sleep(TICK)
        note(context, "tick")


@op(retry_policy=OFTEN)
def root(context: OpExecutionContext) -> int:
    note_start(context)
    note(context, "end")
    return 1


@op(retry_policy=OFTEN)
def small(context: OpExecutionContext, value: int) -> int:
    note_start(context)
    time.sleep(0.01)
    note(context, "end")
    return value + 1


@op(retry_policy=OFTEN)
def pass_on(context: OpExecutionContext, value: int) -> int:
    note_start(context)
    note(context, "end")
    return value


@op(retry_policy=OFTEN)
def long(context: OpExecutionContext, value: int) -> int:
    """Runs longer than the others, for a time that the environment gives."""
    note_start(context)
    tick_until(context, time.monotonic() + float(os.environ[LONG]))
    note(context, "end")
    return value + 1


@op(retry_policy=OFTEN)
def flaky(context: OpExecutionContext, value: int) -> int:
    """Fails the first time."""
    note_start(context)
    if context.retry_number == 0:
        note(context, "raise")
        raise Failure("the first time, always")
    note(context, "end")
    return value + 1


@op(out=DynamicOut(int), retry_policy=OFTEN, config_schema={"count": int})
def several(context: OpExecutionContext, value: int) -> Iterator[DynamicOutput[int]]:
    note_start(context)
    for number in range(context.op_config["count"]):
        yield DynamicOutput(value, f"n{number}")
    note(context, "end")


@op(retry_policy=OFTEN)
def total(context: OpExecutionContext, values: list[int]) -> int:
    """All values are there, and each is the work of one attempt."""
    note_start(context)
    assert set(values) == {2}, values
    note(context, "end")
    return len(values)


SIZES = {
    "mixed_25": (6, 5, 5, 2, 3),
    "mixed_50": (16, 14, 8, 4, 4),
    "mixed_100": (38, 34, 14, 5, 5),
}
"""Job → how many steps of each shape; four more are in each job."""


def steps_of(name: str) -> int:
    """Steps of a job."""
    return sum(SIZES[name]) + 4


def _mix(wide: int, mapped: int, links: int, longs: int, flakies: int) -> None:
    """All shapes: a fan-out, a chain, mapped steps (as many as the op's config says), long steps, steps that fail
    once."""
    first = root()
    branches = [small.alias(f"wide_{number}")(first) for number in range(wide)]
    branches += [long.alias(f"long_{number}")(first) for number in range(longs)]
    branches += [flaky.alias(f"flaky_{number}")(first) for number in range(flakies)]
    total(branches)
    total.alias("total_mapped")(several(first).map(small.alias("mapped")).collect())
    link = first
    for number in range(links):
        link = pass_on.alias(f"link_{number}")(link)


@job(executor_def=taskiq_executor)
def mixed_25() -> None:
    _mix(*SIZES["mixed_25"])


@job(executor_def=taskiq_executor)
def mixed_50() -> None:
    _mix(*SIZES["mixed_50"])


@job(executor_def=taskiq_executor)
def mixed_100() -> None:
    _mix(*SIZES["mixed_100"])


@op(out=DynamicOut(int), retry_policy=OFTEN)
def invite(context: OpExecutionContext) -> Iterator[DynamicOutput[int]]:
    note_start(context)
    for number in range(int(os.environ[SLOTS])):
        yield DynamicOutput(number, f"n{number}")
    note(context, "end")


@op
def meet(context: OpExecutionContext, number: int) -> int:
    """Ends when as many of its kind run at once as the workers have slots together."""
    note_start(context)
    deadline = time.monotonic() + MEET_SECONDS
    while True:
        lines = lines_of(Path(os.environ[HISTORY]))
        here = {line["step"] for line in lines if line["run"] == context.run_id and line["what"] == "start"}
        if len(here) >= int(os.environ[SLOTS]):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(here)} of {os.environ[SLOTS]} slots took a step")
        time.sleep(0.1)
    note(context, "end")
    return number


@job(executor_def=taskiq_executor)
def all_slots() -> None:
    """Succeeds when no slot is left over from what went before."""
    invite().map(meet)


@op(retry_policy=OFTEN, config_schema={"file": str})
def held(context: OpExecutionContext) -> None:
    """Runs until a test makes a file."""
    note_start(context)
    while not Path(context.op_config["file"]).exists():
        time.sleep(TICK)
        note(context, "tick")
    note(context, "end")


@op(ins={"after": In(Nothing)})
def afterwards(context: OpExecutionContext) -> None:
    note_start(context)
    note(context, "end")


@job(executor_def=taskiq_executor)
def holding() -> None:
    """One step that a test holds up, and one after it."""
    afterwards(held())
