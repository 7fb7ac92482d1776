"""The slots of a worker: how many steps may run, and how many messages each queue's poll may bring."""

from __future__ import annotations

import asyncio
from collections import deque

from dagster_taskiq.broker import LONG_POLL


class Slots:
    """Free slots, shared out fairly among the long polls of several queues, first come, first served.

    Each poll holds as many slots as it may bring messages.  While there are fewer slots than queues that want to poll,
    polls are shorter, so that no queue waits for long behind another's empty one.
    """

    def __init__(self, total: int, queues: int) -> None:
        self._free = total
        self._queues = queues
        self._polling = 0
        self._waiting: deque[asyncio.Future[tuple[int, int]]] = deque()

    async def take(self) -> tuple[int, int]:
        """(slots, seconds to wait for messages) of the next poll; waits for a slot.  :meth:`polled` tells its end."""
        turn: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._share_out()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.polled(turn.result()[0])
            raise

    def polled(self, unused: int) -> None:
        """The poll has ended, and needs ``unused`` of its slots no more."""
        self._polling -= 1
        self.give(unused)

    def give(self, count: int) -> None:
        """Slots are free again."""
        self._free += count
        self._share_out()

    def _share_out(self) -> None:
        while self._free and self._waiting:
            turn = self._waiting.popleft()
            if turn.done():
                continue
            others = self._queues - self._polling - 1
            count = min(10, max(1, self._free // (others + 1)))
            self._free -= count
            self._polling += 1
            turn.set_result((count, LONG_POLL if self._free >= others else max(1, LONG_POLL // self._queues)))
