"""The warm parent by itself, with the test in the worker's place; and the frames that both speak."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import services
from dagster import DagsterInstance, serialize_value
from worker_origins import job_origin

from dagster_taskiq import _core
from dagster_taskiq.errors import UnsupportedError
from dagster_taskiq.frames import FRAME_BYTES_MAX, LENGTH, FrameDecoder, FrameError, FrameSocket, encode
from dagster_taskiq.levers import HUGE_PAGES, LEVERS

HERE = Path(__file__).parent


class Parent:
    """A warm parent process, as a worker sees it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.board = _core.FenceBoard(2)
        ours, theirs = socket.socketpair()
        ours.settimeout(services.DEADLINE)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with theirs, output.open("wb") as stdout:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "dagster_taskiq.warm_parent"),
                    *("--control", str(theirs.fileno()), "--board", str(self.board.fileno())),
                    *("--worker", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                env=environment,
                pass_fds=(theirs.fileno(), self.board.fileno()),
                start_new_session=True,
            )
        self.control = FrameSocket(ours)

    def load(
        self, module: str, instance_ref: str, isolation: str = "auto", levers: frozenset[str] = LEVERS
    ) -> dict[str, Any]:
        self.control.send(
            {
                "op": "load",
                "job_origin": job_origin(module, "work", "work"),
                "instance_ref": instance_ref,
                "isolation": isolation,
                "levers": sorted(levers),
                "watch": False,
            }
        )
        ready = self.control.recv()
        assert ready is not None
        assert ready["op"] == "ready"
        return ready

    def step(self, number: int) -> tuple[int, socket.socket]:
        """(pid, channel) of a step process that waits for its attempt."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control.socket, [encode({"op": "step", "id": number})], [theirs.fileno()])
        started = self.control.recv()
        assert started is not None
        assert (started["op"], started["id"]) == ("started", number)
        return started["pid"], ours

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(services.DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def instance_ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as instance:
        return serialize_value(instance.get_ref())


@pytest.fixture
def make_parent(tmp_path: Path) -> Iterator[Callable[[], Parent]]:
    made: list[Parent] = []

    def make() -> Parent:
        made.append(Parent(tmp_path / f"output-{len(made)}"))
        return made[-1]

    yield make
    for parent in made:
        parent.close()


def test_forks_where_it_may(make_parent: Any, instance_ref: str) -> None:
    ready = make_parent().load("worker_jobs", instance_ref)
    assert (ready["isolation"], ready["warnings"]) == ("fork", [])


def test_what_the_import_printed_is_printed_once(make_parent: Any, instance_ref: str) -> None:
    parent = make_parent()
    parent.load("worker_jobs", instance_ref)
    for number in (1, 2):
        _, channel = parent.step(number)
        channel.close()
        assert parent.control.recv()["op"] == "exited"
    parent.close()
    assert parent.output.read_text().count("worker_jobs was imported") == 1


def test_threads_after_the_import(make_parent: Any, instance_ref: str) -> None:
    ready = make_parent().load("threaded_jobs", instance_ref)
    assert ready["isolation"] == "spawn"
    (warning,) = ready["warnings"]
    assert "1 threads" in warning
    assert "isolation" in warning
    forced = make_parent().load("threaded_jobs", instance_ref, "fork")
    assert (forced["isolation"], forced["warnings"]) == ("fork", [])
    asked = make_parent().load("threaded_jobs", instance_ref, "spawn")
    assert (asked["isolation"], asked["warnings"]) == ("spawn", [])


def test_a_code_location_that_cannot_be_imported(make_parent: Any, instance_ref: str) -> None:
    """The step will say it better; the warm parent lives on."""
    parent = make_parent()
    ready = parent.load("no_such_module", instance_ref)
    assert ready["isolation"] == "fork"
    assert "no_such_module" in ready["warnings"][0]
    pid, channel = parent.step(1)
    channel.close()
    ended = parent.control.recv()
    assert (ended["op"], ended["id"], ended["exit_code"]) == ("exited", 1, 0)
    assert not services.alive(pid)


def test_signals_reach_the_step_only(make_parent: Any, instance_ref: str) -> None:
    parent = make_parent()
    parent.load("worker_jobs", instance_ref)
    pid, channel = parent.step(1)
    os.kill(parent.process.pid, signal.SIGTERM)
    os.kill(parent.process.pid, signal.SIGINT)
    parent.control.send({"op": "signal", "id": 1, "signal": signal.SIGKILL})
    ended = parent.control.recv()
    assert (ended["id"], ended["signal"], ended["exit_code"]) == (1, signal.SIGKILL, None)
    assert not services.alive(pid)
    channel.close()
    assert parent.process.poll() is None


def test_the_end_of_the_worker(make_parent: Any, instance_ref: str) -> None:
    """Its end of the control socket closes, whatever it died of."""
    parent = make_parent()
    parent.load("worker_jobs", instance_ref)
    steps = [parent.step(number) for number in (1, 2)]
    parent.control.close()
    assert parent.process.wait(services.DEADLINE) == 0
    for pid, channel in steps:
        assert not services.alive(pid)
        channel.close()


def test_a_killed_parent_takes_its_steps_along(make_parent: Any, instance_ref: str) -> None:
    parent = make_parent()
    parent.load("worker_jobs", instance_ref)
    pid, channel = parent.step(1)
    # By the time it can take in its attempt, the parent-death signal is set.
    parent.process.kill()
    parent.process.wait()
    services.wait_for(lambda: not services.alive(pid), "the step process's death")
    channel.close()


def in_huge_pages(pid: int) -> int:
    """KiB of a process' memory."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))


def test_its_memory_is_in_huge_pages(make_parent: Any, instance_ref: str) -> None:
    try:
        if not _core.collapse_pages(256 * 1024 * 1024):
            pytest.skip("this kernel has no huge page left")
    except UnsupportedError:
        pytest.skip("this kernel makes no huge pages on demand")
    found = []
    for levers in (LEVERS, LEVERS - {HUGE_PAGES}):
        parent = make_parent()
        parent.load("worker_jobs", instance_ref, levers=levers)
        found.append(in_huge_pages(parent.process.pid))
        _, channel = parent.step(1)
        channel.close()
        assert parent.control.recv()["exit_code"] == 0
    assert found[0] >= found[1] + 16 * 1024


def test_frames_in_portions() -> None:
    decoder = FrameDecoder()
    data = encode({"a": "ü"}) + encode({"b": [1]})
    frames = [frame for byte in data for frame in decoder.feed(bytes([byte]))]
    assert frames == [{"a": "ü"}, {"b": [1]}]


@pytest.mark.parametrize("data", [LENGTH.pack(FRAME_BYTES_MAX + 1), LENGTH.pack(2) + b"[]", LENGTH.pack(3) + b"{,}"])
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameDecoder().feed(data)
