"""A write by an attempt that has been overtaken is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import services
from dagster import build_input_context, build_output_context

from dagster_taskiq import fencing, refuse_stale
from dagster_taskiq.errors import StaleWriteError

DOCS = Path(__file__).parents[2] / "docs" / "fencing.md"


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    services.rows(database_url, fencing.FENCES_TABLE.format(table="fences"))
    made = psycopg2.connect(database_url)
    yield made
    made.close()


def example(language: str) -> str:
    """The longest block of the documentation in a language."""
    return max(re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL), key=len)


def test_the_largest_token_wins(connection: Any) -> None:
    with connection.cursor() as cursor:
        for token in (5, 5, 7):
            refuse_stale(cursor, "a", token=token)
        connection.commit()
        with pytest.raises(StaleWriteError, match="later claim than 6"):
            refuse_stale(cursor, "a", token=6)
        connection.rollback()
        refuse_stale(cursor, "b", token=1)
        refuse_stale(cursor, "a")  # no step process, no token, no check
        with pytest.raises(ValueError, match="table"):
            refuse_stale(cursor, "a", token=1, table="fences; DROP TABLE fences")


def test_of_two_at_once_the_later_claim_wins(connection: Any, database_url: str) -> None:
    """The earlier one waits for the other's end, and finds itself refused; or goes ahead if that is rolled back."""
    for ends, refused in ((connection.rollback, False), (connection.commit, True)):
        with connection.cursor() as cursor:
            refuse_stale(cursor, "a", token=9)
            other = psycopg2.connect(database_url, async_=True)
            wait(other)
            waiting = other.cursor()
            with pytest.raises(psycopg2.ProgrammingError):  # an asynchronous cursor has no row yet
                refuse_stale(waiting, "a", token=8)
            sql = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            services.wait_for_rows(database_url, sql, (other.info.backend_pid,))
            ends()
            wait(other)
            assert (waiting.fetchone() is None) == refused
            other.close()


def wait(connection: Any) -> None:
    services.wait_for(lambda: connection.poll() == psycopg2.extensions.POLL_OK, "an answer")


def test_the_documented_io_manager(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement in example("sql").split(";"):
        if statement.strip():
            services.rows(database_url, statement)
    names: dict[str, Any] = {"__name__": "documented"}
    exec(example("python"), names)
    manager = names["FencedIOManager"](url=database_url)
    written = build_output_context(step_key="step", name="result", run_id="run")
    for token, value, refused in ((3, "first", False), (9, "second", False), (3, "late", True)):
        monkeypatch.setenv(fencing.TOKEN_VARIABLE, str(token))
        if refused:
            with pytest.raises(StaleWriteError):
                manager.handle_output(written, value)
        else:
            manager.handle_output(written, value)
    assert manager.load_input(build_input_context(upstream_output=written)) == "second"
