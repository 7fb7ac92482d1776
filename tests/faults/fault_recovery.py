"""From a failure to the moment at which things go on: each function makes a stack, breaks it once, gives seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import services
from fault_stack import RunHandle, Stack, Timing, WorkerSlot

SHORT = Timing(lease_ttl=10.0)
USUAL = Timing(lease_ttl=120.0, heartbeat_interval=10.0, visibility_timeout=60)
"""The defaults."""
BOOT = time.CLOCK_BOOTTIME


@contextmanager
def _holding(
    folder: Path,
    *,
    workers: int = 2,
    preload: str | None = None,
    timing: Timing = SHORT,
    supervised: bool = False,
) -> Iterator[tuple[Stack, RunHandle, Path]]:
    """A run whose one step waits, on one of several workers with a slot each."""
    release = folder.with_name("release")
    with Stack(folder, workers=0, timing=timing, drain_timeout=0.0) as stack:
        for _ in range(workers):
            stack.add_worker(slots=1, preload=preload, supervised=supervised)
        stack.wait_until_ready()
        # All have a warm parent already: what is measured is the way back, not Python's imports.
        _warm_up(stack, folder.with_name("warmed"))
        run = stack.launch("holding", held={"file": str(release)})
        services.wait_for(lambda: _starts(stack, run), "the first start")
        yield stack, run, release
        release.touch()


def _warm_up(stack: Stack, release: Path) -> None:
    """One step of the same job at once on each worker: each has its warm parent then."""
    runs = [stack.launch("holding", held={"file": str(release)}) for _ in stack.workers]
    services.wait_for(lambda: all(_starts(stack, run) for run in runs), "a start on every worker")
    release.touch()
    for run in runs:
        _until_ended(stack, run)


def _until_ended(stack: Stack, run: RunHandle) -> None:
    def ended() -> bool:
        stack.supervise()
        return run.status is not None

    services.wait_for(ended, "the end of a run", 180)


def _starts(stack: Stack, run: RunHandle) -> list[dict[str, Any]]:
    return [line for line in stack.history_lines() if line["run"] == run.id and line["what"] == "start"]


def _holder(stack: Stack, run: RunHandle) -> WorkerSlot:
    """The worker that has the step.  Another one may have a spare step process just then."""
    (first,) = _starts(stack, run)
    return next(worker for worker in stack.workers if int(first["pid"]) in stack.step_processes(worker))


def _next_start(stack: Stack, run: RunHandle, since_ns: int) -> float:
    """From a moment (boot clock) to the start of the second attempt."""
    (second,) = services.wait_for(lambda: _starts(stack, run)[1:2], "the next start", 60)
    return float(second["boot_ns"] - since_ns) / 1e9


def kill_worker(folder: Path) -> float:
    """SIGKILL of a worker, another one on the same host → start of the next attempt."""
    with _holding(folder) as (stack, run, _):
        worker = _holder(stack, run)
        worker.expected_end = True
        assert worker.process is not None
        begun = time.clock_gettime_ns(BOOT)
        worker.process.send(signal.SIGKILL)
        seconds = _next_start(stack, run, begun)
        # Nobody waited for the end of the lease.
        sql = "SELECT state, lease > finished_at FROM dagster_taskiq_steps WHERE run_id = %s AND attempt = 1"
        assert stack.rows(f"{sql} AND step_key = 'held'", run.id) == [("lost", True)]
        return seconds


def kill_sole_worker(folder: Path) -> float:
    """SIGKILL of the only worker, which its supervisor starts again → start of the next attempt."""
    with _holding(folder, workers=1, supervised=True) as (stack, run, _):
        (first,) = _starts(stack, run)
        (supervisor,) = [worker.process.pid for worker in stack.workers if worker.process is not None]
        (worker,) = [pid for pid in services.descendants(supervisor) if _is_worker(pid, supervisor)]
        begun = time.clock_gettime_ns(BOOT)
        os.kill(worker, signal.SIGKILL)
        seconds = _next_start(stack, run, begun)
        assert not services.alive(int(first["pid"]))
        return seconds


def _is_worker(pid: int, supervisor: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return int(parent) == supervisor and b"worker" in words and b"start" in words


def lost_host(folder: Path) -> float:
    """All processes of a worker killed and its links dead, the other worker on another host → the next start."""
    with _holding(folder, preload="other_host") as (stack, run, _):
        lost = _holder(stack, run)
        assert lost.process is not None
        pids = [lost.process.pid, *stack.warm_parents(lost), *stack.step_processes(lost)]
        for link in (lost.postgres, lost.sqs):
            link.fault("refuse", 1000.0)
        begun = time.clock_gettime_ns(BOOT)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return _next_start(stack, run, begun)


def drain(folder: Path) -> float:
    """SIGTERM of a worker whose step does not end within drain_timeout (0 s) → start of the next attempt."""
    with _holding(folder) as (stack, run, _):
        worker = _holder(stack, run)
        worker.expected_end = True
        assert worker.process is not None
        begun = time.clock_gettime_ns(BOOT)
        worker.process.send(signal.SIGTERM)
        return _next_start(stack, run, begun)


def kill_run_worker(folder: Path) -> float:
    """SIGKILL of a run worker, resumed at once, its step ended meanwhile → the run's end (a Python start included)."""
    with _holding(folder) as (stack, run, release):
        run.process.kill()
        release.touch()
        services.wait_for(lambda: _state(stack, run) == "succeeded", "the step's end")
        begun = time.monotonic()
        _until_ended(stack, run)
        return time.monotonic() - begun


def postgres_back(folder: Path) -> float:
    """PostgreSQL answers again after a restart → the completion row of a step that ended while it was away."""
    with _holding(folder) as (stack, run, release):
        pause = 2.0
        restart = stack.postgres.start
        back: list[float] = []

        def start() -> Any:
            # The step ends while there is no PostgreSQL; its own log entries wait for it as Dagster has it.
            result = restart()
            back.append(time.time())
            release.touch()
            return result

        stack.postgres.start = start  # type: ignore[method-assign]
        stack.postgres.restart(immediate=False, pause=pause)
        sql = (
            "SELECT extract(epoch FROM finished_at)::float8 FROM dagster_taskiq_steps"
            " WHERE run_id = %s AND step_key = 'held' AND state = 'succeeded'"
        )
        ((finished,),) = services.wait_for(lambda: stack.rows(sql, run.id), "the step's end")
        return float(finished) - back[0]


def lost_notice(folder: Path) -> float:
    """Completion row whose NOTIFY is lost → the next step's row."""
    with _holding(folder, timing=USUAL) as (stack, run, release):
        stack.run_postgres.fault("drop_notices", 1000.0)
        release.touch()
        sql = (
            "SELECT extract(epoch FROM (b.queued_at - a.finished_at))::float8 FROM dagster_taskiq_steps a"
            " JOIN dagster_taskiq_steps b ON b.run_id = a.run_id AND b.step_key = 'afterwards'"
            " WHERE a.run_id = %s AND a.step_key = 'held' AND a.state = 'succeeded'"
        )
        ((seconds,),) = services.wait_for(lambda: stack.rows(sql, run.id), "the step after it")
        return float(seconds)


def _state(stack: Stack, run: RunHandle) -> str:
    found = stack.rows(
        "SELECT state FROM dagster_taskiq_steps WHERE run_id = %s AND step_key = 'held' ORDER BY attempt DESC", run.id
    )
    return str(found[0][0])


KINDS: dict[str, Callable[[Path], float]] = {
    "kill_worker": kill_worker,
    "kill_sole_worker": kill_sole_worker,
    "lost_host": lost_host,
    "drain": drain,
    "kill_run_worker": kill_run_worker,
    "postgres_back": postgres_back,
    "lost_notice": lost_notice,
}


def meaning(kind: str) -> str:
    return (KINDS[kind].__doc__ or "").strip()
