"""Fixtures of the store's tests: databases of their own on a real PostgreSQL, stores on them, plain SQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg2
import pytest
import services

from dagster_taskiq import _core, migrations
from dagster_taskiq.store import Claim, IdempotencyStore

TTL = 120.0


@pytest.fixture(scope="session")
def empty_database(database_server: services.Databases) -> Iterator[Callable[[], str]]:
    """Makes empty databases, which are dropped at the end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(database_server.fresh())


@pytest.fixture(scope="session")
def url(empty_database: Callable[[], str]) -> str:
    url = empty_database()
    loop = _core.Loop()
    try:
        migrations.migrate(IdempotencyStore(loop, url))
    finally:
        loop.close()
    return url


@pytest.fixture
def open_store(url: str) -> Iterator[Callable[..., IdempotencyStore]]:
    """Opens stores, each with a loop and so a connection of its own."""
    loops: list[_core.Loop] = []

    def open_(**options: Any) -> IdempotencyStore:
        loop = _core.Loop()
        loops.append(loop)
        store = IdempotencyStore(loop, options.pop("url", url), **options)
        store.loop_of_test = loop  # type: ignore[attr-defined]
        return store

    yield open_
    for loop in loops:
        loop.close()


@pytest.fixture
def store(open_store: Callable[..., IdempotencyStore]) -> IdempotencyStore:
    return open_store()


class Sql:
    """A plain connection: turns clocks (leases) and looks at rows behind the store's back."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True

    def __call__(self, text: str, *params: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(text, params)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def sql(url: str) -> Iterator[Sql]:
    sql = Sql(url)
    yield sql
    sql.connection.close()


class Run:
    """A run that is active, with short names for what the tests do to its attempts."""

    def __init__(self, store: IdempotencyStore, sql: Sql) -> None:
        self.store, self.sql = store, sql
        self.id = str(uuid.uuid4())
        self.queue = "q-" + uuid.uuid4().hex[:8]
        row = store.begin_run(self.id, uuid.uuid4().hex, TTL).result()
        self.generation = row.generation

    def queued(self, key: str = "a", attempt: int = 1) -> None:
        assert self.store.enqueue(self.id, self.generation, [(key, attempt, self.queue)]).result() == [(key, attempt)]

    def claim(self, key: str = "a", attempt: int = 1, store: IdempotencyStore | None = None, **change: Any) -> Claim:
        return self.claim_operation(key, attempt, store, **change).result()

    def claim_operation(self, key: str = "a", attempt: int = 1, store: IdempotencyStore | None = None, **change: Any):
        given: dict[str, Any] = {
            "owner": "w1",
            "nonce": uuid.uuid4().hex,
            "ttl": TTL,
            "host": "h",
            "boot_id": "b",
            "delivery_id": "m",
            "deliveries": 1,
        }
        return (store or self.store).claim(self.id, key, attempt, **(given | change))

    def claimed(self, key: str = "a", attempt: int = 1) -> int:
        self.queued(key, attempt)
        claim = self.claim(key, attempt)
        assert claim.outcome == "claimed" and claim.generation
        return claim.generation

    def started(self, key: str = "a", attempt: int = 1) -> int:
        generation = self.claimed(key, attempt)
        assert self.store.start(self.id, key, attempt, generation, pid=42, pid_start="7").result()
        return generation

    def ended(self, state: Any, key: str = "a") -> int:
        """An attempt in a terminal state."""
        generation = self.started(key)
        if state == "lost":
            assert self.store.mark_lost(self.id, key, 1, generation, "seen dead").result()
        else:
            if state == "cancelled":
                assert self.store.request_cancel(self.id, self.generation).result()
            assert self.store.complete(self.id, key, 1, generation, state, events="[]").result()
        return generation

    def expire(self, key: str = "a", attempt: int = 1) -> None:
        self.sql(
            "UPDATE dagster_taskiq_steps SET lease = now() - interval '1 second' "
            "WHERE run_id = %s AND step_key = %s AND attempt = %s",
            self.id,
            key,
            attempt,
        )

    def state(self, key: str = "a", attempt: int = 1) -> str:
        (row,) = self.sql(
            "SELECT state FROM dagster_taskiq_steps WHERE run_id = %s AND step_key = %s AND attempt = %s",
            self.id,
            key,
            attempt,
        )
        return row[0]

    def row(self, key: str = "a", attempt: int = 1) -> str:
        """The whole row as text, to compare."""
        (row,) = self.sql(
            "SELECT s::text FROM dagster_taskiq_steps s WHERE run_id = %s AND step_key = %s AND attempt = %s",
            self.id,
            key,
            attempt,
        )
        return row[0]


@pytest.fixture
def run(store: IdempotencyStore, sql: Sql) -> Run:
    return Run(store, sql)
