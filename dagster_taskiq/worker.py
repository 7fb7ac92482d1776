"""The worker: takes step attempts from SQS queues, no more than it has slots for, and runs each in a process of its
own.

One event loop, in the main thread; the core's I/O thread beside it renews leases and message visibilities, so a busy
event loop costs no lease.  Queues are asked by long polls while there is a free slot, orders to cancel come by NOTIFY
and with the heartbeat's answer.

``docs/internals/worker.md`` has the processes, the descriptors and the order of things.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final

from taskiq import AckableMessage

from dagster_taskiq import _bridge, _core, migrations, refusals, sqs
from dagster_taskiq.attempt import RETRY_SOON, VISIBILITY_MAX, Attempt, Delivery
from dagster_taskiq.broker import DELAY_MAX, LONG_POLL, Backoff, SQSBroker
from dagster_taskiq.config import Settings
from dagster_taskiq.dead_letters import DeadLetters
from dagster_taskiq.errors import ConfigError, CoreError, PayloadError, QueueMissingError
from dagster_taskiq.fellows import Fellows
from dagster_taskiq.fellows import boot_id as _boot_id
from dagster_taskiq.kept_parents import Keeper
from dagster_taskiq.levers import SPARES, all_but
from dagster_taskiq.logs import fields
from dagster_taskiq.payload import StepTask, unpack
from dagster_taskiq.processes import WarmParents
from dagster_taskiq.slots import BATCH, Slots
from dagster_taskiq.store import PRUNE_BATCH, Claim, IdempotencyStore, host_channel, worker_channel
from dagster_taskiq.supervisor import stop_signals
from dagster_taskiq.warm_parent import ISOLATIONS, process_start

logger = logging.getLogger(__name__)

TASK_NAME: Final = "dagster_taskiq.execute_step"
"""Of the TaskIQ messages that bring step attempts."""

WORKER_HEARTBEAT: Final = 15.0
"""Seconds between two heartbeats of the worker's own row."""

PRUNE_INTERVAL: Final = 3600.0
"""Seconds between two looks for left-over claims and old rows, on average."""

FIFO: Final = ".fifo"
"""How the names of FIFO queues end.  One receive can bring several messages of a group, which are to run one after the
other, so it is for one message there."""

STANDING_ASIDE: Final = 0.5
"""Seconds without a poll of a queue of which a message was left to other workers: it is theirs now, while of two polls
that wait the same one might get it each time."""

OTHERS_TURNS: Final = (0, 0, 0, 10, 0, 30, 0, 60)
"""Seconds for which a message is left to other workers after its first, second … receipt; from then on the last of
them.  In between it is there again at once: who has it first after a wait is chance."""

PARTS_BYTES: Final = 64 * 1024 * 1024
"""Bytes of payload parts that a worker keeps, so that the steps of a run read them once."""

Foreign = Callable[[AckableMessage], Awaitable[None]]


class SQSTaskIQWorker:
    """A worker.  :meth:`main` runs it as a program; inside another event loop: :meth:`run` and :meth:`stop`.

    ``broker``: gives the SQS client; None: one is made from ``settings``.  ``queues``: names or URLs, in order of
    preference; None: ``settings.queue``.  That name stands for ``settings.queue_url`` where this is set.
    ``slots``: steps at a time.  ``name``: shown to people; None: host name and pid.
    ``isolation``: ``auto``, ``fork`` or ``spawn`` (:mod:`dagster_taskiq.warm_parent`).
    ``without``: levers to switch off (:mod:`dagster_taskiq.levers`).
    ``cancel_grace``: seconds between SIGTERM and SIGKILL for a step that is cancelled.
    ``drain_timeout``: seconds for which running steps may go on after :meth:`stop`; then they are killed and marked
    lost, so that they run again elsewhere.
    ``foreign``: gets deliveries that are no step attempts and for which it has a task
    (:class:`dagster_taskiq.receiver.StepReceiver`).
    ``keeper``: descriptor of the link to the supervisor, which keeps warm parents (:mod:`dagster_taskiq.kept_parents`).
    ``reload``: look before each step whether the code has changed.

    Raises ``ConfigError`` from the constructor.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        broker: SQSBroker | None = None,
        queues: Sequence[str] | None = None,
        slots: int = 2,
        name: str | None = None,
        isolation: str = "auto",
        without: Collection[str] = (),
        cancel_grace: float = 10.0,
        drain_timeout: float = 30.0,
        foreign: Foreign | None = None,
        keeper: int | None = None,
        reload: bool = False,
    ) -> None:
        if not settings.database_url:
            raise ConfigError(
                "database_url is not set (DAGSTER_TASKIQ_DATABASE_URL): a worker needs the idempotency store."
            )
        if slots < 1:
            raise ConfigError(f"slots must be 1 or more, not {slots}.")
        if isolation not in ISOLATIONS:
            raise ConfigError(f"isolation must be one of {', '.join(ISOLATIONS)}, not {isolation}.")
        if cancel_grace < 0 or drain_timeout < 0:
            raise ConfigError("cancel_grace and drain_timeout must not be negative.")
        self.identity = uuid.uuid4().hex
        self.hostname = socket.gethostname()
        self.name = name or f"{self.hostname}:{os.getpid()}"
        self.cancel_grace = cancel_grace
        self.drain_timeout = drain_timeout
        named = queues or [settings.queue]
        self.queues = list(dict.fromkeys((queue == settings.queue and settings.queue_url) or queue for queue in named))
        self._names = {
            queue: [*([settings.queue] if queue == settings.queue_url else []), _queue_name(queue)]
            for queue in self.queues
        }
        """Under which executors know each queue."""
        self.slots = slots
        self.broker = broker or SQSBroker(self.queues[0], region=settings.region, endpoint_url=settings.endpoint_url)
        self._database_url = settings.database_url
        self._visibility = settings.visibility_timeout
        self._signing_keys = [settings.signing_key, *settings.previous_signing_keys] if settings.signing_key else []
        self._code_locations = frozenset(settings.code_locations)
        self._load_timeout = settings.load_timeout
        self._retention = settings.retention
        self._isolation = isolation
        self._levers = all_but(without)
        self._foreign = foreign
        self._keeper = None if keeper is None else Keeper(keeper)
        self._reload = reload
        self._boot_id = _boot_id()
        self._host_channel = host_channel(self._boot_id)
        self._parts: OrderedDict[str, str] = OrderedDict()
        self._dead_letters = DeadLetters(self.broker, self.name)
        self._attempts: dict[int, Attempt] = {}
        self._claiming = 0
        self._cancelled_early: set[int] = set()
        """Generations of claims that are not known here yet."""
        self._left_to_others: set[str] = set()
        """Queues of which a message just was."""
        self._handling: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._slots = Slots(slots, [1 if queue.endswith(FIFO) else BATCH for queue in self.queues])
        self._free_fences = deque(range(slots))
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()

    # ---- life -------------------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP: the first drains, the second stops at once.  Blocks.  Afterwards all are
        ignored: a process whose worker has ended is about to end, and its exit status is not that of a late signal.
        """
        asyncio.run(self._main())

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        running = loop.create_task(self.run())
        signals = stop_signals()
        for signum in signals:
            loop.add_signal_handler(signum, self.stop)
        try:
            await running
        finally:
            await self.broker.shutdown()
            # The event loop would put the default action back.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            for signum in signals:
                loop.remove_signal_handler(signum)
                signal.signal(signum, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    async def run(self) -> None:
        """Work until :meth:`stop` and the drain that follows.  Starts the broker; the caller shuts it down."""
        await self.broker.startup()
        core_loop = self.broker.loop
        self.store = IdempotencyStore(core_loop, self._database_url, application_name="dagster-taskiq-worker")
        await asyncio.to_thread(migrations.migrate, self.store)
        self.board = _core.FenceBoard(self.slots)
        self.beat = _core.Beat(self.store.core, board=self.board, sqs=self.broker.client)
        self.parents = WarmParents(
            self.board,
            isolation=self._isolation,
            levers=self._levers,
            load_timeout=self._load_timeout,
            keeper=self._keeper,
            reload=self._reload,
        )
        for kept in self._keeper.inherited() if self._keeper else ():
            self.parents.adopt(kept)
        self.fellows = Fellows(self.store, identity=self.identity, name=self.name, boot_id=self._boot_id)
        unsubscribe = _bridge.subscribe(core_loop, self._on_event)
        try:
            await self._check_queues()
            for channel in (worker_channel(self.identity), self._host_channel):
                await self.store.listen(channel)
            await self._work()
        finally:
            await self.fellows.close()
            await self.parents.close()
            unsubscribe()
            logger.info("worker %s has ended", self.name, extra=fields(worker=self.identity))

    async def _work(self) -> None:
        """From the worker's row to its removal."""
        serving: list[asyncio.Task[None]] = []
        others: list[asyncio.Task[Any]] = []
        try:
            await self._register()
            await self.fellows.look()
            logger.info(
                "worker %s serves %s with %d slots",
                self.name,
                ", ".join(self.queues),
                self.slots,
                extra=fields(worker=self.identity),
            )
            serving += [asyncio.create_task(self._serve(place, queue)) for place, queue in enumerate(self.queues)]
            others += [asyncio.create_task(each) for each in (self._beat(), self._tidy(), self._stopping.wait())]
            # Only the last of them ends by itself, unless something is wrong with another.
            await asyncio.wait([*serving, *others], return_when=asyncio.FIRST_COMPLETED)
            await self._finish(serving)
        except asyncio.CancelledError:
            self._hurrying.set()
            await self._finish(serving)
            raise
        finally:
            results = await _end([*serving, *others])
            await self._unregister()
            await _end([*self._handling, *self._background])
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _finish(self, serving: Collection[asyncio.Task[None]]) -> None:
        """Drain, and wait for what is still out."""
        self._stopping.set()
        await self._drain()
        # Long polls that are still out: an abandoned one would hide the next message.
        await self._until_done(serving, LONG_POLL + 10)
        await self._until_done(self._handling, 10)
        await self._until_done(self._background, 5)
        if self._hurrying.is_set():
            self.broker.abandon_polls()

    def stop(self) -> None:
        """Drain: receive no more, hand back what has not started, let running steps end for up to ``drain_timeout``.  A
        second call does not wait for them.
        """
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def _check_queues(self) -> None:
        """A queue that is missing at the start is a mistake; SQS that is away will come back."""
        for queue in self.queues:
            try:
                await self.broker.queue_url(queue)
            except QueueMissingError as error:
                raise ConfigError(
                    f"there is no queue {queue!r} in region and account of these settings ({error}). Make it with"
                    f" `dagster-taskiq queue create {queue}`, or correct queue, region (AWS_REGION) and endpoint_url"
                    " (AWS_ENDPOINT_URL_SQS)."
                ) from error
            except CoreError as error:
                logger.warning(
                    "SQS does not answer yet (endpoint_url, AWS_ENDPOINT_URL_SQS): %s", error, extra=fields(queue=queue)
                )

    async def _drain(self) -> None:
        logger.info(
            "draining; running steps: %d",
            sum(attempt.started for attempt in self._attempts.values()),
            extra=fields(worker=self.identity),
        )
        for attempt in list(self._attempts.values()):
            attempt.hand_back()
        await self._until_done(self._handling, self.drain_timeout)
        for attempt in list(self._attempts.values()):
            attempt.stop()
        if self._handling:
            await asyncio.wait(self._handling, timeout=10)
        for task in self._handling:
            task.cancel()

    async def _until_done(self, tasks: Collection[asyncio.Task[None]], timeout: float) -> None:
        """Until ``tasks`` (they may change) are done, ``timeout`` seconds have passed or somebody hurries."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        hurry = loop.create_task(self._hurrying.wait())
        try:
            while not hurry.done() and loop.time() < deadline and (left := [task for task in tasks if not task.done()]):
                await asyncio.wait({hurry, *left}, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def _serve(self, place: int, queue: str) -> None:
        """One queue, the ``place``-th: a poll for messages whenever it is given slots for them."""
        backoff = Backoff()
        while True:
            count, wait = await self._slots.take(place)
            messages: list[dict[str, Any]] = []
            pause = 0.0
            try:
                if self._stopping.is_set():
                    return
                url = await self.broker.queue_url(queue)
                messages = await self.broker.poll(url, count, wait, self._visibility)
                backoff.reset()
            except CoreError as error:
                logger.warning("receiving failed: %s", error, extra=fields(queue=queue))
                pause = backoff.next()
            finally:
                self._slots.polled(place, count, len(messages))
            received_ns = _core.boot_ns()
            for message in messages:
                delivery = _delivery(queue, url, message, received_ns)
                task = asyncio.create_task(self._handle(delivery, bool(message["damaged"])))
                self._handling.add(task)
                task.add_done_callback(self._handled)
            if messages:
                await asyncio.sleep(0)  # a look at each of them
            if queue in self._left_to_others:
                self._left_to_others.discard(queue)
                pause = STANDING_ASIDE
            if pause:
                await self._pause(pause)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        self._slots.give(1)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a delivery could not be dealt with", exc_info=task.exception())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def has_room(self) -> bool:
        """Whether a further step process could have a step soon."""
        running = sum(not attempt.over for attempt in self._attempts.values())
        return SPARES in self._levers and running < self.slots and not self._stopping.is_set()

    # ---- deliveries -------------------------------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery, damaged: bool) -> None:
        if self._stopping.is_set():
            await self.hide(delivery, 0)
            return
        if damaged:
            await self._quarantine(delivery, "damaged", "the body's MD5 is not the one that SQS told")
            return
        try:
            task = unpack(delivery.body, self._signing_keys)
        except PayloadError as error:
            await self._not_a_step(delivery, error)
            return
        if self._code_locations and task.code_location not in self._code_locations:
            await self._leave_to_others(delivery, task.code_location)
            return
        try:
            await self._take(delivery, task)
        except CoreError as error:
            about = fields(
                run_id=task.run_id, step_key=task.step_key, attempt=task.attempt, message_id=delivery.message_id
            )
            logger.warning("a delivery could not be dealt with now: %s", error, extra=about)
            await self.hide(delivery, RETRY_SOON)
            await self._pause(Backoff(base=RETRY_SOON).next())

    async def _take(self, delivery: Delivery, task: StepTask) -> None:
        about = fields(
            run_id=task.run_id,
            step_key=task.step_key,
            attempt=task.attempt,
            message_id=delivery.message_id,
            deliveries=delivery.receive_count,
            queue=delivery.queue,
        )
        self._claiming += 1
        try:
            claim, claimed_ns = await self._claim(delivery, task)
            if claim.outcome == "expired" and claim.state == "queued":
                claim, claimed_ns = await self._claim(delivery, task)
            cancelled = claim.generation in self._cancelled_early
        finally:
            self._claiming -= 1
            if not self._claiming:
                self._cancelled_early.clear()
        if claim.outcome == "claimed" and claim.generation is not None:
            await self._run_attempt(delivery, task, claim.generation, claimed_ns, cancelled)
        elif claim.outcome == "held":
            left = max(0.0, claim.lease_left or 0.0)
            if claim.same_message:
                logger.info("another claim holds the attempt for up to %.0f s: hiding this delivery", left, extra=about)
                await self.hide(delivery, left + 1)
            else:
                logger.info("another claim holds the attempt: deleting this copy of its message", extra=about)
                await self.delete(delivery)
        elif claim.outcome == "orphaned":
            pause = min(2.0 ** min(delivery.receive_count, 10), DELAY_MAX)
            logger.warning(
                "nobody coordinates the run any more: not starting the step, hiding this delivery for %.0f s",
                pause,
                extra=about,
            )
            await self.hide(delivery, pause)
        elif claim.outcome == "missing":
            detail = "no row is known for this attempt: does its run have another database_url than this worker?"
            await self._quarantine(delivery, "missing", detail)
        elif claim.outcome == "expired" and claim.state == "queued":
            await self.hide(delivery, 0)
        else:
            logger.info("nothing to run: %s (%s)", claim.outcome, claim.state, extra=about)
            await self.delete(delivery)

    async def _claim(self, delivery: Delivery, task: StepTask) -> tuple[Claim, int]:
        claimed_ns = _core.boot_ns()
        claim = await self.store.claim(
            task.run_id,
            task.step_key,
            task.attempt,
            owner=self.identity,
            nonce=uuid.uuid4().hex,
            ttl=task.lease_ttl,
            host=self.hostname,
            boot_id=self._boot_id,
            delivery_id=delivery.message_id,
            deliveries=delivery.receive_count,
        )
        return claim, claimed_ns

    async def _run_attempt(
        self, delivery: Delivery, task: StepTask, generation: int, claimed_ns: int, cancelled: bool
    ) -> None:
        fence = self._free_fences.popleft()
        attempt = Attempt(self, delivery, task, generation, claimed_ns, fence)
        self._attempts[generation] = attempt
        if cancelled:
            attempt.cancel()
        if self._stopping.is_set():
            attempt.hand_back()
        try:
            await attempt.run()
        finally:
            del self._attempts[generation]
            self._free_fences.append(fence)

    async def _not_a_step(self, delivery: Delivery, error: PayloadError) -> None:
        """Somebody else's task, which the broker may know; else something for the dead-letter queue."""
        name = _task_name(delivery.body)
        if name == TASK_NAME or name is None:
            await self._quarantine(delivery, error.name, str(error))
        elif self._foreign is None or self.broker.find_task(name) is None:
            await self._quarantine(delivery, "unknown_task", f"this worker has no task {name!r}")
        else:
            await self._run_foreign(delivery, self._foreign)

    async def _run_foreign(self, delivery: Delivery, foreign: Foreign) -> None:
        # A label in the message would override this worker's policy of acknowledging.
        message = json.loads(delivery.body)
        for labels in (message.get("labels"), message.get("labels_types")):
            if isinstance(labels, dict):
                labels.pop("ack_type", None)
        ackable = self.broker.ackable(
            delivery.queue_url, {"receipt_handle": delivery.receipt_handle, "body": json.dumps(message).encode()}
        )
        hiding = asyncio.create_task(self._keep_hidden(delivery))
        try:
            await foreign(ackable)
        finally:
            hiding.cancel()

    async def _keep_hidden(self, delivery: Delivery) -> None:
        """Claims are renewed by the core; a task that has none is hidden from here for as long as it runs."""
        while True:
            await asyncio.sleep(self._visibility / 2)
            await self.hide(delivery, self._visibility)

    async def _quarantine(self, delivery: Delivery, reason: str, detail: str) -> None:
        """To the dead-letter queue.  Where that is not possible the message stays, hidden for a while: nothing is
        dropped silently.
        """
        # First: once the message is gone nobody tells again.
        await self._tell(delivery, reason, detail)
        if await self._dead_letters.send(delivery, reason, detail):
            await self.delete(delivery)
        else:
            await self.hide(delivery, DELAY_MAX)

    async def _leave_to_others(self, delivery: Delivery, code_location: str) -> None:
        """Nothing is wrong with the message, and another worker of the queue may serve its code location.  When none
        does, the queue's redrive policy ends it."""
        pause = OTHERS_TURNS[min(delivery.receive_count, len(OTHERS_TURNS)) - 1]
        self._left_to_others.add(delivery.queue)
        meaning = "" if code_location else ", which is that of runs that were not launched through one"
        detail = f"this worker runs no steps of code location {code_location!r}{meaning} (code_locations)"
        logger.warning(
            "%s: left to other workers, for %d s",
            detail,
            pause,
            extra=fields(message_id=delivery.message_id, deliveries=delivery.receive_count, queue=delivery.queue),
        )
        await self.hide(delivery, pause)
        await self._tell(delivery, refusals.CODE_LOCATION, detail)

    async def _tell(self, delivery: Delivery, reason: str, detail: str) -> None:
        """The runs that use the queue, that their message is not taken here."""
        payload = refusals.telling(delivery.message_id, reason, detail, self.name)
        try:
            for name in self._names[delivery.queue]:
                await self.store.tell_queue(name, payload, timeout=refusals.TELL_TIMEOUT)
        except CoreError as error:
            logger.warning("the run could not be told: %s", error, extra=fields(message_id=delivery.message_id))

    # ---- what attempts need -----------------------------------------------------------------------------------------

    async def parts(self, digests: Sequence[str]) -> Mapping[str, str]:
        """The texts of payload parts; those that PostgreSQL does not have are absent."""
        found = {digest: self._parts[digest] for digest in digests if digest in self._parts}
        missing = [digest for digest in digests if digest not in found]
        if missing:
            found.update(await self.store.get_parts(missing))
        for digest, text in found.items():
            self._parts[digest] = text
            self._parts.move_to_end(digest)
        while len(self._parts) > 1 and sum(map(len, self._parts.values())) > PARTS_BYTES:
            self._parts.popitem(last=False)
        return found

    async def delete(self, delivery: Delivery) -> None:
        """DeleteMessage.  A failure costs one more delivery, which finds the row terminal."""
        try:
            (result,) = await self.broker.client.delete(delivery.queue_url, [delivery.receipt_handle])
            sqs.raise_for_entry(result)
        except CoreError as error:
            logger.warning(
                "a message could not be deleted: %s",
                error,
                extra=fields(message_id=delivery.message_id, queue=delivery.queue),
            )

    async def hide(self, delivery: Delivery, seconds: float) -> None:
        """Have it delivered again after ``seconds``.  A failure leaves it hidden for its visibility timeout."""
        try:
            (result,) = await self.broker.client.change_visibility(
                delivery.queue_url, [(delivery.receipt_handle, min(VISIBILITY_MAX, -int(-seconds // 1)))]
            )
            sqs.raise_for_entry(result)
        except CoreError as error:
            logger.warning(
                "a message could not be hidden: %s",
                error,
                extra=fields(message_id=delivery.message_id, queue=delivery.queue),
            )

    # ---- events and the worker's own row ----------------------------------------------------------------------------

    def _on_event(self, event: _core.Event) -> None:
        generation = event.generation
        if event.kind == "notification" and event.channel == self._host_channel:
            if event.payload != self.identity:
                self.in_background(self._look_for_fellows())
            return
        if event.kind == "notification":
            if event.channel != worker_channel(self.identity) or not (event.payload or "").isdecimal():
                return
            generation = int(event.payload or 0)
        attempt = self._attempts.get(generation)
        if attempt is None:
            if self._claiming and event.kind == "notification":
                # The claim's reply came with the same batch, and is not read yet.
                self._cancelled_early.add(generation)
            return
        if event.kind in ("notification", "cancel"):
            attempt.cancel()
        elif event.kind == "lease_lost":
            attempt.lease_lost()
        elif event.kind == "visibility_lost":
            self.in_background(attempt.visibility_lost())

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _look_for_fellows(self) -> None:
        try:
            await self.fellows.look()
        except CoreError as error:
            logger.warning("the other workers of this host are not known: %s", error)

    async def _register(self) -> None:
        await self.store.register_worker(
            self.identity,
            self.name,
            self.hostname,
            os.getpid(),
            self._boot_id,
            list(dict.fromkeys(name for names in self._names.values() for name in names)),
            self.slots,
            pid_start=process_start(os.getpid()),
            ttl=4 * WORKER_HEARTBEAT,
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(WORKER_HEARTBEAT)
            try:
                if not await self.store.heartbeat_worker(self.identity, len(self._attempts)):
                    await self._register()
                await self.fellows.look()
                # With all slots busy nothing else asks for newer ones, and the core hides messages with what it has.
                await asyncio.to_thread(self.broker.client.refresh_credentials)
            except CoreError as error:
                logger.warning("the worker's heartbeat failed: %s", error, extra=fields(worker=self.identity))

    async def _tidy(self) -> None:
        """Settle what ended runs have left, and remove what is older than the retention: at the start, and about once
        an hour."""
        while True:
            more = False
            try:
                more = await self.store.settle_ended() >= PRUNE_BATCH
                if self._retention is not None:
                    more = await self._prune(self._retention) or more
            except CoreError as error:
                logger.warning("left-over and old rows could not be dealt with now: %s", error)
            await asyncio.sleep(1 if more else PRUNE_INTERVAL * random.uniform(0.5, 1.5))

    async def _prune(self, retention: float) -> bool:
        """Whether there may be more to remove."""
        pruned = await self.store.prune(retention)
        if pruned.runs or pruned.parts or pruned.workers:
            logger.info("removed %d old runs, %d parts, %d workers", pruned.runs, pruned.parts, pruned.workers)
        return max(pruned.runs, pruned.parts) >= PRUNE_BATCH

    async def _unregister(self) -> None:
        try:
            await asyncio.wait_for(self.store.remove_worker(self.identity), 5)
        except (CoreError, asyncio.TimeoutError) as error:
            logger.warning(
                "the worker's row stays until its heartbeat is old: %s", error, extra=fields(worker=self.identity)
            )


async def _end(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    """Cancel what is not done; the results, or what was raised."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def _delivery(queue: str, url: str, message: Mapping[str, Any], received_ns: int) -> Delivery:
    count = message["system_attributes"].get("ApproximateReceiveCount", "1")
    return Delivery(
        queue=queue,
        queue_url=url,
        message_id=message["message_id"],
        receipt_handle=message["receipt_handle"],
        body=message["body"],
        receive_count=int(count),
        received_ns=received_ns,
    )


def _queue_name(name_or_url: str) -> str:
    """Executors ask by a queue's name who serves it."""
    return name_or_url.rstrip("/").rpartition("/")[2] if sqs.is_queue_url(name_or_url) else name_or_url


def _task_name(body: bytes) -> str | None:
    """Of a message that TaskIQ could read; None for any other."""
    try:
        message = json.loads(body)
    except ValueError:
        return None
    name = message.get("task_name") if isinstance(message, dict) else None
    return name if isinstance(name, str) else None
