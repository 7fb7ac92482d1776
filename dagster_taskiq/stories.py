"""What is said in events of the run about an attempt that has ended."""

from __future__ import annotations

import json
from typing import Any

from dagster import MetadataValue

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
