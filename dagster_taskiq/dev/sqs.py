"""An SQS emulator of our own, from pip (moto), for development, the demo and the tests.  Queues live in its memory."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from .service import DevServerError, Service, start_on_free_port

REGION = "us-east-1"
START_TIMEOUT = 60.0
CREDENTIALS = ("local", "local")
"""The emulator takes any."""


class EmbeddedSqs:
    """moto's server on 127.0.0.1; a context manager that stops what it started.  It checks no signature."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.endpoint = ""
        self._service: Service | None = None

    def start(self) -> EmbeddedSqs:
        """Start the server and return when it answers."""
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise DevServerError("no SQS emulator found. Install it with: pip install 'dagster-taskiq[dev]'")

        def server(port: int) -> Service:
            self.endpoint = f"http://127.0.0.1:{port}"
            return Service(
                "SQS emulator",
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                log=self.folder / "logs" / "sqs.log",
                grace=1.0,
            )

        self._service = start_on_free_port(server, self._answers, START_TIMEOUT)
        return self

    def stop(self) -> None:
        """Stop the server; its queues are gone."""
        if self._service:
            self._service.stop()
            self._service = None

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server."""
        return {
            "AWS_ENDPOINT_URL_SQS": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": CREDENTIALS[0],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS[1],
        }

    def create_queue_pair(self, name: str) -> str:
        """Create a queue with its dead-letter queue ``<name>-dead``; the queue's URL."""
        from dagster_taskiq import _core, sqs

        loop = _core.Loop()
        try:
            key_id, secret = CREDENTIALS
            client = sqs.make_client(loop, region=REGION, endpoint=self.endpoint, credentials=(key_id, secret, None, 0))
            return sqs.create_queue_pair(client, name).result(START_TIMEOUT).url
        finally:
            loop.close()

    def _answers(self) -> bool:
        try:
            call(self.endpoint, "ListQueues")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def __enter__(self) -> EmbeddedSqs:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def call(endpoint: str, action: str, **arguments: Any) -> dict[str, Any]:
    """One request to an emulator that verifies no signature: the header only names the service, to route by."""
    scope = f"{CREDENTIALS[0]}/20250101/{REGION}/sqs/aws4_request"
    request = urllib.request.Request(
        endpoint,
        data=json.dumps(arguments).encode(),
        headers={
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
            "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none",
        },
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        answer: dict[str, Any] = json.loads(response.read() or b"{}")
    return answer
