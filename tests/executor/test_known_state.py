"""What a step process is told of its run: enough, on every version of Dagster, and no more than its step can need."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    OpExecutionContext,
    Out,
    Output,
    ReexecutionOptions,
    execute_job,
    job,
    op,
    reconstructable,
)

from dagster_taskiq import orchestration, payload, taskiq_executor
from dagster_taskiq.sender import Message
from dagster_taskiq.testing import taskiq_instance

__all__ = ["taskiq_instance"]

KEYS = "KNOWN_STATE_TEST_KEYS"
BREAKS = "KNOWN_STATE_TEST_BREAKS"
"""Environment variables: how many keys there are, and for which of them a step fails."""


@op(out={"numbers": DynamicOut(int), "words": DynamicOut(str, is_required=False)})
def spread() -> Iterator[DynamicOutput[Any]]:
    for number in range(int(os.environ[KEYS])):
        yield DynamicOutput(number, f"n{number}", output_name="numbers")


@op(out=DynamicOut(int))
def nothing() -> Iterator[DynamicOutput[int]]:
    yield from ()


@op
def fixed() -> int:
    return 10


@op
def add(first: int, second: int) -> int:
    return first + second


@op
def last(context: OpExecutionContext, value: int) -> int:
    if context.get_mapping_key() == os.environ.get(BREAKS):
        raise ValueError("broken on purpose")
    return value


@op
def total(values: list[int]) -> int:
    return sum(values)


@op(out=Out(int, is_required=False))
def even(value: int) -> Iterator[Output[int]]:
    if value % 2 == 0:
        yield Output(value)


@op(out=DynamicOut(int))
def spread_again(value: int) -> Iterator[DynamicOutput[int]]:
    for number in range(2):
        yield DynamicOutput(value + number, f"m{number}")


@job(executor_def=taskiq_executor)
def mapped() -> None:
    """Mapped, mapped again with an input of a fixed step, collected, spread and mapped once more, and so on."""
    spread_out = spread()
    ends = spread_out.numbers.map(lambda number: last(add(number, fixed())))
    collected = total(ends.collect())
    later = spread_again(collected).map(lambda number: add.alias("both")(number, collected))
    total.alias("of_none")(nothing().collect())
    evens = total.alias("evens")(spread_out.numbers.map(even).collect())
    total.alias("end")([total.alias("again")(later.collect()), evens])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Message]:
    """The message of each step, by its key."""
    messages: dict[str, Message] = {}
    make = orchestration.RunOrchestration._message

    def record(this: orchestration.RunOrchestration, step_key: str, attempt: int) -> Message:
        messages[step_key] = make(this, step_key, attempt)
        return messages[step_key]

    monkeypatch.setattr(orchestration.RunOrchestration, "_message", record)
    return messages


def known_state(message: Message) -> dict[str, Any]:
    return dict(json.loads(payload.part_text(payload.unpack(message.body), payload.KNOWN_STATE, message.parts)))


def test_a_step_is_told_what_it_needs_and_no_more(
    taskiq_instance: DagsterInstance, sent: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys there are, a mapped step's state names its own and nothing else."""
    monkeypatch.setenv(KEYS, "3")
    with execute_job(reconstructable(mapped), taskiq_instance) as result:
        assert result.success
        assert result.output_for_node("last") == {"n0": 10, "n1": 11, "n2": 12}
        assert result.output_for_node("end") == (33 + 33) + (34 + 33) + 2
    told = {step_key: known_state(message) for step_key, message in sent.items()}
    for step_key in ("add[n1]", "last[n1]", "even[n1]"):
        assert told[step_key]["dynamic_mappings"] == {"spread": {"numbers": ["n1"], "words": []}}
        assert not any(other in json.dumps(told[step_key]) for other in ("n0", "n2"))
    assert told["total"]["dynamic_mappings"]["spread"]["numbers"] == ["n0", "n1", "n2"]
    for step_key in ("fixed", "spread_again", "both[m1]", "end"):
        assert "n1" not in json.dumps(told[step_key])


def test_so_is_one_of_a_run_that_executes_again_what_has_failed(
    taskiq_instance: DagsterInstance, sent: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, so that some inputs come from the run before the last one."""
    monkeypatch.setenv(KEYS, "2")
    monkeypatch.setenv(BREAKS, "n1")
    broken = execute_job(reconstructable(mapped), taskiq_instance, raise_on_error=False)
    again = ReexecutionOptions.from_failure(broken.run_id, taskiq_instance)
    sent.clear()
    broken = execute_job(reconstructable(mapped), taskiq_instance, reexecution_options=again, raise_on_error=False)
    assert list(sent) == ["last[n1]"]
    assert "n0" not in json.dumps(known_state(sent["last[n1]"]))
    assert not broken.success
    monkeypatch.delenv(BREAKS)
    again = ReexecutionOptions.from_failure(broken.run_id, taskiq_instance)
    with execute_job(reconstructable(mapped), taskiq_instance, reexecution_options=again) as result:
        assert result.success
        assert result.output_for_node("end") == (21 + 21) + (22 + 21) + 0
