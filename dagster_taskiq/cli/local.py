"""``dagster-taskiq dev`` and ``dagster-taskiq demo``: everything on this machine, nothing but pip packages."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from .options import format_table
from .workers import default_slots

EXAMPLE = "dagster_taskiq.examples.weather"


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and a lost terminal end the stack as Ctrl-C does, which works in a shell's background, too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _told_that_it_stops() -> Iterator[None]:
    """Before the stack does so, which can take as long as a step."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Stopping; steps that are running have some seconds to end.")
        raise


@click.command()
@click.option("-m", "--module", metavar="NAME", help="Module with your Dagster definitions.")
@click.option(
    "-f",
    "--file",
    "python_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with your Dagster definitions. Default: the bundled example.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".dagster-taskiq"),
    show_default=True,
    help="Folder for the data; the next start finds the runs of this one.",
)
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Port of the web UI. Default: a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--slots", type=click.IntRange(1), default=default_slots, help="Steps at a time per worker. Default: CPUs."
)
def dev(
    module: str | None, python_file: Path | None, data_dir: Path, port: int | None, workers: int, slots: int
) -> None:
    """Start Dagster's web UI and daemon, a worker, PostgreSQL and an SQS emulator on this machine.

    Everything listens on 127.0.0.1 only, and Ctrl-C stops all of it. To use the stack from another terminal, source
    the file `env` in the data folder.

    \b
    Examples:
      dagster-taskiq dev                          the bundled example
      dagster-taskiq dev -m my_package.definitions
      dagster-taskiq dev -f jobs.py --port 3000 --workers 2 --slots 4
    """
    from dagster_taskiq.dev.service import refuse_used_port
    from dagster_taskiq.dev.stack import Stack

    if module and python_file:
        raise click.UsageError("give either --module or --file")
    if port is not None:
        refuse_used_port(port)
    target = ["-f", str(python_file.absolute())] if python_file else ["-m", module or EXAMPLE]
    try:
        with _signals_as_interrupt(), Stack(data_dir, say=_say) as stack, _told_that_it_stops():
            stack.start_servers()
            stack.start_run_host()
            for number in range(1, workers + 1):
                stack.start_worker(f"worker-{number}", slots)
            stack.start_ui(target, port)
            stack.wait_for_workers()
            stack.wait_for_ui()
            _say(f"logs          {stack.logs}")
            _say(f"environment   . {stack.folder / 'env'}   (for another terminal; again after each start)")
            click.echo(f"Ready: {stack.ui_url}   Ctrl-C stops everything.")
            stack.watch()
    except KeyboardInterrupt:
        _say("Stopped.")


@click.command()
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Worker processes.")
@click.option("--slots", type=click.IntRange(1), default=2, show_default=True, help="Steps at a time per worker.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; progress goes to standard error.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep the data in FOLDER, to look at the run afterwards with `dagster-taskiq dev --data-dir FOLDER`. "
    "Default: a temporary folder, removed at the end.",
)
def demo(workers: int, slots: int, as_json: bool, keep: Path | None) -> None:
    """Run the bundled example job from end to end, and show where each step ran.

    Starts PostgreSQL, an SQS emulator and workers on this machine, and stops them at the end. The exit status is 0
    when the run succeeded, else 1.

    \b
    Examples:
      dagster-taskiq demo
      dagster-taskiq demo --workers 1 --slots 4
      dagster-taskiq demo --json | jq '.steps | length'
    """
    from dagster_taskiq.dev.demo import reachable_temporary_folder, run_example
    from dagster_taskiq.dev.stack import Stack

    begin = time.monotonic()
    folder = keep or reachable_temporary_folder()
    try:
        with _signals_as_interrupt(), Stack(folder, say=_say) as stack:
            stack.start_servers()
            for number in range(1, workers + 1):
                stack.start_worker(f"worker-{number}", slots)
            stack.wait_for_workers()
            _say(f"ready after {time.monotonic() - begin:.1f} s; running {EXAMPLE}")
            result = run_example(stack, _say)
    except KeyboardInterrupt:
        _say("Stopped.")
        sys.exit(130)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        click.echo(json.dumps({**asdict(result), "success": result.success}, indent=2))
    else:
        headers = ["step", "attempt", "state", "worker", "queue wait (s)", "run time (s)", "deliveries"]
        rows = [(s.step, s.attempt, s.state, s.worker, s.queue_wait, s.run_time, s.deliveries) for s in result.steps]
        click.echo()
        click.echo(format_table(headers, rows))
        click.echo()
        word = "succeeded" if result.success else f"ended as {result.status}"
        ran = sum(step.worker is not None for step in result.steps)
        where = f"{workers} worker{'s' * (workers > 1)} of {slots} slot{'s' * (slots > 1)}"
        click.echo(f"The run {word}: {ran} step attempts in {result.seconds:.1f} s on {where}.")
    if keep:
        _say(f"Look at the run: dagster-taskiq dev --data-dir {keep}")
    sys.exit(0 if result.success else 1)
