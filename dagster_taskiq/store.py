"""The idempotency store: what executor and worker agree on about every step attempt, in PostgreSQL.

Each method sends one statement, which is one move of the protocol (``docs/internals/protocol.md``), and returns an
:class:`~dagster_taskiq._core.Operation`: ``await`` it, or block with ``.result(timeout)``.  A move whose guards do
not hold changes nothing and says so in its result; it does not raise.  All times are PostgreSQL's; durations and
leases are seconds.

Raises, from the operation: ``StoreConnectionError`` (no connection within the operation's deadline),
``StoreSchemaError`` (tables missing), ``StoreError`` (PostgreSQL refused the statement), ``OperationTimeoutError``,
``OperationCancelledError``, ``ClosedError``.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from dagster_taskiq import _core
from dagster_taskiq.errors import ConfigError

StepState = Literal["queued", "claimed", "succeeded", "failed", "cancelled", "lost"]

NOT_RUN: Final = "no_terminal_event"
"""Reason of an attempt that Dagster did not run: its process ended well and without an event."""
RunState = Literal["active", "cancelling", "ended"]
ClaimOutcome = Literal["claimed", "held", "terminal", "run_inactive", "orphaned", "missing", "expired"]
StepKey = tuple[str, int]
"""Step key and attempt (1 is the first)."""

TERMINAL_STATES: Final[frozenset[str]] = frozenset({"succeeded", "failed", "cancelled", "lost"})

PRUNE_BATCH: Final = 100
"""Rows of one :meth:`IdempotencyStore.prune` or :meth:`IdempotencyStore.settle_ended` from which on there may be
more."""

_T = TypeVar("_T")
_Row = tuple[Any, ...]


def run_channel(run_id: str) -> str:
    """NOTIFY channel of a run.  Payload: JSON object with ``step_key``, ``attempt``, ``state``; or with ``run_state``
    when the run is being cancelled; or empty, which means "look at the rows"."""
    return "dtq_run_" + run_id.replace("-", "")


def worker_channel(identity: str) -> str:
    """NOTIFY channel of a worker.  Payload: the generation of a claim that is to be cancelled, in decimal."""
    return "dtq_worker_" + identity


def host_channel(boot_id: str) -> str:
    """NOTIFY channel of the workers of a host.  Payload: the identity of one that has registered."""
    return "dtq_host_" + hashlib.md5(boot_id.encode(), usedforsecurity=False).hexdigest()


def queue_channel(queue: str) -> str:
    """NOTIFY channel of the coordinators that use a queue, by its name.  Payload: JSON object, see
    :mod:`dagster_taskiq.refusals`."""
    return "dtq_queue_" + hashlib.md5(queue.encode(), usedforsecurity=False).hexdigest()


def step_application_name(generation: int) -> str:
    """``application_name`` of every PostgreSQL connection of a step process; see
    :meth:`IdempotencyStore.end_backends`."""
    return f"dagster-taskiq:{generation}"


def run_application_name(generation: int) -> str:
    """``application_name`` of every PostgreSQL connection of a coordinator; see
    :meth:`IdempotencyStore.end_backends`."""
    return f"dagster-taskiq-run:{generation}"


@dataclass(frozen=True, slots=True)
class RunRow:
    run_id: str
    generation: int
    state: RunState
    previous_generation: int | None
    """Of the coordinator that this one took over from."""
    unfenced: list[int]
    """Generations of earlier coordinators that may still have a statement under way."""
    coordinator: str
    lease_left: float
    """Of the coordinator; negative when it is past."""
    created_at: float


@dataclass(frozen=True, slots=True)
class StepRow:
    run_id: str
    step_key: str
    attempt: int
    state: StepState
    queue: str
    generation: int | None
    """Of the last claim."""
    owner: str | None
    worker_name: str | None
    host: str | None
    boot_id: str | None
    pid: int | None
    pid_start: str | None
    delivery_id: str | None
    deliveries: int | None
    sends: int
    cancel_requested: bool
    reason: str | None
    lease_left: float | None
    """Negative when the lease is past."""
    queued_at: float
    sent_at: float | None
    claimed_at: float | None
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class EndedRun:
    cancelled: int
    """Queued rows that became cancelled by this call."""
    still_claimed: list[StepRow]
    """Claims whose cancellation is now requested."""


@dataclass(frozen=True, slots=True)
class Resend:
    step_key: str
    attempt: int
    queue: str
    sends: int
    """Repeated sendings, this one included."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    queued: int
    claimed: int
    oldest_queued_age: float | None
    workers: int
    """Workers with a heartbeat that serve the queue."""


@dataclass(frozen=True, slots=True)
class Swept:
    step_key: str
    attempt: int
    state: Literal["lost", "queued", "cancelled"]
    """lost: it had started.  queued: it had not.  cancelled: it had not, and the run is no longer active."""
    generation: int
    """Of the claim whose lease ran out."""
    owner: str
    worker_name: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    step_key: str
    attempt: int
    state: StepState
    generation: int | None
    owner: str | None
    worker_name: str | None
    host: str | None
    events: str | None
    """JSON array of serialized Dagster events."""
    error: str | None
    """JSON."""
    reason: str | None
    deliveries: int | None
    queued_at: float
    """This and the following are seconds since the epoch."""
    claimed_at: float | None
    started_at: float | None
    finished_at: float | None
    lease_at: float | None
    """When the lease ends or ended."""
    pid: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    outcome: ClaimOutcome
    """claimed: run it.  held: another claim's lease is alive.  expired: it was not, and this call settled it (see
    ``state``).  run_inactive: the run is cancelling or ended, and this call cancelled the attempt.  orphaned:
    the lease of the run's coordinator is past, the attempt stays queued.  terminal, missing: nothing to run."""
    generation: int | None
    state: StepState | None
    """Of the row after the call."""
    lease_left: float | None
    owner: str | None
    """Of the claim that this call met or made."""
    same_message: bool
    """held: the other claim came by this very message, not by a copy of it."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    identity: str
    name: str
    host: str
    pid: int
    boot_id: str
    queues: list[str]
    slots: int
    busy: int
    started_at: float
    heartbeat_age: float
    alive: bool


@dataclass(frozen=True, slots=True)
class Fellow:
    """Another worker of one's host."""

    identity: str
    name: str
    pid: int
    pid_start: str


@dataclass(frozen=True, slots=True)
class FellowClaim:
    run_id: str
    step_key: str
    attempt: int
    generation: int
    pid: int | None
    pid_start: str | None
    started: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    runs: int
    parts: int
    workers: int


def _rows(row_type: Callable[..., _T]) -> Callable[[list[_Row]], list[_T]]:
    return lambda rows: [row_type(*row) for row in rows]


def _first(row_type: Callable[..., _T]) -> Callable[[list[_Row]], _T | None]:
    return lambda rows: row_type(*rows[0]) if rows else None


def _one(row_type: Callable[..., _T]) -> Callable[[list[_Row]], _T]:
    return lambda rows: row_type(*rows[0])


def _value(rows: list[_Row]) -> Any:
    return rows[0][0] if rows else None


def _any(rows: list[_Row]) -> bool:
    return bool(rows)


def _true(rows: list[_Row]) -> bool:
    return bool(rows) and rows[0][0] is True


def _column(rows: list[_Row]) -> list[Any]:
    return [row[0] for row in rows]


def _nothing(rows: list[_Row]) -> None:
    return None


def _ended(rows: list[_Row]) -> EndedRun | None:
    if not rows:
        return None
    return EndedRun(rows[0][0], [StepRow(*row[1:]) for row in rows if row[1] is not None])


def _claim(rows: list[_Row]) -> Claim:
    return Claim(*rows[0]) if rows else Claim("missing", None, None, None, None, False)


def _split(keys: Iterable[StepKey] | None) -> tuple[list[str] | None, list[int] | None]:
    if keys is None:
        return None, None
    pairs = list(keys)
    return [key for key, _ in pairs], [attempt for _, attempt in pairs]


class IdempotencyStore:
    """The moves of the protocol on one PostgreSQL connection of ``loop``.

    ``url``: a libpq URI or key=value string.  ``application_name``: of the connection; a coordinator gives
    :func:`run_application_name`.  The connection is made at the first call and made again whenever it is lost; calls
    wait for it.  Raises ``ConfigError`` for a URL that libpq cannot read."""

    def __init__(
        self, loop: _core.Loop, url: str, *, application_name: str | None = None, **options: float | None
    ) -> None:
        try:
            self.core = _core.Store(loop, url, application_name=application_name, **options)
        except ValueError as error:
            # Without the URL, which has a password in it.
            raise ConfigError(
                f"database_url (DAGSTER_TASKIQ_DATABASE_URL): {error}; expected postgresql://user:password@host/database"
            ) from error

    def _run(
        self, statement: str, convert: Callable[[list[_Row]], _T], *params: Any, timeout: float | None = None
    ) -> _core.Operation[_T]:
        return self.core.run(statement, params, convert=convert, timeout=timeout)

    def listen(self, channel: str) -> _core.Operation[None]:
        """LISTEN, now and after every reconnect; notifications come out of the loop as events."""
        return self.core.listen(channel)

    def unlisten(self, channel: str) -> _core.Operation[None]:
        return self.core.unlisten(channel)

    # ---- runs -------------------------------------------------------------------------------------------------------

    def begin_run(self, run_id: str, coordinator: str, lease: float) -> _core.Operation[RunRow]:
        """Begin coordinating a run that nobody has begun.  The run's row comes back, whoever coordinates it:
        ``coordinator``, a nonce of the calling process, tells."""
        return self._run("begin_run", _one(RunRow), run_id, coordinator, lease)

    def take_over_run(
        self, run_id: str, coordinator: str, lease: float, generation: int
    ) -> _core.Operation[RunRow | None]:
        """Coordinate a run under a new generation, in the place of the coordinator with ``generation``.  None when that
        is no longer its coordinator, or the run has ended: a word that comes late supersedes nobody.  The same nonce
        gets the same generation again."""
        return self._run("take_over_run", _first(RunRow), run_id, coordinator, lease, generation)

    def fenced_run(self, run_id: str, generation: int) -> _core.Operation[bool]:
        """Nothing of the run's earlier coordinators is under way any more.  False when another has taken over."""
        return self._run("fenced_run", _any, run_id, generation)

    def renew_run(self, run_id: str, generation: int, lease: float) -> _core.Operation[RunState | None]:
        """The run's state; None when another coordinator has taken over."""
        return self._run("renew_run", _value, run_id, generation, lease)

    def get_run(self, run_id: str) -> _core.Operation[RunRow | None]:
        return self._run("get_run", _first(RunRow), run_id)

    def cancel_run(self, run_id: str) -> _core.Operation[bool]:
        """active → cancelling; asks the workers to cancel the run's claims.  False when there is no such run or it
        has ended."""
        return self._run("cancel_run", _any, run_id)

    def end_run(self, run_id: str, generation: int) -> _core.Operation[EndedRun | None]:
        """The run is over: no claim and no insert from here on.  None when another coordinator has taken over."""
        return self._run("end_run", _ended, run_id, generation)

    # ---- the executor's moves ---------------------------------------------------------------------------------------

    def enqueue(
        self, run_id: str, run_generation: int, steps: Sequence[tuple[str, int, str]]
    ) -> _core.Operation[list[StepKey]]:
        """Insert (step key, attempt, queue) as queued.  The keys that were inserted come back: not those that exist
        already, nor those of a step of which another attempt is alive, nor any when the run is not active under
        ``run_generation``."""
        keys, attempts, queues = ([s[0] for s in steps], [s[1] for s in steps], [s[2] for s in steps])
        return self._run("enqueue", _rows(_pair), run_id, run_generation, uuid.uuid4().hex, keys, attempts, queues)

    def resend(
        self, run_id: str, run_generation: int, base: float, cap: float, limit: int
    ) -> _core.Operation[list[Resend]]:
        """Up to ``limit`` queued rows, oldest first, last sent (or queued) more than ``base`` · 2^sends, at most
        ``cap``, seconds ago; they are marked as sent now."""
        return self._run("resend", _rows(Resend), run_id, run_generation, base, cap, limit)

    def queue_depth(self, queue: str) -> _core.Operation[QueueDepth]:
        """Rows of all active runs on a queue."""
        return self._run("queue_depth", _one(QueueDepth), queue)

    def live_queues(self) -> _core.Operation[list[str]]:
        """Queues on which active runs have rows, whether or not a worker has ever served them."""
        return self._run("live_queues", _column)

    def cancel_queued(
        self, run_id: str, run_generation: int, keys: Iterable[StepKey] | None = None
    ) -> _core.Operation[list[StepKey]]:
        """queued → cancelled, of ``keys`` or of the whole run; those that changed."""
        return self._run("cancel_queued", _rows(_pair), run_id, run_generation, *_split(keys))

    def request_cancel(
        self, run_id: str, run_generation: int, keys: Iterable[StepKey] | None = None
    ) -> _core.Operation[list[tuple[str, int, str]]]:
        """Ask the workers to cancel claims; (step key, attempt, owner) of each."""
        return self._run("request_cancel", _rows(_triple), run_id, run_generation, *_split(keys))

    def sweep_lost(self, run_id: str, run_generation: int) -> _core.Operation[list[Swept]]:
        """Settle the run's claims whose lease is past (sweep S1)."""
        return self._run("sweep_lost", _rows(Swept), run_id, run_generation)

    def outcomes(
        self, run_id: str, keys: Iterable[StepKey] | None = None, *, terminal_only: bool = False
    ) -> _core.Operation[list[Outcome]]:
        """Rows of ``keys`` (None: of the run) that are not claimed, terminal ones first in the order they ended."""
        return self._run("outcomes", _rows(Outcome), run_id, *_split(keys), terminal_only)

    def steps(self, run_id: str) -> _core.Operation[list[StepRow]]:
        return self._run("steps", _rows(StepRow), run_id)

    def end_backends(self, application_name: str, timeout: float) -> _core.Operation[int]:
        """End every PostgreSQL backend of that ``application_name`` on the store's server, in all its databases, and
        wait until each is gone, up to ``timeout`` seconds for each.  How many are left: 0 means that no statement of
        theirs can commit any more.

        Ends those that the store's role may end (its own role's, or with ``pg_signal_backend`` those of any role that
        is no superuser); others are counted as left."""
        return self._run("end_backends", _value, application_name, round(timeout * 1000), timeout=timeout + 30.0)

    # ---- the worker's moves -----------------------------------------------------------------------------------------

    def claim(
        self,
        run_id: str,
        step_key: str,
        attempt: int,
        *,
        owner: str,
        nonce: str,
        ttl: float,
        host: str,
        boot_id: str,
        delivery_id: str,
        deliveries: int,
    ) -> _core.Operation[Claim]:
        """Take a queued attempt.  Read the boot clock *before* calling: the local deadline of the lease counts from
        there. ``nonce``: new for each delivery; the same one gets the same claim again."""
        return self._run(
            "claim", _claim, run_id, step_key, attempt, owner, nonce, ttl, host, boot_id, delivery_id, deliveries
        )

    def start(
        self,
        run_id: str,
        step_key: str,
        attempt: int,
        generation: int,
        *,
        pid: int | None = None,
        pid_start: str | None = None,
    ) -> _core.Operation[bool]:
        """To be called right before user code may run.  False: the claim is no longer ours, do not start.  May be
        called again to add the process's id and its start time (any text that tells two processes of one id apart)."""
        return self._run("start", _any, run_id, step_key, attempt, generation, pid, pid_start)

    def renew(
        self, claims: Sequence[tuple[str, str, int, int]], ttls: Sequence[float]
    ) -> _core.Operation[dict[int, bool]]:
        """Renew claims (run id, step key, attempt, generation).  Those that are still held: generation →
        cancel_requested.  The beat does this by itself, from the core's thread."""
        columns = [list(column) for column in zip(*claims, strict=True)] or [[], [], [], []]
        return self._run("renew", dict, *columns, list(ttls))

    def tell_progress(self, run_id: str, step_key: str, attempt: int, generation: int) -> _core.Operation[bool]:
        """Notify the run that an attempt which goes on has given an output.  False: the claim is no longer ours."""
        return self._run("tell_progress", _any, run_id, step_key, attempt, generation)

    def complete(
        self,
        run_id: str,
        step_key: str,
        attempt: int,
        generation: int,
        state: Literal["succeeded", "failed", "cancelled"],
        *,
        events: str | None = None,
        error: str | None = None,
        reason: str | None = None,
    ) -> _core.Operation[bool]:
        """The outcome, after the step process is dead and reaped.  False: the claim is no longer ours (or
        ``cancelled`` and nobody asked for it, or ``succeeded`` and never started); nothing was written.  True also
        when this claim had written the state before."""
        return self._run("complete", _true, run_id, step_key, attempt, generation, state, events, error, reason)

    def hand_back(self, run_id: str, step_key: str, attempt: int, generation: int) -> _core.Operation[bool]:
        """claimed → queued, of an attempt that never started."""
        return self._run("hand_back", _true, run_id, step_key, attempt, generation)

    def mark_lost(
        self, run_id: str, step_key: str, attempt: int, generation: int, reason: str
    ) -> _core.Operation[bool]:
        """claimed → lost before the lease ends, by one who knows that the step process is dead."""
        return self._run("mark_lost", _true, run_id, step_key, attempt, generation, reason)

    def claim_is_live(self, generation: int) -> _core.Operation[bool]:
        """Whether a row is still claimed with this generation."""
        return self._run("claim_is_live", _true, generation)

    # ---- workers ----------------------------------------------------------------------------------------------------

    def register_worker(
        self,
        identity: str,
        name: str,
        host: str,
        pid: int,
        boot_id: str,
        queues: Sequence[str],
        slots: int,
        *,
        pid_start: str = "",
        ttl: float = 60.0,
    ) -> _core.Operation[None]:
        """Also tells the other workers of the host.  ``boot_id``: see :mod:`dagster_taskiq.fellows`.  ``ttl``: the
        worker counts as alive for this many seconds after a heartbeat."""
        given = (identity, name, host, pid, pid_start, boot_id, list(queues), slots, ttl)
        return self._run("register_worker", _nothing, *given)

    def heartbeat_worker(self, identity: str, busy: int) -> _core.Operation[bool]:
        """False when the row is gone: register again."""
        return self._run("heartbeat_worker", _any, identity, busy)

    def remove_worker(self, identity: str) -> _core.Operation[None]:
        return self._run("remove_worker", _nothing, identity)

    def fellows(self, boot_id: str, identity: str) -> _core.Operation[list[Fellow]]:
        """The other workers of a host, dead ones too."""
        return self._run("fellows", _rows(Fellow), boot_id, identity)

    def claims_of(self, owner: str, boot_id: str) -> _core.Operation[list[FellowClaim]]:
        """The claims of a worker of that host whose leases run."""
        return self._run("claims_of", _rows(FellowClaim), owner, boot_id)

    def tell_queue(self, queue: str, payload: str, *, timeout: float) -> _core.Operation[None]:
        """Notify the coordinators that use a queue (:func:`queue_channel`), with fewer than 8000 bytes."""
        return self._run("tell_queue", _nothing, queue, payload, timeout=timeout)

    def list_workers(self) -> _core.Operation[list[WorkerRow]]:
        return self._run("list_workers", _rows(WorkerRow))

    # ---- parts of payloads ------------------------------------------------------------------------------------------

    def put_part(self, digest: str, text: str) -> _core.Operation[bool]:
        """Store text under the SHA-256 (hex) of its UTF-8, which PostgreSQL checks.  True when it was new."""
        return self._run("put_part", _true, digest, text)

    def missing_parts(self, digests: Iterable[str]) -> _core.Operation[list[str]]:
        """Those that are not stored.  The others are safe from :meth:`prune` for as long as a run that is coordinated
        may use them."""
        return self._run("missing_parts", _column, list(digests))

    def get_parts(self, digests: Iterable[str]) -> _core.Operation[dict[str, str]]:
        return self._run("get_parts", dict, list(digests))

    def prune(self, older_than: float) -> _core.Operation[Pruned]:
        """Remove runs that ended, or lost their coordinator, and parts that were last used more than ``older_than``
        seconds (at least two hours) ago, and workers whose heartbeat stopped then or a day ago.  Longer than a queue
        keeps messages (14 days at most), so that no late delivery finds its run gone.  At most 100 runs and 1000 parts
        at a time: call it again while it removes :data:`PRUNE_BATCH` rows or more."""
        return self._run("prune", _one(Pruned), older_than)

    def settle_ended(self) -> _core.Operation[int]:
        """Settle claims that ended runs have left and whose leases are past; how many.  At most :data:`PRUNE_BATCH` at
        a time."""
        return self._run("settle_ended", _value)


def _pair(step_key: str, attempt: int) -> StepKey:
    return step_key, attempt


def _triple(step_key: str, attempt: int, owner: str) -> tuple[str, int, str]:
    return step_key, attempt, owner


def statements() -> Mapping[str, tuple[str, str, str]]:
    """name → (parameter types, column types, SQL) of every statement, for tests and diagnosis."""
    return _core.statements()
