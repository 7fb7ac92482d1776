"""Re-executions with what is known of the run before."""

from collections.abc import Iterator

from conformance_case import Case
from conformance_ops import one, plus_one, total
from dagster import (
    AssetSelection,
    Definitions,
    DynamicOut,
    DynamicOutput,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    asset,
    define_asset_job,
    job,
    op,
)


def is_again(context: OpExecutionContext) -> bool:
    return context.run.parent_run_id is not None


@op
def fails_in_the_first_run(context: OpExecutionContext, value: int) -> int:
    if not is_again(context):
        raise ValueError("the first run")
    return value + 10


@job
def again_chain() -> None:
    plus_one.alias("last")(fails_in_the_first_run(one()))


@job
def again_side_by_side() -> None:
    """What had succeeded is loaded, not run."""
    total([plus_one(one()), fails_in_the_first_run(one.alias("another")())])


@op(out=DynamicOut(int))
def spreads() -> Iterator[DynamicOutput[int]]:
    for number in range(3):
        yield DynamicOutput(number, f"n{number}")


@op
def second_fails_first(context: OpExecutionContext, value: int) -> int:
    if value == 1 and not is_again(context):
        raise ValueError("the second one, in the first run")
    return value


@job
def again_dynamic() -> None:
    total(spreads().map(second_fails_first).collect())


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def left_only() -> Iterator[Output[int]]:
    yield Output(1, "left")


@job
def again_after_skips() -> None:
    left, right = left_only()
    fails_in_the_first_run(left)
    plus_one.alias("skipped")(right)


@op(retry_policy=RetryPolicy(max_retries=1))
def needs_an_attempt_more(context: OpExecutionContext) -> int:
    """Uses up its policy in the first run; in the second it has a new one."""
    if not is_again(context) or context.retry_number == 0:
        raise ValueError(f"attempt {context.retry_number}")
    return context.retry_number


@job
def again_with_retries() -> None:
    plus_one(needs_an_attempt_more())


@job
def again_from_selected() -> None:
    plus_one.alias("third")(plus_one.alias("second")(one()))


@job
def again_dynamic_selected() -> None:
    total(spreads().map(plus_one).collect())


@asset(group_name="again")
def stays() -> int:
    return 1


@asset(group_name="again")
def comes_later(context, stays: int) -> int:  # type: ignore[no-untyped-def]
    if not is_again(context):
        raise ValueError("the first run")
    return stays + 1


CASES = [
    Case("again_chain", again="from_failure"),
    Case("again_side_by_side", again="from_failure"),
    Case("again_dynamic", again="from_failure"),
    Case("again_after_skips", again="from_failure"),
    Case("again_with_retries", again="from_failure"),
    Case("again_assets", again="from_failure"),
    Case("again_from_selected", again=["second"], name="again_selected_step"),
    Case("again_from_selected", again=["second+"], name="again_selected_step_and_below"),
    Case("again_dynamic_selected", again=["plus_one[n1]"], name="again_one_mapped_step"),
    Case("again_dynamic_selected", again=["total"], name="again_collected"),
]

DEFINITIONS = Definitions(
    assets=[stays, comes_later], jobs=[define_asset_job("again_assets", AssetSelection.groups("again"))]
)
