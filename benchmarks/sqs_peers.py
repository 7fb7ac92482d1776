"""Clients of SQS, driven by sqs_client.py, each in a process of its own.

    python sqs_peers.py PEER ENDPOINT QUEUE-URL BODY-FILE

For each line "ACTION BATCH REQUESTS IN-FLIGHT" on standard input it says "SECONDS CPU-SECONDS" on standard output, as
sqs_client.c does.  A client that has no batch of an action says "-".  Nothing but the peer is imported, since another
interpreter than the one with dagster-taskiq may run this.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REGION = "eu-central-1"
KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
HANDLE = ("AQEBzbVv8Qk4mT0uJ6LxgK9cR2dYwN1hS7fPqEaXoZiCtBvMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9c" * 3)[:220]
"""As long as AWS's own."""

Exchange = Callable[[str, int], Awaitable[None]]


class Peer(ABC):
    """One client."""

    def __init__(self, endpoint: str, queue_url: str, body: str) -> None:
        self.endpoint, self.queue_url, self.body = endpoint, queue_url, body

    async def start(self) -> None:  # noqa: B027 - not every client has something to do
        """What is done once."""

    async def close(self) -> None:  # noqa: B027
        """What is done at the end."""

    @abstractmethod
    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        """Seconds and CPU seconds of so many requests; None when there is no such thing."""

    def arguments(self, action: str, batch: int) -> dict[str, Any]:
        """A request by botocore's names."""
        if action == "receive":
            wanted = {"MaxNumberOfMessages": batch, "WaitTimeSeconds": 0}
            return {"QueueUrl": self.queue_url, **wanted, "AttributeNames": ["All"], "MessageAttributeNames": ["All"]}
        name, value = ("MessageBody", self.body) if action == "send" else ("ReceiptHandle", HANDLE)
        if batch == 1:
            return {"QueueUrl": self.queue_url, name: value}
        return {"QueueUrl": self.queue_url, "Entries": [{"Id": str(i), name: value} for i in range(batch)]}


def operation(action: str, batch: int) -> str:
    """botocore's method."""
    return f"{action}_message" + ("_batch" if batch > 1 and action != "receive" else "")


def check(answer: dict[str, Any], action: str, batch: int) -> None:
    count = len(answer.get("Messages" if action == "receive" else "Successful", ()))
    assert count == batch or (batch == 1 and action != "receive"), answer


@contextlib.contextmanager
def measured(result: list[float]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    result += [time.perf_counter() - wall, time.process_time() - cpu]


async def together(exchange: Callable[[], Awaitable[None]], requests: int, in_flight: int) -> tuple[float, float]:
    """``requests`` exchanges, ``in_flight`` at a time."""
    left = requests
    result: list[float] = []

    async def work() -> None:
        nonlocal left
        while left:
            left -= 1
            await exchange()

    with measured(result):
        await asyncio.gather(*(work() for _ in range(min(in_flight, requests))))
    return result[0], result[1]


class Ours(Peer):
    """dagster-taskiq's client, awaited."""

    async def start(self) -> None:
        from dagster_taskiq import _core
        from dagster_taskiq.sqs import make_client

        self.loop = _core.Loop()
        self.client = make_client(
            self.loop, region=REGION, endpoint=self.endpoint, credentials=(KEY_ID, SECRET), max_attempts=1
        )

    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        client, url = self.client, self.queue_url
        body, handles = self.body.encode(), [HANDLE] * batch

        async def send() -> None:
            results = await client.send(url, [{"body": body} for _ in range(batch)])
            assert all(result["ok"] for result in results)

        async def receive() -> None:
            assert len(await client.receive(url, max_messages=batch, wait=0)) == batch

        async def delete() -> None:
            results = await client.delete(url, handles)
            assert all(result["ok"] for result in results)

        return await together({"send": send, "receive": receive, "delete": delete}[action], requests, in_flight)


class Boto3(Peer):
    """One request after the other."""

    async def start(self) -> None:
        import boto3

        names = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
        self.client = boto3.client("sqs", region_name=REGION, endpoint_url=self.endpoint, **names)

    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        method, arguments = getattr(self.client, operation(action, batch)), self.arguments(action, batch)
        result: list[float] = []
        with measured(result):
            for _ in range(requests):
                check(method(**arguments), action, batch)
        return result[0], result[1]


class Aiobotocore(Peer):
    async def start(self) -> None:
        from aiobotocore.session import get_session

        names = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
        creator = get_session().create_client("sqs", region_name=REGION, endpoint_url=self.endpoint, **names)
        self.client = await creator.__aenter__()

    async def close(self) -> None:
        await self.client.close()

    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        method, arguments = getattr(self.client, operation(action, batch)), self.arguments(action, batch)

        async def exchange() -> None:
            check(await method(**arguments), action, batch)

        return await together(exchange, requests, in_flight)


class TaskiqAioSqs(Peer):
    """The broker: kick, listen, acknowledge.  It deletes one message at a time."""

    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        from taskiq_aio_sqs import SQSBroker

        if action == "delete" and batch > 1:
            return None
        names = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": REGION}
        queue = {"sqs_queue_name": self.queue_url.rpartition("/")[2], "endpoint_url": self.endpoint}
        many = {"enable_batching": batch > 1, "batch_timeout": 0.1, "max_number_of_messages": batch}
        broker = SQSBroker(**queue, **names, **many, wait_time_seconds=0)
        await broker.startup()
        run = getattr(self, f"_{action}")
        result: tuple[float, float] = await run(broker, batch * requests, in_flight)
        await broker.shutdown()
        return result

    async def _send(self, broker: Any, count: int, in_flight: int) -> tuple[float, float]:
        from taskiq import BrokerMessage

        message = BrokerMessage(task_id="t", task_name="t", message=self.body.encode(), labels={})
        wall, cpu = time.perf_counter(), time.process_time()
        await together(lambda: broker.kick(message), count, in_flight)
        # With batches, kick only lays the message aside.
        while any(not buffer.empty() for buffer in broker._batch_buffers.values()):
            await asyncio.sleep(0.005)
        return time.perf_counter() - wall, time.process_time() - cpu

    async def _receive(self, broker: Any, count: int, in_flight: int) -> tuple[float, float]:
        result: list[float] = []
        with measured(result):
            await self._listen(broker, count)
        return result[0], result[1]

    async def _delete(self, broker: Any, count: int, in_flight: int) -> tuple[float, float]:
        messages = await self._listen(broker, count)
        return await together(lambda: messages.pop().ack(), count, in_flight)

    async def _listen(self, broker: Any, count: int) -> list[Any]:
        messages: list[Any] = []
        async with contextlib.aclosing(broker.listen()) as listening:
            async for message in listening:
                messages.append(message)
                if len(messages) == count:
                    break
        return messages


class Pycurl(Peer):
    """One handle that is used again and again, SigV4 by hand with the day's key kept, json in and out."""

    async def start(self) -> None:
        import pycurl

        self.curl = pycurl.Curl()
        self.curl.setopt(pycurl.URL, self.queue_url)
        self.curl.setopt(pycurl.POST, 1)
        self.curl.setopt(pycurl.NOSIGNAL, 1)
        self.pycurl = pycurl
        self.host, self.path = urlsplit(self.queue_url).netloc, urlsplit(self.queue_url).path
        self.key, self.day = b"", ""

    def _key(self, day: str) -> bytes:
        if day != self.day:
            key = f"AWS4{SECRET}".encode()
            for part in (day, REGION, "sqs", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self.key, self.day = key, day
        return self.key

    def _headers(self, target: str, body: bytes) -> list[str]:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{date[:8]}/{REGION}/sqs/aws4_request"
        names = "content-type;host;x-amz-date;x-amz-target"
        canonical = (
            f"POST\n{self.path}\n\ncontent-type:application/x-amz-json-1.0\nhost:{self.host}\nx-amz-date:{date}\n"
            f"x-amz-target:{target}\n\n{names}\n{hashlib.sha256(body).hexdigest()}"
        )
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(date[:8]), text.encode(), "sha256").hex()
        return [
            "Content-Type: application/x-amz-json-1.0",
            f"X-Amz-Date: {date}",
            f"X-Amz-Target: {target}",
            f"Authorization: AWS4-HMAC-SHA256 Credential={KEY_ID}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}",
            "Expect:",
            "Accept:",
        ]

    def _exchange(self, target: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(arguments).encode()
        answer = io.BytesIO()
        self.curl.setopt(self.pycurl.HTTPHEADER, self._headers(target, body))
        self.curl.setopt(self.pycurl.POSTFIELDS, body)
        self.curl.setopt(self.pycurl.WRITEDATA, answer)
        self.curl.perform()
        assert self.curl.getinfo(self.pycurl.RESPONSE_CODE) == 200
        found: dict[str, Any] = json.loads(answer.getvalue())
        return found

    async def run(self, action: str, batch: int, requests: int, in_flight: int) -> tuple[float, float] | None:
        target = "AmazonSQS." + operation(action, batch).title().replace("_", "")
        arguments = self.arguments(action, batch)
        result: list[float] = []
        with measured(result):
            for _ in range(requests):
                check(self._exchange(target, arguments), action, batch)
        return result[0], result[1]


PEERS: dict[str, type[Peer]] = {
    "ours": Ours,
    "boto3": Boto3,
    "aiobotocore": Aiobotocore,
    "taskiq-aio-sqs": TaskiqAioSqs,
    "pycurl": Pycurl,
}


async def main() -> None:
    name, endpoint, queue_url, body = sys.argv[1:]
    # What is measured must not go to AWS, nor ask the instance's metadata.
    for variable in [one for one in os.environ if one.startswith("AWS_")]:
        del os.environ[variable]
    peer = PEERS[name](endpoint, queue_url, Path(body).read_text())
    await peer.start()
    for line in sys.stdin:
        action, *numbers = line.split()
        result = await peer.run(action, *map(int, numbers))
        print("-" if result is None else "{:.6f} {:.6f}".format(*result), flush=True)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(main())
