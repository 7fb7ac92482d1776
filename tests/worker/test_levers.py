"""What makes steps cheap changes nothing else: each piece by itself, and all of them off and on."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import services
import sqlalchemy
from dagster import DagsterInstance, serialize_value
from proxies import PostgresProxy
from sqlalchemy.pool import NullPool

from dagster_taskiq import compute_logs, rehearsal, step_process
from dagster_taskiq.compute_logs import without_mirrors
from dagster_taskiq.connection_reuse import ConnectionReuse
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.levers import LEVERS, all_but
from dagster_taskiq.trial import trial

# ---- off and on -----------------------------------------------------------------------------------------------------


def world(stage: Any) -> dict[str, Any]:
    """What the step saw, without what is of this one run."""
    seen = json.loads((stage.folder / "seen").read_text())
    for name in ("PGAPPNAME", "DAGSTER_TASKIQ_FENCING_TOKEN", "DAGSTER_TASKIQ_ATTEMPT", "DAGSTER_TASKIQ_WORKER"):
        del seen["environment"][name]
    files = [
        target for target in seen.pop("descriptors").values() if not target.startswith(("socket:", "anon", "/proc"))
    ]
    # Where stdout and stderr go while the step runs: to a file named by chance.
    seen["files"] = sorted(Path(target).suffix or target for target in files)
    for name in ("token", "attempt", "application_name", "argv"):
        del seen[name]
    return seen


def test_all_off_and_all_on(stage: Any, start_worker: Callable[..., services.WorkerHandle]) -> None:
    seen, logged, outputs = [], [], []
    for attempt, without in ((1, LEVERS), (2, ())):
        worker = start_worker(args=[part for name in sorted(without) for part in ("--without", name)])
        for step in ("look", "quick"):
            stage.send(step, attempt)
            stage.wait_for_state(step, "succeeded", attempt=attempt)
        assert "WARNING" not in worker.output
        seen.append(world(stage))
        for step in ("look", "quick"):
            events = [event["event_type_value"] for event in json.loads(stage.outcome(step, attempt).events)]
            logged.append((step, events))
        assert worker.output.count("quick was here") == 1
        worker.stop()
        outputs.append(captured(stage))
    assert seen[0] == seen[1]
    assert logged[:2] == logged[2:]
    # The second time it has those of the first, too.
    assert outputs[1] == outputs[0] * 2


def captured(stage: Any) -> list[tuple[bytes, bool]]:
    """For each capture that printed something: what, and whether it is marked as complete."""
    manager = stage.instance.compute_log_manager
    found = []
    for record in stage.instance.all_logs(stage.run_id):
        if record.dagster_event is not None and record.dagster_event.event_type_value == "LOGS_CAPTURED":
            key = [stage.run_id, "compute_logs", record.dagster_event.logs_captured_data.file_key]
            data = manager.get_log_data(key)
            assert data.stderr
            if data.stdout:
                found.append((data.stdout, manager.is_capture_complete(key)))
    return found


def test_names() -> None:
    assert all_but(["rehearsal"]) == LEVERS - {"rehearsal"}
    assert all_but(["rehearsal,spares"]) == LEVERS - {"rehearsal", "spares"}
    with pytest.raises(ConfigError, match=r"DAGSTER_TASKIQ_WITHOUT.*no lever speed"):
        all_but(["speed"])


# ---- connections ----------------------------------------------------------------------------------------------------


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def reuse(warned: list[str]) -> Iterator[ConnectionReuse]:
    made = ConnectionReuse(warned.append)
    made.install()
    yield made
    made.close()
    assert warned == []


@pytest.fixture
def engine(database_url: str) -> sqlalchemy.Engine:
    return engine_of(database_url)


def engine_of(url: str, **options: Any) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", **options)


def ask(engine: sqlalchemy.Engine, sql: str = "SELECT pg_backend_pid()") -> Any:
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text(sql)).scalar()


def backends(url: str) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return int(services.rows(url, sql)[0][0])


def test_a_connection_is_used_again(reuse: ConnectionReuse, engine: sqlalchemy.Engine, database_url: str) -> None:
    assert ask(engine) == ask(engine) == ask(engine_of(database_url))
    with engine.connect() as one, engine.connect() as other:
        assert one.connection.dbapi_connection is not other.connection.dbapi_connection
    assert backends(database_url) == 2
    reuse.close()
    services.wait_for(lambda: backends(database_url) == 0, "the end of the connections")
    assert ask(engine) != ask(engine)


@pytest.mark.usefixtures("reuse")
def test_a_used_connection_is_like_a_new_one(engine: sqlalchemy.Engine, database_url: str) -> None:
    with engine.connect() as connection:
        pid = connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar()
        for statement in (
            "SET search_path = nowhere",
            "SET application_name = 'other'",
            "CREATE TEMPORARY TABLE left_over (a int)",
            "SELECT pg_advisory_lock(7)",
            "LISTEN something",
            "PREPARE p AS SELECT 1",
        ):
            connection.execute(sqlalchemy.text(statement))
        raw: Any = connection.connection.dbapi_connection
        psycopg2.extensions.register_type(psycopg2.extensions.UNICODEARRAY, raw)
        types = dict(raw.string_types)
        raw.cursor_factory = psycopg2.extensions.cursor
    assert ask(engine) == pid
    assert ask(engine, "SHOW search_path") == '"$user", public'
    assert ask(engine, "SHOW application_name") == ""
    assert ask(engine, "SELECT to_regclass('left_over')") is None
    assert services.rows(database_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert ask(engine, "SELECT count(*) FROM pg_listening_channels()") == 0
    assert ask(engine, "SELECT count(*) FROM pg_prepared_statements") == 0
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert set(raw.string_types) < set(types)
        assert raw.cursor_factory is None


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.usefixtures("reuse")
def test_its_transactions_are_those_of_a_new_one(database_url: str, autocommit: bool) -> None:
    engine = sqlalchemy.create_engine(database_url, poolclass=NullPool)
    raw = engine.raw_connection()
    pid = raw.dbapi_connection.info.backend_pid
    raw.dbapi_connection.set_session(
        isolation_level="SERIALIZABLE", readonly=True, deferrable=True, autocommit=autocommit
    )
    raw.cursor().execute("SELECT 1")
    raw.close()
    with engine.begin() as connection:
        assert connection.connection.dbapi_connection.info.backend_pid == pid
        for name, value in (("isolation", "read committed"), ("read_only", "off"), ("deferrable", "off")):
            assert connection.execute(sqlalchemy.text(f"SHOW transaction_{name}")).scalar() == value


@pytest.mark.usefixtures("reuse")
def test_what_using_one_again_costs(database_url: str) -> None:
    with PostgresProxy(database_url) as proxy:
        engine = engine_of(proxy.url)
        ask(engine)
        before = proxy.statements()
        ask(engine)
        assert proxy.statements() - before == 2, "the question, and DISCARD ALL"


@pytest.mark.usefixtures("reuse")
def test_what_was_under_way_is_rolled_back(database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (a int)"))
    raw = engine.raw_connection()
    raw.cursor().execute("INSERT INTO t VALUES (1)")
    raw.close()
    raw = engine.raw_connection()
    with pytest.raises(psycopg2.Error):
        raw.cursor().execute("nonsense")
    raw.close()
    assert ask(engine, "SELECT count(*) FROM t") == 0


@pytest.mark.usefixtures("reuse")
def test_other_arguments_are_other_connections(
    engine: sqlalchemy.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = ask(engine)
    other = engine_of(database_url, connect_args={"options": "-c statement_timeout=7000"})
    assert ask(other, "SHOW statement_timeout") == "7s"
    monkeypatch.setenv("PGAPPNAME", "dagster-taskiq:42")
    assert ask(engine) != pid
    assert ask(engine, "SHOW application_name") == "dagster-taskiq:42"


@pytest.mark.usefixtures("reuse")
def test_the_fence_reaches_a_connection_that_lies_unused(
    engine: sqlalchemy.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAPPNAME", "dagster-taskiq:42")
    pid = ask(engine)
    sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'dagster-taskiq:42'"
    sql += " AND pid <> pg_backend_pid()"
    assert services.rows(database_url, sql) == [(True,)]
    assert ask(engine) != pid


@pytest.mark.usefixtures("reuse")
def test_a_forked_child_has_connections_of_its_own(engine: sqlalchemy.Engine) -> None:
    pid = ask(engine)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(ask(engine)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 100)) != pid
    assert ask(engine) == pid
    os.close(reader)
    os.close(writer)


def test_an_old_connection_is_not_used(
    reuse: ConnectionReuse, engine: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = ask(engine)
    monkeypatch.setattr("dagster_taskiq.connection_reuse.IDLE_MAX", -1.0)
    assert ask(engine) != pid


@pytest.mark.usefixtures("reuse")
def test_other_drivers_and_classes_are_left_alone(database_url: str) -> None:
    class Own(psycopg2.extensions.connection):
        pass

    own = engine_of(database_url, connect_args={"connection_factory": Own})
    assert ask(own) != ask(own)
    assert ask(sqlalchemy.create_engine("sqlite://"), "SELECT 1") == 1


def test_sqlalchemy_has_changed(engine: sqlalchemy.Engine, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*_: Any) -> None:
        raise sqlalchemy.exc.InvalidRequestError("No such event 'do_connect'")

    reuse = ConnectionReuse(warned.append)
    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.event.listen", listen)
        reuse.install()
    assert ask(engine) != ask(engine)
    reuse.close()
    assert [text.partition(" (")[0] for text in warned] == ["database connections are not reused, each is a new one"]


# ---- compute logs ---------------------------------------------------------------------------------------------------


class Wrapping:
    """As the managers are that upload their files."""

    def __init__(self, local: Any) -> None:
        self.local_manager = local


@pytest.fixture
def local(tmp_path: Path) -> Any:
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        return instance.compute_log_manager


@pytest.mark.parametrize("wrap", [lambda local: local, Wrapping])
def test_capture(local: Any, wrap: Any, warned: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    without_mirrors(wrap(local), warned.append)
    assert warned == []
    before = services.descendants(os.getpid())
    for text in ("first", "second"):
        # pytest's own sys.stdout has no descriptor.
        with pytest.MonkeyPatch.context() as patch, open(1, "w", closefd=False) as out:
            patch.setattr(sys, "stdout", out)
            with local.capture_logs(["run", "compute_logs", "key"]) as context:
                assert context.log_key == ["run", "compute_logs", "key"]
                assert services.descendants(os.getpid()) == before
                print(text)
                os.system(f"echo {text} child")
    assert local.get_log_data(["run", "compute_logs", "key"]).stdout == b"first child\nfirst\nsecond child\nsecond\n"
    assert local.is_capture_complete(["run", "compute_logs", "key"])
    assert capfd.readouterr().out == "first child\nfirst\nsecond child\nsecond\n"


def test_other_managers_are_left_alone(warned: list[str]) -> None:
    with DagsterInstance.ephemeral() as instance:
        manager = instance.compute_log_manager
        before = type(manager)
        without_mirrors(manager, warned.append)
        assert type(manager) is before
    assert warned == []


def test_dagster_has_changed(local: Any, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_logs, "MIRROR", "another_name")
    before = type(local)
    without_mirrors(local, warned.append)
    assert type(local) is before
    assert "mirror processes" in warned[0]


# ---- rehearsal ------------------------------------------------------------------------------------------------------


def contents(url: str) -> dict[str, int]:
    tables = services.rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {table: services.rows(url, f'SELECT count(*) FROM "{table}"')[0][0] for (table,) in tables}


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_rehearsal_leaves_nothing(
    dagster_home: Path, database_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point = partial(step_process.run_console_script, step_process.load_entry_point())
    gc.collect()  # descriptors of earlier tests
    with DagsterInstance.get() as instance:
        before = contents(database_url), files(dagster_home), dict(os.environ), sys.argv, os.listdir("/proc/self/fd")
        play = partial(rehearsal.play, entry_point, instance, serialize_value(instance.get_ref()))
        # pytest's own have other descriptors.
        for number, name in ((1, "stdout"), (2, "stderr")):
            monkeypatch.setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        assert trial(play, lambda: "") == ""
        play()
        after = contents(database_url), files(dagster_home), dict(os.environ), sys.argv, os.listdir("/proc/self/fd")
        assert after == before
        assert instance.get_run_by_id("none") is None
    assert capfd.readouterr() == ("", "")
    assert backends(database_url) == 0


def test_a_rehearsal_that_would_leave_something() -> None:
    assert trial(lambda: None, lambda: "a thread") == "a thread"
    assert "division" in trial(lambda: print(1 // 0), lambda: "")
    assert trial(lambda: os._exit(3), lambda: "") == "it ended with status 3"
