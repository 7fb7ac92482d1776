"""Hooks."""

from conformance_case import Case
from dagster import (
    Definitions,
    HookContext,
    RetryPolicy,
    failure_hook,
    job,
    op,
    success_hook,
)


@success_hook
def says_success(context: HookContext) -> None:
    context.log.info(f"{context.step_key} has succeeded")


@failure_hook
def says_failure(context: HookContext) -> None:
    context.log.info(f"{context.step_key} has failed: {context.op_exception}")


@success_hook
def fails_on_success(context: HookContext) -> None:
    raise RuntimeError("the hook itself fails")


@failure_hook(required_resource_keys={"channel"})
def uses_resource(context: HookContext) -> None:
    context.log.info(f"to {context.resources.channel}")


@op
def good() -> int:
    return 1


@op
def bad() -> int:
    raise ValueError("for the hook")


@op(retry_policy=RetryPolicy(max_retries=1))
def bad_twice() -> int:
    raise ValueError("for the hook, after retries")


@job(hooks={says_success, says_failure})
def hooks_success() -> None:
    good()


@job(hooks={says_success, says_failure})
def hooks_failure() -> None:
    bad()


@job(hooks={says_failure})
def hooks_after_retries() -> None:
    bad_twice()


@job(hooks={fails_on_success})
def hooks_failing() -> None:
    good()


@job(hooks={says_success, fails_on_success})
def hooks_that_all_act() -> None:
    good()


@job
def hooks_of_one_op() -> None:
    good.alias("one").with_hooks({says_success})()
    good.alias("other")()


@job
def hooks_resource() -> None:
    bad.with_hooks({uses_resource})()


CASES = [
    Case("hooks_success"),
    Case("hooks_failure", success=False),
    Case("hooks_after_retries", success=False),
    Case("hooks_failing"),
    Case("hooks_that_all_act"),
    Case("hooks_of_one_op"),
    Case("hooks_resource", success=False),
]

DEFINITIONS = Definitions(resources={"channel": "the channel"})
