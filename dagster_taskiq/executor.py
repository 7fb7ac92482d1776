"""The Dagster executor: each step attempt travels over SQS to a worker and runs there in a process of its own.

Use it as a job's executor::

    @job(executor_def=taskiq_executor)
    def my_job(): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster
from dagster import (
    DagsterEvent,
    DagsterInvariantViolationError,
    Executor,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)

from dagster_taskiq import _dagster
from dagster_taskiq.config import Settings, executor_config_schema
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.version import __version__

if TYPE_CHECKING:
    from dagster_taskiq.bridging import StepOutcome

# Shown with Dagster's own versions; public in later ones only.
_registry = getattr(dagster, "DagsterLibraryRegistry", None)
if _registry is not None:
    _registry.register("dagster-taskiq", __version__, is_dagster_package=False)


class TaskIQExecutor(Executor):
    """What :data:`taskiq_executor` makes for a run.  ``settings`` are shared with the workers; the rest is
    Dagster's."""

    def __init__(self, settings: Settings, retries: Any, step_dependency_config: Any = None) -> None:
        self.settings = settings
        self._retries = retries
        self._step_dependency_config = step_dependency_config

    @property
    def retries(self) -> Any:
        return self._retries

    @property
    def step_dependency_config(self) -> Any:
        return self._step_dependency_config

    async def execute_step(
        self, step_context: Any, *, known_state: Any = None, attempt: int | None = None
    ) -> StepOutcome:
        """:func:`dagster_taskiq.execute_step` with this executor's settings."""
        from dagster_taskiq.bridging import execute_step

        return await execute_step(step_context, self.settings, known_state=known_state, attempt=attempt)

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        """Run the plan.  Raises ``ConfigError``, ``SqsError`` or ``StoreError`` where the run cannot go on; Dagster
        makes it the run's failure."""
        # Step processes import this module with the job: they need neither the C core nor the rest.
        from dagster_taskiq.orchestration import RunOrchestration

        return RunOrchestration(
            self, self.settings, self._step_dependency_config, plan_context, execution_plan
        ).events()


@executor(
    name="taskiq",
    config_schema=executor_config_schema(),
    requirements=multiple_process_executor_requirements(),
)
def taskiq_executor(init_context: InitExecutorContext) -> TaskIQExecutor:
    """Runs each step on a worker that is reached over SQS.

    A job whose outputs are kept in memory is refused before it starts, with Dagster's message for executors that use
    several processes."""
    config: Mapping[str, Any] = init_context.executor_config
    try:
        settings = Settings.from_config(config)
    except ConfigError as error:
        # Of an exception of its own Dagster makes an event, and the run fails; of another it never gets an end.
        raise DagsterInvariantViolationError(f"the executor's config does not fit: {error}") from error
    return TaskIQExecutor(
        settings,
        _dagster.retry_mode(next(iter(config["retries"])).upper()),
        _dagster.step_dependency_config(config.get("step_dependency_config")),
    )


DagsterTaskIQJobExecutor = taskiq_executor
