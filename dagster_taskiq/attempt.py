"""One claimed step attempt in a worker: from the claim to the deletion of its message.

The order of things, each only after the one before has succeeded: claim (done by the caller), heartbeat and fence,
arguments, step process (it waits), ``started_at``, "go", the step's last word, its death and reaping, the completion
row, the end of the heartbeat, DeleteMessage (by then the slot is free).  A success is written at the last word already:
nothing follows but that the kernel takes the process apart, which the steps after it need not wait for.  Whatever cuts
this short leaves a row that somebody can settle: not started → handed back; started and dead → its outcome, or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from dagster_taskiq import _core
from dagster_taskiq.config import margin_of
from dagster_taskiq.endings import RUN_WORKER, State, judge, terminal_of
from dagster_taskiq.errors import CoreError, OperationTimeoutError, StoreError, WarmParentError
from dagster_taskiq.logs import fields
from dagster_taskiq.memory import OomKills, oom_kills
from dagster_taskiq.payload import EXECUTE_STEP, INSTANCE_REF, JOB_ORIGIN, StepTask, command_args, part_text
from dagster_taskiq.processes import WarmParentHandle, WarmParents
from dagster_taskiq.step_handle import Exit, StepProcess
from dagster_taskiq.store import IdempotencyStore, step_application_name

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SOON = 5
"""Seconds until a delivery is seen again that could not be dealt with now."""

STEP_TRIES = 2
"""Warm parents that are asked for a step process, when the one before dies meanwhile."""

RUN_WORKER_GRACE = 30.0
"""Seconds that a run worker has beyond the grace of a step: its own steps are stopped meanwhile."""

VISIBILITY_MAX = 43_200
"""Seconds from its receipt for which SQS hides a message at most."""

_PROGRESS = ("STEP_OUTPUT", "HANDLED_OUTPUT", "ASSET_MATERIALIZATION", "ASSET_OBSERVATION")
"""Events after which an output may be there for other steps."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One receipt of a message.  ``received_ns``: boot clock."""

    queue: str
    queue_url: str
    message_id: str
    receipt_handle: str
    body: bytes
    receive_count: int
    received_ns: int


class Host(Protocol):
    """What an attempt needs of its worker."""

    identity: str
    name: str
    hostname: str
    store: IdempotencyStore
    parents: WarmParents
    board: _core.FenceBoard
    beat: _core.Beat
    cancel_grace: float

    def has_room(self) -> bool: ...
    def in_background(self, work: Coroutine[Any, Any, None]) -> None: ...
    async def parts(self, digests: Sequence[str]) -> Mapping[str, str]: ...
    async def delete(self, delivery: Delivery) -> None: ...
    async def hide(self, delivery: Delivery, seconds: float) -> None: ...


class _Interrupted(Exception):
    """The attempt must not start."""


class Attempt:
    """See the module.  :meth:`run` does it all; the other methods may be called from event callbacks meanwhile."""

    def __init__(
        self, host: Host, delivery: Delivery, task: StepTask, generation: int, claimed_ns: int, slot: int
    ) -> None:
        self.generation = generation
        self.key = (task.run_id, task.step_key, task.attempt)
        self._host = host
        self._delivery = delivery
        self._task = task
        self._claimed_ns = claimed_ns
        self._slot = slot
        self._parent: WarmParentHandle | None = None
        self._step: StepProcess | None = None
        self._running = False
        self._dead = False
        self._settled = False
        self._cancelled = False
        self._overdue = False
        self._lost: str | None = None
        self._lease_over = False
        self._progress: asyncio.Task[None] | None = None
        self._more_progress = False
        self._interrupt = asyncio.Event()
        self._oom_kills = OomKills(None, None)
        self._about = fields(
            run_id=task.run_id,
            step_key=task.step_key,
            attempt=task.attempt,
            message_id=delivery.message_id,
            deliveries=delivery.receive_count,
            generation=generation,
        )

    # ---- orders from outside ----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Somebody no longer wants it.  A running step gets SIGTERM, and SIGKILL after the grace."""
        if self._cancelled or self._dead or self._settled:
            return
        self._cancelled = True
        self._interrupt.set()
        if self._running and self._step is not None:
            logger.info("cancelling the step", extra=self._about)
            self._step.signal(signal.SIGTERM)
            more = 0.0 if self._task.command == EXECUTE_STEP else RUN_WORKER_GRACE
            asyncio.get_running_loop().call_later(self._host.cancel_grace + more, self._kill)

    def lease_lost(self) -> None:
        """The row is another's, or the lease could not be renewed in time."""
        self._lease_over = True
        self._give_up("its lease could not be renewed in time")

    async def visibility_lost(self) -> None:
        """The message cannot be hidden any longer.  At SQS's limit it goes now, and the claim carries on alone."""
        held = (_core.boot_ns() - self._delivery.received_ns) / 1e9
        logger.info("the message can no longer be hidden, after %.0f s", held, extra=self._about)
        if held > VISIBILITY_MAX / 2:
            await self._host.delete(self._delivery)

    def stop(self) -> None:
        """The worker leaves: hand back, or kill.  Not SIGTERM: Dagster would log a failure of a step that is to run
        again elsewhere.
        """
        self._give_up(f"worker {self._host.name} was stopped before the step had ended")

    @property
    def started(self) -> bool:
        return self._running

    @property
    def over(self) -> bool:
        """Its step process is dead."""
        return self._dead

    def hand_back(self) -> None:
        """The worker drains: give it back unless it has started."""
        if not self._running:
            self._interrupt.set()

    def _give_up(self, reason: str) -> None:
        if self._dead or self._settled:
            return
        self._lost = self._lost or reason
        self._interrupt.set()
        self._kill()

    def _kill(self) -> None:
        if self._running and not self._dead and self._step is not None:
            self._step.signal(signal.SIGKILL)

    def _time_over(self) -> None:
        logger.warning(
            "the step has ignored its time limit of %g s: killing it", self._task.time_limit, extra=self._about
        )
        self._overdue = True
        self._kill()

    # ---- the way through --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the attempt is settled and its message dealt with."""
        delivery = self._delivery
        settled = False
        try:
            settled = await self._run()
        finally:
            self._host.beat.remove(self.generation)
            self._host.board.clear(self._slot)
        if settled:
            # Nobody needs to wait for it: whoever gets the message once more finds the row terminal.
            self._host.in_background(self._host.delete(delivery))
        else:
            await self._host.hide(delivery, 0 if self._lost is None else RETRY_SOON)

    async def _run(self) -> bool:
        """True: the row is terminal and the message may go."""
        try:
            self._begin_beat()
            self._step = await self._prepare()
        except (ValueError, WarmParentError) as error:
            logger.error("the step could not be started: %s", error, extra=self._about)
            return await self._complete("failed", None, {"kind": "start", "message": str(error)}, "not_started")
        except _Interrupted:
            return await self._not_started()
        step = self._step
        try:
            started = await self._start(step)
        except _Interrupted:
            step.dismiss()
            await step.wait()
            return await self._not_started()
        except Exception:
            # The store refuses for good.  Without its process the claim ends with its lease.
            step.dismiss()
            await step.wait()
            raise
        if not started:
            step.dismiss()
            await step.wait()
            logger.warning("the claim was no longer ours before the step had started", extra=self._about)
            return False
        how = await self._run_step(step)
        if not self._settled:
            return await self._settle(step, how)
        self._tell_end("succeeded", None, how)
        return True

    def _begin_beat(self) -> None:
        task, delivery = self._task, self._delivery
        self._host.beat.add(
            *self.key,
            self.generation,
            ttl=task.lease_ttl,
            margin=margin_of(task.lease_ttl),
            heartbeat=task.heartbeat,
            claimed_ns=self._claimed_ns,
            slot=self._slot,
            queue_url=delivery.queue_url,
            receipt_handle=delivery.receipt_handle,
            visibility=task.visibility,
            received_ns=delivery.received_ns,
        )

    async def _prepare(self) -> StepProcess:
        task = self._task
        stored = await self._unless_interrupted(lambda: self._persist(lambda: self._host.parts(task.digests)))
        self._arguments = command_args(task, stored)
        job_origin, instance_ref = (part_text(task, name, stored) for name in (JOB_ORIGIN, INSTANCE_REF))
        get = partial(self._host.parents.get, task.code_location, job_origin, instance_ref)
        tries = 0
        while True:
            parent = await self._unless_interrupted(get)
            try:
                step = await self._unless_interrupted(parent.take_step)
            except WarmParentError:
                # It went away meanwhile, killed or let go for another: that is not this step's fault.
                tries += 1
                if parent.alive or tries == STEP_TRIES:
                    raise
            else:
                self._parent = parent
                return step

    async def _start(self, step: StepProcess) -> bool:
        """Set started_at, which is also the last check that the claim is ours."""
        start = self._host.store.start

        async def work() -> bool:
            starting = asyncio.ensure_future(
                self._persist(lambda: start(*self.key, self.generation, pid=step.pid, pid_start=step.pid_start))
            )
            # Asks PostgreSQL, and does what else is to be done before the step while it answers.
            await asyncio.sleep(0)
            self._oom_kills = oom_kills()
            return await starting

        return await self._unless_interrupted(work)

    async def _run_step(self, step: StepProcess) -> Exit:
        if self._cancelled or self._lost is not None:
            step.dismiss()
        else:
            self._running = True
            logger.info("the step starts", extra={**self._about, **fields(pid=step.pid)})
            if self._task.live_outputs:
                step.on_event = self._on_event
            # It may have died meanwhile: then its exit says how.
            with contextlib.suppress(OSError):
                await step.go(self._go())
            if self._parent is not None:
                self._parent.expect_job(self._task.job_name)
            self._keep_spare()
        limit = self._task.time_limit
        # The step process raises an exception in the op at its limit; what does not heed it is killed.
        timer = limit and asyncio.get_running_loop().call_later(limit + self._host.cancel_grace, self._time_over)
        try:
            if await step.last_word():
                await self._settle_success(step)
        finally:
            how = await step.wait()
            if timer:
                timer.cancel()
            self._dead = True
        self._keep_spare()
        if self._progress:
            self._progress.cancel()
        for text in step.warnings:
            self._host.parents.warn_once(text)
        return how

    def _keep_spare(self) -> None:
        """For the next step, where there is a slot for one."""
        if self._parent is not None and self._host.has_room():
            self._parent.keep_spare()

    def _on_event(self, kind: str) -> None:
        """Tell the run, which looks into Dagster's log then: of outputs that come close together, once."""
        if kind not in _PROGRESS:
            return
        self._more_progress = True
        if self._progress is None or self._progress.done():
            self._progress = asyncio.get_running_loop().create_task(self._tell_progress())

    async def _tell_progress(self) -> None:
        tell = self._host.store.tell_progress
        try:
            while self._more_progress:
                self._more_progress = False
                await self._persist(lambda: tell(*self.key, self.generation))
        except CoreError as error:
            # The run looks for itself, only later.
            logger.warning("the run was not told of an output: %s", error, extra=self._about)

    def _go(self) -> dict[str, Any]:
        task = self._task
        return {
            "op": "go",
            "generation": self.generation,
            "slot": self._slot,
            "run_id": task.run_id,
            "step_key": task.step_key,
            "attempt": task.attempt,
            "worker": self._host.name,
            "application_name": step_application_name(self.generation),
            "command": task.command,
            "arguments": self._arguments,
            "time_limit": task.time_limit,
            "memory_limit": task.memory_limit,
            "live": task.live_outputs,
        }

    async def _not_started(self) -> bool:
        """Nothing ran.  Cancelled, handed back, or, when a lost reply leaves open whether started_at is set, lost."""
        self._dead = True
        store = self._host.store
        if self._cancelled:
            return await self._complete("cancelled", None, None, "cancelled before it started")
        if self._lease_over:
            return False  # whoever finds the row settles it
        if await self._persist(lambda: store.hand_back(*self.key, self.generation)):
            logger.info("handed back before it started", extra=self._about)
            return False
        return await self._mark_lost(self._lost or f"worker {self._host.name} drains")

    # ---- the outcome ------------------------------------------------------------------------------------------------

    async def _settle_success(self, step: StepProcess) -> None:
        """If it is one.  Whatever else became of the step is settled when its process is dead: another attempt may
        follow that."""
        events = step.events
        if terminal_of(events, self._task.step_key) == "STEP_SUCCESS":
            self._settled = await self._write("succeeded", events, None, None)
            self._host.beat.remove(self.generation)

    async def _settle(self, step: StepProcess, how: Exit) -> bool:
        events = step.events
        terminal = terminal_of(events, self._task.step_key)
        died_of_fence = self._fenced(how)
        if terminal is None and (self._lost is not None or died_of_fence):
            return await self._mark_lost(
                self._lost or "it was killed at the end of its lease, which could not be renewed"
            )
        if terminal is None and how.unseen and not self._cancelled:
            return await self._mark_lost("its warm parent was silent, so nobody saw how its step process ended")
        state: State
        error: dict[str, Any] | None
        reason: str | None
        if terminal is None and self._overdue:
            message = (
                f"The step has run longer than its time limit of {self._task.time_limit:g} s and did not end within"
                f" {self._host.cancel_grace:g} s more, so it was killed."
            )
            state, error, reason = "failed", {"kind": "time_limit", "message": message}, "time_limit"
        elif terminal == "STEP_SUCCESS" or not self._cancelled:
            killed = oom_kills().since(self._oom_kills) if how.signal == signal.SIGKILL else OomKills(None, None)
            who = "step process" if self._task.command == EXECUTE_STEP else RUN_WORKER
            state, error, reason = judge(who, how, events, terminal, step, self._host.hostname, killed)
        else:
            state, error, reason = "cancelled", None, "cancelled while it ran"
        return await self._complete(state, events, error, reason, how)

    def _fenced(self, how: Exit) -> bool:
        """Whether its own timer killed it (and not, say, a want of memory)."""
        if how.signal != signal.SIGKILL:
            return False
        deadline = _core.fence_deadline_ns(self._host.board.fileno(), self._slot, self.generation)
        return 0 < deadline <= _core.boot_ns()

    async def _complete(
        self,
        state: State,
        events: list[str] | None,
        error: dict[str, Any] | None,
        reason: str | None,
        how: Exit | None = None,
    ) -> bool:
        if await self._write(state, events, error, reason):
            self._tell_end(state, reason, how)
        else:
            logger.warning("the outcome (%s) came too late: the claim was no longer ours", state, extra=self._about)
        return True

    async def _write(
        self, state: State, events: list[str] | None, error: dict[str, Any] | None, reason: str | None
    ) -> bool:
        """The completion row.  False: the claim is no longer ours."""
        store = self._host.store
        events_json = None if events is None else "[" + ",".join(events) + "]"
        error_json = None if error is None else json.dumps(error)

        def complete(with_events: str | None) -> Callable[[], Awaitable[bool]]:
            return lambda: store.complete(
                *self.key, self.generation, state, events=with_events, error=error_json, reason=reason
            )

        try:
            return await self._persist(complete(events_json))
        except StoreError as refusal:
            if events_json is None:
                raise
            # PostgreSQL takes no NUL in a text, and has sizes of its own; Dagster's log has the events too.
            logger.warning("the events did not fit into the completion row: %s", refusal, extra=self._about)
            return await self._persist(complete(None))

    def _tell_end(self, state: State, reason: str | None, how: Exit | None) -> None:
        cost = f", {how.cpu_seconds:.3f} s of CPU" if how and how.cpu_seconds is not None else ""
        logger.info("the step ended: %s%s%s", state, f" ({reason})" if reason else "", cost, extra=self._about)

    async def _mark_lost(self, reason: str) -> bool:
        store = self._host.store
        written = await self._persist(lambda: store.mark_lost(*self.key, self.generation, reason))
        logger.warning(
            "the step is lost: %s%s", reason, "" if written else " (somebody had settled it already)", extra=self._about
        )
        return True

    # ---- helpers ----------------------------------------------------------------------------------------------------

    async def _persist(self, move: Callable[[], Awaitable[T]]) -> T:
        """Make a move of the store, again and again while PostgreSQL is away: each gives a second time the first one's
        answer.
        """
        delay = 0.1
        while True:
            try:
                return await move()
            except CoreError as error:
                if not (error.retryable or isinstance(error, OperationTimeoutError)):
                    raise
                logger.warning("PostgreSQL is away, trying again: %s", error, extra=self._about)
            await asyncio.sleep(random.uniform(0, delay))
            delay = min(delay * 2, 5.0)

    async def _unless_interrupted(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work``, or ``_Interrupted`` as soon as the attempt must not start."""
        if self._interrupt.is_set():
            raise _Interrupted
        doing = asyncio.ensure_future(work())
        waiting = asyncio.ensure_future(self._interrupt.wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if self._interrupt.is_set():
                doing.cancel()
                await asyncio.wait({doing})
                if doing.cancelled() or doing.exception() is not None:
                    raise _Interrupted
                return doing.result()
            return doing.result()
        finally:
            # Of a worker that was cancelled, neither is done.
            doing.cancel()
            waiting.cancel()
