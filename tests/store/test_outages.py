"""What the store makes of errors that PostgreSQL answers with while it is in trouble: which are waited out, which cost
a connection, and which are told at once.

The errors are a real server's.  Where it cannot be brought into the state itself (a full disk), a trigger on the table
of the steps raises the error, and a sequence, which no rollback turns back, counts how often.
"""

from __future__ import annotations

import select
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg2
import pytest
import services

from dagster_taskiq import _core, migrations
from dagster_taskiq.dev.postgres import EmbeddedPostgres
from dagster_taskiq.errors import OperationTimeoutError, StoreConnectionError, StoreError, StoreSchemaError
from dagster_taskiq.store import IdempotencyStore

from .conftest import Run, Sql

FOREVER = 1_000_000


@pytest.fixture
def raises(sql: Sql) -> Iterator[Callable[[str, int], None]]:
    """Has the next so many changes of a step's row fail with an SQLSTATE."""
    sql("CREATE SEQUENCE outages")

    def raise_(sqlstate: str, times: int) -> None:
        sql(
            "CREATE FUNCTION outage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('outages') <= {int(times)} THEN RAISE EXCEPTION 'an outage' USING ERRCODE = '{sqlstate}';"
            " END IF; RETURN NEW; END $$"
        )
        sql("CREATE TRIGGER outage BEFORE UPDATE ON dagster_taskiq_steps FOR EACH ROW EXECUTE FUNCTION outage()")

    try:
        yield raise_
    finally:
        sql("DROP TRIGGER IF EXISTS outage ON dagster_taskiq_steps")
        sql("DROP FUNCTION IF EXISTS outage")
        sql("DROP SEQUENCE outages")


def kinds(store: IdempotencyStore) -> list[str]:
    """Events of the store's loop so far."""
    loop: _core.Loop = store.loop_of_test  # type: ignore[attr-defined]
    return [event.kind for event in loop.drain() if isinstance(event, _core.Event)]


NOT_NOW = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock not available",
    "57014": "statement timeout",
}
RECONNECT = {
    "08006": "connection failure",
    "25006": "read-only",
    "57P01": "admin shutdown",
    "57P02": "crash shutdown",
    "57P03": "cannot connect now",
    "57P05": "idle session timeout",
}
FOR_GOOD = {"22021": "a NUL in a text", "23514": "a constraint", "42501": "not permitted", "XX000": "a bug"}


@pytest.mark.parametrize("sqlstate", [*NOT_NOW, *RECONNECT], ids=lambda code: (NOT_NOW | RECONNECT)[code])
def test_what_passes_is_waited_out(
    run: Run, open_store: Callable[..., IdempotencyStore], raises: Callable[[str, int], None], sqlstate: str
) -> None:
    """The move is sent again until it succeeds; on a new connection where the error says that this one is no good."""
    store = open_store()
    generation = run.claimed()
    store.claim_is_live(generation).result()
    kinds(store)
    raises(sqlstate, 2)
    assert store.start(run.id, "a", 1, generation, pid=1, pid_start="1").result()
    assert kinds(store).count("store_lost") == (2 if sqlstate in RECONNECT else 0)


@pytest.mark.parametrize("sqlstate", ["53100", "25006"])
def test_what_does_not_pass_in_time_may_be_tried_again(
    run: Run, open_store: Callable[..., IdempotencyStore], raises: Callable[[str, int], None], sqlstate: str
) -> None:
    store = open_store(operation_timeout=0.3)
    generation = run.claimed()
    store.claim_is_live(generation).result()
    raises(sqlstate, FOREVER)
    with pytest.raises((StoreError, OperationTimeoutError)) as caught:
        store.start(run.id, "a", 1, generation, pid=1, pid_start="1").result()
    # Either is tried again by a worker, for as long as it has its lease.
    assert caught.value.retryable or isinstance(caught.value, OperationTimeoutError)
    assert run.state() == "claimed"


@pytest.mark.parametrize("sqlstate", [*FOR_GOOD], ids=lambda code: FOR_GOOD[code])
def test_what_stays_wrong_is_told_at_once(
    run: Run, raises: Callable[[str, int], None], sql: Sql, sqlstate: str
) -> None:
    generation = run.claimed()
    raises(sqlstate, FOREVER)
    with pytest.raises(StoreError) as caught:
        run.store.start(run.id, "a", 1, generation, pid=1, pid_start="1").result()
    assert (caught.value.sqlstate, caught.value.retryable) == (sqlstate, False)
    assert sql("SELECT last_value FROM outages") == [(1,)]


@pytest.mark.parametrize("sqlstate", ["42P01", "42703", "3F000"])
def test_a_schema_of_another_version(run: Run, raises: Callable[[str, int], None], sqlstate: str) -> None:
    generation = run.claimed()
    raises(sqlstate, FOREVER)
    with pytest.raises(StoreSchemaError):
        run.store.start(run.id, "a", 1, generation, pid=1, pid_start="1").result()


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
def test_real_timeouts_while_somebody_holds_the_row(
    run: Run, url: str, sql: Sql, open_store: Callable[..., IdempotencyStore], setting: str
) -> None:
    name = "timeouts-" + uuid.uuid4().hex[:8]
    store = open_store(url=f"{url}?options=-c{setting}%3D30", application_name=name)
    store.claim_is_live(0).result()
    generation = run.claimed()
    blocker = psycopg2.connect(url)
    with blocker.cursor() as cursor:
        cursor.execute("SELECT 1 FROM dagster_taskiq_steps WHERE run_id = %s FOR UPDATE", (run.id,))
    operation = store.start(run.id, "a", 1, generation, pid=1, pid_start="1")
    waiting = "SELECT query_start FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    # Two tries: the second one's statement began later.
    seen: set[Any] = set()
    while len(seen) < 2:
        seen.update(sql(waiting, name))
    blocker.commit()
    blocker.close()
    assert operation.result()


def test_a_server_without_a_free_connection(
    run: Run, url: str, sql: Sql, open_store: Callable[..., IdempotencyStore]
) -> None:
    """53300 at the connect is waited out, and named when it does not pass in time."""
    role = "dtq_crowded_" + uuid.uuid4().hex[:8]
    sql(f"CREATE ROLE {role} LOGIN PASSWORD 'crowded' CONNECTION LIMIT 1")
    parts = urlsplit(url)
    its_url = f"postgresql://{role}:crowded@{parts.hostname}:{parts.port}{parts.path}"
    try:
        sql(
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        )
        generation = run.claimed()
        first = psycopg2.connect(its_url)
        hasty = open_store(url=its_url, operation_timeout=0.3)
        with pytest.raises(StoreConnectionError) as caught:
            hasty.claim_is_live(generation).result()
        assert (caught.value.sqlstate, caught.value.retryable) == ("53300", True)
        operation = hasty.core.run("claim_is_live", [generation], timeout=services.DEADLINE)
        first.close()
        assert operation.result() == [(True,)]
        hasty.loop_of_test.close()  # type: ignore[attr-defined]
    finally:
        sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---- a fail-over -----------------------------------------------------------------------------------------------------


def turn_read_only(url: str) -> None:
    """What an old primary does to its clients: connections live on, writes are refused.

    The postmaster passes a reload on to every session before it accepts the next one; the session that shows the new
    value may have been told midway, the one after it began when all had been told.
    """
    services.rows(url, "ALTER SYSTEM SET default_transaction_read_only = on")
    services.rows(url, "SELECT pg_reload_conf()")
    while services.rows(url, "SHOW default_transaction_read_only") != [("on",)]:
        pass
    services.rows(url, "SELECT 1")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres, str, int]]:
    """Two servers with the same data, a run with a claim in it: (old primary, new primary, run, generation)."""
    with services.server_folder() as folder:
        old = EmbeddedPostgres(folder / "old", durable=False)
        with old:
            url = old.ensure_database("dagster")
            loop = _core.Loop()
            store = IdempotencyStore(loop, url)
            migrations.migrate(store)
            sql = Sql(url)
            run = Run(store, sql)
            generation = run.claimed()
            loop.close()
            sql.connection.close()
        subprocess.run(["cp", "-a", str(folder / "old"), str(folder / "new")], check=True)
        with (
            EmbeddedPostgres(folder / "old", durable=False) as first,
            EmbeddedPostgres(folder / "new", durable=False) as second,
        ):
            yield first, second, run.id, generation


def test_the_old_primary_stays_up_read_only(
    servers: tuple[EmbeddedPostgres, EmbeddedPostgres, str, int], open_store: Callable[..., IdempotencyStore]
) -> None:
    """The store leaves it for the other host of its URL and makes the move there; a worker that knows of no other host
    gives its lease up before it ends.
    """
    old, new, run_id, generation = servers
    parts = urlsplit(old.url())
    assert parts.username and parts.password
    both = f"postgresql://{quote(parts.username)}:{quote(parts.password)}@127.0.0.1:{old.port},127.0.0.1:{new.port}/dagster"
    store, cut_off = open_store(url=both), open_store(url=old.url())
    for one in (store, cut_off):
        assert one.claim_is_live(generation).result()
    loop: _core.Loop = cut_off.loop_of_test  # type: ignore[attr-defined]
    beat = _core.Beat(cut_off.core)
    claimed_ns = _core.boot_ns()
    turn_read_only(old.url())
    ttl = 2.0
    beat.add(run_id, "a", 1, generation, ttl=ttl, margin=0.5, heartbeat=0.1, claimed_ns=claimed_ns)

    assert store.start(run_id, "a", 1, generation, pid=1, pid_start="1").result()
    started = "SELECT started_at IS NOT NULL FROM dagster_taskiq_steps"
    assert services.rows(new.url(), started) == [(True,)]
    assert services.rows(old.url(), started) == [(False,)]
    assert "store_lost" in kinds(store)

    lost: list[str] = []
    while "lease_lost" not in lost:
        assert select.select([loop.fileno()], [], [], services.DEADLINE)[0]
        lost += kinds(cut_off)
    assert "store_lost" in lost
