"""Where a run's rows and Dagster's event log are: the connections of whoever drives or launches runs."""

from __future__ import annotations

from dagster import DagsterInstance

from dagster_taskiq import _dagster
from dagster_taskiq._core import Loop
from dagster_taskiq.config import Settings
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.store import IdempotencyStore


def open_stores(
    loop: Loop, settings: Settings, instance: DagsterInstance, *, application_name: str, whose: str
) -> list[IdempotencyStore]:
    """The idempotency store: as configured, else in the Dagster instance's PostgreSQL.  After it, where that is another
    database, one on the event log's, for ending connections there.

    ``whose``: of whose config an error speaks.  Raises ``ConfigError``."""
    log_url = _dagster.instance_postgres_url(instance)
    url = settings.database_url or log_url
    if url is None:
        raise ConfigError(
            "database_url is not set, and the Dagster instance does not keep its events in PostgreSQL, which would be"
            f" the default. Set database_url in the {whose}'s config or DAGSTER_TASKIQ_DATABASE_URL."
        )
    urls = [url] if log_url in (None, url) else [url, str(log_url)]
    return [IdempotencyStore(loop, one, application_name=application_name) for one in urls]
