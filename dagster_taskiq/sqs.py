"""SQS clients by AWS's conventions, and queues by name.

Region: argument, ``AWS_REGION``, ``AWS_DEFAULT_REGION``, botocore's profile.  Endpoint: argument,
``AWS_ENDPOINT_URL_SQS``, ``AWS_ENDPOINT_URL``, the region's public one.  Credentials: argument, ``AWS_ACCESS_KEY_ID``
and its companions, botocore's chain. botocore is asked only when it is installed and the environment does not answer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, final
from weakref import WeakKeyDictionary

from dagster_taskiq._core import ERROR_TABLE, Loop, Operation, SqsClient
from dagster_taskiq.errors import (
    ConfigError,
    CoreError,
    CredentialsError,
    DagsterTaskiqError,
    QueueMissingError,
    SqsServiceError,
)

T = TypeVar("T")

Credentials = tuple[str, str] | tuple[str, str, "str | None"] | tuple[str, str, "str | None", int]
"""Access key id, secret access key, session token or None, wall-clock second of expiry (0 = never)."""

CredentialsProvider = Callable[[], Credentials]

BOTOCORE_LIFETIME: Final = 600
"""Seconds that credentials are good for at least when botocore hands them out: it renews those that have less."""

MAX_RECEIVE_COUNT: Final = 10
"""Deliveries after which SQS moves a message to the dead-letter queue, unless said otherwise."""

MAX_RETENTION: Final = 1_209_600
"""Seconds that SQS keeps a message at most: 14 days ("Amazon SQS message quotas")."""


_SERVICE: Final = next((number, name) for name, number, _, _, python in ERROR_TABLE if python == "SqsServiceError")


# Clients


def make_client(
    loop: Loop,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    credentials: Credentials | CredentialsProvider | None = None,
    **options: Any,
) -> SqsClient:
    """A client of ``loop``, with ``options`` as :class:`~dagster_taskiq._core.SqsClient` has them.

    ``credentials``: a tuple, or a function that returns one; it is called again before they expire, when an operation
    is called or ``client.refresh_credentials()`` is; what it raises becomes ``CredentialsError``.  Raises
    ``ConfigError`` when the region or the credentials are nowhere to be found, or an option cannot be right.
    """
    if endpoint is None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_SQS") or os.environ.get("AWS_ENDPOINT_URL") or None
    if region is None:
        region = find_region()
    if credentials is None:
        credentials = find_credentials()
    if callable(credentials):
        options["refresh"] = _refresh(credentials)
    else:
        names = ("access_key_id", "secret_access_key", "session_token", "expires_at")
        options.update(zip(names, _whole(credentials), strict=True))
    try:
        client = SqsClient(loop, region=region, endpoint=endpoint, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if callable(credentials):
        client.refresh_credentials()
    return client


def _refresh(provider: CredentialsProvider) -> Callable[[], tuple[str, str, str | None, int]]:
    """What the client calls; whatever the provider raises becomes ``CredentialsError``."""

    def ask() -> tuple[str, str, str | None, int]:
        try:
            found = provider()
        except DagsterTaskiqError:
            raise
        except Exception as error:
            raise CredentialsError(f"the provider of AWS credentials failed: {error}") from error
        return _whole(found)

    return ask


def _whole(credentials: Credentials) -> tuple[str, str, str | None, int]:
    """With what may be left out."""
    if not 2 <= len(credentials) <= 4:
        raise ConfigError("credentials are (access key id, secret access key, session token or None, time of expiry)")
    given: tuple[Any, ...] = tuple(credentials)
    key_id, secret, token, expires_at = given + (None, 0)[len(given) - 2 :]
    return key_id, secret, token, expires_at


def find_region() -> str:
    """The region by AWS's conventions; ``ConfigError`` when there is none."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        session = _botocore_session()
        region = session.get_config_variable("region") if session else None
    if not region:
        raise ConfigError(
            "No AWS region: set `region` in the configuration, or AWS_REGION or AWS_DEFAULT_REGION in the environment"
            f"{_or_botocore('a region in the AWS profile')}."
        )
    return str(region)


def find_credentials() -> Credentials | CredentialsProvider:
    """Credentials by AWS's conventions; ``ConfigError`` when there are none."""
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if key_id and secret:
        return key_id, secret, os.environ.get("AWS_SESSION_TOKEN") or None, 0
    if key_id or secret:
        missing = "AWS_SECRET_ACCESS_KEY" if key_id else "AWS_ACCESS_KEY_ID"
        raise ConfigError(f"AWS credentials are half set: {missing} is missing in the environment.")
    session = _botocore_session()
    found = session.get_credentials() if session else None
    if found is None:
        raise ConfigError(
            "No AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) in the "
            f"environment{_or_botocore('credentials that botocore finds (profile, SSO, web identity, role)')}."
        )
    return _provider(found)


def _provider(found: Any) -> Credentials | CredentialsProvider:
    """What botocore found, as a tuple when it lasts for ever."""
    from botocore.credentials import RefreshableCredentials
    from botocore.exceptions import BotoCoreError

    def ask() -> Credentials:
        try:
            frozen = found.get_frozen_credentials()
        except BotoCoreError as error:
            raise CredentialsError(f"botocore could not renew the AWS credentials: {error}") from error
        expires_at = int(time.time()) + BOTOCORE_LIFETIME if isinstance(found, RefreshableCredentials) else 0
        return frozen.access_key, frozen.secret_key, frozen.token or None, expires_at

    return ask if isinstance(found, RefreshableCredentials) else ask()


def _botocore_session() -> Any:
    """A botocore session, or None when botocore is not installed."""
    try:
        from botocore.session import Session
    except ImportError:
        return None
    return Session()


def _or_botocore(what: str) -> str:
    try:
        import botocore  # noqa: F401
    except ImportError:
        return f"; or install dagster-taskiq[aws] to use {what}"
    return f", or provide {what}"


# Queues

_Conversation = Generator[Operation[dict[str, Any]], dict[str, Any], T]


@final
class Request(Generic[T]):
    """Some requests to SQS that depend on each other; ``await`` it, or block with :meth:`result`, once.

    Unlike an operation it sends nothing before that.
    """

    def __init__(self, conversation: _Conversation[T]) -> None:
        self._conversation = conversation

    def result(self, timeout: float | None = None) -> T:
        """Block until the answer is there; ``timeout`` seconds for each request."""
        conversation = self._conversation
        try:
            operation = next(conversation)
            while True:
                try:
                    answer = operation.result(timeout)
                except CoreError as error:
                    operation = conversation.throw(error)
                else:
                    operation = conversation.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _wait(self) -> T:
        conversation = self._conversation
        try:
            operation = next(conversation)
            while True:
                try:
                    answer = await operation
                except CoreError as error:
                    operation = conversation.throw(error)
                else:
                    operation = conversation.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()


_URLS: WeakKeyDictionary[SqsClient, dict[str, str]] = WeakKeyDictionary()
"""Queue names that were resolved, for each client."""


def is_queue_url(name_or_url: str) -> bool:
    """Whether it is a URL and not a queue's name."""
    return name_or_url.startswith(("http://", "https://"))


def _resolve(client: SqsClient, name_or_url: str) -> _Conversation[str]:
    if is_queue_url(name_or_url):
        return name_or_url
    known = _URLS.setdefault(client, {})
    if name_or_url not in known:
        answer = yield client.call("GetQueueUrl", {"QueueName": name_or_url})
        known[name_or_url] = str(answer["QueueUrl"])
    return known[name_or_url]


def resolve_queue_url(client: SqsClient, name_or_url: str) -> Request[str]:
    """The URL of a queue; a URL stays as it is.  ``QueueMissingError`` when there is no such queue.

    Names are asked for once per client.
    """
    return Request(_resolve(client, name_or_url))


def _redrive(client: SqsClient, queue_url: str) -> _Conversation[str | None]:
    answer = yield client.call("GetQueueAttributes", {"QueueUrl": queue_url, "AttributeNames": ["RedrivePolicy"]})
    policy = answer.get("Attributes", {}).get("RedrivePolicy")
    if not policy:
        return None
    arn = json.loads(policy)["deadLetterTargetArn"]
    account, name = str(arn).split(":")[4:6]
    try:
        answer = yield client.call("GetQueueUrl", {"QueueName": name, "QueueOwnerAWSAccountId": account})
    except QueueMissingError:
        return None
    return str(answer["QueueUrl"])


def redrive_target(client: SqsClient, queue_url: str) -> Request[str | None]:
    """The URL of a queue's dead-letter queue; None when it has none."""
    return Request(_redrive(client, queue_url))


@dataclass(frozen=True, slots=True)
class QueuePair:
    """A queue and its dead-letter queue."""

    url: str
    dead_url: str

    def __str__(self) -> str:
        return f"{self.url}\n{self.dead_url}"


def _create_pair(
    client: SqsClient, name: str, max_receive_count: int, attributes: Mapping[str, str]
) -> _Conversation[QueuePair]:
    stem, suffix = (name[: -len(".fifo")], ".fifo") if name.endswith(".fifo") else (name, "")
    common = {"MessageRetentionPeriod": str(MAX_RETENTION), **({"FifoQueue": "true"} if suffix else {})}
    answer = yield client.call("CreateQueue", {"QueueName": f"{stem}-dead{suffix}", "Attributes": common})
    dead_url = str(answer["QueueUrl"])
    answer = yield client.call("GetQueueAttributes", {"QueueUrl": dead_url, "AttributeNames": ["QueueArn"]})
    policy = {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": str(max_receive_count)}
    own = {**common, "RedrivePolicy": json.dumps(policy), **attributes}
    answer = yield client.call("CreateQueue", {"QueueName": name, "Attributes": own})
    return QueuePair(str(answer["QueueUrl"]), dead_url)


def create_queue_pair(
    client: SqsClient,
    name: str,
    *,
    max_receive_count: int = MAX_RECEIVE_COUNT,
    attributes: Mapping[str, str] | None = None,
) -> Request[QueuePair]:
    """Create the queue ``name`` and its dead-letter queue ``<name>-dead``, both keeping messages for 14 days.

    ``attributes``: further ones of the queue itself, as in the "Amazon SQS API Reference".  Nothing changes when both
    exist with the same settings; with others SQS refuses (``SqsServiceError``).
    """
    return Request(_create_pair(client, name, max_receive_count, attributes or {}))


def raise_for_entry(result: Mapping[str, Any]) -> None:
    """Raise ``SqsServiceError`` when an entry of a batch has failed; ``retryable`` unless the sender is to blame."""
    if result["ok"]:
        return
    error = SqsServiceError(f"{result['code']}: {result['message'] or 'SQS gives no reason'}")
    error.code, error.name = _SERVICE
    error.service_code = result["code"]
    error.retryable = not result["sender_fault"]
    raise error
