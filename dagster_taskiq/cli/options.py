"""Options that several commands share, and what they resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dagster_taskiq.config import Settings
    from dagster_taskiq.store import IdempotencyStore

F = TypeVar("F", bound=Callable[..., Any])

STATEMENT_TIMEOUT = 30.0
"""Seconds that a command waits for the database or for SQS."""

ANSWER_TIMEOUT = 10.0
"""Seconds after which a command says why the database does not answer."""


def config_option(command: F) -> F:
    """``--config-yaml``."""
    return click.option(
        "-y",
        "--config-yaml",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file with the executor's settings under `execution: config:`.",
    )(command)


def database_option(command: F) -> F:
    """``--database-url``."""
    return click.option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL of the idempotency store. Default: the config file, DAGSTER_TASKIQ_DATABASE_URL, the "
        "PostgreSQL of the Dagster instance in DAGSTER_HOME.",
    )(command)


def sqs_options(command: F) -> F:
    """``--region`` and ``--endpoint-url``."""
    region = click.option("--region", metavar="NAME", help="AWS region. Default: AWS_REGION, AWS_DEFAULT_REGION.")
    endpoint = click.option(
        "--endpoint-url",
        metavar="URL",
        help="SQS endpoint. Default: AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL, the region's.",
    )
    return region(endpoint(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def load_settings(config_yaml: Path | None, **overrides: Any) -> Settings:
    """Settings of the config file, with the options that were given put over them."""
    from dagster_taskiq.config import Settings, load_yaml

    block = load_yaml(config_yaml) if config_yaml else {}
    given = {name: value for name, value in overrides.items() if value is not None}
    return Settings.from_config({**block, **given})


def resolve_database_url(settings: Settings) -> str:
    """The store's URL, by the order that ``--database-url`` documents; ConfigError when there is none."""
    from dagster_taskiq.errors import ConfigError

    if settings.database_url:
        return settings.database_url
    home = os.environ.get("DAGSTER_HOME")
    if home:
        from dagster import DagsterInstance

        from dagster_taskiq._dagster import instance_postgres_url

        try:
            with DagsterInstance.get() as instance:
                url = instance_postgres_url(instance)
        except Exception as error:
            # Whatever Dagster, a storage of its and their drivers raise: the user has one thing to correct.
            raise ConfigError(
                f"the Dagster instance in DAGSTER_HOME ({home}) cannot be opened, to find its PostgreSQL: "
                f"{_in_short(error)}\nCorrect it, or give --database-url or DAGSTER_TASKIQ_DATABASE_URL."
            ) from error
        if url:
            return url
    raise ConfigError(
        "no database: give --database-url, set DAGSTER_TASKIQ_DATABASE_URL, or let DAGSTER_HOME name an instance "
        "whose storage is PostgreSQL"
    )


def _in_short(error: BaseException) -> str:
    """The error and its first cause, a line each."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    # Of Dagster's own for a config the text begins with a schema; what is wrong is in these.
    wrong = [str(one.message) for one in getattr(error, "errors", ()) if hasattr(one, "message")]
    texts = [str(one).strip().splitlines() or [type(one).__name__] for one in dict.fromkeys((error, cause))]
    return "\n  ".join(wrong or [lines[0] for lines in texts])


@contextmanager
def open_store(url: str) -> Iterator[IdempotencyStore]:
    """A store on a loop of its own.  Where its tables are missing, the error says which command makes them."""
    from dagster_taskiq import _core, migrations
    from dagster_taskiq.errors import ConfigError, StoreConnectionError, StoreSchemaError
    from dagster_taskiq.store import IdempotencyStore

    loop = _core.Loop()
    try:
        store = IdempotencyStore(loop, url, application_name="dagster-taskiq-cli", operation_timeout=ANSWER_TIMEOUT)
        try:
            yield store
        except StoreSchemaError:
            migrations.check(store)
            raise
        except StoreConnectionError as error:
            raise ConfigError(
                f"{error}\nThe database is that of --database-url, else DAGSTER_TASKIQ_DATABASE_URL, else that of the"
                " Dagster instance in DAGSTER_HOME."
            ) from error
    finally:
        loop.close()


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Left-aligned columns, numbers right-aligned; None is shown as a dash."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *texts]) for i in range(len(headers))]
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    numeric = [
        bool(column) and all(isinstance(value, (int, float, type(None))) for value in column) for column in columns
    ]

    def line(cells: Sequence[str]) -> str:
        layout = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in layout).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, texts)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def as_document(row: Any) -> Mapping[str, Any]:
    """A row of the store as something that json can write."""
    from dataclasses import asdict

    return asdict(row)
