"""What is said in events of the run about an attempt that has ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dagster import DagsterEvent, MetadataValue

from dagster_taskiq import tags
from dagster_taskiq.notices import Ended
from dagster_taskiq.store import Outcome


def story(outcome: Outcome) -> str:
    where = f"worker {outcome.worker_name or outcome.owner} on {outcome.host}"
    said = {
        "succeeded": "ran on",
        "failed": "failed on",
        "cancelled": "was stopped on",
        "lost": "was lost with",
    }[outcome.state]
    return f'Attempt {outcome.attempt} of step "{outcome.step_key}" {said} {where}.'


def details(notice: Ended) -> dict[str, Any]:
    """Where and how long, as metadata of an engine event."""
    outcome = notice.outcome
    found: dict[str, Any] = {
        "queue": notice.queue,
        "message_id": notice.message_id,
        "messages_sent": notice.sends,
        "worker": outcome.worker_name,
        "host": outcome.host,
        "pid": outcome.pid,
        "generation": outcome.generation,
        "deliveries": outcome.deliveries,
        "reason": outcome.reason,
    }
    if outcome.claimed_at is not None:
        found["waited_seconds"] = outcome.claimed_at - outcome.queued_at
    if outcome.started_at is not None and outcome.finished_at is not None:
        found["ran_seconds"] = outcome.finished_at - outcome.started_at
    return {
        name: MetadataValue.float(value) if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }


def crash(outcome: Outcome) -> str:
    """Why a step process ended without an event that says so."""
    error = json.loads(outcome.error) if outcome.error else {}
    return (
        error.get("message")
        or f"The step process ended without an event that says how ({outcome.reason or 'no reason is known'})."
    )


def memory_hint(mebibytes: int | None, events: Iterable[DagsterEvent], outcome: Outcome) -> str:
    """What to add where an attempt may have met the limit of its memory: one that says MemoryError, or that ended
    without a word, for where no memory is left there may be none to say so."""
    if mebibytes is None:
        return ""
    errors = [event.step_failure_data.error for event in events if event.is_step_failure]
    errors += [event.step_retry_data.error for event in events if event.is_step_up_for_retry]
    crash = json.loads(outcome.error or "{}")
    crashed = crash.get("kind") == "crash" and crash.get("signal_name") != "SIGKILL"
    if not crashed and not any(map(_is_of_memory, errors)):
        return ""
    return f" The tag {tags.MEMORY_LIMIT_TAG} of its op allows its process {mebibytes} MiB."


def _is_of_memory(error: Any) -> bool:
    while error is not None:
        if error.cls_name == "MemoryError":
            return True
        error = error.cause
    return False
