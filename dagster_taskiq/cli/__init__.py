"""The command line: ``dagster-taskiq``.  Commands import what they need when they run: ``--help`` is quick."""

from __future__ import annotations

from typing import Any

import click

from .database import db, status
from .local import demo, dev
from .queues import queue
from .workers import worker


class _Commands(click.Group):
    """Shows this package's own errors as one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from dagster_taskiq.errors import DagsterTaskiqError

        try:
            return super().invoke(ctx)
        except DagsterTaskiqError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dagster-taskiq", prog_name="dagster-taskiq")
def main() -> None:
    """Run the steps of Dagster jobs on workers, over Amazon SQS.

    \b
    Try it on this machine, nothing else needed:
      dagster-taskiq demo                   run the example job to its end
      dagster-taskiq dev -m my_package      your code with web UI, worker and queue
    \b
    In production:
      dagster-taskiq queue create dagster   a queue with its dead-letter queue
      dagster-taskiq worker start           on each worker machine
      dagster-taskiq status                 who works, what waits
    """


for _command in (worker, status, queue, db, dev, demo):
    main.add_command(_command)
