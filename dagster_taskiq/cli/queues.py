"""``dagster-taskiq queue``: the queues in SQS."""

from __future__ import annotations

from pathlib import Path

import click

from .options import STATEMENT_TIMEOUT, config_option, load_settings, sqs_options


@click.group()
def queue() -> None:
    """Make the queues that steps travel over."""


@queue.command()
@click.argument("name")
@click.option(
    "--max-receive-count",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Deliveries after which SQS moves a message to the dead-letter queue.",
)
@config_option
@sqs_options
def create(
    name: str, max_receive_count: int, config_yaml: Path | None, region: str | None, endpoint_url: str | None
) -> None:
    """Create the queue NAME and its dead-letter queue NAME-dead.

    Changes nothing when both exist already with the same settings; with others SQS refuses.

    \b
    Examples:
      dagster-taskiq queue create dagster
      dagster-taskiq queue create dagster-gpu --region eu-west-1
    """
    from dagster_taskiq import _core, sqs

    settings = load_settings(config_yaml, region=region, endpoint_url=endpoint_url)
    loop = _core.Loop()
    try:
        client = sqs.make_client(loop, region=settings.region, endpoint=settings.endpoint_url)
        pair = sqs.create_queue_pair(client, name, max_receive_count=max_receive_count).result(STATEMENT_TIMEOUT)
    finally:
        loop.close()
    click.echo(f"queue        {pair.url}\ndead letters {pair.dead_url}")
