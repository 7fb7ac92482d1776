"""What workers say of messages that they do not take, so that a run hears of a disagreement at once, and not when its
message has vanished.

A worker cannot trust what such a message says of itself, so it tells all coordinators that use the queue the message's
id, and each looks whether it has sent that one."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from dagster_taskiq.flights import RunInFlight
from dagster_taskiq.notices import Declined, Key

TELL_TIMEOUT: Final = 5.0
"""Seconds that a worker tries to tell; the dead-letter queue has the reason too."""

REPEAT: Final = 60.0
"""Seconds in which one worker's reason is told to a run once."""

KEPT: Final = 10_000
"""Messages that a coordinator remembers, sent and refused ones each."""

CODE_LOCATION: Final = "code_location"

ADVICE: Final[Mapping[str, str]] = {
    "unsigned": "Give this run's executor the signing_key that worker {worker} has.",
    "signature": "Set the same signing_key in this run's executor and on worker {worker} (there, or among"
    " previous_signing_keys).",
    "version": "Run the same version of dagster-taskiq here and on worker {worker}.",
    CODE_LOCATION: "If no worker of queue {queue!r} serves that code location, add it to the code_locations of worker"
    " {worker}, or start a worker that does.",
    "missing": "Compare the database_url of this run's executor and of worker {worker}.",
}


def telling(message_id: str, reason: str, detail: str, worker: str) -> str:
    """The payload for the queue's channel; shorter than the 8000 bytes that PostgreSQL takes."""
    said = {"message_id": message_id[:100], "reason": reason, "detail": detail[:400], "worker": worker[:100]}
    return json.dumps(said)


def sentence(notice: Declined) -> str:
    """What the run's log says of it."""
    detail = notice.detail.rstrip(".")
    if notice.reason == CODE_LOCATION:
        what = f'Worker {notice.worker} left step "{notice.step_key}" to the other workers of queue {notice.queue!r}'
        then = ""
    else:
        what = f'Worker {notice.worker} refused step "{notice.step_key}" from queue {notice.queue!r}'
        then = " The step will be sent again: another worker may take it."
    advice = ADVICE.get(notice.reason, "Compare the settings and versions of this run's executor and worker {worker}.")
    return f"{what}: {detail}. {advice.format(worker=notice.worker, queue=notice.queue)}{then}"


class Refusals:
    """The coordinator's side: which of the messages that workers do not take are this run's."""

    def __init__(self, run: RunInFlight) -> None:
        self._run = run
        self._sent: OrderedDict[str, Key] = OrderedDict()
        self._early: OrderedDict[str, tuple[str, str, str]] = OrderedDict()
        """Refused before SQS's answer has told their ids here, or of other runs."""
        self._told: dict[tuple[str, str], float] = {}

    def sent(self, key: Key, message_id: str) -> None:
        """SQS has given this id to a message of the attempt."""
        _keep(self._sent, message_id, key)
        early = self._early.pop(message_id, None)
        if early is not None:
            self._notice(key, *early)

    def heard(self, payload: Mapping[str, Any]) -> None:
        """A worker's word, or somebody else's: anybody may send one."""
        message_id, *said = (payload.get(name) for name in ("message_id", "reason", "detail", "worker"))
        if not isinstance(message_id, str) or not all(isinstance(text, str) for text in said):
            return
        reason, detail, worker = map(str, said)
        key = self._sent.get(message_id)
        if key is None:
            _keep(self._early, message_id, (reason, detail, worker))
        else:
            self._notice(key, reason, detail, worker)

    def _notice(self, key: Key, reason: str, detail: str, worker: str) -> None:
        flight = self._run.flights.get(key)
        now = time.monotonic()
        if flight is None or now < self._told.get((reason, worker), float("-inf")) + REPEAT:
            return
        if len(self._told) >= KEPT:
            self._told.clear()
        self._told[reason, worker] = now
        self._run.notices.append(Declined(*key, flight.queue, worker, reason, detail))


def _keep(memory: OrderedDict[str, Any], name: str, value: Any) -> None:
    memory[name] = value
    if len(memory) > KEPT:
        memory.popitem(last=False)
