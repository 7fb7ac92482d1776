"""Requests that are under way, and what is made of their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import services

from dagster_taskiq import migrations
from dagster_taskiq._core import Loop
from dagster_taskiq.requests import Requests
from dagster_taskiq.store import IdempotencyStore


def test_what_one_result_leads_to_keeps_no_other_back(database_url: str) -> None:
    """The first error ends the run; until then each has been told what became of its request."""
    loop = Loop()
    try:
        store = IdempotencyStore(loop, database_url)
        migrations.migrate(store)
        told: list[str] = []

        def tell(name: str) -> Callable[[Any], None]:
            def call(_: Any) -> None:
                told.append(name)
                raise ValueError(f"the {name} one")

            return call

        requests = Requests(loop, lambda _: None, lambda _: None, None)
        operations = {name: store.get_run("none") for name in ("first", "second")}
        for name, operation in operations.items():
            requests.watch(operation, tell(name))
        services.wait_for(lambda: all(operation.done() for operation in operations.values()), "both results")
        with pytest.raises(ValueError, match="the first one"):
            requests.pump(None)
        assert told == ["first", "second"]
    finally:
        loop.close()
