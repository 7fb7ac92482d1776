"""The jobs that are measured: no-op ops, in a chain or side by side, under whatever executor is asked for.

The shape and size are in the job's name (``chain_50``, ``fan_150``, ``mapped_1000``), the executor and what ops hand on
in the environment variables BENCH_EXECUTOR and BENCH_OUTPUTS, so that every process that loads this module by its name
finds the same job.  Ops hand on a number, through Dagster's default IO manager; or nothing but their order (Nothing),
so that no IO manager is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from dagster import (
    DynamicOut,
    DynamicOutput,
    In,
    JobDefinition,
    Nothing,
    Out,
    in_process_executor,
    job,
    multiprocess_executor,
    op,
)

EXECUTOR = "BENCH_EXECUTOR"
OUTPUTS = "BENCH_OUTPUTS"

if os.environ.get(OUTPUTS) == "nothing":

    @op(ins={"before": In(Nothing)}, out=Out(Nothing))
    def step() -> None:
        pass

    @op(out=Out(Nothing))
    def first() -> None:
        pass

else:

    @op
    def step(before: int) -> int:  # type: ignore[misc]
        return before

    @op
    def first() -> int:  # type: ignore[misc]
        return 1


def _executor() -> Any:
    kind = os.environ.get(EXECUTOR, "in_process")
    if kind == "taskiq":
        from dagster_taskiq import taskiq_executor

        return taskiq_executor
    if kind == "celery":
        from dagster_celery import celery_executor

        return celery_executor
    return {"in_process": in_process_executor, "multiprocess": multiprocess_executor}[kind]


def chain(size: int) -> Callable[[], None]:
    """``size`` steps, each after the one before."""

    def shape() -> None:
        before = first()
        for number in range(size - 1):
            before = step.alias(f"step_{number}")(before)

    return shape


def fan(size: int) -> Callable[[], None]:
    """One step, then ``size`` that need only that one."""

    def shape() -> None:
        before = first()
        for number in range(size):
            step.alias(f"step_{number}")(before)

    return shape


def mapped(size: int) -> Callable[[], None]:
    """A dynamic step that gives ``size`` keys, and a step for each of them."""

    nothing = os.environ.get(OUTPUTS) == "nothing"

    @op(out=DynamicOut(Nothing if nothing else int))
    def split() -> Iterator[DynamicOutput[Any]]:
        for number in range(size):
            yield DynamicOutput(None if nothing else number, mapping_key=f"key_{number}")

    def shape() -> None:
        split().map(lambda one: step(one))

    return shape


SHAPES = {"chain": chain, "fan": fan, "mapped": mapped}


def __getattr__(name: str) -> JobDefinition:
    kind, _, size = name.partition("_")
    if kind not in SHAPES or not size.isdecimal():
        raise AttributeError(name)
    shape = SHAPES[kind](int(size))
    shape.__name__ = shape.__qualname__ = name
    made: JobDefinition = job(executor_def=_executor())(shape)
    globals()[name] = made
    return made
