"""The C core: SQS client, idempotency store, heartbeat, fence, payload and signing.

Nothing starts at import.  A :class:`Loop` has one I/O thread, started at its first operation; no call holds the GIL while it waits.
Handles refuse to work in a forked child (:class:`dagster_taskiq.errors.ForkedError`).
Errors are instances of :mod:`dagster_taskiq.errors`, with ``code``, ``name``, ``http_status``, ``service_code``, ``sqlstate`` and ``retryable``.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeVar, final

T = TypeVar("T", covariant=True)

ERROR_TABLE: Final[tuple[tuple[str, int, str, bool, str], ...]]
"""(name, number, sentence, retryable, class name) of each error code."""

@final
class Operation(Generic[T]):
    """A request on its way.  ``await`` it in asyncio, or block with :meth:`result`.

    Awaiting needs the running event loop to watch the :class:`Loop` of the operation; that is set up at the first await.
    Cancelling the awaiting task asks the core to cancel the operation.
    """

    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> T:
        """Block, without the GIL, until done.  Raises the operation's error, or ``OperationTimeoutError`` after ``timeout`` seconds
        (the operation goes on then).  Interruptible: Python signal handlers run."""

    def cancel(self) -> None: ...
    def watch(self) -> None:
        """Have the operation put into :meth:`Loop.drain` when it is done (for the asyncio bridge)."""

    def __await__(self) -> Generator[Any, None, T]: ...

@final
class Event:
    """Something nobody asked for at this moment: see ``kind``."""

    @property
    def kind(self) -> Literal["notification", "store_connected", "store_lost", "lease_lost", "cancel", "visibility_lost"]: ...
    @property
    def generation(self) -> int: ...
    @property
    def channel(self) -> str | None: ...
    @property
    def payload(self) -> str | None: ...

@final
class Loop:
    """One I/O thread for any number of clients."""

    def __init__(self) -> None: ...
    def fileno(self) -> int:
        """A descriptor that is readable while :meth:`drain` has something."""

    def drain(self) -> list[Operation[Any] | Event]: ...
    def close(self, timeout: float = 0.0) -> None:
        """Stop.  Up to ``timeout`` seconds outstanding long polls may finish and what they bring is handed back; then all connections drop."""

    @property
    def closed(self) -> bool: ...

@final
class SqsClient:
    """SQS over AWS's JSON protocol.  ``endpoint`` None: the region's public endpoint.  Times in seconds.

    Raises ``SqsError`` subclasses from operations, ``ValueError`` for bad arguments at the call."""

    def __init__(
        self,
        loop: Loop,
        *,
        region: str,
        endpoint: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        expires_at: int = 0,
        ca_file: str | None = None,
        proxy: str | None = None,
        insecure: bool = False,
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        max_attempts: int | None = None,
        backoff_base: float | None = None,
        backoff_cap: float | None = None,
    ) -> None: ...
    def set_credentials(
        self, access_key_id: str, secret_access_key: str, session_token: str | None = None, expires_at: int = 0
    ) -> None: ...
    def send(self, queue_url: str, entries: Sequence[Mapping[str, Any]], *, timeout: float | None = None) -> Operation[list[dict[str, Any]]]:
        """Send 1..10 messages in one request.  Entry: ``body`` (str or bytes), optional ``delay`` (s), ``group_id``, ``deduplication_id``,
        ``attributes`` (dict of str).  Result, in order: ``{"ok": True, "message_id": …}`` or ``{"ok": False, "code": …, "message": …, "sender_fault": …}``."""

    def receive(
        self, queue_url: str, *, max_messages: int = 10, wait: int = 20, visibility: int | None = None, timeout: float | None = None
    ) -> Operation[list[dict[str, Any]]]:
        """Message: ``message_id``, ``receipt_handle``, ``body`` (bytes), ``system_attributes``, ``attributes`` (dicts of str), ``damaged`` (bool)."""

    def delete(self, queue_url: str, receipt_handles: Sequence[str], *, timeout: float | None = None) -> Operation[list[dict[str, Any]]]: ...
    def change_visibility(
        self, queue_url: str, entries: Sequence[tuple[str, int]], *, timeout: float | None = None
    ) -> Operation[list[dict[str, Any]]]:
        """Entries: (receipt handle, seconds from now 0..43200)."""

    def call(
        self, action: str, request: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Operation[dict[str, Any]]:
        """Any SQS action by its name, request and answer as in the "Amazon SQS API Reference"."""

    def stats(self) -> dict[str, int]: ...

@final
class Store:
    """The idempotency store's connection.  See :class:`dagster_taskiq.store.IdempotencyStore` for the moves with their types."""

    def __init__(
        self,
        loop: Loop,
        url: str,
        *,
        application_name: str | None = None,
        connect_timeout: float | None = None,
        operation_timeout: float | None = None,
        backoff_base: float | None = None,
        backoff_cap: float | None = None,
    ) -> None: ...
    def run(
        self, statement: str, params: Sequence[Any], *, timeout: float | None = None, convert: Callable[[list[tuple[Any, ...]]], T] | None = None
    ) -> Operation[T]:
        """Run a named statement.  Rows come back as tuples of str, int, float, bool, lists of them, or None, by the statement's signature; ``convert`` is
        applied to the list when the result is taken."""

    def script(self, sql: str, *, timeout: float | None = None) -> Operation[None]: ...
    def listen(self, channel: str, *, timeout: float | None = None) -> Operation[None]: ...
    def unlisten(self, channel: str, *, timeout: float | None = None) -> Operation[None]: ...

def statements() -> dict[str, tuple[str, str, str]]:
    """name -> (parameter types, column types, SQL) of every statement of the store."""

@final
class FenceBoard:
    """Deadlines of step processes in shared memory.  The descriptor is inherited by the warm parents."""

    def __init__(self, slots: int) -> None: ...
    def fileno(self) -> int: ...
    @property
    def slots(self) -> int: ...
    def set(self, slot: int, generation: int, deadline_ns: int) -> None: ...
    def clear(self, slot: int) -> None: ...

@final
class Beat:
    """Renews leases and visibilities from the core's thread; its events come out of :meth:`Loop.drain`."""

    def __init__(self, store: Store, *, margin: float, board: FenceBoard | None = None, sqs: SqsClient | None = None) -> None: ...
    def add(
        self,
        run_id: str,
        step_key: str,
        attempt: int,
        generation: int,
        *,
        ttl: float,
        heartbeat: float,
        claimed_ns: int,
        slot: int = -1,
        queue_url: str | None = None,
        receipt_handle: str | None = None,
        visibility: int = 0,
        received_ns: int = 0,
    ) -> None: ...
    def remove(self, generation: int) -> None: ...
    def forget_message(self, generation: int) -> None: ...

def boot_ns() -> int:
    """CLOCK_BOOTTIME in ns: the clock of fence deadlines."""

def fence_arm(fd: int, slot: int, generation: int) -> None:
    """In a step process: a kernel timer kills this process with SIGKILL at the slot's deadline.  Raises ``LeaseLostError`` when it is past."""

def fence_deadline_ns(fd: int, slot: int, generation: int) -> int: ...
def die_with_parent(expected_parent: int) -> None:
    """PR_SET_PDEATHSIG SIGKILL, race-free against ``expected_parent``.  ``UnsupportedError`` where there is no such call."""

def encode_step_task(task: Mapping[str, Any], *, task_id: str, signing_key: bytes | None = None) -> bytes:
    """The TaskIQ message of a step task.  Keys of ``task``: ``run_id``, ``step_key``, ``attempt``, ``job_name``, ``queue``, ``code_location``, ``lease_ttl``,
    ``heartbeat``, ``visibility``, ``sent_at``, ``settings`` (JSON text), ``parts`` (name -> str for inline text, or (sha256 hex, bytes))."""

def decode_step_task(message: bytes | str, *, signing_keys: Sequence[bytes] = ()) -> dict[str, Any]:
    """The inverse.  Raises ``PayloadError`` subclasses."""

def sha256_hex(text: bytes | str) -> str: ...
def sign_request(
    *,
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    region: str,
    service: str,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None,
    time: int,
    normalize_path: bool = True,
) -> dict[str, str]:
    """SigV4: {"authorization", "x-amz-date"} and the stages "canonical_request", "string_to_sign" (for tests and diagnosis)."""
