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

EXECUTE_STEP: Final = "execute_step"
EXECUTE_RUN: Final = "execute_run"
RESUME_RUN: Final = "resume_run"
COMMANDS: Final[Mapping[str, str]] = {
    EXECUTE_STEP: "ExecuteStepArgs",
    EXECUTE_RUN: "ExecuteRunArgs",
    RESUME_RUN: "ResumeRunArgs",
}
"""What a process can be started for: the command of ``dagster api`` -> the class of its argument."""

StoredPart = tuple[str, int]
"""(SHA-256 in hex, bytes) of a part that PostgreSQL holds."""


@dataclass(frozen=True, slots=True)
class StepTask:
    """One step attempt, or a run worker, which travels in the same way.  ``lease_ttl``, ``heartbeat``, ``visibility``
    and ``time_limit`` in seconds, ``memory_limit`` in MiB; ``sent_at`` is the sender's wall clock, for people only.

    ``attempt`` is the real one.  The known state may count fewer: attempts that were lost with their worker do not use
    up the op's retry policy.  ``command`` is one of :data:`COMMANDS`; ``dagster_run_id`` is the
    Dagster run where that is not ``run_id``.  ``live_outputs``: the run wants to be told of each output while the step
    goes on."""

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
    command: str = EXECUTE_STEP
    time_limit: float | None = None
    dagster_run_id: str | None = None
    live_outputs: bool = False
    memory_limit: int | None = None

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
    fields["settings"] = json.dumps({name: getattr(task, name) for name in _SETTINGS})
    fields["parts"] = dict(task.parts)
    return _core.encode_step_task(
        fields, task_id=uuid.uuid4().hex, signing_key=signing_key.encode() if signing_key else None
    )


def unpack(message: bytes | str, signing_keys: Sequence[str] = ()) -> StepTask:
    """The task of a message.  With keys, one of them must have signed it.  Raises ``PayloadError`` subclasses."""
    fields = _core.decode_step_task(message, signing_keys=[key.encode() for key in signing_keys])
    try:
        given = json.loads(fields["settings"])
        settings = {name: given[name] for name in _SETTINGS}
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadError(f"the step task's settings are not complete: {error}") from error
    _check_settings(settings)
    return StepTask(**{name: fields[name] for name in _PLAIN}, **settings, parts=fields["parts"])


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings["retry_mode"] not in RETRY_MODES:
        raise PayloadError(f"the step task names an unknown retry mode: {settings['retry_mode']!r}")
    if settings["command"] not in COMMANDS:
        raise PayloadError(f"the step task names an unknown command: {settings['command']!r}")
    limit = settings["time_limit"]
    if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
        raise PayloadError(f"the step task's time limit is no number of seconds: {limit!r}")
    memory = settings["memory_limit"]
    if memory is not None and not (isinstance(memory, int) and memory > 0):
        raise PayloadError(f"the step task's memory limit is no number of MiB: {memory!r}")
    if not isinstance(settings["dagster_run_id"], (str, type(None))):
        raise PayloadError("the step task's Dagster run id is no text")
    if not isinstance(settings["live_outputs"], bool):
        raise PayloadError(f"the step task says neither yes nor no to live_outputs: {settings['live_outputs']!r}")


def command_args(task: StepTask, stored: Mapping[str, str]) -> str:
    """The JSON argument of ``dagster api <task.command>``.  ``stored``: digest -> text of at least the task's
    digests."""
    members = {
        "__class__": json.dumps(COMMANDS[task.command]),
        JOB_ORIGIN: part_text(task, JOB_ORIGIN, stored),
        INSTANCE_REF: part_text(task, INSTANCE_REF, stored),
    }
    run_id = json.dumps(task.dagster_run_id or task.run_id)
    if task.command == EXECUTE_STEP:
        members.update(
            {
                "run_id": run_id,
                "step_keys_to_execute": json.dumps([task.step_key]),
                "retry_mode": json.dumps({"__enum__": f"RetryMode.{task.retry_mode}"}),
                KNOWN_STATE: part_text(task, KNOWN_STATE, stored),
                "should_verify_step": "false",
                "print_serialized_events": "false",
            }
        )
    else:
        members.update({"pipeline_run_id": run_id, "set_exit_code_on_failure": "true"})
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

_SETTINGS: Final = ("retry_mode", "command", "time_limit", "dagster_run_id", "live_outputs", "memory_limit")
"""Travel as one JSON object, which the core does not look into."""
