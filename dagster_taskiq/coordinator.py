"""The executor's side of the protocol for one run: rows, messages, outcomes, sweeps.

Knows PostgreSQL and SQS through the C core and nothing of Dagster.  One thread drives it: requests go out without
waiting, :meth:`RunCoordinator.wait` blocks until something has happened and returns it as notices.

The way out is in ``sender``: the row is committed, then the message is sent; a doubled message is harmless.  The way
back is here: a NOTIFY, and a slow poll for a NOTIFY that was lost.  What is lost on the way is found by sweeps: leases
that ran out here, rows in the queue whose message is gone in ``queue_watch``."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from dagster_taskiq._core import Event, Loop, Operation, SqsClient
from dagster_taskiq.config import Settings
from dagster_taskiq.errors import DagsterTaskiqError, StoreError
from dagster_taskiq.flights import Flight, RunInFlight
from dagster_taskiq.notices import Cancelling, Ended, Key, Notice, Progressed, Refused
from dagster_taskiq.queue_watch import QueueWatch
from dagster_taskiq.refusals import Refusals
from dagster_taskiq.requests import FIRST_RETRY, Requests, may_pass
from dagster_taskiq.sender import MakeMessage, Sender
from dagster_taskiq.store import (
    IdempotencyStore,
    Outcome,
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

OUTPUT_POLL: Final = 15.0
"""Seconds; the same for an output of a step that goes on, which is looked for in Dagster's log."""

FENCE_WAIT: Final = 5.0
FENCE_PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
LOG_GRACE: Final = 30.0
"""Seconds to wait where a lost step's connections cannot be ended, for its last statement to end by itself."""

CLEAR_GRACE: Final = 15.0
"""Seconds beyond a lease in which the end of a run waits for its last claims: stopping, sweeping, a slow poll."""

SUPERSEDED_STATUS: Final = 70


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
    then.  ``live_outputs``: say when attempts that go on may have given outputs."""

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
        live_outputs: bool = False,
    ) -> None:
        run = self._run = RunInFlight(run_id, settings)
        self._store = store
        self._log_stores = list(log_stores) or [store]
        self._on_superseded = on_superseded
        self._name = uuid.uuid4().hex
        self._beat_interval = min(settings.heartbeat_interval, settings.lease_ttl / 4, SLOW_POLL)
        self._next_output_poll = time.monotonic() + OUTPUT_POLL if live_outputs else math.inf
        self._to_look: set[Key] = set()
        self._unwanted: set[Key] = set()
        self._looking = False
        requests = self._requests = Requests(loop, self._event, run.trouble, wake_fd)
        self._refusals = Refusals(run)
        self._sender = Sender(
            run,
            requests,
            store,
            sqs,
            make_message,
            on_queue=lambda queue: self._queue_watch.begin(queue),
            on_settled=self._look,
            on_refused=self._refused,
            on_sent=self._refusals.sent,
        )
        self._queue_watch = QueueWatch(run, requests, store, sqs, self._sender, self._beat_pause)

    # ---- the run's life ---------------------------------------------------------------------------------------------

    def begin(self) -> RunRow:
        """Become the run's coordinator, or take it over.  Blocks."""
        self._store.listen(run_channel(self._run.id)).result()
        lease = self._run.settings.lease_ttl
        row = self._store.begin_run(self._run.id, self._name, lease).result()
        while row.coordinator != self._name and row.state != "ended":
            taken = self._store.take_over_run(self._run.id, self._name, lease, row.generation).result()
            # None: another was quicker, or the run has ended meanwhile.
            row = taken or self._store.begin_run(self._run.id, self._name, lease).result()
        self._run.generation = row.generation
        self._requests.schedule(self._beat_pause(), self._beat)
        return row

    def take_over(self, generations: Iterable[int]) -> list[StepRow]:
        """After :meth:`begin`: end what earlier coordinators have under way, then read the rows.

        All of them: the one before may have died before it had done so for its own predecessor."""
        self._end_backends([run_application_name(generation) for generation in generations])
        self._requests.then(lambda: self._store.fenced_run(self._run.id, self._run.generation), lambda _: None)
        return self._store.steps(self._run.id).result()

    def leave_if_superseded(self) -> None:
        """Leave when another coordinator has taken over.  Blocks; for any thread."""
        row = self._store.get_run(self._run.id).result()
        if row is None or row.generation != self._run.generation:
            self._on_superseded(self._run.id, self._run.generation)

    def end(self) -> None:
        """Settle every row of the run: what is queued never starts, what is claimed is told to stop, and waited for
        (S5).  Also of a run that has ended already.  Blocks; never raises."""
        for pause in (0.2, 1.0, 5.0, None):
            try:
                ended = self._store.end_run(self._run.id, self._run.generation).result(timeout=10.0)
                if ended is None:
                    self._on_superseded(self._run.id, self._run.generation)
                else:
                    self._clear(ended.still_claimed)
                return
            except DagsterTaskiqError as error:
                log.warning("run %s: cannot settle the rows yet: %s", self._run.id, error)
                if pause is None:
                    return
                time.sleep(pause)

    def _clear(self, claims: Sequence[StepRow]) -> None:
        """Wait for claims of the run that has ended, until the last lease is past and swept.  A signal ends the wait:
        what is left then, a worker settles."""
        self._run.cancelling = True
        left = {(row.step_key, row.attempt) for row in claims}
        for row in claims:
            self._run.flights.setdefault((row.step_key, row.attempt), Flight(row.queue, time.monotonic()))
        deadline = time.monotonic() + self._run.settings.lease_ttl + CLEAR_GRACE
        self._requests.woken = False
        while (left := left & self._run.flights.keys()) and not self._requests.woken and time.monotonic() < deadline:
            self._requests.pump(self._requests.pause(deadline))
        if left:
            log.warning("run %s has ended with claims that nobody has settled yet: %s", self._run.id, sorted(left))

    @property
    def in_flight(self) -> int:
        """Attempts that have no outcome yet."""
        return len(self._run.flights)

    @property
    def generation(self) -> int:
        """Of this coordinator; 0 before :meth:`begin`."""
        return self._run.generation

    # ---- the way out ------------------------------------------------------------------------------------------------

    def submit(self, attempts: Sequence[tuple[str, int, str]], *, held: bool = False) -> None:
        """Insert rows for (step key, attempt, queue), then send their messages; ``held``: after :meth:`release`."""
        self._sender.submit(attempts, held=held)

    def release(self, keys: Iterable[Key]) -> None:
        """Attempts that were held may be sent."""
        self._sender.release(keys)

    def send_out(self, patience: float) -> None:
        """Go on until every message has been handed to SQS's client; at most ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while self._sender.under_way and (left := deadline - time.monotonic()) > 0:
            self._requests.pump(left)

    def adopt(self, row: StepRow) -> None:
        """Carry on with a row of a coordinator before this one, whatever its state."""
        self._sender.adopt(row)

    def _refused(self, key: Key) -> None:
        """Only a run that is being cancelled, or another's, takes no row."""

        def known(state: RunState | None) -> None:
            if state == "active":
                raise StoreError(
                    f"the store takes no row for attempt {key[1]} of step {key[0]!r}: another attempt of it is alive"
                )
            self._renewed(state)
            if self._run.flights.pop(key, None) is not None:
                self._run.notices.append(Refused(*key))

        self._requests.then(self._renewal, known)

    # ---- the way back -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> list[Notice]:
        """Block until there are notices, a signal arrived, or ``timeout`` seconds are over (0: only look; None: as
        long as it takes)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._requests.pump(0.0 if self._run.notices or self._requests.woken else self._requests.pause(deadline))
            if self._run.notices:
                notices, self._run.notices = self._run.notices, []
                return notices
            woken, self._requests.woken = self._requests.woken, False
            if woken or (deadline is not None and time.monotonic() >= deadline):
                return []

    def poll(self) -> None:
        """Let what is under way go on, without waiting; notices, and that a signal arrived, are kept for
        :meth:`wait`."""
        self._requests.pump(0.0)

    def _event(self, event: Event) -> None:
        if event.kind == "store_connected":
            self._look_at_all()
        elif event.kind == "notification" and event.channel == run_channel(self._run.id):
            self._notified(_json_object(event.payload))
        elif event.kind == "notification":
            self._refusals.heard(_json_object(event.payload))

    def _notified(self, payload: dict[str, Any]) -> None:
        if "run_state" in payload:
            self._renew()
            return
        step_key, attempt, state = (payload.get(name) for name in ("step_key", "attempt", "state"))
        if not (isinstance(step_key, str) and isinstance(attempt, int)):
            self._look_at_all()
            return
        key = (step_key, attempt)
        if key not in self._run.flights:
            return
        if state == "queued":
            self._back_in_queue([key])
        elif state == "claimed":
            self._run.notices.append(Progressed((key,)))
        else:
            self._look([key])

    def _look_at_all(self) -> None:
        """Notifications may have gone by."""
        self._look(self._run.flights)
        self._poll_outputs()

    def _poll_outputs(self) -> None:
        if self._next_output_poll < math.inf and self._run.flights:
            self._next_output_poll = time.monotonic() + OUTPUT_POLL
            self._run.notices.append(Progressed(tuple(self._run.flights)))

    def _back_in_queue(self, keys: list[Key]) -> None:
        unwanted = [key for key in keys if self._run.cancelling or key in self._unwanted]
        if unwanted:
            self._cancel_queued(unwanted)
        self._sender.send_again([key for key in keys if key not in unwanted])

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
                    self._run.last_loss = time.monotonic()
                if (flight := self._run.flights.pop(key, None)) is not None:
                    self._run.notices.append(Ended(outcome, flight.queue, flight.message_id, flight.sends))
            self._look(())

        self._requests.then(lambda: self._store.outcomes(self._run.id, wanted, terminal_only=True), looked)

    # ---- sweeps -----------------------------------------------------------------------------------------------------

    def _beat_pause(self) -> float:
        return self._beat_interval * random.uniform(0.8, 1.0)

    def _beat(self) -> None:
        """The one regular visit to PostgreSQL: own lease, leases that ran out, outcomes whose NOTIFY was lost."""
        self._requests.schedule(self._beat_pause(), self._beat)
        self._renew()
        if not self._run.flights:
            return
        self._requests.watch(
            self._store.sweep_lost(self._run.id, self._run.generation), self._swept, self._requests.later
        )
        if self._run.cancelling:
            # What came into the queue after the last look: no sweep sends it again now.
            self._requests.watch(
                self._store.cancel_queued(self._run.id, self._run.generation), self._look, self._requests.later
            )
        self._look(self._run.flights)
        if unwanted := self._unwanted & self._run.flights.keys():
            # A row that was inserted late, or came back into the queue.
            self.cancel_attempts(unwanted)
        if time.monotonic() >= self._next_output_poll:
            self._poll_outputs()

    def _renew(self) -> None:
        self._requests.watch(self._renewal(), self._renewed, self._requests.later)

    def _renewal(self) -> Operation[RunState | None]:
        return self._store.renew_run(self._run.id, self._run.generation, self._run.settings.lease_ttl)

    def _renewed(self, state: RunState | None) -> None:
        if state is None:
            self._on_superseded(self._run.id, self._run.generation)
        elif state != "active" and not self._run.cancelling:
            self._run.cancelling = True
            self._run.notices.append(Cancelling())

    def _swept(self, swept: list[Swept]) -> None:
        self._look((row.step_key, row.attempt) for row in swept if row.state != "queued")
        queued = [(row.step_key, row.attempt) for row in swept if row.state == "queued"]
        if queued:
            self._back_in_queue(queued)

    # ---- cancelling and fencing -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask for the run's end: queued attempts never start, running ones are stopped by their workers.  Their
        outcomes come as notices."""
        self._run.cancelling = True
        self._requests.then(lambda: self._store.cancel_run(self._run.id), lambda _: None)
        self._cancel_queued(None)

    def cancel_attempts(self, keys: Iterable[Key]) -> None:
        """The same for some attempts only; the run goes on."""
        unwanted = list(keys)
        self._unwanted.update(unwanted)
        self._requests.then(
            lambda: self._store.request_cancel(self._run.id, self._run.generation, unwanted), lambda _: None
        )
        self._cancel_queued(unwanted)

    def _cancel_queued(self, keys: list[Key] | None) -> None:
        self._requests.then(lambda: self._store.cancel_queued(self._run.id, self._run.generation, keys), self._look)

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
                if not may_pass(error):
                    raise
                self._run.trouble(f"trying again: {error}")
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
        self._run.trouble(f"{what}: {next(iter(stubborn.values()))}")
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
        self._requests.idle(seconds)


def _json_object(text: str | None) -> dict[str, Any]:
    """A notification's payload; empty when it is nothing of ours: anybody may send one."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
