"""Asset checks."""

from collections.abc import Iterator

from conformance_case import Case
from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetSelection,
    Definitions,
    MaterializeResult,
    Output,
    asset,
    asset_check,
    define_asset_job,
    multi_asset_check,
)


@asset(group_name="checked")
def checked() -> int:
    return 5


@asset_check(asset=checked, description="more than nothing")
def is_positive(checked: int) -> AssetCheckResult:
    return AssetCheckResult(passed=checked > 0, metadata={"value": checked})


@asset_check(asset=checked)
def is_huge(checked: int) -> AssetCheckResult:
    return AssetCheckResult(passed=checked > 1000, severity=AssetCheckSeverity.WARN, description="it is small")


@asset(
    group_name="checked_within",
    check_specs=[AssetCheckSpec("has_rows", asset="checks_itself"), AssetCheckSpec("is_new", asset="checks_itself")],
)
def checks_itself() -> Iterator[Output[int] | AssetCheckResult]:
    yield Output(3)
    yield AssetCheckResult(check_name="has_rows", passed=True, metadata={"rows": 3})
    yield AssetCheckResult(check_name="is_new", passed=False)


@asset(group_name="checked_in_result", check_specs=[AssetCheckSpec("small", asset="result_with_check")])
def result_with_check() -> MaterializeResult:
    return MaterializeResult(
        metadata={"rows": 1}, check_results=[AssetCheckResult(check_name="small", passed=True, metadata={"n": 1})]
    )


@asset(group_name="blocked")
def guarded() -> int:
    return -1


@asset_check(asset=guarded, blocking=True)
def guards(guarded: int) -> AssetCheckResult:
    return AssetCheckResult(passed=guarded > 0, description="below zero")


@asset(group_name="blocked")
def behind_guard(guarded: int) -> int:
    return guarded


@asset(group_name="not_blocked")
def guarded_well() -> int:
    return 1


@asset_check(asset=guarded_well, blocking=True)
def guards_well(guarded_well: int) -> AssetCheckResult:
    return AssetCheckResult(passed=guarded_well > 0)


@asset(group_name="not_blocked")
def behind_good_guard(guarded_well: int) -> int:
    return guarded_well


@asset(group_name="check_fails")
def checked_badly() -> int:
    return 1


@asset_check(asset=checked_badly)
def raises() -> AssetCheckResult:
    raise ValueError("the check itself is broken")


@asset(group_name="several")
def several_a() -> int:
    return 1


@asset(group_name="several")
def several_b() -> int:
    return 2


@multi_asset_check(
    specs=[AssetCheckSpec("fine", asset=several_a), AssetCheckSpec("fine", asset=several_b)], can_subset=True
)
def check_several(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
    for key in sorted(context.selected_asset_check_keys):
        yield AssetCheckResult(asset_key=key.asset_key, check_name=key.name, passed=True)


@asset(
    group_name="blocks_within",
    check_specs=[AssetCheckSpec("strict", asset="blocks_itself", blocking=True)],
)
def blocks_itself(context: AssetExecutionContext) -> Iterator[Output[int] | AssetCheckResult]:
    yield AssetCheckResult(check_name="strict", passed=False)
    yield Output(1)


@asset(group_name="blocks_within")
def behind_blocks_itself(blocks_itself: int) -> int:
    return blocks_itself


GROUPS = (
    *("checked", "checked_within", "checked_in_result", "blocked", "not_blocked", "check_fails", "several"),
    "blocks_within",
)

CASES = [
    Case("checks_checked"),
    Case("checks_checked_within"),
    Case("checks_checked_in_result"),
    Case("checks_blocked", success=False),
    Case("checks_not_blocked"),
    Case("checks_check_fails", success=False),
    Case("checks_several"),
    Case("checks_blocks_within", success=False),
    Case("checks_only"),
]

DEFINITIONS = Definitions(
    assets=[
        *(checked, checks_itself, result_with_check, guarded, behind_guard, guarded_well, behind_good_guard),
        *(checked_badly, several_a, several_b, blocks_itself, behind_blocks_itself),
    ],
    asset_checks=[is_positive, is_huge, guards, guards_well, raises, check_several],
    jobs=[
        *(define_asset_job(f"checks_{name}", AssetSelection.groups(name)) for name in GROUPS),
        define_asset_job("checks_only", AssetSelection.checks(check_several)),
    ],
)
