"""Links that can be broken: each stands between one process and one server.

All of a test's links run on one thread of their own.  A fault is switched on for a while (:meth:`Link.fault`), or
happens at once (:meth:`Link.cut`).
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")

CHUNK = 65536
SLOW_SECONDS = 1.5
"""By which a slow link delays each request."""

POSTGRES_FAULTS = ("refuse", "freeze", "lose_replies", "drop_notices")
"""refuse: no connection, and those that exist are cut.  freeze: nothing passes, and nothing is cut.  lose_replies: what
clients send still arrives; the answers do not, and then the connection is cut.  drop_notices: no NOTIFY passes.
"""

SQS_FAULTS = ("refuse", "unavailable", "throttle", "slow", "reset", "garbage", "double")
"""refuse: connections are reset.  unavailable, throttle: each request is refused (503, RequestThrottled).  slow: each
is delayed.  reset: the request is carried out and its answer cut off in the middle.  garbage: the same, but the answer
looks whole and is no JSON.  double: each message is sent twice.
"""


class Links:
    """The thread on which links run; ends them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._links: list[Link] = []

    def __enter__(self) -> Links:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the links' thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def call(self, work: Callable[[], None]) -> None:
        """On the links' thread, without waiting."""
        self._loop.call_soon_threadsafe(work)

    def postgres(self, url: str) -> PostgresLink:
        """To the server of a libpq URL."""
        return self._added(PostgresLink(self, url))

    def sqs(self, endpoint: str) -> SqsLink:
        return self._added(SqsLink(self, endpoint))

    def _added(self, link: Any) -> Any:
        self.run(link.open())
        self._links.append(link)
        return link

    async def _close(self) -> None:
        for link in self._links:
            await link.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Link:
    """What both kinds share: who is connected, and which fault is on."""

    faults: tuple[str, ...] = ()

    def __init__(self, links: Links, host: str, port: int) -> None:
        self._links = links
        self._upstream = (host, port)
        self._fault: str | None = None
        self._until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        self._cut()

    def fault(self, kind: str, seconds: float) -> None:
        """Switch a fault on for a while."""
        assert kind in self.faults, kind

        def switch() -> None:
            self._fault = kind
            self._until = asyncio.get_running_loop().time() + seconds
            if kind == "refuse":
                self._cut()
            if kind == "lose_replies":
                asyncio.get_running_loop().call_later(seconds, self._cut)

        self._links.call(switch)

    def cut(self) -> None:
        """Reset all connections."""
        self._links.call(self._cut)

    def _cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    def _on(self, *kinds: str) -> bool:
        if self._fault is not None and asyncio.get_running_loop().time() >= self._until:
            self._fault = None
        return self._fault in kinds

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._on("refuse"):
            _reset(writer)
            return
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # asyncio would report a cancelled connection as an error.
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class PostgresLink(Link):
    """TCP to PostgreSQL, without TLS.  ``url`` is what its clients use."""

    faults = POSTGRES_FAULTS

    def __init__(self, links: Links, url: str) -> None:
        self._target = urlsplit(url)
        super().__init__(links, self._target.hostname or "127.0.0.1", self._target.port or 5432)

    @property
    def url(self) -> str:
        netloc = f"{self._target.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}"
        return urlunsplit(self._target._replace(netloc=netloc, query="sslmode=disable&gssencmode=disable"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        self._writers.add(server_writer)
        ways = [
            asyncio.create_task(self._to_server(reader, server_writer)),
            asyncio.create_task(self._to_client(server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers.discard(server_writer)
            server_writer.close()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            while self._on("freeze"):
                await asyncio.sleep(0.05)
            writer.write(data)
            await writer.drain()

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Message by message: a letter, a length, and so much more."""
        while True:
            head = await reader.readexactly(5)
            message = head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            while self._on("freeze"):
                await asyncio.sleep(0.05)
            if self._on("lose_replies") or (head[:1] == b"A" and self._on("drop_notices")):
                continue
            writer.write(message)
            await writer.drain()


class SqsLink(Link):
    """HTTP to an SQS endpoint.  ``doubled``: share of the sends that are always sent twice.  ``counts``: requests by
    action.
    """

    faults = SQS_FAULTS

    def __init__(self, links: Links, endpoint: str) -> None:
        target = urlsplit(endpoint)
        super().__init__(links, target.hostname or "127.0.0.1", target.port or 80)
        self.doubled = 0.0
        self.counts: Counter[str] = Counter()
        self._bodies: deque[str] = deque(maxlen=500)
        self._dice = random.Random(0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self) -> list[str]:
        """Of the last messages that were sent over this link."""
        return list(self._bodies)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = _fields(head)
            body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
            action = fields.get(b"x-amz-target", b"").rpartition(b".")[2].decode()
            self.counts[action] += 1
            if action == "SendMessageBatch":
                self._bodies.extend(entry["MessageBody"] for entry in json.loads(body)["Entries"])
            answer = await self._answer(head, body, action)
            if answer is None:
                _reset(writer)
                return
            writer.write(answer)
            await writer.drain()

    async def _answer(self, head: bytes, body: bytes, action: str) -> bytes | None:
        if self._on("refuse"):
            return None
        if self._on("unavailable"):
            return _answer_of(b"503 Service Unavailable", b"<html>later</html>")
        if self._on("throttle"):
            return _answer_of(b"400 Bad Request", b'{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slower"}')
        if self._on("slow"):
            await asyncio.sleep(SLOW_SECONDS)
        if action == "SendMessageBatch" and (self._on("double") or self._dice.random() < self.doubled):
            await self._exchange(head, body)
        status, payload = await self._exchange(head, body)
        if self._on("reset"):
            return None
        if self._on("garbage"):
            return _answer_of(status, payload[: len(payload) // 2] + b"\xff}")
        return _answer_of(status, payload)

    async def _exchange(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """One request, over a connection of its own; (status, body) of the answer."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        self._writers.add(writer)
        try:
            lines = [line for line in head.rstrip().split(b"\r\n") if not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            answer_head = await reader.readuntil(b"\r\n\r\n")
            length = _fields(answer_head).get(b"content-length")
            payload = await reader.read() if length is None else await reader.readexactly(int(length))
        finally:
            self._writers.discard(writer)
            writer.close()
        return answer_head.split(b"\r\n", 1)[0].split(b" ", 1)[1], payload


def _fields(head: bytes) -> dict[bytes, bytes]:
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _answer_of(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without goodbye: the peer gets a reset."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
