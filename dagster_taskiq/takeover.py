"""What the run workers before this one have left of a run: its rows, and what Dagster's event log says of its steps.

Rows first, log after: a row says whether a process lives, the log how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dagster import DagsterEvent, DagsterEventType

from dagster_taskiq import _dagster
from dagster_taskiq.notices import Key
from dagster_taskiq.store import StepRow


@dataclass(frozen=True, slots=True)
class StepSoFar:
    """A step of a run that is taken over.  With ``row``: its outcome is still to come.  With ``final``: it has ended,
    with ``events``.  With neither: its next attempt is due at ``retry_at``."""

    attempts_over: int
    """Those that the plan has to count, before the one that is described here."""
    losses: int
    events: list[DagsterEvent] = field(default_factory=list)
    final: DagsterEvent | None = None
    retry_at: float = 0.0
    """In seconds since the epoch."""
    row: StepRow | None = None
    history: list[DagsterEvent] = field(default_factory=list)
    """What is in the log of all its attempts."""

    @property
    def announced(self) -> bool:
        """Whether the log says that the attempt of the row is being sent."""
        return self.row is not None and any(
            _dagster.starting_attempt(event) == self.row.attempt
            for event in self.history
            if event.event_type is DagsterEventType.STEP_WORKER_STARTING
        )


class RunSoFar:
    """``rows`` must have been read before ``logged``."""

    def __init__(self, rows: Iterable[StepRow], logged: dict[str, _dagster.LoggedStep]) -> None:
        self._rows: dict[Key, StepRow] = {(row.step_key, row.attempt): row for row in rows}
        self._logged = logged
        self.counts = {"rows": len(self._rows), "steps_logged": len(logged)}

    def has_ended(self, step_key: str) -> bool:
        step = self._logged.get(step_key)
        return step is not None and step.final is not None

    def knows(self, step_key: str, attempt: int) -> bool:
        """Whether anything is known of a step whose next attempt would be this one."""
        step = self._logged.get(step_key)
        if step is not None and (step.retries or step.final is not None):
            return True
        return (step_key, attempt) in self._rows

    def take(self, step_key: str, first: int) -> StepSoFar:
        """What is known of a step, once.  ``first``: number of its first attempt in this run."""
        logged = self._logged.pop(step_key, None) or _dagster.LoggedStep([], [])
        return replace(self._take(step_key, first, logged), history=logged.history)

    def _take(self, step_key: str, first: int, logged: _dagster.LoggedStep) -> StepSoFar:
        losses = sum(_dagster.is_lost_event(event) for event, _ in logged.retries)
        retries = len(logged.retries)
        # The step process logs the end of its attempt before its worker writes the row.  Until that row has settled
        # the attempt is under way, whatever the log says: the next one would get no row beside it.
        for over in range(retries + 1):
            row = self._rows.get((step_key, first + over))
            if row is not None and row.state == "claimed":
                return StepSoFar(over, losses, row=row)
        if logged.final is not None:
            return StepSoFar(retries, losses, events=logged.events, final=logged.final)
        row = self._rows.get((step_key, first + retries))
        if row is not None:
            return StepSoFar(retries, losses, row=row)
        event, logged_at = logged.retries[-1]
        due = logged_at + (event.step_retry_data.seconds_to_wait or 0.0)
        return StepSoFar(retries - 1, losses, retry_at=due)
