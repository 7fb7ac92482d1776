"""``dagster-taskiq status`` and ``dagster-taskiq db``: what the idempotency store knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    STATEMENT_TIMEOUT,
    as_document,
    config_option,
    database_option,
    format_table,
    json_option,
    load_settings,
    open_store,
    resolve_database_url,
)

if TYPE_CHECKING:
    from dagster_taskiq.store import WorkerRow


def worker_table(workers: Sequence[WorkerRow]) -> str:
    """The workers as a table, or a sentence when there is none."""
    if not workers:
        return "No worker has registered. Start one with: dagster-taskiq worker start"
    return format_table(
        ["worker", "host", "pid", "busy", "slots", "heartbeat", "queues"],
        [
            (
                w.name,
                w.host,
                w.pid,
                w.busy,
                w.slots,
                f"{w.heartbeat_age:.0f} s ago" + ("" if w.alive else " (lost)"),
                ", ".join(w.queues),
            )
            for w in workers
        ],
    )


@click.command()
@config_option
@database_option
@json_option
def status(config_yaml: Path | None, database_url: str | None, as_json: bool) -> None:
    """Show the workers and what waits in each queue.

    \b
    Examples:
      dagster-taskiq status
      dagster-taskiq status --json | jq '.queues[] | select(.workers == 0)'
    """
    settings = load_settings(config_yaml, database_url=database_url)
    with open_store(resolve_database_url(settings)) as store:
        workers = store.list_workers().result(STATEMENT_TIMEOUT)
        live = store.live_queues().result(STATEMENT_TIMEOUT)
        names = sorted({settings.queue, *live, *(name for worker in workers for name in worker.queues)})
        depths = {name: store.queue_depth(name).result(STATEMENT_TIMEOUT) for name in names}
    if as_json:
        document = {
            "workers": [as_document(worker) for worker in workers],
            "queues": [{"queue": name, **as_document(depth)} for name, depth in depths.items()],
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(worker_table(workers))
    click.echo()
    rows = [(name, d.queued, d.claimed, d.oldest_queued_age, d.workers) for name, d in depths.items()]
    click.echo(format_table(["queue", "waiting", "running", "oldest (s)", "workers"], rows))


@click.group()
def db() -> None:
    """Make or check the tables of the idempotency store.

    Runs and workers do that by themselves when they start; these commands are for deployments in which they may not.
    """


@db.command()
@config_option
@database_option
def migrate(config_yaml: Path | None, database_url: str | None) -> None:
    """Create the tables, or bring them up to this release.

    \b
    Example:
      dagster-taskiq db migrate --database-url postgresql://user:password@host/dagster
    """
    from dagster_taskiq import migrations

    settings = load_settings(config_yaml, database_url=database_url)
    with open_store(resolve_database_url(settings)) as store:
        number = migrations.migrate(store, timeout=STATEMENT_TIMEOUT)
    click.echo(f"The tables are at migration {number}.")


@db.command()
@config_option
@database_option
def check(config_yaml: Path | None, database_url: str | None) -> None:
    """Exit with status 1 unless the tables are those of this release.

    \b
    Example:
      dagster-taskiq db check || dagster-taskiq db migrate
    """
    from dagster_taskiq import migrations

    settings = load_settings(config_yaml, database_url=database_url)
    with open_store(resolve_database_url(settings)) as store:
        migrations.check(store)
    click.echo("The tables are those of this release.")
