"""Executors of others, on steps that are bridged to workers."""

from __future__ import annotations

import asyncio
import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import bridging_jobs
import pytest
import services
from bridging_jobs import BridgingExecutor
from dagster import JobExecutionResult, execute_job, reconstructable
from executor_bench import Bench, telling

from dagster_taskiq import StepBridge, StepOutcome, execute_step
from dagster_taskiq.errors import ConfigError, DagsterTaskiqError

DOCUMENTED_JOB = """
import executor_jobs as jobs
from dagster import job


@job(executor_def=one_after_the_other)
def chain():
    jobs.plus_one(jobs.one())
"""


def run(bench: Bench, job: Any, monkeypatch: pytest.MonkeyPatch, run_step: Any) -> JobExecutionResult:
    monkeypatch.setattr(BridgingExecutor, "run_step", run_step, raising=False)
    return execute_job(reconstructable(job), bench.instance, run_config=bench.config(), raise_on_error=True)


def test_another_executor_runs_a_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its calls share a bridge, others come after it."""
    outcomes: list[StepOutcome] = []

    async def run_step(executor: BridgingExecutor, context: Any, known_state: Any) -> StepOutcome:
        outcome = await executor.execute_step(context, known_state=known_state)
        outcomes.append(outcome)
        return outcome

    bench.worker()
    result = run(bench, bridging_jobs.fan_out, monkeypatch, run_step)
    assert result.success
    assert bench.output(result, "total") == 6
    for outcome in outcomes:
        assert (outcome.state, outcome.attempt, outcome.worker, outcome.error) == ("succeeded", 1, "worker-1", None)
        assert outcome.final_event is not None
        assert outcome.generation is not None
        assert outcome.ran_seconds is not None
        assert telling(bench.logged(result.run_id)[outcome.step_key]) == telling(
            [event.event_type_value for event in outcome.events]
        )


def test_the_documented_executor_runs_a_job(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/bridging.md").read_text()
    (tmp_path / "documented.py").write_text(text.partition("```python")[2].partition("```")[0] + DOCUMENTED_JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    documented = importlib.import_module("documented")
    bench.worker()
    result = execute_job(reconstructable(documented.chain), bench.instance, run_config=bench.config())
    assert result.success, bench.messages(result.run_id)
    assert bench.rows(result.run_id) == [("one", 1, "succeeded"), ("plus_one", 1, "succeeded")]


def test_an_attempt_is_cancelled_the_next_is_lost_and_a_third_succeeds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [bench.worker()]
    seen: list[StepOutcome] = []

    async def wait_until(look: Any, what: str) -> None:
        await asyncio.to_thread(services.wait_for, look, what)

    async def run_step(executor: BridgingExecutor, context: Any, known_state: Any) -> StepOutcome:
        async with StepBridge(context, executor.settings) as bridge:

            async def attempt(number: int) -> StepOutcome:
                return await bridge.execute_step(context, known_state=known_state, attempt=number)

            first = asyncio.create_task(attempt(1))
            await wait_until(lambda: len(bench.notes("waits")) == 1, "the first attempt")
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await wait_until(lambda: ("waits", 1, "cancelled") in bench.rows(context.run_id), "its end")

            second = asyncio.create_task(attempt(2))
            await wait_until(lambda: len(bench.notes("waits")) == 2, "the second attempt")
            workers[0].kill()
            workers.append(await asyncio.to_thread(bench.worker))
            seen.append(await second)

            bench.let_go()
            return await attempt(3)

    result = run(bench, bridging_jobs.waiting, monkeypatch, run_step)
    assert result.success
    assert bench.rows(result.run_id) == [("waits", 1, "cancelled"), ("waits", 2, "lost"), ("waits", 3, "succeeded")]
    (lost,) = seen
    assert (lost.state, lost.final_event) == ("lost", None)
    assert lost.error
    assert len(bench.notes("waits")) == 3


def test_what_is_under_way_when_a_bridge_closes_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next bridge of the run is told how it ended, and does not run it again."""
    bench.worker()
    ends: list[Any] = []

    async def run_step(executor: BridgingExecutor, context: Any, known_state: Any) -> StepOutcome:
        async with StepBridge(context, executor.settings) as bridge:
            call = asyncio.create_task(bridge.execute_step(context, known_state=known_state))
            await asyncio.to_thread(bench.wait_for_notes, "waits")
        ends.append(await call)
        with pytest.raises(DagsterTaskiqError, match="closed"):
            await bridge.execute_step(context, known_state=known_state)
        assert bench.logged(context.run_id)["waits"].count("STEP_WORKER_STARTING") == 1
        async with StepBridge(context, executor.settings) as bridge:
            ends.append(await bridge.execute_step(context, known_state=known_state))
            bench.let_go()
            return await bridge.execute_step(context, known_state=known_state, attempt=2)

    assert run(bench, bridging_jobs.waiting, monkeypatch, run_step).success
    assert [(end.attempt, end.state) for end in ends] == [(1, "cancelled"), (1, "cancelled")]
    assert len(bench.notes("waits")) == 2


def test_a_bridge_that_is_not_open_logs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.worker()

    async def run_step(executor: BridgingExecutor, context: Any, known_state: Any) -> StepOutcome:
        bridge = StepBridge(context, executor.settings)
        with pytest.raises(DagsterTaskiqError, match="inside `async with"):
            await bridge.execute_step(context, known_state=known_state)
        assert bench.logged(context.run_id) == {}
        bench.let_go()
        return await executor.execute_step(context, known_state=known_state)

    assert run(bench, bridging_jobs.waiting, monkeypatch, run_step).success


def test_calls_that_overlap_have_the_same_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.worker()

    async def run_step(executor: BridgingExecutor, context: Any, known_state: Any) -> StepOutcome:
        first = asyncio.create_task(executor.execute_step(context, known_state=known_state))
        await asyncio.to_thread(bench.wait_for_notes, "waits")
        other = replace(executor.settings, signing_key="a s3cret", lease_ttl=60.0)
        with pytest.raises(ConfigError, match=r"other settings \(lease_ttl, signing_key\)"):
            await execute_step(context, other, known_state=known_state, attempt=2)
        bench.let_go()
        return await first

    assert run(bench, bridging_jobs.waiting, monkeypatch, run_step).success
