"""What the suite runs: a case is a job with its config, the same for each executor."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dagster import BetaWarning, DagsterInstance, Definitions, JobDefinition, in_process_executor, multiprocess_executor

from dagster_taskiq import taskiq_executor

IN_PROCESS = "in_process"
MULTIPROCESS = "multiprocess"
TASKIQ = "taskiq"

EXECUTORS = {IN_PROCESS: in_process_executor, MULTIPROCESS: multiprocess_executor, TASKIQ: taskiq_executor}

THEMES = (
    "basics",
    "retries",
    "dynamic",
    "resources",
    "hooks",
    "io_managers",
    "assets",
    "checks",
    "partitions",
    "configured",
    "failures",
    "logs",
    "limits",
    "reexecution",
    "values",
)
"""Each is a module ``jobs_<theme>`` with ``CASES``, jobs, and perhaps ``DEFINITIONS`` that they need."""


@dataclass(frozen=True)
class Case:
    """One run, or two where ``again`` asks for a re-execution; the second one is compared then."""

    job: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ops: Sequence[str] | None = None
    assets: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the executor; ``in_process`` gets only those that it has."""
    own_config: bool = False
    """The job's config is a mapping that has no room for the executor's."""
    again: str | Sequence[str] | None = None
    """``from_failure`` or a step selection."""
    success: bool = True
    name: str = ""
    not_in_process: str = ""
    """Why this cannot run in the test's own process."""
    prepare: Callable[[DagsterInstance], None] | None = None

    @property
    def id(self) -> str:
        return self.name or self.job


def cases(theme: str) -> list[Case]:
    found: list[Case] = _module(theme).CASES
    return found


def _module(theme: str) -> ModuleType:
    with warnings.catch_warnings():
        # Dagster's, of what is not settled yet.
        warnings.simplefilter("ignore", BetaWarning)
        return importlib.import_module(f"jobs_{theme}")


def all_cases() -> list[tuple[str, Case]]:
    return [(theme, case) for theme in THEMES for case in cases(theme)]


def definitions(executor: str) -> Definitions:
    """All jobs in one code location, as users have them; jobs that name no executor get this one."""
    parts = [Definitions(executor=EXECUTORS[executor])]
    for theme in THEMES:
        module = _module(theme)
        parts.append(Definitions(jobs=[value for value in vars(module).values() if isinstance(value, JobDefinition)]))
        parts += [module.DEFINITIONS] if hasattr(module, "DEFINITIONS") else []
    return Definitions.merge(*parts)
