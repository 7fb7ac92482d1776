"""What a worker refuses goes to its queue's dead-letter queue, with the reason as attributes."""

from __future__ import annotations

import logging
from typing import Any

from dagster_taskiq import sqs
from dagster_taskiq.attempt import Delivery
from dagster_taskiq.broker import SQSBroker
from dagster_taskiq.errors import CoreError
from dagster_taskiq.logs import fields

logger = logging.getLogger(__name__)


class DeadLetters:
    """The dead-letter queues of the queues that a worker, named ``worker``, serves."""

    def __init__(self, broker: SQSBroker, worker: str) -> None:
        self._broker = broker
        self._worker = worker
        self._urls: dict[str, str] = {}

    async def send(self, delivery: Delivery, reason: str, detail: str) -> bool:
        """Send a copy of the message there.  False: there is no such queue, or it does not take it."""
        about = fields(queue=delivery.queue, message_id=delivery.message_id, deliveries=delivery.receive_count)
        logger.error("a message is refused (%s): %s", reason, detail, extra=about)
        target = await self._url(delivery.queue_url)
        if target is None:
            logger.error("queue %s has no dead-letter queue: the message stays there", delivery.queue, extra=about)
            return False
        entry: dict[str, Any] = {
            "body": delivery.body,
            "attributes": {
                "DagsterTaskiqReason": reason,
                "DagsterTaskiqDetail": detail[:1024] or reason,
                "DagsterTaskiqQueue": delivery.queue_url,
                "DagsterTaskiqMessageId": delivery.message_id,
                "DagsterTaskiqReceiveCount": str(delivery.receive_count),
                "DagsterTaskiqWorker": self._worker,
            },
        }
        if target.endswith(".fifo"):
            entry["group_id"] = reason
            entry["deduplication_id"] = delivery.message_id
        try:
            (result,) = await self._broker.client.send(target, [entry])
            sqs.raise_for_entry(result)
        except CoreError as error:
            logger.error("the dead-letter queue does not take it: %s", error, extra=about)
            return False
        return True

    async def _url(self, queue_url: str) -> str | None:
        url = self._urls.get(queue_url)
        if url is None:
            try:
                url = await sqs.redrive_target(self._broker.client, queue_url)
            except CoreError as error:
                logger.warning("the dead-letter queue of %s is not known: %s", queue_url, error)
            # That there is none is asked each time: it may be made while the worker runs.
            if url is not None:
                self._urls[queue_url] = url
        return url
