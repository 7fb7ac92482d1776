"""The store over TLS, as databases on AWS want it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxies import TlsPostgresProxy

from dagster_taskiq.store import IdempotencyStore

from .conftest import Run, Sql


@pytest.fixture
def encrypted(url: str, tmp_path: Path, open_store: Callable[..., IdempotencyStore]) -> Iterator[IdempotencyStore]:
    with TlsPostgresProxy(url, tmp_path) as proxy:
        yield open_store(url=proxy.url)


@pytest.mark.parametrize("size", [1, 9_000, 40_000, 1_000_000])
def test_a_row_longer_than_a_record(run: Run, sql: Sql, encrypted: IdempotencyStore, size: int) -> None:
    """The end of a row can lie decrypted in OpenSSL's buffer, where no poll of the socket tells of it."""
    generation = run.started()
    events = json.dumps(["x" * size])
    assert encrypted.complete(run.id, "a", 1, generation, "succeeded", events=events).result(20)
    (outcome,) = encrypted.outcomes(run.id, [("a", 1)]).result(20)
    assert outcome.events == events


@pytest.mark.parametrize("size", range(1000, 8000, 500))
def test_rows_that_do_not_end_where_records_do(run: Run, encrypted: IdempotencyStore, size: int) -> None:
    keys = [f"s{number}" for number in range(12)]
    for key in keys:
        run.store.complete(run.id, key, 1, run.started(key), "succeeded", events=json.dumps(["x" * size])).result()
    outcomes = encrypted.outcomes(run.id, [(key, 1) for key in keys]).result(20)
    assert [len(outcome.events) for outcome in outcomes] == [size + 4] * len(keys)
