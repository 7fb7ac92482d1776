"""Jobs of the end-to-end tests, as a code location of its own.  Dagster reads the annotations: none is postponed."""

import os
import time
from pathlib import Path

from dagster import (
    Config,
    Definitions,
    ExecutorDefinition,
    FilesystemIOManager,
    JobDefinition,
    in_process_executor,
    job,
    multiprocess_executor,
    op,
)

from dagster_taskiq import taskiq_executor
from dagster_taskiq.examples import weather


def weather_with(executor: ExecutorDefinition) -> JobDefinition:
    """The bundled example under another executor."""
    return weather.weather_report.graph.to_job(
        name=f"weather_{executor.name}",
        executor_def=executor,
        resource_defs={"archive": weather.Archive(), "io_manager": FilesystemIOManager()},
    )


class Gate(Config):
    """A step that says that it runs and ends when it is told to."""

    folder: str


@op
def wait_for_gate(config: Gate) -> None:
    folder = Path(config.folder)
    (folder / "running").write_text(str(os.getpid()))
    while not (folder / "open").exists():
        time.sleep(0.05)


@job(executor_def=taskiq_executor)
def gated() -> None:
    wait_for_gate()


# A fork server that has imported Dagster spares each step a second or two; the events are the same.
quick_multiprocess = multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["dagster", "dagster_postgres", "sqlalchemy"]}}}, "multiprocess"
)

defs = Definitions(
    jobs=[weather_with(in_process_executor), weather_with(quick_multiprocess), weather_with(taskiq_executor), gated]
)
