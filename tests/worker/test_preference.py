"""Several queues at one worker: which one gets the next slot."""

from __future__ import annotations

import asyncio
from typing import Any

import services

from dagster_taskiq.broker import LONG_POLL
from dagster_taskiq.slots import Slots


def test_queues_are_preferred_in_order_and_none_starves(stage: Any, start_worker: Any, make_queue: Any) -> None:
    high, low = stage.queue, make_queue()
    for queue, count in ((low, 3), (high, 10)):
        for _ in range(count):
            stage.begin_run()
            stage.store.enqueue(stage.run_id, stage.generation, [("other", 1, queue.name)]).result(10)
            queue.call("SendMessage", MessageBody=stage.message("other").decode())
    start_worker(slots=1, queues=[high.name, low.name])
    ended = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'succeeded' HAVING count(*) = 13"
    services.wait_for_rows(stage.database_url, ended, deadline=120)
    in_order = services.rows(stage.database_url, "SELECT queue FROM dagster_taskiq_steps ORDER BY claimed_at")
    order = ["high" if name == high.name else "low" for (name,) in in_order]
    # An empty answer of a queue that is not empty would cost it a turn.
    assert order[:2] == ["high", "high"], order
    assert order[:9].count("low") in (1, 2), order
    assert order[-1] == "low", order


# ---- one slot after the other ----------------------------------------------------------------------------------------


async def served(slots: Slots, backlog: list[int], steps: int) -> list[int]:
    """Which queue each of so many messages comes from, when a slot becomes free after each."""
    order: list[int] = []
    turns = {queue: asyncio.ensure_future(slots.take(queue)) for queue in range(len(backlog))}
    while len(order) < steps:
        done, _ = await asyncio.wait(turns.values(), return_when=asyncio.FIRST_COMPLETED)
        for queue in [queue for queue, turn in turns.items() if turn in done]:
            count, _wait = turns[queue].result()
            brought = min(count, backlog[queue])
            backlog[queue] -= brought
            slots.polled(queue, count, brought)
            order += [queue] * brought
            turns[queue] = asyncio.ensure_future(slots.take(queue))
            await asyncio.sleep(0)
            if brought:
                slots.give(brought)
    for turn in turns.values():
        turn.cancel()
    await asyncio.gather(*turns.values(), return_exceptions=True)
    return order


def test_four_of_a_queue_for_one_of_the_next() -> None:
    order = asyncio.run(served(Slots(1, [10, 10, 10]), [1000, 1000, 1000], 210))
    assert [order.count(queue) for queue in range(3)] == [160, 40, 10]
    assert order[:5] == [0, 0, 0, 0, 1]


def test_a_queue_that_was_empty_has_saved_nothing_up() -> None:
    async def later() -> list[int]:
        slots = Slots(1, [10, 10])
        backlog = [0, 100]
        assert await served(slots, backlog, 50) == [1] * 50
        backlog[0] = 100
        return await served(slots, backlog, 10)

    assert asyncio.run(later()).count(1) == 2


def test_while_all_are_empty_each_has_a_long_poll_and_the_rest_is_free() -> None:
    async def grants() -> list[tuple[int, int]]:
        slots = Slots(10, [10, 10])
        for queue in range(2):
            count, wait = await slots.take(queue)
            assert wait == 0
            slots.polled(queue, count, 0)
        found = [await slots.take(queue) for queue in range(2)]
        slots.polled(1, 1, 1)
        return [*found, await slots.take(1)]

    assert asyncio.run(grants()) == [(1, LONG_POLL), (1, LONG_POLL), (8, 0)]


def test_the_only_queue_has_all_slots() -> None:
    assert asyncio.run(Slots(4, [10]).take(0)) == (4, LONG_POLL)
    assert asyncio.run(Slots(4, [1]).take(0)) == (1, LONG_POLL)
