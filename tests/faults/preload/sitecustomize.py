"""Breaks one thing in a process of a test and in all that it starts, as FAULT_TEST_PRELOAD says.

Found by the interpreter because this folder is on PYTHONPATH; nothing of the product knows of it.

- ``no_fence``: step processes have no kernel timer for the end of their lease.
- ``no_guard``: the worker's moves use whatever generation the row has now; it stops itself (SIGSTOP) before its first
  step starts.
- ``guard``: the control for that: it stops itself, and nothing is broken.
- ``other_host``: the worker says that it runs on a host of its own.
- ``die_at_the_end``: the run worker dies after it has settled the rows of its run, before Dagster's last event.
- ``stop_before_begin``: the run worker stops itself before it becomes the run's coordinator.
- ``reads_fail``: the run worker's first reads of Dagster's log find PostgreSQL gone.
"""

import os
import signal


def _no_fence():
    from dagster_taskiq import _core

    _core.fence_arm = lambda *arguments: None


def _stop_before_first_start(store, *, guarded):
    """Between claim and start, until it is continued.  What it has under way then is carried through: the worker's
    other precautions (its own clock, the answers to its renewals) come too late."""
    start = store.IdempotencyStore.start
    pending = [True]

    def stopping_start(self, run_id, step_key, attempt, generation, **process):
        if pending:
            pending.clear()
            os.kill(os.getpid(), signal.SIGSTOP)
        if not guarded:
            generation = _generation_of(self.steps(run_id).result(), step_key, attempt)
        started = start(self, run_id, step_key, attempt, generation, **process).result()

        async def answer():
            return started

        return answer()

    store.IdempotencyStore.start = stopping_start


def _generation_of(rows, step_key, attempt):
    return next(row.generation for row in rows if (row.step_key, row.attempt) == (step_key, attempt))


def _no_guard(store):
    def unguarded(move):
        async def call(self, run_id, step_key, attempt, generation, *arguments, **options):
            now = _generation_of(await self.steps(run_id), step_key, attempt)
            return await move(self, run_id, step_key, attempt, now, *arguments, **options)

        return call

    for name in ("complete", "hand_back", "mark_lost"):
        setattr(store.IdempotencyStore, name, unguarded(getattr(store.IdempotencyStore, name)))


def _other_host():
    from dagster_taskiq import worker

    name = f"host-of-{os.getpid()}"
    worker._boot_id = lambda: name
    worker.socket.gethostname = lambda: name


def _die_at_the_end():
    from dagster_taskiq import coordinator

    end = coordinator.RunCoordinator.end

    def fatal_end(self):
        end(self)
        os.kill(os.getpid(), signal.SIGKILL)

    coordinator.RunCoordinator.end = fatal_end


def _stop_before_begin():
    from dagster_taskiq import coordinator

    begin = coordinator.RunCoordinator.begin

    def stopping_begin(self):
        os.kill(os.getpid(), signal.SIGSTOP)
        return begin(self)

    coordinator.RunCoordinator.begin = stopping_begin


def _reads_fail():
    import psycopg2
    from dagster import DagsterInstance

    read = DagsterInstance.get_records_for_run
    failures = [psycopg2.OperationalError("server closed the connection unexpectedly") for _ in range(3)]

    def failing_read(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return read(self, *arguments, **options)

    DagsterInstance.get_records_for_run = failing_read


_wanted = os.environ.get("FAULT_TEST_PRELOAD", "")
if _wanted == "no_fence":
    _no_fence()
elif _wanted in ("no_guard", "guard"):
    from dagster_taskiq import store as _store

    if _wanted == "no_guard":
        _no_guard(_store)
    _stop_before_first_start(_store, guarded=_wanted == "guard")
elif _wanted == "other_host":
    _other_host()
elif _wanted == "die_at_the_end":
    _die_at_the_end()
elif _wanted == "stop_before_begin":
    _stop_before_begin()
elif _wanted == "reads_fail":
    _reads_fail()
