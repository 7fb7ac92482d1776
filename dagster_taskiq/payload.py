"""What an executor tells a worker about one step attempt, and what a worker makes of it.

A :class:`StepTask` travels in one SQS message (``_core.encode_step_task``).  Its *parts* are JSON texts that may be
large or are the same for every step of a run: small ones travel inside the message, others are stored once in
PostgreSQL under their SHA-256 and only named in the message.  The instance reference is always stored, never sent: it
can hold database passwords."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dagster_taskiq import _core
from dagster_taskiq.errors import PayloadError

INLINE_BYTES: Final = 16 * 1024
"""Larger parts are stored in PostgreSQL."""

JOB_ORIGIN: Final = "job_origin"
INSTANCE_REF: Final = "instance_ref"
KNOWN_STATE: Final = "known_state"
NEVER_INLINE: Final = frozenset({INSTANCE_REF})
RETRY_MODES: Final = frozenset({"ENABLED", "DISABLED", "DEFERRED"})

StoredPart = tuple[str, int]
"""(SHA-256 in hex, bytes) of a part that PostgreSQL holds."""


@dataclass(frozen=True, slots=True)
class StepTask:
    """One step attempt.  ``lease_ttl``, ``heartbeat`` and ``visibility`` in seconds; ``sent_at`` is the sender's wall
    clock, for people only.

    ``attempt`` is the real one.  The known state may count fewer: attempts that were lost with their worker do not use
    up the op's retry policy."""

    run_id: str
    step_key: str
    attempt: int
    job_name: str
    queue: str
    code_location: str
    lease_ttl: float
    heartbeat: float
    visibility: int
    sent_at: float
    retry_mode: str
    parts: Mapping[str, str | StoredPart] = field(repr=False)

    @property
    def digests(self) -> list[str]:
        """The parts that have to be read from PostgreSQL."""
        return [part[0] for part in self.parts.values() if not isinstance(part, str)]


def spill(texts: Mapping[str, str], stored: dict[str, str]) -> dict[str, str | StoredPart]:
    """Parts as a message carries them; the texts that must be in PostgreSQL before it is sent are added to ``stored``
    by their digest."""
    parts: dict[str, str | StoredPart] = {}
    for name, text in texts.items():
        size = len(text.encode())
        if size <= INLINE_BYTES and name not in NEVER_INLINE:
            parts[name] = text
            continue
        digest = _core.sha256_hex(text)
        parts[name] = (digest, size)
        stored[digest] = text
    return parts


def pack(task: StepTask, *, signing_key: str | None = None) -> bytes:
    """The message of a task.  Each call gives it a TaskIQ task id of its own."""
    fields: dict[str, Any] = {name: getattr(task, name) for name in _PLAIN}
    fields["settings"] = json.dumps({"retry_mode": task.retry_mode})
    fields["parts"] = dict(task.parts)
    return _core.encode_step_task(
        fields, task_id=uuid.uuid4().hex, signing_key=signing_key.encode() if signing_key else None
    )


def unpack(message: bytes | str, signing_keys: Sequence[str] = ()) -> StepTask:
    """The task of a message.  With keys, one of them must have signed it.  Raises ``PayloadError`` subclasses."""
    fields = _core.decode_step_task(message, signing_keys=[key.encode() for key in signing_keys])
    try:
        retry_mode = json.loads(fields["settings"])["retry_mode"]
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadError("the step task's settings name no retry mode") from error
    if retry_mode not in RETRY_MODES:
        raise PayloadError(f"the step task names an unknown retry mode: {retry_mode!r}")
    return StepTask(**{name: fields[name] for name in _PLAIN}, retry_mode=retry_mode, parts=fields["parts"])


def step_args(task: StepTask, stored: Mapping[str, str]) -> str:
    """The JSON argument of ``dagster api execute_step``.  ``stored``: digest -> text of at least the task's digests."""
    members = {
        "__class__": json.dumps("ExecuteStepArgs"),
        JOB_ORIGIN: part_text(task, JOB_ORIGIN, stored),
        "run_id": json.dumps(task.run_id),
        "step_keys_to_execute": json.dumps([task.step_key]),
        INSTANCE_REF: part_text(task, INSTANCE_REF, stored),
        "retry_mode": json.dumps({"__enum__": f"RetryMode.{task.retry_mode}"}),
        KNOWN_STATE: part_text(task, KNOWN_STATE, stored),
        "should_verify_step": "false",
        "print_serialized_events": "false",
    }
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"


def part_text(task: StepTask, name: str, stored: Mapping[str, str]) -> str:
    """The JSON text of a part.  Raises ``PayloadError`` when it is neither in the message nor in ``stored``."""
    try:
        part = task.parts[name]
        return part if isinstance(part, str) else stored[part[0]]
    except KeyError:
        raise PayloadError(f"the step task lacks its part {name!r}") from None


_PLAIN: Final = (
    "run_id",
    "step_key",
    "attempt",
    "job_name",
    "queue",
    "code_location",
    "lease_ttl",
    "heartbeat",
    "visibility",
    "sent_at",
)
