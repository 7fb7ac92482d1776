"""Steps in the run worker's own process, for tests of jobs: no queue, no database, no worker (see
:mod:`dagster_taskiq.testing`).

A step still travels as a message: it is packed, unpacked and run through ``dagster api execute_step`` as a worker does,
so that a job that works here has nothing in it that could not be sent.  What is not shown: isolation of steps from each
other, losses, and limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dagster

from dagster_taskiq import fencing, payload
from dagster_taskiq.config import Settings
from dagster_taskiq.notices import Ended, Key, Notice
from dagster_taskiq.step_process import hand_over, load_entry_point, run_console_script
from dagster_taskiq.store import Outcome, RunRow, StepRow

if TYPE_CHECKING:
    from dagster_taskiq.sender import Message

_REQUESTED: ContextVar[bool] = ContextVar("dagster_taskiq_inline", default=False)

GENERATION: Final = 1
WORKER: Final = "inline"


@contextlib.contextmanager
def inline_worker() -> Iterator[None]:
    """While this lasts, :data:`~dagster_taskiq.taskiq_executor` runs the steps of this context's runs in this
    process."""
    token = _REQUESTED.set(True)
    try:
        yield
    finally:
        _REQUESTED.reset(token)


def inline_requested() -> bool:
    return _REQUESTED.get()


@dataclass(frozen=True, slots=True)
class _Waiting:
    step_key: str
    attempt: int
    queue: str


class InlineWorker:
    """What a run's orchestration needs of its coordinator, where everything happens at once."""

    def __init__(self, settings: Settings, run_id: str, make_message: Callable[[str, int], Message]) -> None:
        self._settings = settings
        self._run_id = run_id
        self._make_message = make_message
        self._waiting: deque[_Waiting] = deque()
        self._entry_point = load_entry_point()

    def begin(self) -> RunRow:
        lease = self._settings.lease_ttl
        return RunRow(self._run_id, GENERATION, "active", None, [], WORKER, lease, time.time())

    def end(self) -> None:
        self._waiting.clear()

    def take_over(self, generations: Iterable[int]) -> list[StepRow]:
        raise NotImplementedError("an inline run ends with its process")

    def adopt(self, row: StepRow) -> None:
        raise NotImplementedError("an inline run ends with its process")

    def leave_if_superseded(self) -> None:
        """Nobody else can have the run."""

    def fence(self, generations: Iterable[int]) -> None:
        """The step ran in this process: nothing of it is under way."""

    def is_active(self) -> bool:
        return True

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, attempts: Sequence[tuple[str, int, str]], *, held: bool = False) -> None:
        self._waiting.extend(_Waiting(*attempt) for attempt in attempts)

    def release(self, keys: Iterable[Key]) -> None:
        """Nothing runs before :meth:`wait`."""

    def send_out(self, patience: float) -> None:
        """Nothing is sent."""

    def poll(self) -> None:
        """Nothing goes out by itself."""

    def cancel(self) -> None:
        self._waiting.clear()

    def idle(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, timeout: float | None) -> list[Notice]:
        """Run the step that has waited longest; without one let the time pass."""
        if not self._waiting:
            time.sleep(timeout or 0.0)
            return []
        one = self._waiting.popleft()
        message = self._make_message(one.step_key, one.attempt)
        keys = [self._settings.signing_key] if self._settings.signing_key else []
        began = time.time()
        code, events = self._run(payload.unpack(message.body, keys), message)
        return [Ended(_outcome(one, code, events, began), one.queue, None, 1)]

    def _run(self, task: payload.StepTask, message: Message) -> tuple[int, list[str]]:
        collected = _Collector()
        argv = ["dagster", "api", task.command, payload.command_args(task, message.parts)]
        variables = {
            fencing.TOKEN_VARIABLE: str(GENERATION),
            fencing.RUN_VARIABLE: task.run_id,
            fencing.STEP_VARIABLE: task.step_key,
            fencing.ATTEMPT_VARIABLE: str(task.attempt),
            fencing.WORKER_VARIABLE: WORKER,
        }
        with _put_back():
            os.environ.update(variables)
            hand_over(None, task.run_id, collected, frozenset())
            code = run_console_script(self._entry_point, argv)
        return code, collected.events


class _Collector:
    """Keeps what the instance stores."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def attached(self) -> None:
        """The events are complete."""

    def event(self, entry: Any) -> None:
        if entry.dagster_event is not None:
            self.events.append(dagster.serialize_value(entry.dagster_event))

    def warning(self, text: str) -> None:
        raise RuntimeError(text)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Arguments, environment and Dagster as they were."""
    argv, environ = sys.argv, dict(os.environ)
    from_ref = dagster.DagsterInstance.__dict__["from_ref"]
    try:
        yield
    finally:
        dagster.DagsterInstance.from_ref = from_ref  # type: ignore[method-assign]
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)


def _outcome(one: _Waiting, code: int, events: list[str], began: float) -> Outcome:
    return Outcome(
        step_key=one.step_key,
        attempt=one.attempt,
        state="failed" if code else "succeeded",
        generation=GENERATION,
        owner=WORKER,
        worker_name=WORKER,
        host=os.uname().nodename,
        events="[" + ",".join(events) + "]",
        error=None if code == 0 else json.dumps({"message": f"dagster api execute_step ended with exit code {code}."}),
        reason=None,
        deliveries=1,
        queued_at=began,
        claimed_at=began,
        started_at=began,
        finished_at=time.time(),
        lease_at=None,
        pid=os.getpid(),
    )
