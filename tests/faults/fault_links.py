"""Links that can be broken: each stands between one process and one server.

All of a test's links run on one thread of their own.  A fault is switched on for a while (:meth:`Link.fault`), or
happens at once (:meth:`Link.cut`).
"""

from __future__ import annotations

import asyncio
import calendar
import email.utils
import json
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from fault_names import HOST, Certificates

T = TypeVar("T")

CHUNK = 65536
SLOW_SECONDS = 1.5
"""By which a slow link delays each request."""

SKEW_SECONDS = 3600.0
"""By which the clock behind a link is wrong while that fault is on."""

SKEW_ALLOWED = 300.0

POSTGRES_FAULTS = ("refuse", "freeze", "lose_replies", "drop_notices")
"""refuse: no connection, and those that exist are cut.  freeze: nothing passes, and nothing is cut.  lose_replies: what
clients send still arrives; the answers do not, and then the connection is cut.  drop_notices: no NOTIFY passes.
"""

SQS_FAULTS = (
    "refuse",
    "unavailable",
    "throttle",
    "slow",
    "reset",
    "garbage",
    "double",
    "expire",
    "skew",
    "certificate",
)
"""refuse: connections are reset.  unavailable, throttle: each request is refused (503, RequestThrottled).  slow: each
is delayed.  reset: the request is carried out and its answer cut off in the middle.  garbage: the same, but the answer
looks whole and is no JSON.  double: each message is sent twice.  expire: the session tokens that were seen so far are
refused from now on.  skew: the service's clock is an hour ahead, and requests that are signed for another time are
refused.  certificate: the service's certificate has expired, and all connections are cut.
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

    def sqs(self, endpoint: str, certificates: Certificates) -> SqsLink:
        """To an endpoint without TLS, with TLS towards its clients."""
        return self._added(SqsLink(self, endpoint, certificates))

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

    name = ""
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def __init__(self, links: Links, host: str, port: int) -> None:
        self._links = links
        self._upstream = (host, port)
        self._fault: str | None = None
        self._until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def _tls(self) -> ssl.SSLContext | None:
        """What the connections are to be served with."""
        return None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20, ssl=self._tls())
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
            self._switched(kind)
            if kind == "lose_replies":
                asyncio.get_running_loop().call_later(seconds, self._cut)

        self._links.call(switch)

    def _switched(self, kind: str) -> None:
        """A fault has been switched on."""
        if kind in ("refuse", "certificate"):
            self._cut()

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

    name = "PostgreSQL"
    faults = POSTGRES_FAULTS

    def __init__(self, links: Links, url: str) -> None:
        self._target = urlsplit(url)
        super().__init__(links, self._target.hostname or "127.0.0.1", self._target.port or 5432)

    @property
    def url(self) -> str:
        netloc = f"{self._target.netloc.rpartition('@')[0]}@{HOST}:{self.port}"
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
    """HTTPS to an SQS endpoint.  ``doubled``: share of the sends that are always sent twice.  ``counts``: requests by
    action.
    """

    name = "SQS"
    faults = SQS_FAULTS

    def __init__(self, links: Links, endpoint: str, certificates: Certificates) -> None:
        target = urlsplit(endpoint)
        super().__init__(links, target.hostname or "127.0.0.1", target.port or 80)
        self._certificates = certificates
        self._tokens: set[bytes] = set()
        self._expired: set[bytes] = set()
        self.doubled = 0.0
        self.counts: Counter[str] = Counter()
        self._bodies: deque[str] = deque(maxlen=500)
        self._dice = random.Random(0)

    @property
    def endpoint(self) -> str:
        return f"https://{HOST}:{self.port}"

    def _tls(self) -> ssl.SSLContext:
        good, expired = self._certificates.contexts()

        def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            if self._on("certificate"):
                connection.context = expired

        good.sni_callback = choose
        return good

    def _switched(self, kind: str) -> None:
        super()._switched(kind)
        if kind == "expire":
            self._expired |= self._tokens

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
            answer = self._denied(fields) or await self._answer(head, body, action)
            if answer is None:
                _reset(writer)
                return
            writer.write(answer)
            await writer.drain()

    def _denied(self, fields: dict[bytes, bytes]) -> bytes | None:
        """What the service says to a token that has expired, and to a signature that is of another time."""
        token = fields.get(b"x-amz-security-token", b"")
        self._tokens.add(token)
        if token in self._expired:
            return _refusal("ExpiredTokenException")
        now = time.time() + (SKEW_SECONDS if self._on("skew") else 0.0)
        signed = calendar.timegm(time.strptime(fields[b"x-amz-date"].decode(), "%Y%m%dT%H%M%SZ"))
        if abs(now - signed) > SKEW_ALLOWED:
            return _refusal("RequestTimeTooSkewed", f"Date: {email.utils.formatdate(now, usegmt=True)}\r\n")
        return None

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


def _answer_of(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n"
    return head % len(body) + headers + b"\r\n" + body


def _refusal(kind: str, headers: str = "") -> bytes:
    body = json.dumps({"__type": f"com.amazon.coral.service#{kind}", "message": "a fault"})
    return _answer_of(b"403 Forbidden", body.encode(), headers.encode())


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without goodbye: the peer gets a reset."""
    raw = writer.get_extra_info("socket")
    # A TLS connection that is closed has none any more.
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
