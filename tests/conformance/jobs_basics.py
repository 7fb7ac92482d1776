"""Ops, inputs and outputs."""

import asyncio
from collections.abc import Iterator

from conformance_case import Case
from conformance_ops import one, plus_one, total
from dagster import (
    GraphOut,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    graph,
    job,
    op,
)


@job
def basics_single() -> None:
    one()


@job
def basics_chain() -> None:
    plus_one.alias("third")(plus_one.alias("second")(one()))


@job
def basics_diamond() -> None:
    start = one()
    total([plus_one.alias("left")(start), plus_one.alias("right")(start)])


@op(out={"left": Out(int), "right": Out(int)})
def two_outputs() -> tuple[int, int]:
    return 1, 2


@op
def difference(first: int, second: int) -> int:
    return first - second


@job
def basics_multiple_outputs() -> None:
    left, right = two_outputs()
    difference(left, right)


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def either() -> Iterator[Output[int]]:
    yield Output(1, "left")


@job
def basics_skip() -> None:
    left, right = either()
    plus_one.alias("taken")(left)
    plus_one.alias("after_skipped")(plus_one.alias("skipped")(right))


@job
def basics_fan_in_of_skipped() -> None:
    """A fan-in goes on with what there is; of inputs that are all skipped nothing comes."""
    left, right = either()
    total.alias("partial")([left, right])
    total.alias("none")([plus_one(right)])


@op(ins={"before": In(Nothing)})
def after() -> str:
    return "after"


@op(out=Out(Nothing))
def nothing() -> None:
    pass


@job
def basics_nothing() -> None:
    after([nothing.alias("first")(), nothing.alias("second")()])


@op(ins={"word": In(default_value=None)})
def with_none(word: object) -> str:
    return str(word)


@job
def basics_defaults() -> None:
    with_none()


@op(ins={"number": In(int), "words": In(list[str])})
def configured_inputs(number: int, words: list[str]) -> str:
    return f"{number} {words}"


@job
def basics_inputs_from_config() -> None:
    configured_inputs()


@op(out={letter: Out(int) for letter in "abcdef"})
def many() -> Iterator[Output[int]]:
    for number, name in enumerate("abcdef"):
        yield Output(number, name, metadata={"number": number})


@job
def basics_generator() -> None:
    outputs = many()
    total([outputs.a, outputs.f])


@op
async def waits_a_little() -> int:
    await asyncio.sleep(0)
    return 3


@op(out={"first": Out(int), "second": Out(int)})
async def yields_slowly():  # Dagster takes no annotation of an asynchronous generator
    yield Output(1, "first")
    await asyncio.sleep(0)
    yield Output(2, "second")


@job
def basics_async() -> None:
    first, second = yields_slowly()
    total([first, second, waits_a_little()])


@graph(out={"inner": GraphOut(), "outer": GraphOut()})
def nested_twice(value: int) -> dict[str, int]:
    inner = plus_one.alias("inner")(value)
    return {"inner": inner, "outer": plus_one.alias("outer")(inner)}


@graph
def nested(value: int) -> int:
    outputs = nested_twice(value)
    return difference(outputs.outer, outputs.inner)


@job
def basics_nested_graphs() -> None:
    plus_one.alias("last")(nested.alias("again")(nested(one())))


@op(tags={"colour": "blue"})
def tells_tags(context: OpExecutionContext) -> str:
    return f"{context.op_def.tags['colour']} {context.get_tag('shade')} {context.get_tag('given')}"


@job(tags={"shade": "dark"})
def basics_tags() -> None:
    tells_tags()


@op(tags={"dagster-k8s/config": {"container_config": {"resources": {"limits": {"memory": "1Gi"}}}}, "other/tag": "x"})
def tagged_for_others() -> int:
    return 1


@job(tags={"dagster-celery/priority": "7"})
def basics_foreign_tags() -> None:
    """Tags of other executors do no harm."""
    tagged_for_others()


@op
def tells_run(context: OpExecutionContext) -> dict[str, object]:
    run = context.instance.get_run_by_id(context.run_id)
    assert run is not None
    return {
        "job": context.job_name,
        "status": run.status.value,
        "same": run.run_id == context.run.run_id,
        "events": len(context.instance.all_logs(context.run_id)) > 0,
    }


@job
def basics_instance() -> None:
    tells_run()


@job
def basics_selected() -> None:
    plus_one.alias("third")(plus_one.alias("second")(one()))
    one.alias("elsewhere")()


@op
def large() -> bytes:
    return b"0123456789abcdef" * 500_000


@op
def measure(value: bytes) -> int:
    return len(value)


@job
def basics_large_output() -> None:
    measure(large())


CASES = [
    Case("basics_single"),
    Case("basics_chain"),
    Case("basics_diamond"),
    Case("basics_multiple_outputs"),
    Case("basics_skip"),
    Case("basics_fan_in_of_skipped"),
    Case("basics_nothing"),
    Case("basics_defaults"),
    Case(
        "basics_inputs_from_config",
        config={"ops": {"configured_inputs": {"inputs": {"number": 4, "words": ["a", "b"]}}}},
    ),
    Case("basics_generator"),
    Case("basics_async"),
    Case("basics_nested_graphs"),
    Case("basics_tags", tags={"given": "to the run", "dagster/max_runtime": "3600"}),
    Case("basics_foreign_tags"),
    Case("basics_instance"),
    Case("basics_selected", ops=["*second", "elsewhere"], name="basics_op_selection"),
    Case("basics_large_output"),
]
