"""Queues that nobody serves, and messages that are missing (sweep S2)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

from dagster_taskiq._core import SqsClient
from dagster_taskiq.errors import DagsterTaskiqError
from dagster_taskiq.flights import Flight, RunInFlight
from dagster_taskiq.notices import Key, Trouble, Unserved, Untaken
from dagster_taskiq.requests import Requests
from dagster_taskiq.sender import SEND_ENTRIES, Queue, Sender, may_return
from dagster_taskiq.store import IdempotencyStore, QueueDepth, Resend, queue_channel

MAX_VANISHED: Final = 5
"""Messages of one row that may vanish from its queue, no worker having claimed it, before it is given up: about 25
minutes with the default backoff."""


class QueueWatch:
    """``pause``: gives the seconds until the next look."""

    def __init__(
        self,
        run: RunInFlight,
        requests: Requests,
        store: IdempotencyStore,
        sqs: SqsClient,
        sender: Sender,
        pause: Callable[[], float],
    ) -> None:
        self._run = run
        self._requests = requests
        self._store = store
        self._sqs = sqs
        self._sender = sender
        self._pause = pause

    def begin(self, queue: Queue) -> None:
        """Look at this queue from now on, as long as attempts wait there, and hear what its workers refuse."""
        self._requests.then(lambda: self._store.listen(queue_channel(queue.name)), lambda _: None)
        self._requests.schedule(self._first_look(), lambda: self._look_at_queue(queue))

    def _first_look(self) -> float:
        """Well before a limit of service, which counts from the first look that finds nobody."""
        settings = self._run.settings
        limits = [limit for limit in (settings.no_worker_warning, settings.no_worker_timeout) if limit is not None]
        return min([settings.backoff_base, *(limit / 4 for limit in limits)])

    def _look_at_queue(self, queue: Queue) -> None:
        """Whether anybody serves the queue, and whether messages are missing from it."""
        self._requests.schedule(max(self._pause(), self._first_look() / 2), lambda: self._look_at_queue(queue))
        oldest = min(
            (flight.since for flight in self._run.flights.values() if flight.queue == queue.name), default=None
        )
        if queue.looking or self._run.cancelling:
            return
        if oldest is None or time.monotonic() - oldest < self._first_look():
            queue.unserved_since = None
            return
        queue.looking = True

        def depth_known(depth: QueueDepth) -> None:
            queue.looking = False
            if not depth.queued:
                queue.warned = False
                queue.unserved_since = None
                queue.pause = self._run.settings.backoff_base
                return
            self._judge_service(queue, depth)
            if queue.url is not None and time.monotonic() >= queue.next_look:
                queue.next_look = time.monotonic() + queue.pause
                queue.pause = min(queue.pause * 2, self._run.settings.backoff_cap)
                self._compare_with_queue(queue, depth)

        def failed(error: DagsterTaskiqError) -> None:
            queue.looking = False
            # Workers cannot say either that they are there.
            queue.unserved_since = None
            self._requests.later(error)

        self._requests.watch(self._store.queue_depth(queue.name), depth_known, failed)

    def _judge_service(self, queue: Queue, depth: QueueDepth) -> None:
        if depth.workers:
            queue.warned = False
            queue.unserved_since = None
            return
        now = time.monotonic()
        if queue.unserved_since is None:
            queue.unserved_since = now
        # The age of the rows says nothing: behind a backlog they are old when the only worker is started anew.
        unserved = now - queue.unserved_since
        waited = depth.oldest_queued_age or 0.0
        limit = self._run.settings.no_worker_timeout
        if limit is not None and unserved >= limit:
            self._take_back(queue, waited, limit)
        warning = self._run.settings.no_worker_warning
        if warning is not None and unserved >= warning and not queue.warned:
            queue.warned = True
            self._run.notices.append(Unserved(queue.name, waited, depth.queued))

    def _take_back(self, queue: Queue, waited: float, limit: float) -> None:
        now = time.monotonic()
        keys = [
            key
            for key, flight in self._run.flights.items()
            if flight.queue == queue.name and now - flight.since >= limit
        ]

        self._sender.take_from_queue(
            keys, lambda taken: self._run.notices.append(Unserved(queue.name, waited, len(taken), taken))
        )

    def _compare_with_queue(self, queue: Queue, depth: QueueDepth) -> None:
        names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ]

        def counted(answer: dict[str, Any]) -> None:
            queue.missing_since = None
            attributes = answer.get("Attributes", {})
            waiting, hidden, delayed = (int(attributes.get(name, 0)) for name in names)
            undelivered = waiting + delayed + max(0, hidden - depth.claimed)
            deficit = depth.queued - undelivered
            if deficit > 0:
                # Where some are left nobody knows whose are missing: runs share queues.
                self._resend(deficit, vanished=undelivered == 0)
            else:
                # The count is approximate, and other applications' messages may be in it.
                self._resend_by_time(queue)

        def passes(error: DagsterTaskiqError) -> bool:
            queue.countable = not _is_denied(error)
            return not queue.countable or may_return(queue, error)

        def failed(error: DagsterTaskiqError) -> None:
            if queue.countable:
                self._requests.later(error)
                return
            self._run.notices.append(
                Trouble(
                    f"The messages in queue {queue.name!r} cannot be counted: this run worker needs the permission"
                    f" sqs:GetQueueAttributes ({error}). Without it a message that is lost is sent again late."
                )
            )
            self._resend_by_time(queue)

        if not queue.countable:
            self._resend_by_time(queue)
            return

        request = {"QueueUrl": queue.url, "AttributeNames": names}
        ask = functools.partial(self._sqs.call, "GetQueueAttributes", request)
        self._requests.ask_sqs(ask, counted, failed, passes)

    def _resend_by_time(self, queue: Queue) -> None:
        if queue.pause >= self._run.settings.backoff_cap:
            self._resend(SEND_ENTRIES, vanished=False)

    def _resend(self, limit: int, *, vanished: bool) -> None:
        settings = self._run.settings

        def resent(rows: list[Resend]) -> None:
            again = []
            for key in ((row.step_key, row.attempt) for row in rows):
                flight = self._run.flights.get(key)
                if flight is None:
                    continue
                flight.vanished += vanished
                if flight.vanished > MAX_VANISHED:
                    self._give_up(key, flight)
                else:
                    again.append(key)
            self._sender.send_again(again)

        self._requests.then(
            lambda: self._store.resend(
                self._run.id, self._run.generation, settings.backoff_base, settings.backoff_cap, limit
            ),
            resent,
        )

    def _give_up(self, key: Key, flight: Flight) -> None:
        untaken = Untaken(*key, flight.queue, flight.sends)
        self._sender.take_from_queue([key], lambda _: self._run.notices.append(untaken))


def _is_denied(error: DagsterTaskiqError) -> bool:
    return (getattr(error, "service_code", None) or "").startswith("AccessDenied")
