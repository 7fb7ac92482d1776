"""Connections that go from step process to step process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import services
import sqlalchemy
from dagster import DagsterInstance, serialize_value
from proxies import TlsPostgresProxy
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from dagster_taskiq import lent_connections
from dagster_taskiq.connection_reuse import ConnectionReuse
from dagster_taskiq.lent_connections import NAME, Lender, Loan
from dagster_taskiq.step_process import Inherited, _Connections
from dagster_taskiq.store import step_application_name

STEP = "dagster-taskiq:42"


def lender_of(url: str) -> Lender:
    # As SQLAlchemy calls psycopg2.
    (arguments, options) = sqlalchemy.create_engine(url).dialect.create_connect_args(make_url(url))
    return Lender(tuple(arguments), options)


@pytest.fixture
def lender(database_url: str) -> Iterator[Lender]:
    made = lender_of(database_url)
    yield made
    made.close_idle()


def names(url: str) -> list[str]:
    """Of the connections that others have to the database."""
    sql = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return sorted(name for (name,) in services.rows(url, sql))


def in_child(lender: Lender, loan: Loan | None, work: Callable[[ConnectionReuse], object]) -> int:
    """``work`` in a forked process, which gives the connection back unless it dies; its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            lender.keep_only(loan)
            reuse = ConnectionReuse(print)
            reuse.install()
            os.environ["PGAPPNAME"] = STEP
            if (connection := lender.ahead(loan)) is not None:
                lender.begin(connection, STEP, reuse)
            work(reuse)
            for connection in reuse.release():
                if loan is None or connection is not loan.connection or not lender.give_back(loan):
                    connection.really_close()
            code = 0
        finally:
            os._exit(code)
    if loan is not None:
        lender.forked(pid, loan)
    _, status = os.waitpid(pid, 0)
    lender.reaped(pid)
    return status


def engine_of(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=NullPool)


def ask(url: str, sql: str) -> Any:
    with engine_of(url).connect() as connection:
        return connection.execute(sqlalchemy.text(sql)).scalar()


def test_it_goes_from_one_to_the_next(lender: Lender, database_url: str) -> None:
    pids = []
    for _ in range(3):
        loan = lender.lend()
        assert loan is not None
        pids.append(loan.connection.info.backend_pid)

        def work(_reuse: ConnectionReuse, pid: int = pids[-1]) -> None:
            for sql in ("SELECT pg_backend_pid()", "SELECT pg_backend_pid()"):
                assert ask(database_url, sql) == pid
                assert ask(database_url, "SHOW application_name") == STEP
            with engine_of(database_url).connect() as connection:
                connection.execute(sqlalchemy.text("SET search_path = nowhere"))
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(7)"))
                connection.commit()
            assert ask(database_url, "SHOW search_path") == '"$user", public'
            assert ask(database_url, "SHOW application_name") == STEP

        assert in_child(lender, loan, work) == 0
        assert names(database_url) == [NAME]
        assert services.rows(database_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert len(set(pids)) == 1


def test_that_of_a_process_without_a_step_is_handed_on(lender: Lender, database_url: str) -> None:
    loan = lender.lend()
    assert loan is not None
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _Connections(Inherited(frozenset(), lender=lender, loan=loan)).close()
            code = 0
        finally:
            os._exit(code)
    lender.forked(pid, loan)
    assert os.waitpid(pid, 0)[1] == 0
    lender.reaped(pid)
    assert lender.lend() is loan
    assert names(database_url) == [NAME]


def test_that_of_a_killed_process_is_not_handed_on(lender: Lender, database_url: str) -> None:
    services.rows(database_url, "CREATE TABLE written (a int)")
    loan = lender.lend()
    assert loan is not None

    def work(_reuse: ConnectionReuse) -> None:
        raw = engine_of(database_url).raw_connection()
        raw.cursor().execute("INSERT INTO written VALUES (1)")
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(lender, loan, work)) == signal.SIGKILL
    services.wait_for(lambda: names(database_url) == [], "the end of the server's process")
    assert services.rows(database_url, "SELECT count(*) FROM written") == [(0,)]
    another = lender.lend()
    assert another is not None
    assert another.connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_that_which_is_in_use_at_the_end_is_not_handed_on(lender: Lender, database_url: str) -> None:
    loan = lender.lend()
    used = []
    assert in_child(lender, loan, lambda _reuse: used.append(engine_of(database_url).connect())) == 0
    services.wait_for(lambda: names(database_url) == [], "the end of the server's process")


def test_that_of_a_process_which_has_forked_is_not_handed_on(lender: Lender, database_url: str) -> None:
    loan = lender.lend()

    def work(_reuse: ConnectionReuse) -> None:
        ask(database_url, "SELECT 1")
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    assert in_child(lender, loan, work) == 0
    services.wait_for(lambda: names(database_url) == [], "the end of the server's process")


def test_the_fence_ends_it(lender: Lender, database_url: str) -> None:
    loan = lender.lend()

    def work(_reuse: ConnectionReuse) -> None:
        ask(database_url, "SELECT 1")
        sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        other = psycopg2.connect(database_url, application_name="fence")
        with other, other.cursor() as cursor:
            cursor.execute(sql, (STEP,))
            assert cursor.fetchall() == [(True,)]
        other.close()
        # Dagster opens its own then.
        assert ask(database_url, "SHOW application_name") == STEP

    assert in_child(lender, loan, work) == 0
    services.wait_for(lambda: names(database_url) == [], "the end of the server's processes")


def test_a_process_has_none_but_its_own(lender: Lender, database_url: str) -> None:
    first, second = lender.lend(), lender.lend()
    assert first is not None
    assert second is not None
    lender.forked(-1, first)
    number = first.connection.fileno()

    def work(_reuse: ConnectionReuse) -> None:
        assert os.readlink(f"/proc/self/fd/{number}") == os.devnull
        ask(database_url, "SELECT 1")

    assert in_child(lender, second, work) == 0
    # The first one's owner still has it.
    with first.connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def test_one_that_the_server_has_closed_is_not_lent(lender: Lender, database_url: str) -> None:
    loan = lender.lend()
    assert loan is not None
    assert in_child(lender, loan, lambda _reuse: ask(database_url, "SELECT 1")) == 0
    services.rows(
        database_url,
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{NAME}'",
    )
    another = lender.lend()
    assert another is not None
    assert another.connection is not loan.connection


def test_none_is_kept_for_long(lender: Lender, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lender.close_idle() is None
    loan = lender.lend()
    assert in_child(lender, loan, lambda _reuse: ask(database_url, "SELECT 1")) == 0
    left = lender.close_idle()
    assert left is not None
    assert left > 0
    monkeypatch.setattr(lent_connections, "IDLE_MAX", 0.0)
    assert lender.close_idle() is None
    services.wait_for(lambda: names(database_url) == [], "the end of the server's process")


def test_without_a_server_it_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def connect(*_arguments: Any, **_options: Any) -> None:
        tries.append(1)
        raise psycopg2.OperationalError("away")

    monkeypatch.setattr("psycopg2.connect", connect)
    lender = Lender((), {"host": "127.0.0.1"})
    assert lender.lend() is None
    assert lender.lend() is None
    assert len(tries) == 1


@pytest.fixture
def encrypted_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    with TlsPostgresProxy(database_url, tmp_path) as proxy:
        yield proxy.url


def test_an_encrypted_one_is_not_lent_but_opened_ahead(encrypted_url: str, database_url: str) -> None:
    lender = lender_of(encrypted_url)
    for _ in range(2):
        assert lender.lend() is None
        services.wait_for(lambda: names(database_url) == [], "the end of the one that was tried")

        def work(_reuse: ConnectionReuse) -> None:
            assert names(database_url) == [STEP]
            assert ask(encrypted_url, "SHOW application_name") == STEP
            assert ask(encrypted_url, "SELECT pg_backend_pid()") == ask(encrypted_url, "SELECT pg_backend_pid()")
            assert names(database_url) == [STEP]

        assert in_child(lender, None, work) == 0
        services.wait_for(lambda: names(database_url) == [], "the end of the step's")


def test_steps_share_one(stage: Any, start_worker: Any) -> None:
    """In a real worker, one step after the other."""
    start_worker(slots=1, args=["--without", "spares"])
    sql = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    backends = []
    for attempt in (1, 2, 3):
        stage.send("quick", attempt)
        stage.wait_for_state("quick", "succeeded", attempt=attempt)
        backends.append(services.rows(stage.database_url, sql, (NAME,)))
    assert len(backends[0]) == 1
    assert backends == [backends[0]] * 3


def test_a_step_that_waits_has_its_encrypted_one(stage: Any, start_worker: Any, encrypted_url: str) -> None:
    """In a real worker: it is there when the attempt comes, and is the attempt's then."""
    services.write_dagster_yaml(Path(os.environ["DAGSTER_HOME"]), encrypted_url)
    with DagsterInstance.get() as instance:
        stage.instance_ref = serialize_value(instance.get_ref())
    start_worker(slots=2, env={"DAGSTER_TASKIQ_DATABASE_URL": encrypted_url})
    stage.send("slow")
    row = stage.wait_for_state("slow", "claimed")
    stage.wait_for_note("start", "slow")
    step = step_application_name(row.generation)
    services.wait_for(lambda: names(stage.database_url).count(step) == 1, "the step's connection")
    services.wait_for(lambda: NAME in names(stage.database_url), "that of the one that waits")
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    services.wait_for(lambda: step not in names(stage.database_url), "the end of the step's connection")
