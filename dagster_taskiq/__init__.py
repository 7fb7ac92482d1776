"""Dagster steps on Amazon SQS and TaskIQ, each attempt run at most once.

The public names are loaded when they are first asked for: ``import dagster_taskiq`` alone imports neither Dagster nor
TaskIQ, starts no thread and opens no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster_taskiq.version import __version__

if TYPE_CHECKING:
    from dagster_taskiq.bridging import StepBridge, StepOutcome, execute_step
    from dagster_taskiq.broker import SQSBroker
    from dagster_taskiq.executor import DagsterTaskIQJobExecutor, taskiq_executor
    from dagster_taskiq.fencing import fencing_token, refuse_stale, step_attempt
    from dagster_taskiq.launcher import TaskIQRunLauncher
    from dagster_taskiq.worker import SQSTaskIQWorker

__all__ = [
    "DagsterTaskIQJobExecutor",
    "SQSBroker",
    "SQSTaskIQWorker",
    "StepBridge",
    "StepOutcome",
    "TaskIQRunLauncher",
    "__version__",
    "execute_step",
    "fencing_token",
    "refuse_stale",
    "step_attempt",
    "taskiq_executor",
]

_HOMES = {
    "DagsterTaskIQJobExecutor": "executor",
    "SQSBroker": "broker",
    "SQSTaskIQWorker": "worker",
    "StepBridge": "bridging",
    "StepOutcome": "bridging",
    "TaskIQRunLauncher": "launcher",
    "execute_step": "bridging",
    "fencing_token": "fencing",
    "refuse_stale": "fencing",
    "step_attempt": "fencing",
    "taskiq_executor": "executor",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
