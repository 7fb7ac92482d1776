"""The C core: SQS client, idempotency store, heartbeat, fence, payload and signing.

Nothing starts at import.  A :class:`Loop` has one I/O thread, started at its first operation; no call holds the GIL
while it waits.  Handles refuse to work in a forked child (:class:`dagster_taskiq.errors.ForkedError`).  Errors are
instances of :class:`dagster_taskiq.errors.CoreError`, which says what they carry.

Times are in seconds.  A timeout, interval or limit of None is the core's default; 0 is refused where it would have no
meaning.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from types import GenericAlias
from typing import Any, Final, Generic, Literal, TypeVar, final

from typing_extensions import Self

_T_co = TypeVar("_T_co", covariant=True)
_T = TypeVar("_T")

ERROR_TABLE: Final[tuple[tuple[str, int, str, bool, str], ...]]
"""(name, number, sentence, retryable, class name) of each error code."""

@final
class Operation(Generic[_T_co]):
    """A request on its way.  ``await`` it in asyncio, or block with :meth:`result`.

    Awaiting needs the running event loop to watch the :class:`Loop` of the operation; that is set up at the first
    await. Cancelling the awaiting task asks the core to cancel the operation.  An operation that nobody waits for
    goes on all the same.
    """

    @property
    def loop(self) -> Loop: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> _T_co:
        """Block, without the GIL, until done.  Raises the operation's error, or ``OperationTimeoutError`` after
        ``timeout`` seconds (the operation goes on then).  Python's signal handlers run while it waits."""

    def cancel(self) -> None:
        """Ask the core to end it early, with ``OperationCancelledError``; it may end with its result all the same."""

    def watch(self) -> None:
        """Have the operation put into :meth:`Loop.drain` when it is done, once."""

    def __await__(self) -> Generator[Any, None, _T_co]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@final
class Event:
    """Something nobody asked for at this moment: see ``kind``."""

    @property
    def kind(
        self,
    ) -> Literal["notification", "store_connected", "store_lost", "lease_lost", "cancel", "visibility_lost"]:
        """``store_connected``: also after a reconnect, when notifications may have been missed: look at the rows."""

    @property
    def generation(self) -> int:
        """Of the claim that a lease_lost, cancel or visibility_lost is about; else 0."""

    @property
    def channel(self) -> str | None: ...
    @property
    def payload(self) -> str | None: ...

@final
class Loop:
    """One I/O thread for any number of clients.

    It is closed at the interpreter's exit when it has not been before.
    """

    _bridge: Any
    """The asyncio bridge's own; None until it is needed."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """A descriptor that is readable while :meth:`drain` has something.  Open for as long as the Loop exists."""

    def drain(self) -> list[Operation[Any] | Event]:
        """Take what is ready, oldest first: watched operations that are done, and events."""

    def close(self, timeout: float = 0.0) -> None:
        """Stop.  Up to ``timeout`` seconds outstanding long polls may finish and what they bring is handed back; then
        all connections drop.  Blocks until the I/O thread has ended; what was not done ends with ``ClosedError``."""

    @property
    def closed(self) -> bool: ...

@final
class SqsClient:
    """SQS over AWS's JSON protocol.  ``endpoint`` None: the region's public endpoint.

    ``refresh`` returns (access key id, secret access key, session token or None, wall-clock second of expiry or 0).
    It is called by the methods below when there are no credentials yet or they expire within five minutes, in the
    calling thread; who makes no calls for long while a :class:`Beat` does calls :meth:`refresh_credentials`.

    Operations raise ``SqsError`` subclasses; bad arguments are ``ValueError`` or ``TypeError`` at the call.
    """

    def __new__(
        cls,
        loop: Loop,
        *,
        region: str,
        endpoint: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        expires_at: int = 0,
        refresh: Callable[[], tuple[str, str, str | None, int]] | None = None,
        ca_file: str | None = None,
        proxy: str | None = None,
        insecure: bool = False,
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        max_attempts: int | None = None,
        backoff_base: float | None = None,
        backoff_cap: float | None = None,
    ) -> Self: ...
    @property
    def loop(self) -> Loop: ...
    def set_credentials(
        self, access_key_id: str, secret_access_key: str, session_token: str | None = None, expires_at: int = 0
    ) -> None: ...
    def refresh_credentials(self) -> None:
        """Call ``refresh`` when it is time to."""

    def send(
        self, queue_url: str, entries: Sequence[Mapping[str, Any]], *, timeout: float | None = None
    ) -> Operation[list[dict[str, Any]]]:
        """Send 1..10 messages in one request.

        Entry: ``body`` (str or bytes), optional ``delay`` (s), ``group_id``, ``deduplication_id``, ``attributes``
        (dict of str).  Result, in order: ``{"ok": True, "message_id": …}`` or ``{"ok": False, "code": …, "message":
        …, "sender_fault": …}``.
        """

    def receive(
        self,
        queue_url: str,
        *,
        max_messages: int = 10,
        wait: int = 20,
        visibility: int | None = None,
        timeout: float | None = None,
    ) -> Operation[list[dict[str, Any]]]:
        """Receive up to ``max_messages``, waiting up to ``wait`` seconds for the first.

        Message: ``message_id``, ``receipt_handle``, ``body`` (bytes), ``system_attributes``, ``attributes`` (dicts of
        str), ``damaged`` (bool: the body does not match its checksum and must not be used).
        """

    def delete(
        self, queue_url: str, receipt_handles: Sequence[str], *, timeout: float | None = None
    ) -> Operation[list[dict[str, Any]]]:
        """Delete 1..10 messages in one request.  Result as that of :meth:`send`, without message ids."""

    def change_visibility(
        self, queue_url: str, entries: Sequence[tuple[str, int]], *, timeout: float | None = None
    ) -> Operation[list[dict[str, Any]]]:
        """Entries, 1..10: (receipt handle, seconds from now 0..43200).  Result as that of :meth:`delete`."""

    def call(
        self, action: str, request: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Operation[dict[str, Any]]:
        """Any SQS action by its name, request and answer as in the "Amazon SQS API Reference"."""

    def stats(self) -> dict[str, int]:
        """Counters since the start: requests, retries, throttled, failed, connections, bytes_sent, bytes_received."""

@final
class Store:
    """The idempotency store's connection: :class:`dagster_taskiq.store.IdempotencyStore` has the moves with their
    types.

    Operations raise ``StoreError`` subclasses.
    """

    def __new__(
        cls,
        loop: Loop,
        url: str,
        *,
        application_name: str | None = None,
        connect_timeout: float | None = None,
        operation_timeout: float | None = None,
        backoff_base: float | None = None,
        backoff_cap: float | None = None,
    ) -> Self: ...
    @property
    def loop(self) -> Loop: ...
    def run(
        self,
        statement: str,
        params: Sequence[Any],
        *,
        timeout: float | None = None,
        convert: Callable[[list[tuple[Any, ...]]], _T] | None = None,
    ) -> Operation[_T]:
        """Run a named statement.  Rows come back as tuples of str, int, float, bool, lists of them, or None, by the
        statement's signature; ``convert`` is applied to the list each time the result is taken."""

    def script(self, sql: str, *, timeout: float | None = None) -> Operation[None]:
        """Run several statements in one transaction."""

    def listen(self, channel: str, *, timeout: float | None = None) -> Operation[None]:
        """Have the channel's notifications come as events, also after reconnects."""

    def unlisten(self, channel: str, *, timeout: float | None = None) -> Operation[None]: ...

def statements() -> dict[str, tuple[str, str, str]]:
    """name -> (parameter types, column types, SQL) of every statement of the store."""

@final
class FenceBoard:
    """Deadlines of step processes in shared memory.  The descriptor is inherited by the warm parents."""

    def __new__(cls, slots: int) -> Self: ...
    def fileno(self) -> int: ...
    @property
    def slots(self) -> int: ...
    def set(self, slot: int, generation: int, deadline_ns: int) -> None:
        """Give the slot to ``generation`` with its first deadline.  ``IndexError`` when there is no such slot."""

    def clear(self, slot: int, /) -> None: ...

@final
class Beat:
    """Renews leases and visibilities from the core's thread; its events come out of :meth:`Loop.drain`.

    It beats for as long as the Loop is open, whether this object is kept or not.  ``sqs`` must have the store's Loop.
    """

    def __new__(cls, store: Store, *, board: FenceBoard | None = None, sqs: SqsClient | None = None) -> Self: ...
    def add(
        self,
        run_id: str,
        step_key: str,
        attempt: int,
        generation: int,
        *,
        ttl: float,
        margin: float,
        heartbeat: float,
        claimed_ns: int,
        slot: int = -1,
        queue_url: str | None = None,
        receipt_handle: str | None = None,
        visibility: int = 0,
        received_ns: int = 0,
    ) -> None:
        """Renew this claim from now on.  ``margin``: seconds before the end of its lease at which its fence kills.
        ``claimed_ns``: :func:`boot_ns` before the claim was sent.
        ``IndexError`` when the board has no such slot."""

    def remove(self, generation: int, /) -> None:
        """Begin no renewal for it any more."""

    def forget_message(self, generation: int, /) -> None:
        """Keep the lease, stop hiding the message (it is about to be deleted)."""

def boot_ns() -> int:
    """CLOCK_BOOTTIME in ns: the clock of fence deadlines."""

def fence_arm(fd: int, slot: int, generation: int) -> None:
    """In a step process: a kernel timer kills this process with SIGKILL at the slot's deadline.  Raises
    ``LeaseLostError`` when it is past."""

def fence_deadline_ns(fd: int, slot: int, generation: int) -> int:
    """The deadline that the slot has for ``generation``; 0 when none."""

def die_with_parent(expected_parent: int, /) -> None:
    """Have the kernel kill this process with SIGKILL when the thread that forked it dies.  ``LeaseLostError`` when
    ``expected_parent`` is gone already, ``UnsupportedError`` where there is no such call."""

def outlive_parent() -> None:
    """Take :func:`die_with_parent` back.  ``UnsupportedError`` where there is no such call."""

def own_pages() -> bytes:
    """The pages of private, writable memory that this process shares with no other one, as a list for the next two
    (opaque).  ``UnsupportedError`` where the kernel does not tell (Linux does, in /proc/self/pagemap)."""

def present_pages(pages: bytes, /) -> bytes:
    """Those of ``pages`` that this process has in memory."""

def populate_pages(pages: bytes, /) -> int:
    """Give this process copies of its own (MADV_POPULATE_WRITE, Linux 5.14).  Returns how many ranges of ``pages`` the
    kernel has refused."""

def collapse_pages(max: int, /) -> int:
    """Move this process' private memory into huge pages (MADV_COLLAPSE, Linux 6.1): ``max`` bytes of it at most, and no
    mapping that is larger.  Returns how many bytes are in such now.  ``UnsupportedError`` where there are none."""

def encode_step_task(task: Mapping[str, Any], *, task_id: str, signing_key: bytes | str | None = None) -> bytes:
    """The TaskIQ message of a step task.

    Keys of ``task``, all of them needed: ``run_id``, ``step_key``, ``attempt``, ``job_name``, ``queue``,
    ``code_location``, ``lease_ttl``, ``heartbeat``, ``visibility``, ``sent_at``, ``settings`` (JSON text), ``parts``
    (name -> str for inline text, or (sha256 hex, bytes)).
    """

def decode_step_task(message: bytes | str, *, signing_keys: Sequence[bytes | str] = ()) -> dict[str, Any]:
    """The inverse, with ``version`` in addition.  Raises ``PayloadError`` subclasses."""

def sha256_hex(text: bytes | str, /) -> str: ...
def sign_request(
    *,
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[str, str]],
    body: bytes | str,
    region: str,
    service: str,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None,
    time: int,
    normalize_path: bool = True,
) -> dict[str, str]:
    """SigV4: {"authorization", "x-amz-date"} and the stages "canonical_request", "string_to_sign" (for tests and
    diagnosis)."""
