"""The coordinator alone: what reaches it between two waits, and what its servers refuse."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import services

from dagster_taskiq._core import Loop
from dagster_taskiq.config import Settings
from dagster_taskiq.coordinator import LAST_RETRY, Message, RunCoordinator, _retry_pause
from dagster_taskiq.migrations import migrate
from dagster_taskiq.notices import Cancelling, Ended, Notice, Trouble
from dagster_taskiq.sqs import Credentials, make_client
from dagster_taskiq.store import IdempotencyStore

Make = Callable[..., RunCoordinator]


@pytest.fixture
def make(database_url: str, queue: services.Queue) -> Iterator[Make]:
    """Makes coordinators of one run."""
    settings = Settings(queue=queue.name, lease_ttl=60, heartbeat_interval=1)

    with ExitStack() as stack:

        def one(credentials: Any = None, **options: Any) -> RunCoordinator:
            loop = Loop()
            stack.callback(loop.close)
            store = IdempotencyStore(loop, database_url)
            migrate(store)
            return RunCoordinator(
                settings,
                "a-run",
                loop=loop,
                store=store,
                sqs=make_client(loop, credentials=credentials),
                make_message=lambda key, attempt: Message(b"a message", {}),
                **options,
            )

        yield one


def wait_for_notice(coordinator: RunCoordinator, kind: type[Notice]) -> Any:
    def look() -> Notice | None:
        return next((notice for notice in coordinator.wait(0.1) if isinstance(notice, kind)), None)

    return services.wait_for(look, kind.__name__)


def test_a_signal_that_came_before_a_wait_ends_it(make: Make) -> None:
    """While steps are sent, or a lost one is fenced, nobody looks for interrupts."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        coordinator = make(wake_fd=reader)
        coordinator.begin()
        os.write(writer, b"x")
        coordinator.poll()
        assert coordinator.wait(None) == []
    finally:
        os.close(reader)
        os.close(writer)


def test_one_that_is_superseded_at_its_end_leaves(make: Make) -> None:
    """Its exception, or its success, would end a run that another carries on."""
    superseded: list[int] = []
    first = make(on_superseded=lambda _run_id, generation: superseded.append(generation))
    second = make(on_superseded=lambda _run_id, generation: superseded.append(generation))
    first.begin()
    second.begin()
    first.end()
    assert superseded == [first.generation]
    second.end()
    assert superseded == [first.generation]


def test_a_queued_row_of_a_run_that_is_cancelled_is_settled_whoever_cancels(make: Make, database_url: str) -> None:
    """Even when the word of it is lost and nobody receives the message."""
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("step", 1, coordinator.settings.queue)])
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'queued'"
    services.wait_for(lambda: coordinator.poll() or services.rows(database_url, sql), "the row")
    services.rows(database_url, "UPDATE dagster_taskiq_runs SET state = 'cancelling'")
    wait_for_notice(coordinator, Cancelling)
    assert wait_for_notice(coordinator, Ended).outcome.state == "cancelled"


def test_credentials_that_cannot_be_renewed_for_a_while(make: Make, queue: services.Queue) -> None:
    failing = False

    def provider() -> Credentials:
        if failing:
            raise ConnectionError("the token service is away")
        return "key", "secret", None, int(time.time()) + 1

    coordinator = make(provider)
    coordinator.begin()
    failing = True
    coordinator.submit([("step", 1, queue.name)])
    assert "the token service is away" in wait_for_notice(coordinator, Trouble).message
    failing = False
    services.wait_for(lambda: coordinator.poll() or queue.counts()[0] == 1, "the message")


def test_however_often_something_failed_it_is_tried_again_soon() -> None:
    assert 0 < _retry_pause(100_000) <= LAST_RETRY + 0.05
