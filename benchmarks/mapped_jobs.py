"""A step that gives keys, and one for each key that does nothing, for scale.py: ``mapped_1000`` has 1000 of them."""

# No annotations as text: Dagster looks at the type of the op's context.

from collections.abc import Iterator
from typing import Any

from dagster import DynamicOut, DynamicOutput, JobDefinition, Nothing, OpExecutionContext, Out, job, op

from dagster_taskiq import taskiq_executor

FIRST_KEY = "k0"


@op(out=DynamicOut(int))
def spread(context: OpExecutionContext) -> Iterator[DynamicOutput[Any]]:
    for number in range(int(context.job_name.partition("_")[2])):
        yield DynamicOutput(number, f"k{number}")


@op(out=Out(Nothing))
def work(number: int) -> None:
    pass


def __getattr__(name: str) -> JobDefinition:
    kind, _, size = name.partition("_")
    if kind != "mapped" or not size.isdecimal():
        raise AttributeError(name)

    def shape() -> None:
        spread().map(work)

    shape.__name__ = shape.__qualname__ = name
    made: JobDefinition = job(executor_def=taskiq_executor)(shape)
    globals()[name] = made
    return made
