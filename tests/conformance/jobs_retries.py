"""Retries: by policy, as asked for, refused, switched off."""

from conformance_case import Case
from conformance_ops import plus_one
from dagster import (
    Backoff,
    Failure,
    Jitter,
    OpExecutionContext,
    RetryPolicy,
    RetryRequested,
    job,
    op,
)


class Flaky(Exception):
    pass


@op(retry_policy=RetryPolicy(max_retries=2))
def fails_once(context: OpExecutionContext) -> int:
    if context.retry_number == 0:
        raise Flaky("the first time")
    return context.retry_number


@job
def retries_policy() -> None:
    plus_one(fails_once())


@op(retry_policy=RetryPolicy(max_retries=1))
def fails_always() -> int:
    raise Flaky("every time")


@job
def retries_exhausted() -> None:
    plus_one.alias("never")(fails_always())


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.1, backoff=Backoff.EXPONENTIAL))
def fails_twice_backing_off(context: OpExecutionContext) -> int:
    """Waits 0.1 and 0.3 s."""
    if context.retry_number < 2:
        raise Flaky(f"attempt {context.retry_number}")
    return context.retry_number


@job
def retries_backoff() -> None:
    fails_twice_backing_off()


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.1, backoff=Backoff.LINEAR, jitter=Jitter.PLUS_MINUS))
def fails_once_with_jitter(context: OpExecutionContext) -> int:
    if context.retry_number == 0:
        raise Flaky("the first time")
    return context.retry_number


@job
def retries_jitter() -> None:
    fails_once_with_jitter()


@op
def asks_twice(context: OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise RetryRequested(max_retries=2, seconds_to_wait=0.1)
    return context.retry_number


@job
def retries_requested() -> None:
    plus_one(asks_twice())


@op
def asks_too_often() -> int:
    try:
        raise Flaky("what went wrong")
    except Flaky as error:
        raise RetryRequested(max_retries=1) from error


@job
def retries_requested_too_often() -> None:
    asks_too_often()


@op(retry_policy=RetryPolicy(max_retries=3))
def fails_for_good() -> int:
    raise Failure("never again", metadata={"why": "because", "count": 3}, allow_retries=False)


@job
def retries_refused() -> None:
    fails_for_good()


@op(retry_policy=RetryPolicy(max_retries=1))
def fails_with_metadata(context: OpExecutionContext) -> int:
    raise Failure(f"attempt {context.retry_number}", metadata={"attempt": context.retry_number})


@job
def retries_failure_metadata() -> None:
    fails_with_metadata()


@op
def plain_failure(context: OpExecutionContext) -> int:
    if context.retry_number == 0:
        raise Flaky("the job's policy brings another attempt")
    return context.retry_number


@job(op_retry_policy=RetryPolicy(max_retries=1))
def retries_policy_of_the_job() -> None:
    plain_failure()


@job
def retries_policy_of_the_invocation() -> None:
    plain_failure.alias("invoked").with_retry_policy(RetryPolicy(max_retries=1))()


@job
def retries_mixed() -> None:
    """For the retry modes."""
    plus_one(fails_once())
    asks_twice()


CASES = [
    Case("retries_policy"),
    Case("retries_exhausted", success=False),
    Case("retries_backoff"),
    Case("retries_jitter"),
    Case("retries_requested"),
    Case("retries_requested_too_often", success=False),
    Case("retries_refused", success=False),
    Case("retries_failure_metadata", success=False),
    Case("retries_policy_of_the_job"),
    Case("retries_policy_of_the_invocation"),
    Case("retries_mixed", settings={"retries": {"enabled": {}}}, name="retries_enabled"),
    Case("retries_mixed", settings={"retries": {"disabled": {}}}, name="retries_disabled", success=False),
]
