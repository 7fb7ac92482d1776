"""Limits, priorities, and what a step waits for."""

from collections.abc import Iterator

from conformance_case import Case
from conformance_ops import one, plus_one
from dagster import DagsterInstance, Out, Output, job, op


@op(pool="narrow")
def in_pool() -> None:
    pass


@op(tags={"kind": "lonely"})
def lonely() -> None:
    pass


@op(pool="narrow")
def fails_in_pool() -> None:
    raise ValueError("and the slot is free again")


@job
def limits_pool() -> None:
    for number in range(3):
        in_pool.alias(f"in_pool_{number}")()


@job
def limits_pool_after_failure() -> None:
    fails_in_pool.alias("first")()
    fails_in_pool.alias("second")()


@job
def limits_tag() -> None:
    for number in range(2):
        lonely.alias(f"lonely_{number}")()


@op(out={"early": Out(int), "late": Out(int)})
def gives_one_early() -> Iterator[Output[int]]:
    yield Output(1, "early")
    yield Output(2, "late")


@op(out={"early": Out(int), "late": Out(int)})
def gives_one_then_fails() -> Iterator[Output[int]]:
    yield Output(1, "early")
    raise ValueError("after the early output")


@job
def limits_early_output() -> None:
    early, late = gives_one_early()
    plus_one.alias("after_early")(early)
    plus_one.alias("after_late")(late)


@job
def limits_early_output_of_a_failure() -> None:
    """What needs the early output only may run all the same."""
    early, late = gives_one_then_fails()
    plus_one.alias("after_early")(early)
    plus_one.alias("after_late")(late)


@job
def limits_max_concurrent() -> None:
    lonely.alias("x")()
    lonely.alias("y")()
    one()


def narrow(instance: DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("narrow", 1)


NO_WAITING = {"step_dependency_config": {"require_upstream_step_success": False}}

CASES = [
    Case("limits_pool", prepare=narrow),
    Case("limits_pool_after_failure", prepare=narrow, success=False),
    Case("limits_tag", settings={"tag_concurrency_limits": [{"key": "kind", "value": "lonely", "limit": 1}]}),
    Case("limits_max_concurrent", settings={"max_concurrent": 1}),
    Case("limits_early_output", settings=NO_WAITING),
    Case("limits_early_output_of_a_failure", settings=NO_WAITING, success=False),
]
