"""Jobs of the executor's tests.  Loaded by path in run workers and step processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from dagster import (
    DynamicOut,
    DynamicOutput,
    Failure,
    HookContext,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    RetryRequested,
    in_process_executor,
    job,
    mem_io_manager,
    op,
    resource,
    success_hook,
)

from dagster_taskiq import taskiq_executor

SCRATCH = "EXECUTOR_TEST_SCRATCH"
"""Folder in which steps leave notes for the test; in the environment of run worker and workers."""


def note(name: str) -> None:
    """Append a line to the notes of this name: what ran, in which attempt."""
    path = Path(os.environ[SCRATCH]) / name
    with path.open("a") as notes:
        notes.write(f"{os.environ.get('DAGSTER_TASKIQ_FENCING_TOKEN', '')}\n")


def wait_for_file(name: str) -> None:
    """Return when the test makes this file."""
    while not (Path(os.environ[SCRATCH]) / name).exists():
        time.sleep(0.02)


@op
def one() -> int:
    return 1


@op
def ends_the_run(context: OpExecutionContext) -> int:
    """As by "force termination" in Dagster's UI."""
    context.instance.report_run_canceled(context.run)
    return 1


@op
def plus_one(value: int) -> int:
    return value + 1


@op
def total(values: list[int]) -> int:
    return sum(values)


@job(executor_def=taskiq_executor)
def ended_by_force() -> None:
    plus_one(ends_the_run())


@op
def exits_well() -> int:
    os._exit(0)


@job(executor_def=taskiq_executor)
def silent() -> None:
    exits_well()


@success_hook
def exits_badly(_context: HookContext) -> None:
    os._exit(3)


@job(executor_def=taskiq_executor, hooks={exits_badly})
def hooked() -> None:
    one()


@job(executor_def=taskiq_executor)
def single() -> None:
    one()


@job(executor_def=taskiq_executor)
def from_celery() -> None:
    one.tag({"dagster-celery/queue": "of-celery", "dagster-celery/priority": "3"})()


@job(executor_def=taskiq_executor)
def badly_tagged() -> None:
    plus_one.tag({"dagster-taskiq/time_limit": "soon"})(one())


@op
def takes_blocks() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * (8 << 20))


@op
def takes_crumbs() -> None:
    """Until there is no memory left for a word about it."""
    crumbs: dict[str, str] = {}
    while True:
        crumbs[str(len(crumbs))] = str(len(crumbs)) * 20


@job(executor_def=taskiq_executor)
def short_of_memory() -> None:
    for number, limited_op in enumerate((takes_blocks, takes_crumbs, one)):
        limited_op.tag({"dagster-taskiq/memory_limit": str(301 + number)})()


@job(executor_def=taskiq_executor)
def chain() -> None:
    plus_one.alias("third")(plus_one.alias("second")(one()))


@job(executor_def=taskiq_executor)
def fan_out() -> None:
    start = one()
    total([plus_one.alias(f"branch_{number}")(start) for number in range(4)])


@op(out=DynamicOut(int))
def numbers() -> Iterator[DynamicOutput[int]]:
    for number in range(3):
        yield DynamicOutput(number, f"n{number}")


@job(executor_def=taskiq_executor)
def dynamic() -> None:
    total(numbers().map(plus_one).collect())


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def either() -> Iterator[Output[int]]:
    yield Output(1, "left")


@job(executor_def=taskiq_executor)
def branching() -> None:
    left, right = either()
    plus_one.alias("taken")(left)
    plus_one.alias("after_skipped")(plus_one.alias("skipped")(right))


@op(retry_policy=RetryPolicy(max_retries=2))
def fails_once(context: OpExecutionContext) -> int:
    note("fails_once")
    if context.retry_number == 0:
        raise Failure("the first time")
    return context.retry_number


@job(executor_def=taskiq_executor)
def retried() -> None:
    fails_once()


@op
def asks_for_a_retry(context: OpExecutionContext) -> int:
    note("asks_for_a_retry")
    if context.retry_number == 0:
        raise RetryRequested(max_retries=1, seconds_to_wait=0.2)
    return context.retry_number


@job(executor_def=taskiq_executor)
def retrying() -> None:
    plus_one(fails_once())
    asks_for_a_retry()


@op
def breaks() -> int:
    raise ValueError("broken on purpose")


@job(executor_def=taskiq_executor)
def failing() -> None:
    plus_one.alias("never")(breaks())
    one()


@op(retry_policy=RetryPolicy(max_retries=1))
def dies_once(context: OpExecutionContext) -> int:
    note("dies_once")
    if context.retry_number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@op
def exits() -> int:
    os._exit(3)


@job(executor_def=taskiq_executor)
def crashing() -> None:
    dies_once()
    exits()


@resource
def broken() -> None:
    raise RuntimeError("the resource cannot be had")


@op(required_resource_keys={"broken"})
def uses_broken() -> None:
    pass


@job(executor_def=taskiq_executor, resource_defs={"broken": broken})
def broken_resource() -> None:
    uses_broken()


@op(retry_policy=RetryPolicy(max_retries=1))
def waits(context: OpExecutionContext) -> int:
    """Runs until the test lets it end; says so in the notes."""
    note("waits")
    wait_for_file("go")
    return context.retry_number


@op(ins={"after": In(Nothing)})
def later() -> None:
    note("later")


@job(executor_def=taskiq_executor)
def waiting() -> None:
    plus_one(waits())


@job(executor_def=in_process_executor)
def waiting_in_the_run_worker() -> None:
    waits()


@op
def waits_too(context: OpExecutionContext) -> None:
    note(context.op.name)
    wait_for_file("go")


@job(executor_def=taskiq_executor)
def waiting_crowd() -> None:
    later([waits_too.alias(f"waits_{number}")() for number in range(4)])


@op(retry_policy=RetryPolicy(max_retries=1, delay=0.5))
def fails_once_slowly(context: OpExecutionContext) -> int:
    note("fails_once_slowly")
    if context.retry_number == 0:
        raise Failure("the first time")
    return context.retry_number


@job(executor_def=taskiq_executor)
def mixed() -> None:
    """A bit of everything, and one step that the test holds up."""
    left, right = either()
    plus_one.alias("taken")(left)
    plus_one.alias("after_skipped")(plus_one.alias("skipped")(right))
    fails_once_slowly()
    plus_one.alias("never")(breaks())
    total([total.alias("collected")(numbers().map(plus_one.alias("mapped")).collect()), waits()])


@op(pool="narrow")
def in_pool() -> None:
    note("in_pool")


@op(tags={"kind": "lonely"})
def lonely() -> None:
    note("lonely")


@job(executor_def=taskiq_executor)
def limited() -> None:
    """All kinds of limits, and one step that the test holds up."""
    waits()
    for number in range(3):
        in_pool.alias(f"in_pool_{number}")()
        lonely.alias(f"lonely_{number}")()


@op(retry_policy=RetryPolicy(max_retries=1, delay=6))
def retries_late(context: OpExecutionContext) -> None:
    note("retries_late")
    if context.retry_number == 0:
        raise Failure("the first time")


@job(executor_def=taskiq_executor)
def slow_retry() -> None:
    retries_late()


@job(executor_def=taskiq_executor)
def pool_job() -> None:
    for number in range(3):
        in_pool.alias(f"in_pool_{number}")()


@job(executor_def=taskiq_executor)
def lonely_job() -> None:
    for number in range(3):
        lonely.alias(f"lonely_{number}")()


@job(executor_def=taskiq_executor, resource_defs={"io_manager": mem_io_manager})
def in_memory() -> None:
    plus_one(one())


@op(out={"early": Out(int), "late": Out(int)})
def gives_early() -> Iterator[Output[int]]:
    """Goes on when its first output has been used, and the test lets it."""
    note("gives_early")
    yield Output(1, "early")
    wait_for_file("uses_early")
    wait_for_file("go")
    yield Output(2, "late")


@op
def uses_early(value: int) -> int:
    note("uses_early")
    return value


@job(executor_def=taskiq_executor)
def early() -> None:
    first, second = gives_early()
    total([plus_one(uses_early(first)), second])


@op(tags={"dagster-taskiq/group": "a group"})
def in_line(context: OpExecutionContext) -> None:
    note("in_line")


@op
def meets(context: OpExecutionContext) -> None:
    """Ends when the other one runs too."""
    here, there = ("left", "right") if context.op_handle.name == "left" else ("right", "left")
    (Path(os.environ[SCRATCH]) / here).touch()
    wait_for_file(there)


@job(executor_def=taskiq_executor)
def grouped() -> None:
    for place in ("first", "second", "third"):
        in_line.alias(place)()
    meets.alias("left")()
    meets.alias("right")()
