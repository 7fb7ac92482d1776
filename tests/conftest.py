"""Fixtures for all tests.

``database_url``, ``sqs_endpoint``, ``queue``, ``dagster_home``, ``processes`` and ``worker_process`` are real servers
and processes (see services.py).  A test that asks for ``dagster_home`` and ``database_url`` gets one database with
Dagster's tables in it; with ``database_url`` alone it is empty.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import services

KEPT = {services.DATABASE_OVERRIDE, services.SQS_OVERRIDE}
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def _wiped(name: str) -> bool:
    return name not in KEPT and (name.startswith(("AWS_", "DAGSTER", "PG")) or name.lower() in PROXIES)


def pytest_configure() -> None:
    """A process in the background of a shell, or of pytest-xdist, ignores SIGINT.  Dagster gives SIGTERM what SIGINT
    has when a test runs a job in this process, and processes that are started later would ignore both."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # Under nohup: ignored here still, and not by what is started.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test: dummy credentials, no proxy, no DAGSTER_HOME."""
    for name in list(os.environ):
        if _wiped(name):
            monkeypatch.delenv(name)
    for name, value in services.dummy_environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def database_server() -> Iterator[services.Databases]:
    """One PostgreSQL server for the session."""
    with services.database_server() as databases:
        yield databases


@pytest.fixture(scope="session")
def _sqs_server() -> Iterator[str]:
    with services.sqs_server() as endpoint:
        yield endpoint


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_server: services.Databases) -> Iterator[str]:
    """A fresh database."""
    with database_server.fresh(with_dagster="dagster_home" in request.fixturenames) as url:
        yield url


@pytest.fixture
def sqs_endpoint(_sqs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The emulator's endpoint, also set as AWS_ENDPOINT_URL_SQS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", _sqs_server)
    return _sqs_server


@pytest.fixture
def queue(sqs_endpoint: str) -> Iterator[services.Queue]:
    """A fresh queue with its dead-letter queue."""
    with services.fresh_queue(sqs_endpoint) as made:
        yield made


@pytest.fixture
def make_queue(sqs_endpoint: str) -> Iterator[Callable[[], services.Queue]]:
    """Makes further fresh queues."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda: stack.enter_context(services.fresh_queue(sqs_endpoint))


@pytest.fixture
def dagster_home(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with its storage in ``database_url``."""
    home = tmp_path / "dagster_home"
    services.write_dagster_yaml(home, database_url)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[services.Processes]:
    """Starts processes; ends them after the test."""
    folder = tmp_path / "processes"
    folder.mkdir()
    started = services.Processes(folder)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def worker_process(processes: services.Processes) -> Callable[..., services.WorkerHandle]:
    """Starts a worker: ``worker_process([queue.name], slots=2, config={…}, env={…}, args=[…], wait=True)``."""
    return processes.start_worker
