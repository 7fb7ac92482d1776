"""SqsClient over an emulator: every kind of request, awaited and blocking."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from services import Queue

from dagster_taskiq import _core, errors, sqs

MISSING = "http://127.0.0.1:1/123456789012/no-such-queue"


def bodies(messages: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in messages]


class TestBlocking:
    def test_send_receive_delete(self, client: _core.SqsClient, queue: Queue) -> None:
        (sent,) = client.send(queue.url, [{"body": "hello", "attributes": {"color": "blue"}}]).result()
        (message,) = client.receive(queue.url, visibility=30).result()
        assert sent == {"ok": True, "message_id": message["message_id"]}
        assert message["body"] == b"hello"
        assert message["attributes"] == {"color": "blue"}
        assert message["system_attributes"]["ApproximateReceiveCount"] == "1"
        assert message["damaged"] is False
        assert client.delete(queue.url, [message["receipt_handle"]]).result() == [{"ok": True}]
        assert queue.counts() == (0, 0)

    def test_bodies_survive(self, client: _core.SqsClient, queue: Queue) -> None:
        texts = ['"quoted" \\ \t\n', "äß€漢😀", "x" * 100_000, "{}", " "]
        results = client.send(queue.url, [{"body": body} for body in texts]).result()
        assert all(result["ok"] for result in results)
        found: list[bytes] = []
        while len(found) < len(texts):
            found += bodies(client.receive(queue.url, wait=1).result())
        assert sorted(found) == sorted(body.encode() for body in texts)

    def test_bytes_bodies(self, client: _core.SqsClient, queue: Queue) -> None:
        client.send(queue.url, [{"body": "ä".encode()}]).result()
        assert bodies(client.receive(queue.url).result()) == ["ä".encode()]

    def test_change_visibility(self, client: _core.SqsClient, queue: Queue) -> None:
        client.send(queue.url, [{"body": "x"}]).result()
        (message,) = client.receive(queue.url, visibility=300).result()
        assert client.receive(queue.url, wait=0).result() == []
        assert client.change_visibility(queue.url, [(message["receipt_handle"], 0)]).result() == [{"ok": True}]
        (again,) = client.receive(queue.url).result()
        assert again["message_id"] == message["message_id"]
        assert again["system_attributes"]["ApproximateReceiveCount"] == "2"

    def test_call(self, client: _core.SqsClient, queue: Queue) -> None:
        assert client.call("GetQueueUrl", {"QueueName": queue.name}).result()["QueueUrl"] == queue.url
        answer = client.call("GetQueueAttributes", {"QueueUrl": queue.url, "AttributeNames": ["QueueArn"]}).result()
        assert answer["Attributes"]["QueueArn"].endswith(queue.name)
        assert isinstance(client.call("ListQueues").result(), dict)

    def test_result_may_be_taken_twice(self, client: _core.SqsClient, queue: Queue) -> None:
        operation = client.send(queue.url, [{"body": "x"}])
        first = operation.result()
        first.clear()
        assert len(operation.result()) == 1
        assert operation.done()

    def test_stats(self, client: _core.SqsClient, queue: Queue) -> None:
        before = client.stats()["requests"]
        client.call("ListQueues").result()
        stats = client.stats()
        assert stats["requests"] == before + 1
        assert set(stats) == {
            "requests",
            "retries",
            "throttled",
            "failed",
            "connections",
            "bytes_sent",
            "bytes_received",
        }


class TestErrors:
    def test_missing_queue(self, client: _core.SqsClient, queue: Queue) -> None:
        with pytest.raises(errors.QueueMissingError) as caught:
            client.send(queue.url + "-no-such-queue", [{"body": "x"}]).result()
        assert caught.value.http_status == 400
        assert "NonExistentQueue" in str(caught.value.service_code) or "QueueDoesNotExist" in str(
            caught.value.service_code
        )
        assert not caught.value.retryable

    def test_refused_request(self, client: _core.SqsClient) -> None:
        with pytest.raises(errors.SqsServiceError) as caught:
            client.call("CreateQueue", {"QueueName": "no good name"}).result()
        assert caught.value.service_code == "InvalidParameterValue"

    def test_each_entry_can_fail_alone(self, client: _core.SqsClient, queue: Queue) -> None:
        client.send(queue.url, [{"body": "x"}]).result()
        (message,) = client.receive(queue.url).result()
        good, bad = client.delete(queue.url, [message["receipt_handle"], "nonsense"]).result()
        assert good == {"ok": True}
        assert bad["ok"] is False
        assert bad["code"] == "ReceiptHandleIsInvalid"
        assert bad["sender_fault"] is True
        sqs.raise_for_entry(good)
        with pytest.raises(errors.SqsServiceError) as caught:
            sqs.raise_for_entry(bad)
        assert caught.value.service_code == "ReceiptHandleIsInvalid"
        assert not caught.value.retryable

    def test_unreachable(self, loop: _core.Loop) -> None:
        client = _core.SqsClient(
            loop,
            region="eu-central-1",
            endpoint="http://127.0.0.1:1",
            access_key_id="a",
            secret_access_key="b",
            max_attempts=2,
            backoff_base=0.001,
        )
        with pytest.raises(errors.SqsTransportError) as caught:
            client.call("ListQueues").result()
        assert caught.value.retryable
        assert client.stats()["retries"] == 1

    def test_no_credentials(self, loop: _core.Loop, sqs_endpoint: str) -> None:
        client = _core.SqsClient(loop, region="eu-central-1", endpoint=sqs_endpoint)
        with pytest.raises(errors.CredentialsError):
            client.call("ListQueues").result()


class TestArguments:
    @pytest.mark.parametrize(
        "entries",
        [
            [],
            [{"body": ""}],
            [{}],
            [{"body": 3}],
            [{"body": "x"}] * 11,
            [{"body": "x", "colour": 1}],
            [{"body": "x", "delay": 901}],
            [{"body": "x", "delay": "1"}],
            [{"body": "x", "group_id": 1}],
            [{"body": "x", "attributes": {"a": 1}}],
            [{"body": "x", "attributes": {"a\0b": "1"}}],
            [{"body": "x", "attributes": 1}],
            [1],
            "x",
            1,
        ],
        ids=repr,
    )
    def test_send(self, client: _core.SqsClient, entries: Any) -> None:
        with pytest.raises((ValueError, TypeError, AttributeError, OverflowError)):
            client.send(MISSING, entries)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_messages": 0},
            {"max_messages": 11},
            {"wait": 21},
            {"wait": -1},
            {"visibility": 43201},
            {"visibility": -1},
        ],
    )
    def test_receive(self, client: _core.SqsClient, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            client.receive(MISSING, **options)

    @pytest.mark.parametrize("handles", [[], ["x"] * 11, [1], [""], 1], ids=repr)
    def test_delete(self, client: _core.SqsClient, handles: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            client.delete(MISSING, handles)

    @pytest.mark.parametrize(
        "entries", [[], [("x", 1)] * 11, [("x", -1)], [("x", 43201)], [("x",)], [1], ["x"]], ids=repr
    )
    def test_change_visibility(self, client: _core.SqsClient, entries: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            client.change_visibility(MISSING, entries)

    def test_call(self, client: _core.SqsClient) -> None:
        with pytest.raises(TypeError):
            client.call("ListQueues", {"a": object()})
        with pytest.raises((TypeError, AttributeError)):
            client.call("ListQueues", 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"region": ""},
            {"region": None},
            {"region": "r", "endpoint": "ftp://x"},
            {"region": "r", "access_key_id": "a"},
            {"region": "r", "refresh": 3},
            {"region": "r", "connect_timeout": 0},
            {"region": "r", "max_attempts": "x"},
            {"region": "r", "nonsense": 1},
        ],
        ids=repr,
    )
    def test_constructor(self, loop: _core.Loop, options: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError)):
            _core.SqsClient(loop, **options)


class TestAsyncio:
    async def test_many_at_once(self, client: _core.SqsClient, queue: Queue) -> None:
        """Long polls beside hundreds of sends, on one thread."""
        polls = [asyncio.ensure_future(_await(client.receive(queue.url, wait=20, visibility=300))) for _ in range(4)]
        sends = [client.send(queue.url, [{"body": f"{n}-{m}"} for m in range(10)]) for n in range(30)]
        results = await asyncio.gather(*(_await(send) for send in sends))
        assert all(entry["ok"] for result in results for entry in result)
        found = {message["message_id"]: message for poll in await asyncio.gather(*polls) for message in poll}
        while len(found) < 300:
            receives = [client.receive(queue.url, wait=1, visibility=300) for _ in range(8)]
            for result in await asyncio.gather(*map(_await, receives)):
                # A message may come twice, as in SQS itself.
                found.update({message["message_id"]: message for message in result})
        assert sorted(bodies([*found.values()])) == sorted(f"{n}-{m}".encode() for n in range(30) for m in range(10))
        assert client.stats()["retries"] == 0
        handles = [message["receipt_handle"] for message in found.values()]
        deletes = [client.delete(queue.url, handles[at : at + 10]) for at in range(0, 300, 10)]
        for result in await asyncio.gather(*map(_await, deletes)):
            assert result == [{"ok": True}] * 10

    async def test_the_event_loop_runs_meanwhile(self, client: _core.SqsClient, queue: Queue) -> None:
        poll = asyncio.ensure_future(_await(client.receive(queue.url, wait=20)))
        await client.send(queue.url, [{"body": "x"}])
        assert bodies(await poll) == [b"x"]

    async def test_a_cancelled_poll_hands_back(self, client: _core.SqsClient, queue: Queue) -> None:
        """What a poll brings that nobody waits for any more is visible again at once, not after 300 s."""
        poll = asyncio.ensure_future(_await(client.receive(queue.url, wait=2, visibility=300)))
        await asyncio.sleep(0)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await client.send(queue.url, [{"body": "x"}])
        found: list[bytes] = []
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            found = bodies(await client.receive(queue.url, wait=1))
        assert found == [b"x"]

    async def test_done_before_it_is_awaited(self, client: _core.SqsClient) -> None:
        operation = client.call("ListQueues")
        operation.result()
        assert await operation == operation.result()


class TestCredentials:
    def test_refresh_is_asked_when_needed(self, loop: _core.Loop, sqs_endpoint: str) -> None:
        asked: list[int] = []
        lifetime = 3600

        def refresh() -> tuple[str, str, str | None, int]:
            asked.append(1)
            return "a", "b", "token", int(time.time()) + lifetime

        client = _core.SqsClient(loop, region="us-east-1", endpoint=sqs_endpoint, refresh=refresh)
        assert asked == []
        for _ in range(3):
            client.call("ListQueues").result()
        assert len(asked) == 1
        client.set_credentials("a", "b", None, int(time.time()) + 60)
        client.call("ListQueues").result()
        assert len(asked) == 2
        client.set_credentials("a", "b")
        client.refresh_credentials()
        assert len(asked) == 2

    def test_refused_as_expired(self, loop: _core.Loop) -> None:
        """Long before the time that was given for them: the request fails, and the next one has newer ones."""

        class Service(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                old = self.headers["X-Amz-Security-Token"] == "token 1"
                body = b'{"__type": "ExpiredTokenException"}' if old else b'{"QueueUrls": []}'
                self.send_response(403 if old else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        asked: list[int] = []

        def refresh() -> tuple[str, str, str | None, int]:
            asked.append(1)
            return "a", "b", f"token {len(asked)}", int(time.time()) + 3600

        with HTTPServer(("127.0.0.1", 0), Service) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            client = _core.SqsClient(loop, region="us-east-1", endpoint=endpoint, refresh=refresh)
            with pytest.raises(errors.CredentialsError) as caught:
                client.call("ListQueues").result()
            assert caught.value.retryable and caught.value.service_code == "ExpiredTokenException"
            assert client.call("ListQueues").result() == {"QueueUrls": []}
            assert len(asked) == 2
            server.shutdown()

    @pytest.mark.parametrize("token", ["abc\n", "abc\r\nX-Evil: 1", "abc\x7f"], ids=repr)
    def test_a_token_that_cannot_be_sent(self, loop: _core.Loop, token: str) -> None:
        message = "AWS session token has a control character"
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        with pytest.raises(errors.CredentialsError, match=message):
            _core.SqsClient(loop, region="us-east-1", session_token=token, **keys)
        client = _core.SqsClient(loop, region="us-east-1", **keys)
        with pytest.raises(errors.CredentialsError, match=message) as caught:
            client.set_credentials("a", "b", token)
        assert "abc" not in str(caught.value)

    def test_refresh_is_asked_again_after_such_a_token(self, loop: _core.Loop, sqs_endpoint: str) -> None:
        tokens = ["abc\n", "abc"]

        def refresh() -> tuple[str, str, str | None, int]:
            return "a", "b", tokens.pop(0), int(time.time()) + 3600

        client = _core.SqsClient(loop, region="us-east-1", endpoint=sqs_endpoint, refresh=refresh)
        with pytest.raises(errors.CredentialsError, match="session token"):
            client.call("ListQueues")
        client.call("ListQueues").result()
        assert tokens == []

    @pytest.mark.parametrize("answer", [None, ("a", "b"), ("a", 3, None, 0), ["a", "b", None, 0]], ids=repr)
    def test_wrong_answers(self, loop: _core.Loop, answer: Any) -> None:
        client = _core.SqsClient(loop, region="us-east-1", refresh=lambda: answer)
        with pytest.raises(TypeError):
            client.call("ListQueues")

    def test_failing_refresh(self, loop: _core.Loop) -> None:
        def refresh() -> tuple[str, str, str | None, int]:
            raise LookupError("no role")

        client = _core.SqsClient(loop, region="us-east-1", refresh=refresh)
        with pytest.raises(LookupError, match="no role"):
            client.receive(MISSING)


class TestQueues:
    def test_pair(self, client: _core.SqsClient, queue: Queue) -> None:
        name = f"{queue.name}-pair"
        pair = sqs.create_queue_pair(client, name, max_receive_count=3).result()
        try:
            assert sqs.create_queue_pair(client, name, max_receive_count=3).result() == pair
            assert str(pair).split() == [pair.url, pair.dead_url]
            assert sqs.resolve_queue_url(client, name).result() == pair.url
            assert sqs.redrive_target(client, pair.url).result(30) == pair.dead_url
            assert sqs.redrive_target(client, pair.dead_url).result() is None
            names = {"QueueUrl": pair.url, "AttributeNames": ["RedrivePolicy"]}
            policy = client.call("GetQueueAttributes", names).result()["Attributes"]["RedrivePolicy"]
            assert int(json.loads(policy)["maxReceiveCount"]) == 3
        finally:
            for url in (pair.url, pair.dead_url):
                client.call("DeleteQueue", {"QueueUrl": url}).result()

    async def test_awaited(self, client: _core.SqsClient, queue: Queue) -> None:
        assert await sqs.resolve_queue_url(client, queue.name) == queue.url
        assert await sqs.resolve_queue_url(client, queue.url) == queue.url
        assert await sqs.redrive_target(client, queue.url) == queue.dead_url

    def test_names_are_asked_for_once(self, client: _core.SqsClient, queue: Queue) -> None:
        sqs.resolve_queue_url(client, queue.name).result()
        before = client.stats()["requests"]
        assert sqs.resolve_queue_url(client, queue.name).result() == queue.url
        assert client.stats()["requests"] == before

    async def test_missing(self, client: _core.SqsClient) -> None:
        with pytest.raises(errors.QueueMissingError):
            sqs.resolve_queue_url(client, "no-such-queue").result()
        with pytest.raises(errors.QueueMissingError):
            await sqs.resolve_queue_url(client, "no-such-queue")


async def _await(operation: Any) -> Any:
    return await operation


@pytest.fixture
def make(loop: _core.Loop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., _core.SqsClient]:
    """make_client in an environment without any setting of AWS."""
    for name in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return lambda **options: sqs.make_client(loop, **options)


class TestConventions:
    KEYS = ("a", "b")

    @pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
    def test_region(self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        with pytest.raises(errors.ConfigError, match="AWS_REGION"):
            make(credentials=self.KEYS)
        monkeypatch.setenv(variable, "eu-north-1")
        assert sqs.find_region() == "eu-north-1"
        make(credentials=self.KEYS)

    def test_region_of_a_profile(
        self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        (tmp_path / "config").write_text("[profile work]\nregion = ap-south-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "work")
        assert sqs.find_region() == "ap-south-1"

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"])
    def test_endpoint(
        self,
        make: Callable[..., _core.SqsClient],
        monkeypatch: pytest.MonkeyPatch,
        sqs_endpoint: str,
        variable: str,
    ) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL_SQS")
        monkeypatch.setenv(variable, sqs_endpoint)
        make(region="us-east-1", credentials=self.KEYS).call("ListQueues").result()

    def test_credentials_of_the_environment(
        self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(errors.ConfigError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            make(region="us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        with pytest.raises(errors.ConfigError, match="AWS_SECRET_ACCESS_KEY is missing"):
            make(region="us-east-1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "c")
        assert sqs.find_credentials() == ("a", "b", "c", 0)
        make(region="us-east-1")

    def test_credentials_of_a_profile(
        self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id = k\naws_secret_access_key = s\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        assert sqs.find_credentials() == ("k", "s", None, 0)

    def test_credentials_that_botocore_renews(
        self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Any, sqs_endpoint: str
    ) -> None:
        """A process that hands out credentials for an hour, by AWS's config file."""
        script = (
            "import json, datetime as d; "
            "end = (d.datetime.now(d.timezone.utc) + d.timedelta(hours=1)).isoformat(); "
            "print(json.dumps(dict(Version=1, AccessKeyId='k', SecretAccessKey='s', SessionToken='t', Expiration=end)))"
        )
        (tmp_path / "give").write_text(f"#!/usr/bin/env python3\n{script}\n")
        (tmp_path / "give").chmod(0o755)
        (tmp_path / "config").write_text(f"[default]\ncredential_process = {tmp_path / 'give'}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        provider = sqs.find_credentials()
        assert callable(provider)
        key_id, secret, *rest = provider()
        token, expires_at = rest
        assert (key_id, secret, token) == ("k", "s", "t")
        assert isinstance(expires_at, int)
        assert expires_at > time.time()
        make(region="us-east-1").call("ListQueues").result()

    def test_without_botocore(self, make: Callable[..., _core.SqsClient], monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        for name in [name for name in sys.modules if name.partition(".")[0] == "botocore"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "botocore", None)
        monkeypatch.setitem(sys.modules, "botocore.session", None)
        with pytest.raises(errors.ConfigError, match=r"install dagster-taskiq\[aws\]"):
            make(credentials=self.KEYS)
        with pytest.raises(errors.ConfigError, match=r"install dagster-taskiq\[aws\]"):
            make(region="us-east-1")

    @pytest.mark.parametrize("credentials", [("a", "b"), ("a", "b", None), ("a", "b", "t", 0)])
    def test_credentials_given(self, make: Callable[..., _core.SqsClient], sqs_endpoint: str, credentials: Any) -> None:
        for given in (credentials, lambda: credentials):
            make(region="us-east-1", endpoint=sqs_endpoint, credentials=given).call("ListQueues").result()

    def test_a_provider_that_fails(self, make: Callable[..., _core.SqsClient]) -> None:
        def provider() -> tuple[str, str]:
            raise LookupError("no role")

        with pytest.raises(errors.CredentialsError, match="no role"):
            make(region="us-east-1", credentials=provider)

    def test_credentials_of_the_wrong_shape(self, make: Callable[..., _core.SqsClient]) -> None:
        with pytest.raises(errors.ConfigError, match="credentials are"):
            make(region="us-east-1", credentials=("a",))
