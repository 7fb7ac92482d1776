"""The fixtures themselves."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import services

from dagster_taskiq.dev import EmbeddedPostgres


def test_database_is_fresh_and_speaks(database_url: str) -> None:
    assert services.rows(database_url, "SELECT 1") == [(1,)]
    assert services.rows(database_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


def test_dagster_home_has_its_tables(dagster_home: Path, database_url: str) -> None:
    assert services.rows(database_url, "SELECT count(*) FROM runs") == [(0,)]
    assert os.environ["DAGSTER_HOME"] == str(dagster_home)


def test_queue_has_a_dead_letter_queue(queue: services.Queue) -> None:
    queue.call("SendMessage", MessageBody="x")
    assert queue.counts() == (1, 0)
    for _ in range(10):
        received = queue.call("ReceiveMessage", VisibilityTimeout=0)["Messages"]
        assert received[0]["Body"] == "x"
    queue.call("ReceiveMessage", VisibilityTimeout=0)
    assert [message["Body"] for message in queue.dead_messages()] == ["x"]


def test_second_start_finds_the_data(tmp_path: Path) -> None:
    with services.server_folder() as folder:
        with EmbeddedPostgres(folder) as first:
            services.rows(first.ensure_database("dagster"), "CREATE TABLE kept (x int)")
        with EmbeddedPostgres(folder) as second:
            assert services.rows(second.ensure_database("dagster"), "SELECT count(*) FROM kept") == [(0,)]
        mode = (folder / "postgresql.password").stat().st_mode & 0o777
        assert mode == 0o600


OWNER = """
import sys, time
from pathlib import Path
from dagster_taskiq.dev.service import Service
service = Service("shell", ["/bin/sh", "-c", "setsid sleep 1000 & echo $! started; wait"], log=Path(sys.argv[1]))
service.start()
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_its_owner(tmp_path: Path, processes: services.Processes, number: signal.Signals) -> None:
    log = tmp_path / "shell.log"
    owner = processes.start("owner", [sys.executable, "-c", OWNER, str(log)])
    services.wait_for(lambda: log.exists() and "started" in log.read_text(), "the service's start")
    family = services.descendants(owner.pid)
    assert len(family) == 3  # the keeper, the shell, and its child in a session of its own
    owner.send(number)
    owner.wait()
    services.wait_for(lambda: not any(services.alive(pid) for pid in family), "the end of the service's family")
