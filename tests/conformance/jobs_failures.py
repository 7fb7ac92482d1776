"""How a step fails, and what the run says of it."""

import os
import signal
import sys
from collections.abc import Iterator

from conformance_case import Case
from conformance_ops import one, plus_one
from dagster import (
    DagsterType,
    Failure,
    In,
    MetadataValue,
    Out,
    Output,
    RetryPolicy,
    TypeCheck,
    job,
    op,
)


class Deep(Exception):
    pass


@op
def raises_plainly() -> int:
    raise ValueError("plain")


@op
def raises_from() -> int:
    try:
        try:
            int("x")
        except ValueError as error:
            raise KeyError("the middle") from error
    except KeyError as error:
        raise Deep("the top") from error


@op
def raises_in_handler() -> int:
    try:
        int("y")
    except ValueError:
        raise Deep("while handling") from None


class Unpicklable(Exception):
    """Holds a file and refuses to be pickled."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.file = sys.stderr.buffer
        self.number = number

    def __reduce__(self) -> str:
        raise TypeError("not to be pickled")


@op
def raises_unpicklable() -> int:
    raise Unpicklable("cannot travel", 3)


@op
def fails_with_metadata_of_failure() -> int:
    raise Failure(
        "said so",
        metadata={"url": MetadataValue.url("http://example.com"), "rows": 3, "list": MetadataValue.json([1])},
    )


@op
def exits_politely() -> int:
    sys.exit(3)


@op
def exits_hard() -> int:
    os._exit(3)


@op
def is_killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@op(retry_policy=RetryPolicy(max_retries=1))
def exits_hard_twice() -> int:
    os._exit(4)


@op(out={"early": Out(int), "late": Out(int)})
def fails_after_an_output() -> Iterator[Output[int]]:
    yield Output(1, "early")
    raise ValueError("after the first output")


@op(out={"given": Out(int), "forgotten": Out(int)})
def forgets_an_output() -> Iterator[Output[int]]:
    yield Output(1, "given")


@op(out={"known": Out(int, is_required=False)})
def gives_unknown_output() -> Iterator[Output[int]]:
    yield Output(1, "unknown")


@op(out=Out(int))
def gives_text():  # type: ignore[no-untyped-def]
    return "not a number"


def _even(_context: object, value: int) -> TypeCheck:
    return TypeCheck(value % 2 == 0, description=f"{value} is odd", metadata={"value": value, "limit": 1.5})


Even = DagsterType(name="Even", type_check_fn=_even)


@op(out=Out(Even))
def gives_even() -> int:
    return 4


@op(out=Out(Even))
def gives_odd() -> int:
    return 5


@op(ins={"value": In(Even)})
def takes_even(value: int) -> None:
    pass


@op(out=Out(DagsterType(name="Raising", type_check_fn=lambda _context, _value: 1 / 0 > 0)))
def check_raises() -> int:
    return 1


@op
def long_message() -> int:
    raise ValueError("x" * 100_000)


@op
def odd_characters() -> int:
    raise ValueError("ünïcödé \u2713 \x07 \n second line")


@job
def failures_plain() -> None:
    plus_one(raises_plainly())
    one()


@job
def failures_of_two() -> None:
    raises_plainly()
    raises_from()


@job
def failures_in_handler() -> None:
    raises_in_handler()


@job
def failures_unpicklable() -> None:
    raises_unpicklable()


@job
def failures_failure() -> None:
    fails_with_metadata_of_failure()


@job
def failures_sys_exit() -> None:
    plus_one(exits_politely())


@job
def failures_os_exit() -> None:
    plus_one(exits_hard())
    one()


@job
def failures_killed() -> None:
    is_killed()


@job
def failures_os_exit_with_policy() -> None:
    exits_hard_twice()


@op
def exits_well() -> int:
    os._exit(0)


@job
def failures_os_exit_0() -> None:
    plus_one(exits_well())


@op
def is_interrupted() -> int:
    raise KeyboardInterrupt


@job
def failures_interrupted() -> None:
    plus_one(is_interrupted())


@job
def failures_after_an_output() -> None:
    early, late = fails_after_an_output()
    plus_one.alias("after_early")(early)
    plus_one.alias("after_late")(late)


@job
def failures_output_missing() -> None:
    forgets_an_output()


@job
def failures_output_unknown() -> None:
    gives_unknown_output()


@job
def failures_output_type() -> None:
    plus_one(gives_text())


@job
def failures_type_check() -> None:
    gives_odd()


@job
def failures_input_type() -> None:
    takes_even(one())


@job
def failures_no_failure() -> None:
    takes_even(gives_even())


@job
def failures_type_check_raises() -> None:
    check_raises()


@job
def failures_long_message() -> None:
    long_message()


@job
def failures_odd_characters() -> None:
    odd_characters()


KILLS_TEST = "it would end the process of the test"

CASES = [
    Case("failures_plain", success=False),
    Case("failures_of_two", success=False),
    Case("failures_in_handler", success=False),
    Case("failures_unpicklable", success=False),
    Case("failures_failure", success=False),
    Case("failures_sys_exit", success=False),
    Case("failures_os_exit", success=False, not_in_process=KILLS_TEST),
    Case("failures_killed", success=False, not_in_process=KILLS_TEST),
    Case("failures_os_exit_with_policy", success=False, not_in_process=KILLS_TEST),
    Case("failures_os_exit_0", success=False, not_in_process=KILLS_TEST),
    Case("failures_interrupted", success=False, not_in_process=KILLS_TEST),
    Case("failures_after_an_output", success=False),
    Case("failures_output_missing", success=False),
    Case("failures_output_unknown", success=False),
    Case("failures_output_type", success=False),
    Case("failures_type_check", success=False),
    Case("failures_input_type", success=False),
    Case("failures_no_failure"),
    Case("failures_type_check_raises", success=False),
    Case("failures_long_message", success=False),
    Case("failures_odd_characters", success=False),
]
