"""One Dagster instance on PostgreSQL, one queue and one worker with three slots for all cases of a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from dagster import DagsterInstance

sys.path.insert(0, str(Path(__file__).parent))

import conformance_bench
from conformance_bench import Bench


@pytest.fixture(scope="module")
def shared_bench(
    database_server: services.Databases, _sqs_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("conformance")
    home = folder / "home"
    with (
        pytest.MonkeyPatch.context() as patch,
        database_server.fresh(with_dagster=True) as database_url,
        services.fresh_queue(_sqs_server) as queue,
    ):
        conformance_bench.write_home(home, database_url)
        environment = conformance_bench.environment(home, _sqs_server, queue.name)
        for name, value in environment.items():
            patch.setenv(name, value)
        processes = services.Processes(folder)
        try:
            processes.start_worker([queue.name], slots=3)
            with DagsterInstance.get() as instance:
                yield Bench(instance, environment)
        finally:
            processes.end()


@pytest.fixture
def bench(shared_bench: Bench, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The same, in a test whose environment was cleaned."""
    for name, value in shared_bench.environment.items():
        monkeypatch.setenv(name, value)
    return shared_bench
