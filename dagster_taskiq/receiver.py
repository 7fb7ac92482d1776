"""Step attempts under TaskIQ's own worker program, beside an application's other tasks::

    taskiq worker app:broker --receiver dagster_taskiq.receiver:StepReceiver --max-async-tasks 4 --shutdown-timeout 30

``app:broker`` is a :class:`dagster_taskiq.broker.SQSBroker`.  The worker's settings come from the environment
(:mod:`dagster_taskiq.config`), or from the YAML file that ``--receiver-arg config=worker.yaml`` names; the slots are
``--max-async-tasks``.

TaskIQ's own receiver takes messages ahead of need, acknowledges what it cannot read and starts on shutdown what it has
taken.  So this one replaces its loop, and uses only its ``callback``, for the tasks that are not ours.
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import AckableMessage, AsyncBroker
from taskiq.receiver import Receiver

from dagster_taskiq.broker import SQSBroker
from dagster_taskiq.config import Settings, load_yaml
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.worker import SQSTaskIQWorker


class StepReceiver(Receiver):
    """See the module.  ``config``: path of a worker's YAML file.  ``queues``: comma-separated; default: the broker's
    queue.  ``drain_timeout``: seconds.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        *args: Any,
        config: str | None = None,
        queues: str | None = None,
        drain_timeout: float | str = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(broker, *args, **kwargs)
        if not isinstance(broker, SQSBroker):
            raise ConfigError(f"StepReceiver needs an SQSBroker, not a {type(broker).__name__}.")
        slots = kwargs.get("max_async_tasks")
        self.worker = SQSTaskIQWorker(
            Settings.from_config(load_yaml(config) if config else {}),
            broker=broker,
            queues=[queue.strip() for queue in queues.split(",")] if queues else [broker.queue],
            slots=slots if slots and slots > 0 else 1,
            drain_timeout=float(drain_timeout),
            foreign=self._foreign,
        )

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Work until ``finish_event``, then drain."""

        async def stop_then() -> None:
            await finish_event.wait()
            self.worker.stop()

        stopping = asyncio.get_running_loop().create_task(stop_then())
        try:
            await self.worker.run()
        finally:
            stopping.cancel()
            if self.on_exit is not None:
                self.on_exit(self)

    async def _foreign(self, message: AckableMessage) -> None:
        await self.callback(message)
