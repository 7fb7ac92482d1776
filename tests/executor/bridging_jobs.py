"""An executor that somebody else could have written, and a job under it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import executor_jobs as jobs
from dagster import DagsterEvent, executor, job, multiple_process_executor_requirements

from dagster_taskiq import StepOutcome, _dagster
from dagster_taskiq.config import Settings, executor_config_schema
from dagster_taskiq.executor import TaskIQExecutor


class BridgingExecutor(TaskIQExecutor):
    """Runs what can run, at the same time; ``run_step`` is the test's."""

    run_step: ClassVar[Callable[[Any, Any, Any], Awaitable[StepOutcome]]]

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        yield from asyncio.run(self._execute(plan_context, execution_plan))

    async def _execute(self, plan_context: Any, plan: Any) -> list[DagsterEvent]:
        events: list[DagsterEvent] = []
        running: set[asyncio.Future[StepOutcome]] = set()
        with plan.start(self.retries) as active:
            while not active.is_complete:
                for step in active.get_steps_to_execute():
                    call = BridgingExecutor.run_step(self, plan_context.for_step(step), active.get_known_state())
                    running.add(asyncio.ensure_future(call))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    for event in task.result().events:
                        active.handle_event(event)
                        events.append(event)
                events += active.plan_events_iterator(plan_context)
        return events


@executor(
    name="bridging", config_schema=executor_config_schema(), requirements=multiple_process_executor_requirements()
)
def bridging_executor(init_context: Any) -> BridgingExecutor:
    return BridgingExecutor(Settings.from_config(init_context.executor_config), _dagster.retry_mode("ENABLED"))


@job(executor_def=bridging_executor)
def fan_out() -> None:
    start = jobs.one()
    jobs.total([jobs.plus_one.alias(f"branch_{number}")(start) for number in range(3)])


@job(executor_def=bridging_executor)
def waiting() -> None:
    jobs.waits()
