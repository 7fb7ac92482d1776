"""Runs cases under one of the executors on one Dagster instance, one queue and one worker."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster
import jobs_basics
import services
from conformance_case import IN_PROCESS, MULTIPROCESS, Case
from conformance_observed import Observed, observe
from dagster import DagsterEvent, DagsterInstance, JobExecutionResult, ReexecutionOptions, execute_job, reconstructable

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"

IN_PROCESS_SETTINGS = ("retries", "step_dependency_config")

FORK_SERVER = {"forkserver": {"preload_modules": ["conformance_repository"]}}
"""Of the multiprocess executor: a step costs a fork, not an interpreter with all of Dagster."""


class Bench:
    """The queue comes from the environment: the config of a job need not have room for it."""

    def __init__(self, instance: DagsterInstance, environment: Mapping[str, str]) -> None:
        self.instance = instance
        self.environment = environment
        # The class is not public, an object of it is.
        self._repositories = type(reconstructable(jobs_basics.basics_single).repository)
        self.yielded: dict[tuple[str, str], dict[str, list[str]]] = {}
        """What the caller of ``execute_job`` was given."""
        self.order: dict[tuple[str, str], list[tuple[str | None, str]]] = {}
        """Step and type of the same events, in their order."""
        self._seen: dict[tuple[str, str], Observed] = {}

    def job(self, name: str, executor: str) -> Any:
        repository = self._repositories.for_module("conformance_repository", executor, working_directory=str(HERE))
        return repository.get_reconstructable_job(name)

    def config(self, case: Case, executor: str) -> dict[str, Any]:
        settings = dict(case.settings)
        if executor == IN_PROCESS:
            settings = {name: settings[name] for name in IN_PROCESS_SETTINGS if name in settings}
        elif executor == MULTIPROCESS and not case.own_config:
            settings["start_method"] = FORK_SERVER
        return {**case.config, **({"execution": {"config": settings}} if settings else {})}

    def run(self, case: Case, executor: str) -> JobExecutionResult:
        """The run to look at: of a case with ``again`` the second one."""
        if case.prepare:
            case.prepare(self.instance)
        result = self._execute(case, executor)
        if case.again is not None:
            result = self._execute(case, executor, self._options(case, result.run_id))
        return result

    def _options(self, case: Case, parent: str) -> ReexecutionOptions:
        if case.again == "from_failure":
            return ReexecutionOptions.from_failure(parent, self.instance)
        return ReexecutionOptions(parent_run_id=parent, step_selection=list(case.again or ()))

    def _execute(self, case: Case, executor: str, options: ReexecutionOptions | None = None) -> JobExecutionResult:
        with warnings.catch_warnings():
            # Dagster's: of what is in preview.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", dagster.BetaWarning)
            warnings.simplefilter("ignore", dagster.PreviewWarning)
            return execute_job(
                self.job(case.job, executor),
                self.instance,
                run_config=self.config(case, executor),
                tags=dict(case.tags),
                op_selection=case.ops,
                asset_selection=[dagster.AssetKey.from_user_string(key) for key in case.assets or ()] or None,
                reexecution_options=options,
                raise_on_error=False,
            )

    def observed(self, case: Case, executor: str) -> Observed:
        """What a case leaves; each runs once."""
        known = self._seen.get((case.id, executor))
        if known is None:
            result = self.run(case, executor)
            self.yielded[case.id, executor] = step_events(result.all_events)
            self.order[case.id, executor] = [(event.step_key, event.event_type_value) for event in result.all_events]
            known = self._seen[case.id, executor] = observe(self.instance, result.run_id)
        return known

    def reference(self, theme: str, case: Case, executor: str) -> Observed:
        """What Dagster's own executor does: ``multiprocess`` as it was recorded, with this minor version of Dagster."""
        if executor == MULTIPROCESS:
            recorded = load_golden(theme)
            if recorded["dagster"].rpartition(".")[0] == dagster.__version__.rpartition(".")[0]:
                found: Observed = recorded["cases"][case.id]
                return found
        return self.observed(case, executor)


def step_events(events: Iterable[DagsterEvent]) -> dict[str, list[str]]:
    """Types of each step's events, engine events aside."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.step_key is not None and not event.is_engine_event:
            found.setdefault(event.step_key, []).append(event.event_type_value)
    return found


def load_golden(theme: str) -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = json.loads((GOLDEN / f"{theme}.json").read_text())
    return loaded


def write_golden(theme: str, recorded: Mapping[str, Observed]) -> None:
    document = {"dagster": dagster.__version__, "cases": {name: recorded[name] for name in sorted(recorded)}}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    (GOLDEN / f"{theme}.json").write_text(f"{text}\n")


def write_home(home: Path, database_url: str) -> None:
    """A DAGSTER_HOME that also captures a Python logger."""
    services.write_dagster_yaml(home, database_url)
    path = home / "dagster.yaml"
    settings = json.loads(path.read_text())
    settings["python_logs"] = {"managed_python_loggers": ["conformance"], "python_log_level": "INFO"}
    path.write_text(json.dumps(settings))


def environment(home: Path, endpoint: str = "", queue: str = "") -> dict[str, str]:
    """For the test and all processes of it."""
    return {
        "DAGSTER_TASKIQ_QUEUE": queue,
        "DAGSTER_HOME": str(home),
        "AWS_ENDPOINT_URL_SQS": endpoint,
        "PYTHONPATH": str(HERE),
        **services.dummy_environment(),
        "CONFORMANCE_SECRET": "from the environment",
        "CONFORMANCE_FILES": str(home / "files"),
    }
