"""What the executor's tests share: a Dagster instance on PostgreSQL, notes of the steps, run workers as processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from dagster import DagsterInstance

sys.path.insert(0, str(Path(__file__).parent))

import executor_jobs as jobs
from executor_bench import Bench


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the steps' notes; also where all processes of the test can import the jobs from."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv(jobs.SCRATCH, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return folder


@pytest.fixture
def instance(dagster_home: Path, scratch: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.get() as made:
        yield made


@pytest.fixture
def bench(
    instance: DagsterInstance,
    queue: services.Queue,
    processes: services.Processes,
    scratch: Path,
    database_url: str,
) -> Bench:
    return Bench(instance, queue, processes, scratch, database_url)
