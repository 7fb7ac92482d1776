"""The slots of a worker: how many steps may run, and which queue gets the next free one.

Queues come in order of preference.  While all of them have messages each is given :data:`PREFERENCE` messages for one
of the queue after it; nobody starves, and a queue that has none takes nothing from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from dagster_taskiq.broker import LONG_POLL

PREFERENCE: Final = 4
"""Messages of a queue for one of the next queue, while both have some."""

BATCH: Final = 10
"""Messages that one receive brings at most."""


class Slots:
    """Free slots, shared out among the polls of several queues.

    ``limits``: of each queue, in order of preference, how many messages one poll may bring (up to :data:`BATCH`).

    Each poll holds as many slots as it may bring messages.  Free slots go to the queue whose turn it is, by short
    polls.  A queue whose poll brought nothing counts as empty until another one's brings something; when all are
    empty, each has a long poll for one message.  With fewer slots than queues these are shorter and go round, so that
    no queue waits for long behind another's empty one.
    """

    def __init__(self, total: int, limits: Sequence[int]) -> None:
        self._free = total
        self._limits = list(limits)
        self._cost = [float(PREFERENCE**place) for place in range(len(limits))]
        self._turn = list(self._cost)
        """When each queue's next message is due: the smallest is next.  Each message moves it on by its cost."""
        self._empty: set[int] = set()
        self._polling: set[int] = set()
        self._waiting: dict[int, asyncio.Future[tuple[int, int]]] = {}

    async def take(self, queue: int) -> tuple[int, int]:
        """(slots, seconds to wait for messages) of the queue's next poll; waits for a slot.  :meth:`polled` tells its
        end."""
        turn: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._waiting[queue] = turn
        self._share_out()
        try:
            return await turn
        except asyncio.CancelledError:
            self._waiting.pop(queue, None)
            if turn.done() and not turn.cancelled():
                self.polled(queue, turn.result()[0], 0)
            raise

    def polled(self, queue: int, count: int, brought: int) -> None:
        """The queue's poll with ``count`` slots has ended with so many messages."""
        self._polling.discard(queue)
        if brought:
            now = self._turn[queue]
            self._turn[queue] += brought * self._cost[queue]
            # Nobody saves up turns while it has no messages.
            for other in self._empty - {queue}:
                self._turn[other] = max(self._turn[other], now + self._cost[other])
            self._empty.clear()
        else:
            self._empty.add(queue)
        self.give(count - brought)

    def give(self, count: int) -> None:
        """Slots are free again."""
        self._free += count
        self._share_out()

    def _share_out(self) -> None:
        while self._free and self._waiting:
            full = [queue for queue in self._waiting if queue not in self._empty]
            queue = min(full, key=lambda one: (self._turn[one], one)) if full else next(iter(self._waiting))
            turn = self._waiting.pop(queue)
            if turn.done():
                continue
            count, wait = self._grant(queue)
            self._free -= count
            self._polling.add(queue)
            turn.set_result((count, wait))

    def _grant(self, queue: int) -> tuple[int, int]:
        everything = min(self._limits[queue], self._free)
        queues = len(self._cost)
        if queues == 1:
            return everything, LONG_POLL
        if queue in self._empty:
            others = queues - len(self._polling) - 1
            return 1, LONG_POLL if self._free > others else max(1, LONG_POLL // queues)
        rivals = set(range(queues)) - self._polling - self._empty
        share = 1 / self._cost[queue] / sum(1 / self._cost[rival] for rival in rivals)
        return max(1, min(everything, int(self._free * share))), 0
