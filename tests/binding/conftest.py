"""Fixtures of the tests of the C module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dagster_taskiq import _core
from dagster_taskiq.sqs import make_client


@pytest.fixture
def loop() -> Iterator[_core.Loop]:
    made = _core.Loop()
    yield made
    made.close()


@pytest.fixture
def client(loop: _core.Loop, sqs_endpoint: str) -> _core.SqsClient:
    """A client of the emulator."""
    return make_client(loop, endpoint=sqs_endpoint)


@pytest.fixture
def store(loop: _core.Loop, database_url: str) -> _core.Store:
    """A store whose database holds the tables of the migrations' script."""
    from dagster_taskiq.migrations import migrate
    from dagster_taskiq.store import IdempotencyStore

    made = IdempotencyStore(loop, database_url)
    migrate(made)
    return made.core
