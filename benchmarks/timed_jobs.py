"""A chain whose ops note the time of their first instruction, for latency.py: ``chain_20`` has 20 of them."""

from __future__ import annotations

import os
import time

from dagster import In, JobDefinition, Nothing, Out, job, op

from dagster_taskiq import fencing, taskiq_executor

NOTES = "BENCH_NOTES"
"""Environment variable: the file of the notes, lines of run id, step key and seconds since the epoch."""


@op(ins={"before": In(Nothing)}, out=Out(Nothing))
def step() -> None:
    now = time.time()
    about = f"{os.environ[fencing.RUN_VARIABLE]} {os.environ[fencing.STEP_VARIABLE]}"
    descriptor = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{about} {now:.6f}\n".encode())
    os.close(descriptor)


@op(out=Out(Nothing))
def first() -> None:
    pass


def __getattr__(name: str) -> JobDefinition:
    kind, _, size = name.partition("_")
    if kind != "chain" or not size.isdecimal():
        raise AttributeError(name)

    def shape() -> None:
        before = first()
        for number in range(int(size)):
            before = step.alias(f"step_{number}")(before)

    shape.__name__ = shape.__qualname__ = name
    made: JobDefinition = job(executor_def=taskiq_executor)(shape)
    globals()[name] = made
    return made
