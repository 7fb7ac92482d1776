"""A run launcher that says that it can resume runs; run workers leave the running steps alone only then.  (The tests
start and resume run workers themselves.)"""

from dagster import DefaultRunLauncher


class ResumingLauncher(DefaultRunLauncher):
    @property
    def supports_resume_run(self) -> bool:
        return True
