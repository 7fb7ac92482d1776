"""An SQS server for measurements: queues in memory, answers within a fraction of a millisecond.

``python stub_sqs.py --port PORT``.  It speaks the JSON protocol as far as workers and executors use it, wakes a long
poll the moment a message is there, and verifies no signature.  An emulator that is made for tests (moto) takes
milliseconds for each request, which would be measured along with what is asked for.

With ``--journal FILE`` it notes what it does, a line each: seconds since the epoch, an action's name or ``sent``,
``given`` or ``deleted``, and for these the message's id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import itertools
import json
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit


@dataclass
class Message:
    body: str
    md5: str
    id: str
    receives: int = 0
    handle: str = ""


@dataclass
class Queue:
    attributes: dict[str, str]
    visible: deque[Message] = field(default_factory=deque)
    in_flight: dict[str, Message] = field(default_factory=dict)
    polls: deque[Poll] = field(default_factory=deque)


@dataclass
class Poll:
    """A long poll that waits."""

    count: int
    visibility: float
    answer: Callable[[list[dict[str, Any]]], None]
    timer: asyncio.TimerHandle | None = None


class Server:
    """The queues; one object for all connections."""

    def __init__(self, endpoint: str, journal: TextIO | None = None) -> None:
        self._endpoint = endpoint
        self._journal = journal
        self._queues: dict[str, Queue] = {}
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Queue, str]] = []

    # Actions: each returns the answer, or calls ``answer`` later and returns None.

    def _note(self, what: str, message_id: str = "") -> None:
        if self._journal is not None:
            self._journal.write(f"{time.time():.6f} {what} {message_id}\n")

    def handle(self, action: str, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> Poll | None:
        self._note(action)
        if action == "ReceiveMessage":
            return self._receive(request, answer)
        answer(getattr(self, f"_{action}")(request))
        return None

    def _queue(self, request: dict[str, Any]) -> Queue:
        return self._queues[urlsplit(request["QueueUrl"]).path.rpartition("/")[2]]

    def _url(self, name: str) -> str:
        return f"{self._endpoint}/000000000000/{name}"

    def _CreateQueue(self, request: dict[str, Any]) -> dict[str, Any]:
        self._queues.setdefault(request["QueueName"], Queue(dict(request.get("Attributes") or {})))
        return {"QueueUrl": self._url(request["QueueName"])}

    def _GetQueueUrl(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["QueueName"] not in self._queues:
            raise KeyError(request["QueueName"])
        return {"QueueUrl": self._url(request["QueueName"])}

    def _ListQueues(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"QueueUrls": [self._url(name) for name in self._queues]}

    def _GetQueueAttributes(self, request: dict[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        name = urlsplit(request["QueueUrl"]).path.rpartition("/")[2]
        return {
            "Attributes": {
                **queue.attributes,
                "QueueArn": f"arn:aws:sqs:us-east-1:000000000000:{name}",
                "ApproximateNumberOfMessages": str(len(queue.visible)),
                "ApproximateNumberOfMessagesNotVisible": str(len(queue.in_flight)),
                "ApproximateNumberOfMessagesDelayed": "0",
            }
        }

    def _SendMessageBatch(self, request: dict[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        done = []
        for entry in request["Entries"]:
            body = entry["MessageBody"]
            message = Message(body, hashlib.md5(body.encode()).hexdigest(), str(uuid.uuid4()))
            queue.visible.append(message)
            self._note("sent", message.id)
            done.append({"Id": entry["Id"], "MessageId": message.id, "MD5OfMessageBody": message.md5})
        self._serve(queue)
        return {"Successful": done, "Failed": []}

    def _DeleteMessageBatch(self, request: dict[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        for entry in request["Entries"]:
            message = queue.in_flight.pop(entry["ReceiptHandle"], None)
            if message is not None:
                self._note("deleted", message.id)
        return {"Successful": [{"Id": entry["Id"]} for entry in request["Entries"]], "Failed": []}

    def _ChangeMessageVisibilityBatch(self, request: dict[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        for entry in request["Entries"]:
            self._hide(queue, entry["ReceiptHandle"], entry["VisibilityTimeout"])
        return {"Successful": [{"Id": entry["Id"]} for entry in request["Entries"]], "Failed": []}

    def _receive(self, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> Poll | None:
        queue = self._queue(request)
        poll = Poll(
            request.get("MaxNumberOfMessages", 1),
            request.get("VisibilityTimeout", 30),
            lambda messages: answer({"Messages": messages} if messages else {}),
        )
        queue.polls.append(poll)
        self._serve(queue)
        if poll not in queue.polls:
            return None
        wait = request.get("WaitTimeSeconds", 0)
        poll.timer = asyncio.get_running_loop().call_later(wait, self._give_up, queue, poll)
        return poll

    def _give_up(self, queue: Queue, poll: Poll) -> None:
        self.forget(poll)
        poll.answer([])

    def forget(self, poll: Poll) -> None:
        """Nobody waits for this one any more."""
        if poll.timer is not None:
            poll.timer.cancel()
        for queue in self._queues.values():
            if poll in queue.polls:
                queue.polls.remove(poll)

    def _serve(self, queue: Queue) -> None:
        while queue.visible and queue.polls:
            poll = queue.polls.popleft()
            if poll.timer is not None:
                poll.timer.cancel()
            messages = []
            while queue.visible and len(messages) < poll.count:
                message = queue.visible.popleft()
                message.receives += 1
                message.handle = str(next(self._numbers))
                queue.in_flight[message.handle] = message
                self._note("given", message.id)
                self._hide(queue, message.handle, poll.visibility)
                messages.append(
                    {
                        "MessageId": message.id,
                        "ReceiptHandle": message.handle,
                        "Body": message.body,
                        "MD5OfBody": message.md5,
                        "Attributes": {"ApproximateReceiveCount": str(message.receives)},
                    }
                )
            poll.answer(messages)

    def _hide(self, queue: Queue, handle: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if seconds:
            heapq.heappush(self._due, (loop.time() + seconds, next(self._numbers), queue, handle))
            return
        message = queue.in_flight.pop(handle, None)
        if message is not None:
            queue.visible.append(message)
            self._serve(queue)

    async def show_again(self) -> None:
        """Messages that have been hidden for long enough."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            latest: dict[str, float] = {}
            for due, _, _, handle in self._due:
                latest[handle] = max(due, latest.get(handle, 0.0))
            while self._due and self._due[0][0] <= loop.time():
                _, _, queue, handle = heapq.heappop(self._due)
                if latest[handle] <= loop.time():
                    self._hide(queue, handle, 0)


class Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length, one request at a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._poll: Poll | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        if self._poll is not None:
            self._server.forget(self._poll)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers[b"content-length"])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        action = headers[b"x-amz-target"].strip().decode().partition(".")[2]
        # The header was put into lower case with its value.
        action = ACTIONS[action]
        try:
            self._poll = self._server.handle(action, json.loads(rest[:length]), self._answer)
        except KeyError:
            name = "com.amazonaws.sqs#QueueDoesNotExist"
            self._write(b"400 Bad Request", json.dumps({"__type": name, "message": "no such queue"}).encode())

    def _answer(self, answer: dict[str, Any]) -> None:
        self._poll = None
        self._write(b"200 OK", json.dumps(answer).encode())

    def _write(self, status: bytes, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


ACTIONS = {
    name.lower(): name
    for name in (
        *("CreateQueue", "GetQueueUrl", "GetQueueAttributes", "ListQueues", "ReceiveMessage"),
        *("SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"),
    )
}


async def serve(port: int, journal: TextIO | None) -> None:
    server = Server(f"http://127.0.0.1:{port}", journal)
    listener = await asyncio.get_running_loop().create_server(lambda: Connection(server), "127.0.0.1", port)
    async with listener:
        await server.show_again()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, required=True, help="TCP port of 127.0.0.1 to listen on")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="note there what is sent, given and deleted, when")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(options.journal.open("w", buffering=1)) if options.journal else None
        asyncio.run(serve(options.port, journal))


if __name__ == "__main__":
    main()
