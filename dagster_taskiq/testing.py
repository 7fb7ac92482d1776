"""For tests of jobs that use this executor: no queue, no database, no worker.

In ``conftest.py``::

    pytest_plugins = ["dagster_taskiq.testing"]

and in a test::

    from dagster import execute_job, reconstructable

    def test_my_job(taskiq_instance):
        result = execute_job(reconstructable(my_job), instance=taskiq_instance)
        assert result.success

The job's own executor runs it: with its config and tags, and with each step packed into a message and unpacked again.
Steps run one after the other in this process, so breakpoints and monkeypatching work; they do not have a process
of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dagster import DagsterInstance

from dagster_taskiq.inline import inline_worker

__all__ = ["inline_worker", "taskiq_instance"]

try:
    import pytest
except ModuleNotFoundError:
    # inline_worker() is of use without it.
    __all__.remove("taskiq_instance")
else:

    @pytest.fixture
    def taskiq_instance(tmp_path: Path) -> Iterator[DagsterInstance]:
        """A Dagster instance in a folder of the test's own; steps of runs on it are run in this process."""
        quiet = {"telemetry": {"enabled": False}}
        with DagsterInstance.local_temp(str(tmp_path), overrides=quiet) as instance, inline_worker():
            yield instance
