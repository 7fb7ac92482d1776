"""The executor's side of the protocol for one run: rows, messages, outcomes, sweeps.

Knows PostgreSQL and SQS through the C core and nothing of Dagster.  One thread drives it: requests go out without
waiting, :meth:`RunCoordinator.wait` blocks until something has happened and returns it as notices.

The way out: the row is committed, then the message is sent; a doubled message is harmless.  The way back: a NOTIFY,
and a slow poll for a NOTIFY that was lost.  What is lost on the way is found by sweeps: leases that ran out, and rows
in the queue whose message is gone."""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import logging
import math
import os
import random
import select
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from dagster_taskiq._core import Event, Loop, Operation, SqsClient
from dagster_taskiq.config import Settings
from dagster_taskiq.errors import (
    ConfigError,
    CredentialsError,
    DagsterTaskiqError,
    OperationTimeoutError,
    QueueMissingError,
    StoreError,
)
from dagster_taskiq.notices import Cancelling, Ended, Key, Notice, Refused, Rejected, Trouble, Unserved, Untaken
from dagster_taskiq.store import (
    TERMINAL_STATES,
    IdempotencyStore,
    Outcome,
    QueueDepth,
    Resend,
    RunRow,
    RunState,
    StepRow,
    Swept,
    run_application_name,
    run_channel,
    step_application_name,
)

log = logging.getLogger("dagster_taskiq.coordinator")

SLOW_POLL: Final = 5.0
"""Seconds; longest time that a lost NOTIFY can go unseen."""

SEND_BYTES: Final = 240 * 1024
"""Of one batch: SQS's limit is 1 MiB, 256 KiB on older endpoints."""

SEND_ENTRIES: Final = 10
MAX_VANISHED: Final = 5
"""Messages of one row that may vanish from its queue, no worker having claimed it, before it is given up: about 25
minutes with the default backoff."""

QUEUE_RETURN: Final = 600.0
"""Seconds for which a queue that was deleted under the run may be missing; then the run fails, naming it."""

DEAD_POLL: Final = 20.0
"""Seconds after a loss in which the dead worker's last long poll can still take a message and hide it."""

ECHO: Final = 1.0
"""Seconds after which a message that was sent in that time is sent once more."""

FIRST_RETRY: Final = 0.5
LAST_RETRY: Final = 15.0
FENCE_WAIT: Final = 5.0
FENCE_PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
LOG_GRACE: Final = 30.0
"""Seconds to wait where a lost step's connections cannot be ended, for its last statement to end by itself."""

CLEAR_GRACE: Final = 15.0
"""Seconds beyond a lease in which the end of a run waits for its last claims: stopping, sweeping, a slow poll."""

SUPERSEDED_STATUS: Final = 70

THROTTLING: Final = ("throttl", "limitexceeded", "overlimit", "toomanyrequests", "slowdown")
"""Parts of SQS's codes that ask for fewer requests; some implementations call that the sender's fault."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent for an attempt, and the parts (digest -> text) that must be in PostgreSQL before."""

    body: bytes
    parts: Mapping[str, str]


class MakeMessage(Protocol):
    def __call__(self, step_key: str, attempt: int) -> Message: ...


@dataclass(slots=True)
class _Flight:
    """An attempt between its row and its outcome."""

    queue: str
    since: float
    message_id: str | None = None
    sends: int = 0
    vanished: int = 0
    """How often it was sent again because the queue had fewer messages than rows."""


@dataclass(slots=True)
class _Batch:
    """Attempts on their way into rows and onto queues."""

    keys: list[Key]
    bodies: dict[Key, bytes]
    parts: dict[str, str]
    failures: int = 0


@dataclass(slots=True)
class _Queue:
    """What is known of a queue that this run uses."""

    name: str
    url: str | None
    """None while its name is being looked up."""
    next_look: float
    pause: float
    warned: bool = False
    countable: bool = True
    looking: bool = False
    missing_since: float | None = None
    """Since when SQS has said that it does not exist; infinitely long ago until SQS has once said that it does."""
    unsent: list[list[tuple[Key, bytes]]] = field(default_factory=list)
    """What waits for the URL."""


@dataclass(order=True, slots=True)
class _Timer:
    due: float
    number: int
    call: Callable[[], None] = field(compare=False)


def _superseded(run_id: str, generation: int) -> None:
    """Leave at once: an exception would make Dagster write the failure of a run that another run worker carries on."""
    print(
        f"dagster-taskiq: run {run_id}: coordinator generation {generation} is superseded; this run worker leaves.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(SUPERSEDED_STATUS)


class RunCoordinator:
    """See the module.  ``wake_fd``: a descriptor that becomes readable when a signal arrived; :meth:`wait` returns
    then."""

    def __init__(
        self,
        settings: Settings,
        run_id: str,
        *,
        loop: Loop,
        store: IdempotencyStore,
        sqs: SqsClient,
        make_message: MakeMessage,
        log_stores: Sequence[IdempotencyStore] = (),
        wake_fd: int | None = None,
        on_superseded: Callable[[str, int], None] = _superseded,
    ) -> None:
        self.settings = settings
        self.run_id = run_id
        self.generation = 0
        self._loop = loop
        self._store = store
        self._sqs = sqs
        self._make_message = make_message
        self._log_stores = list(log_stores) or [store]
        self._wake_fd = wake_fd
        self._on_superseded = on_superseded
        self._name = uuid.uuid4().hex
        self._beat_interval = min(settings.heartbeat_interval, settings.lease_ttl / 4, SLOW_POLL)
        self._operations: dict[Operation[Any], Callable[[Operation[Any]], None]] = {}
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self._notices: list[Notice] = []
        self._flights: dict[Key, _Flight] = {}
        self._queues: dict[str, _Queue] = {}
        self._stored_parts: set[str] = set()
        self._to_look: set[Key] = set()
        self._looking = False
        self._cancelling = False
        self._woken = False
        self._last_trouble = float("-inf")
        self._last_loss = float("-inf")

    # ---- the run's life ---------------------------------------------------------------------------------------------

    def begin(self) -> RunRow:
        """Become the run's coordinator, or take it over.  Blocks."""
        self._store.listen(run_channel(self.run_id)).result()
        lease = self.settings.lease_ttl
        row = self._store.begin_run(self.run_id, self._name, lease).result()
        while row.coordinator != self._name and row.state != "ended":
            taken = self._store.take_over_run(self.run_id, self._name, lease, row.generation).result()
            # None: another was quicker, or the run has ended meanwhile.
            row = taken or self._store.begin_run(self.run_id, self._name, lease).result()
        self.generation = row.generation
        self._schedule(self._beat_pause(), self._beat)
        return row

    def take_over(self, generations: Iterable[int]) -> list[StepRow]:
        """After :meth:`begin`: end what earlier coordinators have under way, then read the rows.

        All of them: the one before may have died before it had done so for its own predecessor."""
        self._end_backends([run_application_name(generation) for generation in generations])
        self._then(lambda: self._store.fenced_run(self.run_id, self.generation), lambda _: None)
        return self._store.steps(self.run_id).result()

    def leave_if_superseded(self) -> None:
        """Leave when another coordinator has taken over.  Blocks; for any thread."""
        row = self._store.get_run(self.run_id).result()
        if row is None or row.generation != self.generation:
            self._on_superseded(self.run_id, self.generation)

    def end(self) -> None:
        """Settle every row of the run: what is queued never starts, what is claimed is told to stop, and waited for
        (S5).  Also of a run that has ended already.  Blocks; never raises."""
        for pause in (0.2, 1.0, 5.0, None):
            try:
                ended = self._store.end_run(self.run_id, self.generation).result(timeout=10.0)
                if ended is None:
                    self._on_superseded(self.run_id, self.generation)
                else:
                    self._clear(ended.still_claimed)
                return
            except DagsterTaskiqError as error:
                log.warning("run %s: cannot settle the rows yet: %s", self.run_id, error)
                if pause is None:
                    return
                time.sleep(pause)

    def _clear(self, claims: Sequence[StepRow]) -> None:
        """Wait for claims of the run that has ended, until the last lease is past and swept.  A signal ends the wait:
        what is left then, a worker settles."""
        self._cancelling = True
        left = {(row.step_key, row.attempt) for row in claims}
        for row in claims:
            self._flights.setdefault((row.step_key, row.attempt), _Flight(row.queue, time.monotonic()))
        deadline = time.monotonic() + self.settings.lease_ttl + CLEAR_GRACE
        self._woken = False
        while (left := left & self._flights.keys()) and not self._woken and time.monotonic() < deadline:
            self._pump(self._pause(deadline))
        if left:
            log.warning("run %s has ended with claims that nobody has settled yet: %s", self.run_id, sorted(left))

    @property
    def in_flight(self) -> int:
        """Attempts that have no outcome yet."""
        return len(self._flights)

    # ---- the way out ------------------------------------------------------------------------------------------------

    def submit(self, attempts: Sequence[tuple[str, int, str]]) -> None:
        """Insert rows for (step key, attempt, queue), then send their messages."""
        now = time.monotonic()
        batch = _Batch([], {}, {})
        for step_key, attempt, queue in attempts:
            key = (step_key, attempt)
            self._flights[key] = _Flight(queue, now)
            self._queue(queue)
            self._add_to(batch, key)
        self._publish(batch)

    def adopt(self, row: StepRow) -> None:
        """Carry on with a row of a coordinator before this one, whatever its state."""
        key = (row.step_key, row.attempt)
        self._flights[key] = _Flight(row.queue, time.monotonic())
        if row.state == "queued":
            self._queue(row.queue)
            self._send_again([key])
        elif row.state in TERMINAL_STATES:
            self._look([key])

    def _add_to(self, batch: _Batch, key: Key) -> None:
        message = self._make_message(*key)
        batch.keys.append(key)
        batch.bodies[key] = message.body
        batch.parts.update((digest, text) for digest, text in message.parts.items() if digest not in self._stored_parts)

    def _publish(self, batch: _Batch) -> None:
        rows = [(*key, self._flights[key].queue) for key in batch.keys]
        operations: list[Operation[Any]] = [self._store.put_part(digest, text) for digest, text in batch.parts.items()]
        operations.append(self._store.enqueue(self.run_id, self.generation, rows))

        def published(results: list[Any]) -> None:
            self._stored_parts.update(batch.parts)
            inserted = set(map(tuple, results[-1]))
            absent = [key for key in batch.keys if key not in inserted]
            self._send([(key, batch.bodies[key]) for key in batch.keys if key in inserted])
            if absent:
                self._reconcile(absent)

        self._gather(operations, published, lambda: self._publish(batch), batch)

    def _reconcile(self, absent: list[Key]) -> None:
        """Rows that were not inserted: they exist already (a repeated insert), or the run takes no more."""

        def known(found: list[StepRow]) -> None:
            rows = {(row.step_key, row.attempt): row for row in found}
            for key in absent:
                row = rows.get(key)
                if row is None:
                    self._refused(key)
                elif row.state == "queued":
                    self._send_again([key])
                elif row.state in TERMINAL_STATES:
                    self._look([key])

        self._then(lambda: self._store.steps(self.run_id), known)

    def _refused(self, key: Key) -> None:
        """Only a run that is being cancelled, or another's, takes no row."""

        def known(state: RunState | None) -> None:
            if state == "active":
                raise StoreError(
                    f"the store takes no row for attempt {key[1]} of step {key[0]!r}: another attempt of it is alive"
                )
            self._renewed(state)
            if self._flights.pop(key, None) is not None:
                self._notices.append(Refused(*key))

        self._then(self._renewal, known)

    def _send_again(self, keys: Iterable[Key]) -> None:
        """One more message for rows that are there."""
        batch = _Batch([], {}, {})
        for key in keys:
            if key in self._flights:
                self._add_to(batch, key)
        if not batch.keys:
            return

        def stored(_: list[Any]) -> None:
            self._stored_parts.update(batch.parts)
            self._send(list(batch.bodies.items()))

        def again() -> None:
            self._gather(
                [self._store.put_part(digest, text) for digest, text in batch.parts.items()], stored, again, batch
            )

        again()

    def _send(self, messages: list[tuple[Key, bytes]]) -> None:
        by_queue: dict[str, list[tuple[Key, bytes]]] = defaultdict(list)
        for key, body in messages:
            if key in self._flights:
                by_queue[self._flights[key].queue].append((key, body))
        for queue, entries in by_queue.items():
            for chunk in _chunks(entries):
                self._send_chunk(self._queue(queue), chunk, 0)

    def _send_chunk(self, queue: _Queue, chunk: list[tuple[Key, bytes]], failures: int) -> None:
        if queue.url is None:
            queue.unsent.append(chunk)
            return
        entries = [self._entry(queue.url, key, body) for key, body in chunk]

        def failed(error: DagsterTaskiqError) -> None:
            self._trouble(f"cannot send to queue {queue.name!r}, trying again: {error}")
            self._send_later(queue, chunk, failures)

        self._ask_sqs(
            functools.partial(self._sqs.send, queue.url, entries),
            lambda results: self._chunk_sent(queue, chunk, results, failures),
            failed,
            functools.partial(_may_return, queue),
        )

    def _chunk_sent(
        self, queue: _Queue, chunk: list[tuple[Key, bytes]], results: list[dict[str, Any]], failures: int
    ) -> None:
        queue.missing_since = None
        again = []
        for (key, body), result in zip(chunk, results, strict=True):
            flight = self._flights.get(key)
            if flight is None:
                continue
            if result["ok"]:
                flight.message_id = result["message_id"]
                flight.sends += 1
                if flight.sends == 1 and time.monotonic() < self._last_loss + DEAD_POLL:
                    self._schedule(ECHO, functools.partial(self._send_again, [key]))
            elif result.get("sender_fault") and not _is_throttling(result.get("code")):
                self._reject(key, f"{result.get('code')}: {result.get('message')}")
            else:
                why = f"{result.get('code')}: {result.get('message')}"
                self._trouble(f"queue {queue.name!r} did not take a message, trying again: {why}")
                again.append((key, body))
        if again:
            self._send_later(queue, again, failures)

    def _send_later(self, queue: _Queue, chunk: list[tuple[Key, bytes]], failures: int) -> None:
        self._schedule(_retry_pause(failures), lambda: self._send_chunk(queue, chunk, failures + 1))

    def _entry(self, url: str, key: Key, body: bytes) -> dict[str, Any]:
        if url.endswith(".fifo"):
            return {"body": body, "group_id": f"{self.run_id}:{key[0]}"[:128], "deduplication_id": uuid.uuid4().hex}
        return {"body": body}

    def _reject(self, key: Key, reason: str) -> None:
        self._take_from_queue([key], lambda _: self._notices.append(Rejected(*key, reason)))

    def _take_from_queue(self, keys: list[Key], call: Callable[[tuple[Key, ...]], None]) -> None:
        """Cancel rows that still wait, and call ``call`` with those that no worker was quicker to take."""

        def cancelled(changed: list[Key]) -> None:
            taken = tuple(key for key in changed if self._flights.pop(key, None) is not None)
            if taken:
                call(taken)

        if keys:
            self._then(lambda: self._store.cancel_queued(self.run_id, self.generation, keys), cancelled)

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            given = self.settings.queue_url if name == self.settings.queue else None
            base = self.settings.backoff_base
            queue = _Queue(name, given, time.monotonic() + base, base, missing_since=float("-inf"))
            self._queues[name] = queue
            if given is None:
                self._look_up(queue)
            self._schedule(self._first_look(), lambda: self._look_at_queue(queue))
        return queue

    def _look_up(self, queue: _Queue, failures: int = 0) -> None:
        """Find the queue's URL, then send what has waited for it."""

        def found(answer: dict[str, Any]) -> None:
            queue.url = str(answer["QueueUrl"])
            queue.missing_since = None
            unsent, queue.unsent = queue.unsent, []
            for chunk in unsent:
                self._send_chunk(queue, chunk, 0)

        def failed(error: DagsterTaskiqError) -> None:
            self._trouble(f"cannot look up queue {queue.name!r}, trying again: {error}")
            self._schedule(_retry_pause(failures), lambda: self._look_up(queue, failures + 1))

        def passes(error: DagsterTaskiqError) -> bool:
            if isinstance(error, QueueMissingError):
                raise ConfigError(
                    f"there is no SQS queue {queue.name!r} in region and account of these settings ({error})."
                    f" Create it with `dagster-taskiq queue create {queue.name}`, or correct the settings `queue`,"
                    " `region` and `endpoint_url`."
                ) from error
            return _may_pass(error)

        ask = functools.partial(self._sqs.call, "GetQueueUrl", {"QueueName": queue.name})
        self._ask_sqs(ask, found, failed, passes)

    # ---- the way back -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> list[Notice]:
        """Block until there are notices, a signal arrived, or ``timeout`` seconds are over (0: only look; None: as
        long as it takes)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._pump(0.0 if self._notices or self._woken else self._pause(deadline))
            if self._notices:
                notices, self._notices = self._notices, []
                return notices
            woken, self._woken = self._woken, False
            if woken or (deadline is not None and time.monotonic() >= deadline):
                return []

    def poll(self) -> None:
        """Let what is under way go on, without waiting; notices, and that a signal arrived, are kept for
        :meth:`wait`."""
        self._pump(0.0)

    def _pause(self, deadline: float | None) -> float | None:
        moments = [moment for moment in (deadline, self._timers[0].due if self._timers else None) if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _pump(self, timeout: float | None) -> None:
        """Handle what the core has, wait for it up to ``timeout``, or until a signal arrives."""
        # poll: select refuses descriptors from 1024 on.
        watched = select.poll()
        watched.register(self._loop.fileno(), select.POLLIN)
        if self._wake_fd is not None:
            watched.register(self._wake_fd, select.POLLIN)
        ready = watched.poll(None if timeout is None else math.ceil(timeout * 1000))
        if self._wake_fd is not None and any(descriptor == self._wake_fd for descriptor, _ in ready):
            os.read(self._wake_fd, 4096)
            self._woken = True
        for item in self._loop.drain():
            if isinstance(item, Event):
                self._event(item)
            elif (call := self._operations.pop(item, None)) is not None:
                call(item)
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            heapq.heappop(self._timers).call()

    def _event(self, event: Event) -> None:
        if event.kind == "store_connected":
            self._look(self._flights)
        elif event.kind == "notification" and event.channel == run_channel(self.run_id):
            self._notified(_json_object(event.payload))

    def _notified(self, payload: dict[str, Any]) -> None:
        if "run_state" in payload:
            self._renew()
            return
        step_key, attempt, state = (payload.get(name) for name in ("step_key", "attempt", "state"))
        if not (isinstance(step_key, str) and isinstance(attempt, int)):
            self._look(self._flights)
            return
        key = (step_key, attempt)
        if key not in self._flights:
            return
        if state == "queued":
            self._back_in_queue([key])
        else:
            self._look([key])

    def _back_in_queue(self, keys: list[Key]) -> None:
        if self._cancelling:
            self._cancel_queued(keys)
        else:
            self._send_again(keys)

    def _look(self, keys: Iterable[Key]) -> None:
        """Read the outcomes of these attempts, as soon as the read before is back."""
        self._to_look.update(keys)
        if self._looking or not self._to_look:
            return
        wanted = list(self._to_look)
        self._to_look.clear()
        self._looking = True

        def looked(outcomes: list[Outcome]) -> None:
            self._looking = False
            for outcome in outcomes:
                key = (outcome.step_key, outcome.attempt)
                if outcome.state == "lost":
                    self._last_loss = time.monotonic()
                if (flight := self._flights.pop(key, None)) is not None:
                    self._notices.append(Ended(outcome, flight.queue, flight.message_id, flight.sends))
            self._look(())

        self._then(lambda: self._store.outcomes(self.run_id, wanted, terminal_only=True), looked)

    # ---- sweeps -----------------------------------------------------------------------------------------------------

    def _beat_pause(self) -> float:
        return self._beat_interval * random.uniform(0.8, 1.0)

    def _beat(self) -> None:
        """The one regular visit to PostgreSQL: own lease, leases that ran out, outcomes whose NOTIFY was lost."""
        self._schedule(self._beat_pause(), self._beat)
        self._renew()
        if not self._flights:
            return
        self._watch(self._store.sweep_lost(self.run_id, self.generation), self._swept, self._later)
        if self._cancelling:
            # What came into the queue after the last look: no sweep sends it again now.
            self._watch(self._store.cancel_queued(self.run_id, self.generation), self._look, self._later)
        self._look(self._flights)

    def _renew(self) -> None:
        self._watch(self._renewal(), self._renewed, self._later)

    def _renewal(self) -> Operation[RunState | None]:
        return self._store.renew_run(self.run_id, self.generation, self.settings.lease_ttl)

    def _renewed(self, state: RunState | None) -> None:
        if state is None:
            self._on_superseded(self.run_id, self.generation)
        elif state != "active" and not self._cancelling:
            self._cancelling = True
            self._notices.append(Cancelling())

    def _swept(self, swept: list[Swept]) -> None:
        self._look((row.step_key, row.attempt) for row in swept if row.state != "queued")
        queued = [(row.step_key, row.attempt) for row in swept if row.state == "queued"]
        if queued:
            self._back_in_queue(queued)

    def _first_look(self) -> float:
        settings = self.settings
        limits = (settings.backoff_base, settings.no_worker_warning, settings.no_worker_timeout)
        return min(limit for limit in limits if limit is not None)

    def _look_at_queue(self, queue: _Queue) -> None:
        """Whether anybody serves the queue, and whether messages are missing from it."""
        self._schedule(max(self._beat_pause(), self._first_look() / 2), lambda: self._look_at_queue(queue))
        oldest = min((flight.since for flight in self._flights.values() if flight.queue == queue.name), default=None)
        if oldest is None or queue.looking or self._cancelling or time.monotonic() - oldest < self._first_look():
            return
        queue.looking = True

        def depth_known(depth: QueueDepth) -> None:
            queue.looking = False
            if not depth.queued:
                queue.warned = False
                queue.pause = self.settings.backoff_base
                return
            self._judge_service(queue, depth)
            if queue.url is not None and time.monotonic() >= queue.next_look:
                queue.next_look = time.monotonic() + queue.pause
                queue.pause = min(queue.pause * 2, self.settings.backoff_cap)
                self._compare_with_queue(queue, depth)

        def failed(error: DagsterTaskiqError) -> None:
            queue.looking = False
            self._later(error)

        self._watch(self._store.queue_depth(queue.name), depth_known, failed)

    def _judge_service(self, queue: _Queue, depth: QueueDepth) -> None:
        if depth.workers:
            queue.warned = False
            return
        waited = depth.oldest_queued_age or 0.0
        limit = self.settings.no_worker_timeout
        if limit is not None and waited >= limit:
            self._take_back(queue, waited, limit)
        warning = self.settings.no_worker_warning
        if warning is not None and waited >= warning and not queue.warned:
            queue.warned = True
            self._notices.append(Unserved(queue.name, waited, depth.queued))

    def _take_back(self, queue: _Queue, waited: float, limit: float) -> None:
        now = time.monotonic()
        keys = [
            key for key, flight in self._flights.items() if flight.queue == queue.name and now - flight.since >= limit
        ]

        self._take_from_queue(keys, lambda taken: self._notices.append(Unserved(queue.name, waited, len(taken), taken)))

    def _compare_with_queue(self, queue: _Queue, depth: QueueDepth) -> None:
        names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ]

        def counted(answer: dict[str, Any]) -> None:
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
            return not queue.countable or _may_return(queue, error)

        def failed(error: DagsterTaskiqError) -> None:
            if queue.countable:
                self._later(error)
                return
            self._notices.append(
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
        self._ask_sqs(ask, counted, failed, passes)

    def _resend_by_time(self, queue: _Queue) -> None:
        if queue.pause >= self.settings.backoff_cap:
            self._resend(SEND_ENTRIES, vanished=False)

    def _resend(self, limit: int, *, vanished: bool) -> None:
        settings = self.settings

        def resent(rows: list[Resend]) -> None:
            again = []
            for key in ((row.step_key, row.attempt) for row in rows):
                flight = self._flights.get(key)
                if flight is None:
                    continue
                flight.vanished += vanished
                if flight.vanished > MAX_VANISHED:
                    self._give_up(key, flight)
                else:
                    again.append(key)
            self._send_again(again)

        self._then(
            lambda: self._store.resend(
                self.run_id, self.generation, settings.backoff_base, settings.backoff_cap, limit
            ),
            resent,
        )

    def _give_up(self, key: Key, flight: _Flight) -> None:
        untaken = Untaken(*key, flight.queue, flight.sends)
        self._take_from_queue([key], lambda _: self._notices.append(untaken))

    # ---- cancelling and fencing -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask for the run's end: queued attempts never start, running ones are stopped by their workers.  Their
        outcomes come as notices."""
        self._cancelling = True
        self._then(lambda: self._store.cancel_run(self.run_id), lambda _: None)
        self._cancel_queued(None)

    def _cancel_queued(self, keys: list[Key] | None) -> None:
        self._then(lambda: self._store.cancel_queued(self.run_id, self.generation, keys), self._look)

    def fence(self, generations: Iterable[int]) -> None:
        """End every connection that step processes of these generations have to Dagster's event log, and wait until
        they are gone.

        A dead process is not a dead statement: without this its last event could appear after we looked.  Blocks;
        heartbeats go on."""
        self._end_backends([step_application_name(generation) for generation in generations])
        self.is_active()

    def is_active(self) -> bool:
        """Whether nobody has asked for the run's end; leaves when superseded.  To be asked before deciding and writing
        how an attempt ended.  Blocks."""
        while True:
            try:
                state = self._renewal().result()
                self._renewed(state)
                return state == "active"
            except DagsterTaskiqError as error:
                if not _may_pass(error):
                    raise
                self._trouble(f"trying again: {error}")
                self.idle(FIRST_RETRY)

    def _end_backends(self, names: Iterable[str]) -> None:
        left = [(store, name) for name in names for store in self._log_stores]
        for pause in FENCE_PAUSES:
            self.idle(pause)
            troubles = [(store, name, self._trouble_of_ending(store, name)) for store, name in left]
            left = [(store, name) for store, name, trouble in troubles if trouble is not None]
            if not left:
                return
        stubborn = {name: trouble for _, name, trouble in troubles if trouble is not None}
        what = f"cannot end the database connections of {', '.join(stubborn)}, waiting {LOG_GRACE:g} s instead"
        self._trouble(f"{what}: {next(iter(stubborn.values()))}")
        self.idle(LOG_GRACE)

    def _trouble_of_ending(self, store: IdempotencyStore, application_name: str) -> str | None:
        """End the connections of that name; None: none is left."""
        try:
            left = store.end_backends(application_name, FENCE_WAIT).result(timeout=FENCE_WAIT + 10.0)
        except DagsterTaskiqError as error:
            return str(error)
        return "they are still there" if left else None

    def idle(self, seconds: float) -> None:
        """Let time pass; heartbeats go on."""
        deadline = time.monotonic() + seconds
        while (pause := deadline - time.monotonic()) > 0:
            due = self._pause(deadline)
            self._pump(pause if due is None else due)

    # ---- machinery --------------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, _Timer(time.monotonic() + seconds, next(self._numbers), call))

    def _watch(
        self,
        operation: Operation[Any],
        call: Callable[[Any], None],
        failed: Callable[[DagsterTaskiqError], None] | None = None,
        passes: Callable[[DagsterTaskiqError], bool] | None = None,
    ) -> None:
        """Have ``call`` called with the result when it is there, or ``failed`` with an error that may pass; another
        error ends the run."""
        may_pass = passes or _may_pass

        def done(finished: Operation[Any]) -> None:
            try:
                value = finished.result(0)
            except DagsterTaskiqError as error:
                if failed is None or not may_pass(error):
                    raise
                failed(error)
                return
            call(value)

        self._operations[operation] = done
        operation.watch()

    def _ask_sqs(
        self,
        start: Callable[[], Operation[Any]],
        call: Callable[[Any], None],
        failed: Callable[[DagsterTaskiqError], None],
        passes: Callable[[DagsterTaskiqError], bool],
    ) -> None:
        """As :meth:`_watch`.  Credentials that expire are renewed when a request is made; that this does not succeed
        may pass, unlike SQS's refusal of credentials."""
        try:
            operation = start()
        except CredentialsError as error:
            failed(error)
            return
        self._watch(operation, call, failed, passes)

    def _later(self, error: DagsterTaskiqError) -> None:
        """Of a visit that comes again by itself."""
        self._trouble(f"trying again: {error}")

    def _then(self, start: Callable[[], Operation[Any]], call: Callable[[Any], None], failures: int = 0) -> None:
        """Start an operation, as often as it takes, and have ``call`` called with its result."""

        def failed(error: DagsterTaskiqError) -> None:
            self._trouble(f"trying again: {error}")
            self._schedule(_retry_pause(failures), lambda: self._then(start, call, failures + 1))

        self._watch(start(), call, failed)

    def _gather(
        self,
        operations: list[Operation[Any]],
        call: Callable[[list[Any]], None],
        again: Callable[[], None],
        batch: _Batch,
    ) -> None:
        """Have ``call`` called with the results when all are there, or ``again`` a little later when one may still
        succeed."""
        results: dict[int, Any] = {}
        errors: list[DagsterTaskiqError] = []

        def one_done() -> None:
            if len(results) + len(errors) < len(operations):
                return
            if not errors:
                call([results[number] for number in range(len(operations))])
                return
            self._trouble(f"trying again: {errors[0]}")
            batch.failures += 1
            self._schedule(_retry_pause(batch.failures), again)

        def watch(number: int) -> None:
            def succeeded(value: Any) -> None:
                results[number] = value
                one_done()

            def failed(error: DagsterTaskiqError) -> None:
                errors.append(error)
                one_done()

            self._watch(operations[number], succeeded, failed)

        if not operations:
            call([])
        for number in range(len(operations)):
            watch(number)

    def _trouble(self, message: str) -> None:
        log.warning("run %s: %s", self.run_id, message)
        now = time.monotonic()
        if now - self._last_trouble >= 60.0:
            self._last_trouble = now
            self._notices.append(Trouble(message))


def _json_object(text: str | None) -> dict[str, Any]:
    """A notification's payload; empty when it is nothing of ours: anybody may send one."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _may_pass(error: DagsterTaskiqError) -> bool:
    """Whether the same call can succeed a little later."""
    return bool(getattr(error, "retryable", False)) or isinstance(error, OperationTimeoutError)


def _is_denied(error: DagsterTaskiqError) -> bool:
    return (getattr(error, "service_code", None) or "").startswith("AccessDenied")


def _is_throttling(code: str | None) -> bool:
    return any(part in (code or "").lower() for part in THROTTLING)


def _may_return(queue: _Queue, error: DagsterTaskiqError) -> bool:
    """Also of a queue that was there and has been deleted: it may be about to be made again."""
    if not isinstance(error, QueueMissingError):
        return _may_pass(error)
    now = time.monotonic()
    if queue.missing_since is None:
        queue.missing_since = now
    return now - queue.missing_since < QUEUE_RETURN


def _retry_pause(failures: int) -> float:
    """Capped exponential backoff with full jitter."""
    return random.uniform(0.0, min(FIRST_RETRY * 2.0 ** min(failures, 16), LAST_RETRY)) + 0.05


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
