"""What is said in events of the run about an attempt that has ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dagster import DagsterEvent, MetadataValue

from dagster_taskiq import tags
from dagster_taskiq.notices import Ended
from dagster_taskiq.store import Outcome


def story(outcome: Outcome, terminal: DagsterEvent | None) -> str:
    """``terminal``: how the log says that the step ended; the process may have ended otherwise, later."""
    where = f"worker {outcome.worker_name or outcome.owner} on {outcome.host}"
    if outcome.state == "failed" and terminal is not None and terminal.is_step_success:
        return (
            f'Attempt {outcome.attempt} of step "{outcome.step_key}" ran on {where}. It had succeeded when this'
            f" happened: {crash(outcome)}"
        )
    if outcome.state == "succeeded" and terminal is None:
        return f'Attempt {outcome.attempt} of step "{outcome.step_key}" ended without a result on {where}.'
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
    if outcome.state == "succeeded":
        # Its events were not known to its worker, and are not in the log either: os._exit(0), or another program.
        return (
            f"The step process (pid {outcome.pid} on {outcome.host}) ended with exit code 0 and without an event that"
            " says how the step ended."
        )
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
