"""Secrets are nowhere that people or other programs look: logs, rows, messages, Dagster's events, command lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import services
from dagster import DagsterInstance, DagsterRunStatus
from executor_bench import Bench

SIGNING_KEY = "s1gning-key-s3cret"
OLD_KEY = "0ld-key-s3cret"
PASSWORD = "passw0rd-s3cret"
AWS_SECRET = "aws-acce55-s3cret"
SECRETS = (SIGNING_KEY, OLD_KEY, PASSWORD, AWS_SECRET)


@pytest.fixture
def role_url(database_url: str) -> Iterator[str]:
    """The database, as a role with a password of its own."""
    services.rows(database_url, f"CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    parts = urlsplit(database_url)
    try:
        yield urlunsplit(parts._replace(netloc=f"keeper:{PASSWORD}@{parts.hostname}:{parts.port}"))
    finally:
        services.rows(
            database_url,
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE usename = 'keeper'",
        )
        services.rows(database_url, "REASSIGN OWNED BY keeper TO current_user; DROP ROLE keeper")


@pytest.fixture
def secretive(bench: Bench, role_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """All secrets are in the environment only."""
    for name, value in {
        "DAGSTER_TASKIQ_SIGNING_KEY": SIGNING_KEY,
        "DAGSTER_TASKIQ_PREVIOUS_SIGNING_KEYS": OLD_KEY,
        "DAGSTER_TASKIQ_DATABASE_URL": role_url,
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    path = Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml"
    storage = {"storage": {"postgres": {"postgres_url": {"env": "DAGSTER_TASKIQ_DATABASE_URL"}}}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **storage}))
    with DagsterInstance.get() as instance:
        yield replace(bench, instance=instance)


def command_lines() -> str:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(lines)


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def tables(database_url: str) -> Iterator[str]:
    """Every row of every table, as text."""
    names = services.rows(database_url, "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
    for (name,) in names:
        for (row,) in services.rows(database_url, f"SELECT t::text FROM {name} t"):
            yield f"{name}: {row}"


def test_a_run_gives_nothing_away(secretive: Bench) -> None:
    """Of a step that crashes, one that is lost, one that succeeds; with the services' errors on the way."""
    bench = secretive
    workers = [bench.worker(slots=1, args=["--loglevel", "debug"])]
    run = bench.create("waiting")
    run_worker = bench.run_worker(run)
    bench.wait_for_notes("waits")
    assert told(command_lines()) == []
    workers.append(bench.worker(slots=1, args=["--loglevel", "debug", "--isolation", "spawn"]))
    workers[0].kill()
    bench.wait_for_notes("waits", 2)
    assert told(command_lines()) == []
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'keeper'"
    services.rows(bench.database_url, ended)
    bench.let_go()
    run_worker.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, run_worker.output
    crashed = bench.create("crashing")
    other = bench.run_worker(crashed)
    other.wait()
    for process in (*workers, run_worker, other):
        assert told(process.output) == [], process.name
    for row in tables(bench.database_url):
        assert told(row) == []


def test_errors_give_nothing_away(secretive: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that refuses the password, an address that cannot be read, an SQS that is not there."""
    bench = secretive
    url = os.environ["DAGSTER_TASKIQ_DATABASE_URL"]
    outputs = []
    for wrong in (url.replace("keeper", "nobody"), url.replace("@127.0.0.1", "@[::1"), url + "?no_such_option=1"):
        worker = bench.worker(wait=False, env={"DAGSTER_TASKIQ_DATABASE_URL": wrong})
        worker.wait()
        outputs.append(worker.output)
    assert "nobody" in outputs[0]
    assert all("database URL" in output for output in outputs[1:])
    unreachable = bench.worker(wait=False, env={"AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:1"})
    unreachable.wait_for_log("receiving failed")
    outputs.append(unreachable.output)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:1")
    run = bench.create("single")
    run_worker = bench.run_worker(run)
    run_worker.wait_for_log("trying again")
    outputs.append(run_worker.output)
    run_worker.kill()
    for output in outputs:
        assert output
        assert told(output) == [], output
    assert told("\n".join(bench.messages(run.run_id))) == []
