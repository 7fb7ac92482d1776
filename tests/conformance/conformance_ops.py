"""Ops that the jobs of several themes use: names of ops are unique in a code location."""

from dagster import op


@op
def one() -> int:
    return 1


@op
def plus_one(value: int) -> int:
    return value + 1


@op
def total(values: list[int]) -> int:
    return sum(values)
