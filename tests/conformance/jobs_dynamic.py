"""Mapped steps."""

from collections.abc import Iterator

from conformance_case import Case
from conformance_ops import one, plus_one, total
from dagster import (
    DynamicOut,
    DynamicOutput,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    graph,
    job,
    op,
)


@op(out=DynamicOut(int))
def three() -> Iterator[DynamicOutput[int]]:
    for number in range(3):
        yield DynamicOutput(number, f"n{number}", metadata={"number": number})


@op(out=DynamicOut(int))
def none_at_all() -> Iterator[DynamicOutput[int]]:
    yield from ()


@op(out=DynamicOut(int))
def two_more(value: int) -> Iterator[DynamicOutput[int]]:
    for number in range(2):
        yield DynamicOutput(10 * value + number, f"m{number}")


@op
def add(first: int, second: int) -> int:
    return first + second


@job
def dynamic_map() -> None:
    three().map(plus_one)


@job
def dynamic_collect() -> None:
    total(three().map(plus_one).collect())


@job
def dynamic_chain() -> None:
    total(three().map(lambda value: plus_one.alias("again")(plus_one(value))).collect())


@job
def dynamic_empty() -> None:
    total(none_at_all().map(plus_one).collect())


@graph
def both(value: int) -> int:
    return plus_one.alias("inner_last")(plus_one.alias("inner")(value))


@job
def dynamic_graph() -> None:
    """A graph for each key."""
    total(three().map(both).collect())


@job
def dynamic_in_turn() -> None:
    """What is collected is spread again."""
    total.alias("all")(
        two_more(total.alias("first")(three().map(plus_one).collect())).map(plus_one.alias("b")).collect()
    )


@job
def dynamic_with_a_fixed_input() -> None:
    fixed = plus_one.alias("fixed")(one())
    three().map(lambda value: add(value, fixed))


@job
def dynamic_collect_of_the_output() -> None:
    total(three().collect())


@op
def fails_for_one(value: int) -> int:
    if value == 1:
        raise ValueError("one of three")
    return value


@job
def dynamic_one_fails() -> None:
    total(three().map(fails_for_one).collect())


@op(retry_policy=RetryPolicy(max_retries=1))
def fails_once_for_one(context: OpExecutionContext, value: int) -> int:
    if value == 1 and context.retry_number == 0:
        raise ValueError("one of three, once")
    return value


@job
def dynamic_one_is_retried() -> None:
    total(three().map(fails_once_for_one).collect())


@op(out=Out(int, is_required=False))
def only_even(value: int) -> Iterator[Output[int]]:
    if value % 2 == 0:
        yield Output(value)


@job
def dynamic_one_is_skipped() -> None:
    total(three().map(only_even).collect())


@op(out={"numbers": DynamicOut(int), "words": DynamicOut(str), "count": Out(int)})
def several() -> Iterator[DynamicOutput[int] | DynamicOutput[str] | Output[int]]:
    yield DynamicOutput(1, "a", output_name="numbers")
    yield DynamicOutput("x", "a", output_name="words")
    yield DynamicOutput("y", "b", output_name="words")
    yield Output(3, "count")


@op
def length(words: list[str]) -> int:
    return len(words)


@job
def dynamic_several_outputs() -> None:
    outputs = several()
    total([total.alias("numbers")(outputs.numbers.collect()), length(outputs.words.collect()), outputs.count])


@op(out=DynamicOut(int))
def many_keys() -> Iterator[DynamicOutput[int]]:
    for number in range(25):
        yield DynamicOutput(number, str(number))


@job
def dynamic_many() -> None:
    total(many_keys().map(plus_one).collect())


@op(out=DynamicOut(int))
def twice_the_same_key() -> Iterator[DynamicOutput[int]]:
    yield DynamicOutput(1, "same")
    yield DynamicOutput(2, "same")


@job
def dynamic_doubled_key() -> None:
    twice_the_same_key().map(plus_one)


CASES = [
    Case("dynamic_map"),
    Case("dynamic_collect"),
    Case("dynamic_chain"),
    Case("dynamic_empty"),
    Case("dynamic_graph"),
    Case("dynamic_in_turn"),
    Case("dynamic_with_a_fixed_input"),
    Case("dynamic_collect_of_the_output"),
    Case("dynamic_one_fails", success=False),
    Case("dynamic_one_is_retried"),
    Case("dynamic_one_is_skipped"),
    Case("dynamic_several_outputs"),
    Case("dynamic_many"),
    Case("dynamic_doubled_key", success=False),
]
