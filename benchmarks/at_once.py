"""A run coordinator that launches a run when it is submitted, for run_start.py: Dagster's own coordinator leaves it to
the daemon, which looks every few seconds."""

from __future__ import annotations

from typing import Any

from dagster import DagsterRun, QueuedRunCoordinator


class AtOnce(QueuedRunCoordinator):
    def submit_run(self, context: Any) -> DagsterRun:
        run_id = context.dagster_run.run_id
        self._instance.launch_run(run_id, context.workspace)
        run = self._instance.get_run_by_id(run_id)
        assert run is not None
        return run
