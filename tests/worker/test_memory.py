"""Deaths for want of memory, as the kernel counts them."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import services

from dagster_taskiq.memory import OomKills, oom_kills

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 300 MiB, where this process may make one."""
    v1 = (V1 / "memory.limit_in_bytes").exists() or (V1 / "memory.use_hierarchy").exists()
    group = (V1 if v1 else V2) / f"dtq-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(300 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made: {error}")
    yield group

    def gone() -> bool:
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    # Its processes end after this fixture.
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (group.parent / "cgroup.procs").write_text(pid)
    services.wait_for(gone, "the control group to be empty")


def test_a_step_that_takes_too_much_memory(stage: Any, start_worker: Any, small_group: Path) -> None:
    worker = start_worker(slots=1)
    (small_group / "cgroup.procs").write_text(str(worker.pid))
    stage.send("greedy")
    stage.wait_for_state("greedy", "failed")
    error = json.loads(stage.outcome("greedy").error)
    assert error["signal_name"] == "SIGKILL"
    assert error["oom_kills"]["cgroup"] == 1
    assert "The cause is a want of memory" in error["message"]
    assert "MiB" in error["message"]
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")


@pytest.mark.skipif(oom_kills().host is None, reason="the kernel does not tell")
def test_a_step_that_somebody_kills(stage: Any, start_worker: Any) -> None:
    start_worker(slots=1)
    stage.send("killed")
    stage.wait_for_state("killed", "failed")
    assert "Somebody sent the signal" in json.loads(stage.outcome("killed").error)["message"]


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        ("0::/user/step\n", "user/step/memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("0::/outside/path\n", "memory.events", "oom 3\noom_kill 2\noom_group_kill 1\n"),
        ("5:cpu:/\n4:memory:/a/b\n0::/\n", "memory/a/b/memory.oom_control", "under_oom 0\noom_kill 2\n"),
        ("4:memory,hugetlb:/outside\n", "memory/memory.oom_control", "oom_kill 2\n"),
    ],
)
def test_where_the_counts_are(tmp_path: Path, membership: str, file: str, text: str) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    for path, content in ((proc / "self" / "cgroup", membership), (groups / file, text)):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert oom_kills(proc, groups) == OomKills(2, None)
    (proc / "vmstat").write_text("pgfault 12\noom_kill 7\n")
    assert oom_kills(proc, groups) == OomKills(2, 7)
    assert OomKills(3, 7).since(OomKills(2, None)) == OomKills(1, None)


def test_no_counts(tmp_path: Path) -> None:
    assert oom_kills(tmp_path, tmp_path) == OomKills(None, None)
