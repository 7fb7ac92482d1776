"""The faults: a seeded sequence of kinds and pauses, and what each kind does to a stack.

The same seed gives the same kinds at the same times; whom they hit depends on who is there at that moment.
"""

from __future__ import annotations

import os
import random
import signal
import time
import urllib.error
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import fault_jobs
from fault_links import Link
from fault_stack import RunHandle, Stack, WorkerSlot

WEIGHTS = {
    "kill_worker": 6,
    "kill_host": 2,
    "drain_worker": 3,
    "kill_step": 8,
    "kill_parent": 3,
    "kill_run_worker": 3,
    "stop_worker": 2,
    "stop_step": 3,
    "stop_parent": 1,
    "usurp_run": 1,
    "postgres_fast": 1,
    "postgres_immediate": 1,
    "postgres_link": 4,
    "postgres_cut": 5,
    "postgres_read_only": 2,
    "postgres_timeout": 2,
    "postgres_full": 2,
    "postgres_serialization": 2,
    "sqs_link": 8,
    "names": 3,
    "replay": 4,
    "purge": 1,
    "cancel_run": 0,
    "forsake_run": 0,
}
"""Kind → how often, in proportion.  Those with 0 end runs early and happen only when they are asked for."""

EXPLAINED = {
    "kill_worker": "SIGKILL of a worker",
    "kill_host": "SIGKILL of a worker and all its processes at once",
    "drain_worker": "SIGTERM of a worker",
    "kill_step": "SIGKILL of a step process",
    "kill_parent": "SIGKILL of a warm parent",
    "kill_run_worker": "SIGKILL of a run worker, which is then resumed",
    "stop_worker": "SIGSTOP of a worker for longer than its leases",
    "stop_step": "SIGSTOP of a step process for longer than the lease",
    "stop_parent": "SIGSTOP of a warm parent for longer than the lease",
    "usurp_run": "SIGSTOP of a run worker, a second one resumes the run, SIGCONT of the first",
    "postgres_fast": "restart of PostgreSQL",
    "postgres_immediate": "crash of PostgreSQL and recovery",
    "postgres_link": "one link to PostgreSQL refuses, freezes, loses replies or notifications",
    "postgres_cut": "all connections over one link to PostgreSQL reset",
    "postgres_read_only": "PostgreSQL takes no writes (25006), as after a fail-over",
    "postgres_timeout": "a statement_timeout of 2 ms (57014)",
    "postgres_full": "writes fail as on a full disk (53100)",
    "postgres_serialization": "half of the writes fail with a serialization failure or a deadlock (40001, 40P01)",
    "sqs_link": "one link to SQS refuses, answers 503 or RequestThrottled, is slow, resets, garbles, doubles, says that"
    " the session token has expired, has a clock that is an hour ahead, or an expired certificate",
    "names": "the name of PostgreSQL and SQS does not resolve, and all connections reset",
    "replay": "old messages sent once more",
    "purge": "the queue purged",
    "cancel_run": "a run cancelled",
    "forsake_run": "SIGKILL of a run worker whose run nobody resumes; its rows are cancelled",
}


@dataclass(frozen=True)
class Planned:
    at: float
    """Seconds since the first."""
    kind: str


def plan(seed: int, *, gap: float, count: int, kinds: list[str] | None = None) -> list[Planned]:
    """A sequence with exponential pauses, ``gap`` seconds on average; each kind comes once before any comes again."""
    dice = random.Random(seed)
    chosen = kinds or [kind for kind, weight in WEIGHTS.items() if weight]
    weights = [max(1, WEIGHTS[kind]) for kind in chosen]
    sequence = dice.sample(chosen, len(chosen))
    sequence += dice.choices(chosen, weights, k=max(0, count - len(sequence)))
    planned = []
    now = 0.0
    for kind in sequence:
        now += dice.expovariate(1 / gap)
        planned.append(Planned(now, kind))
    return planned


@dataclass
class Faults:
    """Carries the plan out.  :meth:`due` is to be called again and again."""

    stack: Stack
    planned: list[Planned]
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Other numbers than those that made the plan.
        self._dice = random.Random(f"targets of {self.seed}")
        self._begun = time.monotonic()
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._stopped: set[int] = set()
        self.on_links: Counter[str] = Counter()

    def due(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for moment, call in sorted(self._later, key=lambda entry: entry[0]):
            if now >= moment:
                self._later.remove((moment, call))
                call()
        while self.planned and now - self._begun >= self.planned[0].at:
            self._do(self.planned.pop(0).kind)

    def finish(self) -> None:
        """No further faults; what is stopped goes on at once."""
        self.planned.clear()
        for _, call in sorted(self._later, key=lambda entry: entry[0]):
            call()
        self._later.clear()

    def _do(self, kind: str) -> None:
        hit = getattr(self, f"_{kind}")()
        if not hit and not self.done[kind]:
            # Nobody is there to be hit.
            self._after(3.0, lambda: self._do(kind))
        if hit:
            self.done[kind] += 1
            self.story.append(f"{time.monotonic() - self._begun:8.2f} {kind} {hit}")

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, call))

    # ---- processes --------------------------------------------------------------------------------------------------

    def _worker(self) -> WorkerSlot | None:
        """One that runs and that nothing else is being done to."""
        candidates = [
            worker
            for worker in self.stack.workers
            if worker.running and not worker.expected_end and worker.process and worker.process.pid not in self._stopped
        ]
        return self._dice.choice(candidates) if candidates else None

    def _step(self) -> int | None:
        pids = [pid for worker in self.stack.workers for pid in self.stack.step_processes(worker)]
        pids = [pid for pid in pids if pid not in self._stopped]
        return self._dice.choice(pids) if pids else None

    def _parent(self) -> int | None:
        pids = [pid for worker in self.stack.workers for pid in self.stack.warm_parents(worker)]
        pids = [pid for pid in pids if pid not in self._stopped]
        return self._dice.choice(pids) if pids else None

    def _kill_worker(self) -> str | None:
        worker = self._worker()
        if worker is None or worker.process is None:
            return None
        worker.expected_end = True
        worker.process.send(signal.SIGKILL)
        return worker.process.name

    def _kill_host(self) -> str | None:
        worker = self._worker()
        if worker is None or worker.process is None:
            return None
        worker.expected_end = True
        pids = [worker.process.pid, *self.stack.warm_parents(worker), *self.stack.step_processes(worker)]
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        return f"{worker.process.name}: {len(pids)} processes"

    def _drain_worker(self) -> str | None:
        worker = self._worker()
        if worker is None or worker.process is None:
            return None
        worker.expected_end = True
        process = worker.process
        process.send(signal.SIGTERM)
        # A long poll may have 20 s to go; a service manager would not wait for so long either.
        self._after(6.0, lambda: process.send(signal.SIGTERM))
        return process.name

    def _kill_step(self) -> str | None:
        return _signalled(self._step(), signal.SIGKILL)

    def _kill_parent(self) -> str | None:
        return _signalled(self._parent(), signal.SIGKILL)

    def _stop(self, pid: int | None, seconds: float) -> str | None:
        if pid is None:
            return None
        born = fault_jobs.process_start(pid)
        if not born:
            return None

        def go_on() -> None:
            self._stopped.discard(pid)
            if fault_jobs.process_start(pid) == born:
                _signal(pid, signal.SIGCONT)

        self._stopped.add(pid)
        _signal(pid, signal.SIGSTOP)
        self._after(seconds, go_on)
        return f"{pid} for {seconds:.1f} s"

    def _longer_than_lease(self) -> float:
        return self.stack.timing.lease_ttl + self._dice.uniform(0.5, 4.0)

    def _stop_worker(self) -> str | None:
        worker = self._worker()
        if worker is None or worker.process is None:
            return None
        return self._stop(worker.process.pid, self._longer_than_lease())

    def _stop_step(self) -> str | None:
        return self._stop(self._step(), self._longer_than_lease())

    def _stop_parent(self) -> str | None:
        return self._stop(self._parent(), self._longer_than_lease())

    # ---- run workers ------------------------------------------------------------------------------------------------

    def _run(self) -> RunHandle | None:
        """One whose run worker is at work."""
        candidates = [
            handle
            for handle in self.stack.open_runs
            if handle.process.popen.poll() is None
            and handle.process.pid not in self._stopped
            and not handle.cancelled
            and not handle.forsaken
            and self._has_started(handle.id)
        ]
        return self._dice.choice(candidates) if candidates else None

    def _has_started(self, run_id: str) -> bool:
        with suppress(Exception):
            run = self.stack.instance.get_run_by_id(run_id)
            return run is not None and run.status.value == "STARTED"
        return False

    def _kill_run_worker(self) -> str | None:
        handle = self._run()
        if handle is None:
            return None
        handle.process.send(signal.SIGKILL)
        return handle.process.name

    def _usurp_run(self) -> str | None:
        handle = self._run()
        if handle is None:
            return None
        first = handle.process
        said = self._stop(first.pid, self._dice.uniform(2.0, self._longer_than_lease()))
        self.stack.resume(handle)
        return f"{first.name} {said}"

    def _cancel_run(self) -> str | None:
        handle = self._run()
        if handle is None:
            return None
        handle.cancelled = True
        self.stack.instance.report_run_canceling(handle.run)
        handle.process.send(signal.SIGTERM)
        return handle.process.name

    def _forsake_run(self) -> str | None:
        handle = self._run()
        if handle is None:
            return None
        handle.forsaken = True
        handle.process.kill()
        self.stack.cancel_rows(handle)
        return handle.process.name

    # ---- servers and links ------------------------------------------------------------------------------------------

    def _postgres_fast(self) -> str | None:
        pause = self._dice.uniform(0.0, 2.0)
        self.stack.postgres.restart(immediate=False, pause=pause)
        return f"away for {pause:.1f} s and the restart"

    def _postgres_immediate(self) -> str | None:
        pause = self._dice.uniform(0.0, 1.0)
        self.stack.postgres.restart(immediate=True, pause=pause)
        return f"away for {pause:.1f} s and the recovery"

    def _break(self, links: list[Link]) -> str:
        link = self._dice.choice(links)
        # The one that has been least often.
        kind = min(self._dice.sample(link.faults, len(link.faults)), key=lambda one: self.on_links[f"{link} {one}"])
        self.on_links[f"{link} {kind}"] += 1
        # One in eight lasts longer than a lease.
        seconds = self._dice.uniform(0.3, 4.0) if self._dice.random() < 7 / 8 else self._longer_than_lease()
        link.fault(kind, seconds)
        return f"{kind} for {seconds:.1f} s on port {link.port}"

    def _postgres_link(self) -> str | None:
        return self._break([self.stack.run_postgres, *(worker.postgres for worker in self.stack.workers)])

    def _postgres_cut(self) -> str | None:
        link = self._dice.choice([self.stack.run_postgres, *(worker.postgres for worker in self.stack.workers)])
        link.cut()
        return f"on port {link.port}"

    def _configured(self, name: str, value: str) -> str:
        seconds = self._dice.uniform(0.5, 3.0)
        self.stack.configure_postgres(name, value)
        self._after(seconds, lambda: self.stack.configure_postgres(name, None))
        return f"for {seconds:.1f} s"

    def _postgres_read_only(self) -> str | None:
        return self._configured("default_transaction_read_only", "on")

    def _postgres_timeout(self) -> str | None:
        return self._configured("statement_timeout", "2ms")

    def _refused(self, sqlstate: str, share: float) -> str:
        seconds = self._dice.uniform(0.5, 3.0)
        self.stack.refuse_writes(sqlstate, share, seconds)
        return f"{sqlstate} for {seconds:.1f} s"

    def _postgres_full(self) -> str | None:
        return self._refused("53100", 1.0)

    def _postgres_serialization(self) -> str | None:
        return self._refused(self._dice.choice(["40001", "40P01"]), 0.5)

    def _names(self) -> str | None:
        stack = self.stack
        users = [(worker.no_names, worker.postgres, worker.sqs) for worker in stack.workers]
        switch, *links = self._dice.choice([(stack.run_no_names, stack.run_postgres, stack.run_sqs), *users])
        assert isinstance(switch, Path)
        seconds = self._dice.uniform(0.5, 4.0)
        switch.touch()
        for link in links:
            assert isinstance(link, Link)
            link.cut()
        self._after(seconds, lambda: switch.unlink(missing_ok=True))
        return f"{switch.name} for {seconds:.1f} s"

    def _sqs_link(self) -> str | None:
        return self._break([self.stack.run_sqs, *(worker.sqs for worker in self.stack.workers)])

    def _replay(self) -> str | None:
        bodies = self.stack.run_sqs.bodies()
        if not bodies:
            return None
        chosen = [self._dice.choice(bodies) for _ in range(self._dice.randint(1, 5))]
        for body in chosen:
            self.stack.queue.call("SendMessage", MessageBody=body)
        return f"{len(chosen)} messages"

    def _purge(self) -> str | None:
        # SQS purges once a minute.
        with suppress(urllib.error.HTTPError):
            self.stack.queue.call("PurgeQueue")
            return "purged"
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _signalled(pid: int | None, number: signal.Signals) -> str | None:
    if pid is None:
        return None
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        _signal(pid, number)
        return f"{pid} ({name})"
    return None
