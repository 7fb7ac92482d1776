"""A TaskIQ broker on SQS, for any TaskIQ application: ``taskiq worker module:broker``.

Messages are TaskIQ's own, so every TaskIQ worker with this broker reads what every TaskIQ client with this broker
sends.  What it does beyond ``AsyncBroker``:

- Long polls are never abandoned: SQS would give the next message to a poll that nobody waits for, and hide it until
  its visibility ends.  At shutdown the outstanding one may finish, and what it brings is handed back.
- A receive that fails is tried again after a growing, random pause; ``listen`` raises nothing but
  the ``ConfigError`` of a client that cannot be made, as without a region.
- A message is deleted when TaskIQ acknowledges it.

The client's I/O thread starts with ``startup`` or the first ``kick``, in the process that calls it; nothing starts at
import.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from taskiq import AckableMessage, AsyncBroker, BrokerMessage

from dagster_taskiq import _bridge, _core, sqs
from dagster_taskiq.errors import CoreError, PayloadTooLargeError
from dagster_taskiq.logs import fields

logger = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Of one message, body and attributes ("Amazon SQS message quotas", SQS Developer Guide)."""

LONG_POLL: Final = 5
"""Seconds that a receive waits.  SQS allows 20; but a poll that is under way cannot be called off, so this is how long
an idle process takes to stop, and for how long a killed one can still take a message that nobody sees.
"""

DELAY_MAX: Final = 900
"""Seconds; SQS's limit for DelaySeconds."""


class Backoff:
    """Pauses that grow while something fails: uniform in [0, min(cap, base · 2^failures)] seconds (full jitter)."""

    def __init__(self, base: float = 0.5, cap: float = 30.0) -> None:
        self._base = base
        self._cap = cap
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self) -> float:
        pause = random.uniform(0, min(self._cap, self._base * 2 ** min(self._failures, 16)))
        self._failures += 1
        return pause


class SQSBroker(AsyncBroker):
    """See the module.

    ``queue``: name or URL of the queue that ``listen`` reads and ``kick`` sends to.  Labels of a task that ``kick``
    understands: ``queue`` (another queue's name or URL), ``delay`` (s, up to 900), and for FIFO queues ``group_id``
    (default: the task's name) and ``deduplication_id`` (default: the task's id).
    ``visibility``: seconds for which a delivery is hidden; None: the queue's setting.  Tasks that run longer are
    delivered again.
    ``client_options``: of :class:`dagster_taskiq._core.SqsClient`.

    ``kick`` raises ``PayloadTooLargeError`` for what SQS would not take, and ``SqsError`` subclasses.
    """

    def __init__(
        self,
        queue: str = "taskiq",
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        credentials: tuple[str, str] | tuple[str, str, str | None] | Callable[[], Any] | None = None,
        visibility: int | None = None,
        batch: int = 10,
        client_options: Mapping[str, Any] | None = None,
        task_id_generator: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(task_id_generator=task_id_generator)
        self.queue = queue
        self._region = region
        self._endpoint_url = endpoint_url
        self._credentials = credentials
        self._visibility = visibility
        self._batch = batch
        self._client_options = dict(client_options or {})
        self._loop: _core.Loop | None = None
        self._client: _core.SqsClient | None = None
        self._polls: set[asyncio.Task[list[dict[str, Any]]]] = set()
        self._pending: dict[str, str] = {}
        self._closing = asyncio.Event()
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    # ---- the client -------------------------------------------------------------------------------------------------

    @property
    def loop(self) -> _core.Loop:
        """The core's loop of this process; made at the first use."""
        if self._loop is None or self._loop.closed:
            self._loop = _core.Loop()
            self._client = None
        return self._loop

    @property
    def client(self) -> _core.SqsClient:
        """The SQS client of this process; made at the first use."""
        loop = self.loop
        if self._client is None:
            self._client = sqs.make_client(
                loop,
                region=self._region,
                endpoint=self._endpoint_url,
                credentials=self._credentials,
                **self._client_options,
            )
        return self._client

    async def queue_url(self, queue: str | None = None) -> str:
        """URL of a queue (None: of this broker's own) by its name or URL; a name is asked for once."""
        return await sqs.resolve_queue_url(self.client, queue or self.queue)

    # ---- AsyncBroker ------------------------------------------------------------------------------------------------

    async def startup(self) -> None:
        await super().startup()
        self._closing = asyncio.Event()
        if self.is_worker_process:
            self._wake_on_signals()

    async def shutdown(self) -> None:
        """Wait for the long poll to end and hand back what it brings (TaskIQ's CLI allows 5 s: ``--shutdown-timeout
        10`` allows all of it), then close.
        """
        self._closing.set()
        try:
            if self._polls:
                await asyncio.wait(self._polls)
            await self.hand_back_pending()
        finally:
            self._sleep_on_signals()
            await super().shutdown()
            if self._loop is not None:
                await _bridge.close(self._loop)
                self._loop = self._client = None

    async def kick(self, message: BrokerMessage) -> None:
        labels = message.labels
        if len(message.message) > MESSAGE_BYTES_MAX:
            raise PayloadTooLargeError(
                f"task {message.task_name} ({message.task_id}) makes a message of {len(message.message)} bytes;"
                f" SQS takes {MESSAGE_BYTES_MAX}. Send a reference to large arguments instead."
            )
        url = await self.queue_url(_text(labels.get("queue")))
        entry: dict[str, Any] = {"body": message.message}
        delay = labels.get("delay")
        if delay is not None:
            seconds = round(float(delay))
            if not 0 <= seconds <= DELAY_MAX:
                raise ValueError(f"the label delay must be 0..{DELAY_MAX} s, not {delay!r}")
            entry["delay"] = seconds
        if url.endswith(".fifo"):
            entry["group_id"] = _text(labels.get("group_id")) or message.task_name
            entry["deduplication_id"] = _text(labels.get("deduplication_id")) or message.task_id
        (result,) = await self.client.send(url, [entry])
        sqs.raise_for_entry(result)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        backoff = Backoff()
        while not self._closing.is_set():
            try:
                url = await self.queue_url()
                messages = await self.poll(url, self._batch, LONG_POLL, self._visibility)
                backoff.reset()
            except CoreError as error:
                logger.warning("receiving failed: %s", error, extra=fields(queue=self.queue))
                await self._pause(backoff.next())
                continue
            for message in messages:
                # Whatever was not given out when the receiver stops is handed back by shutdown().
                self._pending[message["receipt_handle"]] = url
            for message in messages:
                if self._pending.pop(message["receipt_handle"], None):
                    yield self.ackable(url, message)

    def ackable(self, url: str, message: Mapping[str, Any]) -> AckableMessage:
        """A received message as TaskIQ wants it; its acknowledgement deletes it."""
        handle = message["receipt_handle"]

        async def acknowledge() -> None:
            (result,) = await self.client.delete(url, [handle])
            sqs.raise_for_entry(result)

        return AckableMessage(data=message["body"], ack=acknowledge)

    async def poll(self, url: str, count: int, wait: int, visibility: int | None) -> list[dict[str, Any]]:
        """One receive.  Cancelling the caller leaves the request running; what it still brings is handed back at
        :meth:`shutdown`.
        """
        task = asyncio.get_running_loop().create_task(_receive(self.client, url, count, wait, visibility))
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._keep(url, done))
            raise

    def abandon_polls(self) -> None:
        """Do not wait for them at :meth:`shutdown`: what they would bring stays hidden for its visibility timeout."""
        for task in self._polls:
            task.cancel()

    async def hand_back_pending(self) -> None:
        """Make visible again what was received and given to nobody."""
        by_url: dict[str, list[str]] = {}
        for handle, url in self._pending.items():
            by_url.setdefault(url, []).append(handle)
        self._pending.clear()
        for url, handles in by_url.items():
            for start in range(0, len(handles), 10):
                try:
                    await self.client.change_visibility(url, [(handle, 0) for handle in handles[start : start + 10]])
                except CoreError as error:
                    logger.warning("messages could not be handed back: %s", error)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _keep(self, url: str, done: asyncio.Task[list[dict[str, Any]]]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._pending.update((message["receipt_handle"], url) for message in done.result())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    def _wake_on_signals(self) -> None:
        """TaskIQ's CLI sets an event from a plain signal handler, which does not wake an idle event loop; a descriptor
        does.
        """
        if self._wakeup is not None or threading.current_thread() is not threading.main_thread():
            return
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if previous != -1:
            # Somebody else is woken already (asyncio's own add_signal_handler, for one).
            signal.set_wakeup_fd(previous)
            reader.close()
            writer.close()
            return
        asyncio.get_running_loop().add_reader(reader, lambda: reader.recv(4096))
        self._wakeup = reader, writer

    def _sleep_on_signals(self) -> None:
        if self._wakeup is None:
            return
        reader, writer = self._wakeup
        self._wakeup = None
        if signal.set_wakeup_fd(-1) != writer.fileno():
            logger.debug("somebody else had taken the signal wake-up descriptor")
        asyncio.get_running_loop().remove_reader(reader)
        reader.close()
        writer.close()


async def _receive(
    client: _core.SqsClient, url: str, count: int, wait: int, visibility: int | None
) -> list[dict[str, Any]]:
    return await client.receive(url, max_messages=count, wait=wait, visibility=visibility)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
