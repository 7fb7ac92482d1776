"""What a run coordinator tells the executor."""

from __future__ import annotations

from dataclasses import dataclass

from dagster_taskiq.store import Outcome

Key = tuple[str, int]
"""(step key, attempt)."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's row is terminal.  ``outcome.claimed_at`` None: it never ran."""

    outcome: Outcome
    queue: str
    message_id: str | None
    sends: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An attempt got no row, because the run is being cancelled."""

    step_key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """SQS refuses the message of an attempt for good; its row is cancelled."""

    step_key: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unserved:
    """No worker serves a queue.  ``attempts`` are the ones that were taken back from it; empty for a warning."""

    queue: str
    waited: float
    waiting: int
    attempts: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Untaken:
    """Messages for a row vanished from its queue again and again, and no worker claimed it; the row is cancelled."""

    step_key: str
    attempt: int
    queue: str
    sends: int


@dataclass(frozen=True, slots=True)
class Declined:
    """A worker did not take a message of an attempt; the attempt stays queued."""

    step_key: str
    attempt: int
    queue: str
    worker: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """These attempts, which go on, may have given outputs."""

    attempts: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something goes wrong and is tried again."""

    message: str


@dataclass(frozen=True, slots=True)
class Cancelling:
    """Somebody asked for the run's end."""


Notice = Ended | Refused | Rejected | Unserved | Untaken | Declined | Progressed | Trouble | Cancelling
