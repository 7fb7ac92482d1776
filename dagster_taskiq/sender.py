"""The way out: the row is committed, then the message is sent; a doubled message is harmless."""

from __future__ import annotations

import functools
import hashlib
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from dagster_taskiq._core import Operation, SqsClient
from dagster_taskiq.errors import ConfigError, DagsterTaskiqError, QueueMissingError
from dagster_taskiq.flights import Flight, RunInFlight
from dagster_taskiq.notices import Key, Rejected
from dagster_taskiq.requests import Requests, may_pass, retry_pause
from dagster_taskiq.store import TERMINAL_STATES, IdempotencyStore, StepRow

SEND_BYTES: Final = 240 * 1024
"""Of one batch: SQS's limit is 1 MiB, 256 KiB on older endpoints."""

SEND_ENTRIES: Final = 10
QUEUE_RETURN: Final = 600.0
"""Seconds for which a queue that was deleted under the run may be missing; then the run fails, naming it."""

GROUP_ID: Final = re.compile("[!-~]{1,128}")

DEAD_POLL: Final = 20.0
"""Seconds after a loss in which the dead worker's last long poll can still take a message and hide it."""

ECHO: Final = 1.0
"""Seconds after which a message that was sent in that time is sent once more."""

THROTTLING: Final = ("throttl", "limitexceeded", "overlimit", "toomanyrequests", "slowdown")
"""Parts of SQS's codes that ask for fewer requests; some implementations call that the sender's fault."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent for an attempt, and the parts (digest -> text) that must be in PostgreSQL before."""

    body: bytes
    parts: Mapping[str, str]
    group: str | None = None
    """On a FIFO queue: messages of one group are taken one after the other.  None: the attempt's own."""


class MakeMessage(Protocol):
    def __call__(self, step_key: str, attempt: int) -> Message: ...


@dataclass(slots=True)
class Batch:
    """Attempts on their way into rows and onto queues."""

    keys: list[Key]
    bodies: dict[Key, bytes] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    failures: int = 0


@dataclass(slots=True)
class Queue:
    """What is known of a queue that this run uses."""

    name: str
    url: str | None
    """None while its name is being looked up."""
    next_look: float
    pause: float
    warned: bool = False
    unserved_since: float | None = None
    """Since which look no worker has served it; None: one did, or nobody has looked."""
    countable: bool = True
    looking: bool = False
    missing_since: float | None = None
    """Since when SQS has said that it does not exist; infinitely long ago until SQS has once said that it does."""
    unsent: list[list[tuple[Key, bytes]]] = field(default_factory=list)
    """What waits for the URL."""


class Sender:
    """``on_queue``: called with each queue that the run uses, once.  ``on_settled``: called with attempts whose rows
    turn out to be terminal.  ``on_refused``: called with an attempt that got no row.  ``on_sent``: called with the id
    of each message that SQS has taken."""

    def __init__(
        self,
        run: RunInFlight,
        requests: Requests,
        store: IdempotencyStore,
        sqs: SqsClient,
        make_message: MakeMessage,
        *,
        on_queue: Callable[[Queue], None],
        on_settled: Callable[[list[Key]], None],
        on_refused: Callable[[Key], None],
        on_sent: Callable[[Key, str], None],
    ) -> None:
        self._run = run
        self._requests = requests
        self._store = store
        self._sqs = sqs
        self._make_message = make_message
        self._on_queue = on_queue
        self._on_settled = on_settled
        self._on_refused = on_refused
        self._on_sent = on_sent
        self._queues: dict[str, Queue] = {}
        self._stored_parts: set[str] = set()
        self._held: dict[Key, bytes] = {}
        self.under_way = 0
        """Batches whose rows are not in the store yet."""

    def submit(self, attempts: Sequence[tuple[str, int, str]], *, held: bool = False) -> None:
        """Insert rows for (step key, attempt, queue), then send their messages; those that are held, after
        :meth:`release`."""
        now = time.monotonic()
        batch = Batch([(step_key, attempt) for step_key, attempt, _ in attempts])
        for step_key, attempt, queue in attempts:
            self._run.flights[(step_key, attempt)] = Flight(queue, now, held=held)
            self._queue(queue)
        self.under_way += 1
        self._publish(batch)

    def release(self, keys: Iterable[Key]) -> None:
        """Their messages may go."""
        ready = []
        for key in keys:
            if (flight := self._run.flights.get(key)) is not None:
                flight.held = False
            if (body := self._held.pop(key, None)) is not None:
                ready.append((key, body))
        self._send(ready)

    def adopt(self, row: StepRow) -> None:
        """Carry on with a row of a coordinator before this one, whatever its state."""
        key = (row.step_key, row.attempt)
        self._run.flights[key] = Flight(row.queue, time.monotonic())
        if row.state == "queued":
            self._queue(row.queue)
            self.send_again([key])
        elif row.state in TERMINAL_STATES:
            self._on_settled([key])

    def send_again(self, keys: Iterable[Key]) -> None:
        """One more message for rows that are there."""
        batch = Batch([key for key in keys if key in self._run.flights])
        for key in batch.keys:
            self._add_to(batch, key)
        if not batch.keys:
            return

        def stored(_: list[Any]) -> None:
            self._stored_parts.update(batch.parts)
            self._send(list(batch.bodies.items()))

        def store() -> None:
            puts = [self._store.put_part(digest, text) for digest, text in batch.parts.items()]
            self._requests.gather(puts, stored, again, batch.failures)

        def again() -> None:
            batch.failures += 1
            store()

        store()

    def take_from_queue(self, keys: list[Key], call: Callable[[tuple[Key, ...]], None]) -> None:
        """Cancel rows that still wait, and call ``call`` with those that no worker was quicker to take."""

        def cancelled(changed: list[Key]) -> None:
            taken = tuple(key for key in changed if self._run.flights.pop(key, None) is not None)
            if taken:
                call(taken)

        if keys:
            self._requests.then(lambda: self._store.cancel_queued(self._run.id, self._run.generation, keys), cancelled)

    def _add_to(self, batch: Batch, key: Key) -> None:
        message = self._make_message(*key)
        self._run.flights[key].group = message.group
        batch.bodies[key] = message.body
        batch.parts.update((digest, text) for digest, text in message.parts.items() if digest not in self._stored_parts)

    def _publish(self, batch: Batch) -> None:
        rows = [(*key, self._run.flights[key].queue) for key in batch.keys]
        operations: list[Operation[Any]] = [self._store.enqueue(self._run.id, self._run.generation, rows)]
        # The messages are made while the rows are on their way.
        for key in batch.keys:
            if key not in batch.bodies:
                self._add_to(batch, key)
        operations += [self._store.put_part(digest, text) for digest, text in batch.parts.items()]

        def published(results: list[Any]) -> None:
            self.under_way -= 1
            self._stored_parts.update(batch.parts)
            inserted = set(map(tuple, results[0]))
            absent = [key for key in batch.keys if key not in inserted]
            self._send([(key, batch.bodies[key]) for key in batch.keys if key in inserted])
            if absent:
                self._reconcile(absent)

        def again() -> None:
            batch.failures += 1
            self._publish(batch)

        self._requests.gather(operations, published, again, batch.failures)

    def _reconcile(self, absent: list[Key]) -> None:
        """Rows that were not inserted: they exist already (a repeated insert), or the run takes no more."""

        def known(found: list[StepRow]) -> None:
            rows = {(row.step_key, row.attempt): row for row in found}
            for key in absent:
                row = rows.get(key)
                if row is None:
                    self._on_refused(key)
                elif row.state == "queued":
                    self.send_again([key])
                elif row.state in TERMINAL_STATES:
                    self._on_settled([key])

        self._requests.then(lambda: self._store.steps(self._run.id), known)

    def _send(self, messages: list[tuple[Key, bytes]]) -> None:
        by_queue: dict[str, list[tuple[Key, bytes]]] = defaultdict(list)
        for key, body in messages:
            flight = self._run.flights.get(key)
            if flight is None:
                continue
            if flight.held:
                self._held[key] = body
            else:
                by_queue[flight.queue].append((key, body))
        for queue, entries in by_queue.items():
            for chunk in _chunks(entries):
                self._send_chunk(self._queue(queue), chunk, 0)

    def _send_chunk(self, queue: Queue, chunk: list[tuple[Key, bytes]], failures: int) -> None:
        if queue.url is None:
            queue.unsent.append(chunk)
            return
        entries = [self._entry(queue.url, key, body) for key, body in chunk]

        def failed(error: DagsterTaskiqError) -> None:
            self._run.trouble(f"cannot send to queue {queue.name!r}, trying again: {error}")
            self._send_later(queue, chunk, failures)

        self._requests.ask_sqs(
            functools.partial(self._sqs.send, queue.url, entries),
            lambda results: self._chunk_sent(queue, chunk, results, failures),
            failed,
            functools.partial(may_return, queue),
        )

    def _chunk_sent(
        self, queue: Queue, chunk: list[tuple[Key, bytes]], results: list[dict[str, Any]], failures: int
    ) -> None:
        queue.missing_since = None
        again = []
        for (key, body), result in zip(chunk, results, strict=True):
            flight = self._run.flights.get(key)
            if flight is None:
                continue
            if result["ok"]:
                flight.message_id = result["message_id"]
                self._on_sent(key, result["message_id"])
                flight.sends += 1
                if flight.sends == 1 and time.monotonic() < self._run.last_loss + DEAD_POLL:
                    self._requests.schedule(ECHO, functools.partial(self.send_again, [key]))
            elif result.get("sender_fault") and not _is_throttling(result.get("code")):
                self._reject(key, f"{result.get('code')}: {result.get('message')}")
            else:
                why = f"{result.get('code')}: {result.get('message')}"
                self._run.trouble(f"queue {queue.name!r} did not take a message, trying again: {why}")
                again.append((key, body))
        if again:
            self._send_later(queue, again, failures)

    def _send_later(self, queue: Queue, chunk: list[tuple[Key, bytes]], failures: int) -> None:
        self._requests.schedule(retry_pause(failures), lambda: self._send_chunk(queue, chunk, failures + 1))

    def _entry(self, url: str, key: Key, body: bytes) -> dict[str, Any]:
        if not url.endswith(".fifo"):
            return {"body": body}
        flight = self._run.flights.get(key)
        group = flight.group if flight is not None else None
        # Each sending counts: the copy of a message that is lost must not be taken for a doubled one.
        return {
            "body": body,
            "group_id": _group_id(group or f"{self._run.id}:{key[0]}"),
            "deduplication_id": uuid.uuid4().hex,
        }

    def _reject(self, key: Key, reason: str) -> None:
        self.take_from_queue([key], lambda _: self._run.notices.append(Rejected(*key, reason)))

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            given = self._run.settings.queue_url if name == self._run.settings.queue else None
            base = self._run.settings.backoff_base
            queue = Queue(name, given, time.monotonic() + base, base, missing_since=float("-inf"))
            self._queues[name] = queue
            if given is None:
                self._look_up(queue)
            self._on_queue(queue)
        return queue

    def _look_up(self, queue: Queue, failures: int = 0) -> None:
        """Find the queue's URL, then send what has waited for it."""

        def found(answer: dict[str, Any]) -> None:
            queue.url = str(answer["QueueUrl"])
            queue.missing_since = None
            unsent, queue.unsent = queue.unsent, []
            for chunk in unsent:
                self._send_chunk(queue, chunk, 0)

        def failed(error: DagsterTaskiqError) -> None:
            self._run.trouble(f"cannot look up queue {queue.name!r}, trying again: {error}")
            self._requests.schedule(retry_pause(failures), lambda: self._look_up(queue, failures + 1))

        def passes(error: DagsterTaskiqError) -> bool:
            if isinstance(error, QueueMissingError):
                raise ConfigError(
                    f"there is no SQS queue {queue.name!r} in region and account of these settings ({error})."
                    f" Create it with `dagster-taskiq queue create {queue.name}`, or correct the settings `queue`,"
                    " `region` and `endpoint_url`."
                ) from error
            return may_pass(error)

        ask = functools.partial(self._sqs.call, "GetQueueUrl", {"QueueName": queue.name})
        self._requests.ask_sqs(ask, found, failed, passes)


def _group_id(group: str) -> str:
    """As SQS takes it: up to 128 letters, digits and signs of ASCII."""
    return group if GROUP_ID.fullmatch(group) else hashlib.sha256(group.encode()).hexdigest()


def _is_throttling(code: str | None) -> bool:
    return any(part in (code or "").lower() for part in THROTTLING)


def may_return(queue: Queue, error: DagsterTaskiqError) -> bool:
    """Also of a queue that was there and has been deleted: it may be about to be made again."""
    if not isinstance(error, QueueMissingError):
        return may_pass(error)
    now = time.monotonic()
    if queue.missing_since is None:
        queue.missing_since = now
    return now - queue.missing_since < QUEUE_RETURN


def _chunks(entries: list[tuple[Key, bytes]]) -> Iterable[list[tuple[Key, bytes]]]:
    """Groups that fit into one SendMessageBatch."""
    chunk: list[tuple[Key, bytes]] = []
    size = 0
    for key, body in entries:
        if chunk and (len(chunk) == SEND_ENTRIES or size + len(body) > SEND_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, body))
        size += len(body)
    if chunk:
        yield chunk
