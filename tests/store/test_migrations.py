"""The schema as the migrations make it, and what happens with a missing, older or newer one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dagster_taskiq import migrations
from dagster_taskiq.errors import StoreError, StoreSchemaError
from dagster_taskiq.store import IdempotencyStore

from .conftest import Sql


def test_numbers_have_no_gap() -> None:
    assert [m.number for m in migrations.available()] == list(range(1, len(migrations.available()) + 1))


def test_missing_tables_are_named(
    open_store: Callable[..., IdempotencyStore], empty_database: Callable[[], str]
) -> None:
    store = open_store(url=empty_database())
    assert migrations.applied(store) == 0
    with pytest.raises(StoreSchemaError, match="missing"):
        migrations.check(store)
    with pytest.raises(StoreSchemaError):
        store.queue_depth("q").result()
    newest = migrations.migrate(store)
    assert newest == migrations.available()[-1].number
    migrations.check(store)
    assert store.queue_depth("q").result().queued == 0
    assert migrations.migrate(store) == newest


def test_many_at_once(open_store: Callable[..., IdempotencyStore], empty_database: Callable[[], str]) -> None:
    """All scripts are sent before one is done: one is applied, the others are refused before they change anything."""
    url = empty_database()
    stores = [open_store(url=url) for _ in range(4)]
    first = migrations.available()[0]
    scripts = [store.core.script(migrations._script(first)) for store in stores]
    refused = 0
    for script in scripts:
        try:
            script.result()
        except StoreError as error:
            refused += 1
            assert "applied already" in str(error)
    assert refused == 3
    for store in stores:
        assert migrations.migrate(store) == migrations.available()[-1].number


def test_a_newer_schema_is_refused(
    open_store: Callable[..., IdempotencyStore], empty_database: Callable[[], str]
) -> None:
    url = empty_database()
    store, sql = open_store(url=url), Sql(url)
    migrations.migrate(store)
    sql("INSERT INTO dagster_taskiq_migrations (number, name) VALUES (9999, 'from the future')")
    for call in (migrations.check, migrations.migrate):
        with pytest.raises(StoreSchemaError, match="newer"):
            call(store)
    sql.connection.close()


def test_a_failing_migration_leaves_nothing(
    open_store: Callable[..., IdempotencyStore], empty_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = empty_database()
    store, sql = open_store(url=url), Sql(url)
    good = migrations.available()
    bad = migrations.Migration(good[-1].number + 1, "bad", "CREATE TABLE dagster_taskiq_bad (n int); SELECT 1/0;")
    monkeypatch.setattr(migrations, "available", lambda: [*good, bad])
    with pytest.raises(StoreError, match="division by zero"):
        migrations.migrate(store)
    assert migrations.applied(store) == good[-1].number
    assert sql("SELECT to_regclass('dagster_taskiq_bad')") == [(None,)]
    sql.connection.close()


def test_every_table_has_the_prefix(url: str, sql: Sql) -> None:
    names = [
        name
        for (name,) in sql(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 't'"
        )
    ]
    assert names and all(name.startswith("dagster_taskiq_") or name == "late_writes" for name in names)
