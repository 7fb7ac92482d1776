"""What is under way in a run: attempts between their rows and their outcomes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from dagster_taskiq.config import Settings
from dagster_taskiq.notices import Key, Notice, Trouble

log = logging.getLogger("dagster_taskiq.coordinator")


@dataclass(slots=True)
class Flight:
    """An attempt between its row and its outcome."""

    queue: str
    since: float
    group: str | None = None
    """Of its messages, on a FIFO queue; None: it has one of its own."""
    message_id: str | None = None
    sends: int = 0
    held: bool = False
    """No message of it may be sent yet."""
    vanished: int = 0
    """How often it was sent again because the queue had fewer messages than rows."""


@dataclass(slots=True)
class RunInFlight:
    """What the parts of a run's coordinator share."""

    id: str
    settings: Settings
    generation: int = 0
    """Of the coordinator."""
    cancelling: bool = False
    last_loss: float = float("-inf")
    """When an attempt was last found lost, by the monotonic clock."""
    flights: dict[Key, Flight] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    """What the executor has not been told yet."""
    last_trouble: float = float("-inf")

    def trouble(self, message: str) -> None:
        """Something is tried again: always a log line, now and then a notice."""
        log.warning("run %s: %s", self.id, message)
        now = time.monotonic()
        if now - self.last_trouble >= 60.0:
            self.last_trouble = now
            self.notices.append(Trouble(message))
