"""Going through a step before there is one.

The first step that a process runs pays for imports that Dagster puts off, for checks that are built at first use, and
for SQL that SQLAlchemy has to put together; a forked process is always at its first step.  So the warm parent runs the
two steps of a small job of our own, through the same entry point, before it forks: on an instance in memory, with its
output thrown away.  What those steps logged is then stored once in the user's PostgreSQL storage inside transactions
that are rolled back, which leaves no row, sends no NOTIFY, and leaves the statements compiled.  Any other storage is
not touched.

None of it runs the user's code.  It is tried in a throw-away child first (:mod:`dagster_taskiq.trial`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from dagster import DagsterInstance, In, IOManager, Out, io_manager, job, op, reconstructable, serialize_value

from dagster_taskiq.executor import taskiq_executor

STATEMENT_MILLISECONDS: Final = 2000
"""For a statement that meets a lock."""


class _InMemory(IOManager):
    """Hands outputs on within this process."""

    values: dict[Any, Any]

    def __init__(self) -> None:
        self.values = {}

    def handle_output(self, context: Any, obj: Any) -> None:
        self.values[context.step_key, context.name] = obj

    def load_input(self, context: Any) -> Any:
        upstream = context.upstream_output
        return self.values.get((upstream.step_key, upstream.name))


@io_manager
def in_memory() -> IOManager:
    return _InMemory()


@op(out=Out(io_manager_key="rehearsal"))
def give() -> int:
    return 1


@op(ins={"given": In()}, out=Out(io_manager_key="rehearsal"))
def take(given: Any) -> None:
    """``given`` is None: each step has a manager of its own."""


@job(resource_defs={"rehearsal": in_memory}, executor_def=taskiq_executor)
def dagster_taskiq_rehearsal() -> None:
    take(give())


@dataclass(frozen=True, slots=True)
class Storage:
    """How Dagster used the user's PostgreSQL storage."""

    connections: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """Arguments with which psycopg2 was asked for connections; each once."""
    statements: set[str] = field(default_factory=set)
    """Texts, with their placeholders."""


def play(entry_point: Callable[[list[str]], int], instance: DagsterInstance | None, instance_ref: str) -> Storage:
    """Once through.  ``entry_point``: runs the console script of Dagster with these arguments.  ``instance``: the
    user's; None: only what needs none.
    """
    storage = Storage()
    with _nothing_seen():
        entries = _steps(entry_point, instance_ref)
        if instance is not None:
            _store(instance, entries, storage)
    gc.collect()
    return storage


def _steps(entry_point: Callable[[list[str]], int], instance_ref: str) -> list[Any]:
    """Run both steps; the log entries."""
    entries: list[Any] = []
    original = DagsterInstance.__dict__["from_ref"]
    reconstructed = reconstructable(dagster_taskiq_rehearsal)
    try:
        for step in ("give", "take"):
            # The command disposes of its instance.
            instance = DagsterInstance.ephemeral()
            DagsterInstance.from_ref = staticmethod(lambda _ref, given=instance: given)  # type: ignore[assignment]
            origin = reconstructed.get_python_origin()
            run = instance.create_run_for_job(dagster_taskiq_rehearsal, job_code_origin=origin)
            instance.add_event_listener(run.run_id, entries.append)
            arguments = {
                "__class__": "ExecuteStepArgs",
                "job_origin": json.loads(serialize_value(origin)),
                "run_id": run.run_id,
                "step_keys_to_execute": [step],
                "instance_ref": json.loads(instance_ref),
                "retry_mode": {"__enum__": "RetryMode.ENABLED"},
                "known_state": None,
                "should_verify_step": False,
                "print_serialized_events": False,
            }
            if status := entry_point(["dagster", "api", "execute_step", json.dumps(arguments)]):
                raise RuntimeError(f"its step {step} ended with status {status}")
    finally:
        DagsterInstance.from_ref = original  # type: ignore[method-assign]
    return entries


def _store(instance: DagsterInstance, entries: list[Any], used: Storage) -> None:
    """Store the entries in PostgreSQL, and take them back."""
    storages: tuple[Any, ...] = (instance.run_storage, instance.event_log_storage)
    if not all(isinstance(getattr(storage, "postgres_url", None), str) for storage in storages):
        return
    with _rolled_back(used) as connects:
        for look in (instance.get_run_by_id, instance.event_log_storage.get_logs_for_run):
            before = connects()
            look(entries[0].run_id)
            if connects() == before:
                return  # it has connections from elsewhere: nothing may be written
        for entry in entries:
            instance.event_log_storage.store_event(entry)


@contextlib.contextmanager
def _rolled_back(used: Storage) -> Iterator[Callable[[], int]]:
    """Meanwhile whatever SQLAlchemy does is rolled back, and noted in ``used``.  Yields how many connections it has
    asked for."""
    from psycopg2 import extensions
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    class Noted(extensions.cursor):  # type: ignore[misc]
        def execute(self, query: Any, variables: Any = None) -> Any:
            used.statements.add(str(query))
            return super().execute(query, variables)

    class NeverCommitted(extensions.connection):  # type: ignore[misc]
        """Every transaction ends with a rollback, also where autocommit was asked for."""

        def cursor(self) -> Any:
            return super().cursor(cursor_factory=Noted)

        autocommit = property(lambda _self: False, lambda _self, _value: None)
        isolation_level = property(lambda _self: None, lambda _self, _value: None)

        def set_session(self, *_arguments: Any, **_options: Any) -> None:
            pass

        def set_isolation_level(self, _level: Any) -> None:
            pass

        def commit(self) -> None:
            self.rollback()

        def close(self) -> None:
            self.rollback()

    made: dict[Any, Any] = {}
    count = 0

    def connect(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        nonlocal count
        if dialect.driver != "psycopg2":
            raise RuntimeError(f"there is no rehearsal with the driver {dialect.driver}")
        count += 1
        key = (tuple(arguments), tuple(sorted(options.items())))
        if key not in made:
            used.connections.append((tuple(arguments), dict(options)))
            connection = made[key] = dialect.connect(*arguments, **options, connection_factory=NeverCommitted)
            with extensions.cursor(connection) as cursor:
                cursor.execute(f"SET statement_timeout = {STATEMENT_MILLISECONDS}")
            extensions.connection.commit(connection)
        return made[key]

    event.listen(Engine, "do_connect", connect)
    try:
        yield lambda: count
    finally:
        event.remove(Engine, "do_connect", connect)
        for connection in made.values():
            extensions.connection.close(connection)


@contextlib.contextmanager
def _nothing_seen() -> Iterator[None]:
    """No output, and the process' own state as it was."""
    environment, arguments, randomness = dict(os.environ), sys.argv, random.getstate()
    sys.stdout.flush()
    sys.stderr.flush()
    outside = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        # On leaving it also forgets which warnings have been shown.
        with warnings.catch_warnings():
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), outside, strict=True):
            os.dup2(before, number)
        for descriptor in (*outside, nowhere):
            os.close(descriptor)
        sys.argv = arguments
        random.setstate(randomness)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
