"""Stand between a process and a server: count what the process sends, or speak TLS with it."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

from certificates import new_key, server_context, write_certificate


class SqsProxy:
    """Forwards HTTP to an SQS endpoint and counts requests by action.

    ``substitute``: called with action and body; gives the status and body to answer with, or None to forward."""

    def __init__(
        self, endpoint: str, substitute: Callable[[str, bytes], tuple[int, bytes] | None] = lambda action, body: None
    ) -> None:
        upstream = urlsplit(endpoint)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                action = self.headers.get("X-Amz-Target", "").partition(".")[2]
                with proxy._lock:
                    proxy._counts[action] += 1
                if (own := substitute(action, body)) is not None:
                    self.send_response(own[0])
                    self.send_header("Content-Length", str(len(own[1])))
                    self.end_headers()
                    self.wfile.write(own[1])
                    return
                assert upstream.hostname
                connection = http.client.HTTPConnection(upstream.hostname, upstream.port or 80, timeout=60)
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                    connection.request("POST", self.path, body, headers)
                    answer = connection.getresponse()
                    payload = answer.read()
                finally:
                    connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "content-length", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up during a long poll is none."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def counts(self) -> Counter[str]:
        """Requests so far, by action."""
        with self._lock:
            return Counter(self._counts)

    def __enter__(self) -> SqsProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class PostgresProxy:
    """Forwards TCP to PostgreSQL without TLS and counts the statements (Sync and Query messages) that clients send."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._lock = threading.Lock()
        self._statements = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        netloc = f"{self._upstream.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        self.url = urlunsplit(self._upstream._replace(netloc=netloc, query="sslmode=disable&gssencmode=disable"))

    def statements(self) -> int:
        """Statements so far."""
        with self._lock:
            return self._statements

    def __enter__(self) -> PostgresProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._upstream.hostname or "", self._upstream.port or 5432))
            threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()

    def _to_client(self, source: socket.socket, target: socket.socket) -> None:
        _pump(source, target)

    def _to_server(self, source: socket.socket, target: socket.socket) -> None:
        """The start-up message has no type; each one after it has a letter and a length."""
        pending = b""
        started = False
        while True:
            try:
                chunk = source.recv(65536)
            except OSError:
                break
            if not chunk:
                break
            pending += chunk
            while True:
                head = 0 if not started else 1
                if len(pending) < head + 4:
                    break
                length = head + int.from_bytes(pending[head : head + 4], "big")
                if len(pending) < length:
                    break
                if started and pending[:1] in (b"S", b"Q"):
                    with self._lock:
                        self._statements += 1
                started = True
                pending = pending[length:]
            # Counted first: who has the answer finds its statement counted.
            try:
                target.sendall(chunk)
            except OSError:
                break
        _hang_up(source, target)


class TlsPostgresProxy:
    """TLS towards clients, in records as long as they may be, and none towards PostgreSQL; as a pooler in front of it.
    ``folder``: for its certificate."""

    REQUEST = bytes.fromhex("0000000804d2162f")
    """SSLRequest: "Message Formats" (PostgreSQL documentation)."""

    def __init__(self, url: str, folder: Path) -> None:
        write_certificate(folder / "postgresql.pem", "localhost", new_key(), days=1)
        self._context = server_context(folder / "postgresql.pem")
        self._upstream = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        netloc = f"{self._upstream.netloc.rpartition('@')[0]}@127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(self._upstream._replace(netloc=netloc, query="sslmode=require"))

    def __enter__(self) -> TlsPostgresProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection((self._upstream.hostname or "", self._upstream.port or 5432))
        with suppress(OSError):
            if client.recv(len(self.REQUEST), socket.MSG_WAITALL) == self.REQUEST:
                client.sendall(b"S")
                client = self._context.wrap_socket(client, server_side=True)
                _exchange(client, server)
        _hang_up(client, server)


def _exchange(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Until one of them hangs up."""
    while True:
        ready = [client] if client.pending() else select.select([client, server], [], [])[0]
        for source in ready:
            chunk = source.recv(1 << 20)
            if not chunk:
                return
            (server if source is client else client).sendall(chunk)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    _hang_up(source, target)


def _hang_up(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
