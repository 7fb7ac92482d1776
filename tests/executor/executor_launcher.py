"""A run launcher whose runs can be resumed: the tests start the run workers themselves."""

from __future__ import annotations

from dagster import DefaultRunLauncher


class ResumingLauncher(DefaultRunLauncher):
    @property
    def supports_resume_run(self) -> bool:
        return True
