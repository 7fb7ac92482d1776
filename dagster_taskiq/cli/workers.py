"""``dagster-taskiq worker``: the processes that run steps."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import click

from dagster_taskiq.levers import LEVERS

from .database import worker_table
from .options import (
    STATEMENT_TIMEOUT,
    as_document,
    config_option,
    database_option,
    json_option,
    load_settings,
    open_store,
    resolve_database_url,
    sqs_options,
)


def default_slots() -> int:
    """One slot for each CPU that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@click.group()
def worker() -> None:
    """Start a worker, or list those that run."""


@worker.command()
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Queue to take steps from; may be given several times, in order of preference. Default: the config file, then "
    "DAGSTER_TASKIQ_QUEUE, then `dagster`.",
)
@click.option(
    "--slots",
    type=click.IntRange(1),
    help="Steps to run at the same time. Default: the number of CPUs.",
    default=default_slots,
)
@config_option
@database_option
@sqs_options
@click.option("-n", "--name", help="Name in logs and in `status`. Default: <host>:<pid>.")
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="Least severe log line to print.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log lines.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="On SIGTERM: how long running steps may go on; then they are killed, and run again elsewhere.",
)
@click.option(
    "--cancel-grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="What a cancelled step gets between SIGTERM and SIGKILL.",
)
@click.option(
    "--isolation",
    type=click.Choice(["auto", "fork", "spawn"]),
    default="auto",
    show_default=True,
    help="How a step gets its process: forked from a warm parent (fast), or a fresh one.",
)
@click.option(
    "--code-location",
    "code_locations",
    multiple=True,
    metavar="NAME",
    help="Code location whose steps may run here; may be given several times. Messages that name another are "
    "left to the queue's other workers. Default: the config file's code_locations, else all.",
)
@click.option(
    "--supervise",
    is_flag=True,
    help="Stay in front of the worker process and start it again when it is killed.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Look before each step whether files of your code have changed, and import it again then. For development.",
)
@click.option(
    "--keeper", type=int, hidden=True, help="Descriptor of the supervisor that keeps warm parents for the next worker."
)
@click.option(
    "--without",
    multiple=True,
    metavar="LEVER",
    envvar="DAGSTER_TASKIQ_WITHOUT",
    help=f"Switch off one of what makes steps cheap: {', '.join(sorted(LEVERS))}; may be given several times. "
    "Default: DAGSTER_TASKIQ_WITHOUT, names with spaces or commas between them.",
)
def start(
    queues: tuple[str, ...],
    slots: int,
    config_yaml: Path | None,
    database_url: str | None,
    region: str | None,
    endpoint_url: str | None,
    name: str | None,
    loglevel: str,
    log_format: str,
    drain_timeout: float,
    cancel_grace: float,
    isolation: str,
    code_locations: tuple[str, ...],
    supervise: bool,
    reload: bool,
    keeper: int | None,
    without: tuple[str, ...],
) -> None:
    """Take steps from queues and run each in a process of its own.

    SIGTERM or Ctrl-C: takes no more steps, lets the running ones end, then exits. A second one stops them at once.

    \b
    Examples:
      dagster-taskiq worker start
      dagster-taskiq worker start -q dagster -q dagster-gpu --slots 4
      dagster-taskiq worker start -y executor.yaml --log-format json
    """
    from dagster_taskiq import logs

    logs.configure(json_lines=log_format == "json", level=loglevel.upper())
    if supervise:
        from dagster_taskiq.supervisor import Supervisor

        arguments = [argument for argument in sys.argv[1:] if argument != "--supervise"]
        sys.exit(Supervisor([sys.executable, "-m", "dagster_taskiq.cli", *arguments]).run())
    from dagster_taskiq.worker import SQSTaskIQWorker

    settings = load_settings(
        config_yaml,
        database_url=database_url,
        region=region,
        endpoint_url=endpoint_url,
        code_locations=code_locations or None,
    )
    settings = replace(settings, database_url=resolve_database_url(settings))
    SQSTaskIQWorker(
        settings,
        queues=queues or None,
        slots=slots,
        name=name,
        isolation=isolation,
        without=without,
        cancel_grace=cancel_grace,
        drain_timeout=drain_timeout,
        keeper=keeper,
        reload=reload,
    ).main()


@worker.command("list")
@config_option
@database_option
@json_option
def list_(config_yaml: Path | None, database_url: str | None, as_json: bool) -> None:
    """List the workers that have registered, with the age of their last heartbeat.

    \b
    Example:
      dagster-taskiq worker list --json
    """
    settings = load_settings(config_yaml, database_url=database_url)
    with open_store(resolve_database_url(settings)) as store:
        workers = store.list_workers().result(STATEMENT_TIMEOUT)
    if as_json:
        click.echo(json.dumps([as_document(row) for row in workers], indent=2))
    else:
        click.echo(worker_table(workers))
