"""FenceBoard, fence_arm, die_with_parent and Beat, from Python."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from dagster_taskiq import _core, errors

SECOND = 1_000_000_000
FAR = 3600 * SECOND

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def child(script: str, board: _core.FenceBoard) -> subprocess.Popen[bytes]:
    """A fresh interpreter that has the board and tells when it is ready by a line."""
    script = f"import sys, time\nfrom dagster_taskiq import _core, errors\nfd = {board.fileno()}\n{script}"
    return subprocess.Popen([sys.executable, "-c", script], pass_fds=[board.fileno()], stdout=subprocess.PIPE)


class TestBoard:
    def test_slots(self) -> None:
        board = _core.FenceBoard(3)
        assert board.slots == 3
        board.set(2, 7, 123)
        assert _core.fence_deadline_ns(board.fileno(), 2, 7) == 123
        assert _core.fence_deadline_ns(board.fileno(), 2, 8) == 0
        board.clear(2)
        assert _core.fence_deadline_ns(board.fileno(), 2, 7) == 0

    @pytest.mark.parametrize("slots", [0, -1, "1", 1 << 40])
    def test_wrong_sizes(self, slots: Any) -> None:
        with pytest.raises((ValueError, TypeError, OverflowError)):
            _core.FenceBoard(slots)

    @pytest.mark.parametrize("slot", [-1, 3, 1 << 30])
    def test_no_such_slot(self, slot: int) -> None:
        board = _core.FenceBoard(3)
        with pytest.raises(IndexError):
            board.set(slot, 1, 1)
        with pytest.raises(IndexError):
            board.clear(slot)

    def test_descriptor_is_inheritable(self) -> None:
        assert os.get_inheritable(_core.FenceBoard(1).fileno())

    def test_boot_clock_goes_forward(self) -> None:
        first = _core.boot_ns()
        assert first <= _core.boot_ns()
        if hasattr(time, "CLOCK_BOOTTIME"):
            assert abs(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - first) < 60 * SECOND


class TestArm:
    def test_kills_at_the_deadline(self) -> None:
        board = _core.FenceBoard(2)
        board.set(1, 5, _core.boot_ns() + FAR)
        with child("_core.fence_arm(fd, 1, 5)\nprint('armed', flush=True)\ntime.sleep(600)", board) as process:
            assert process.stdout
            assert process.stdout.readline() == b"armed\n"
            assert process.poll() is None
            process.kill()
        board.set(1, 6, _core.boot_ns() + 2 * SECOND)
        with child("_core.fence_arm(fd, 1, 6)\nwhile True: pass", board) as process:
            assert process.wait(60) == -signal.SIGKILL
        assert _core.boot_ns() >= _core.fence_deadline_ns(board.fileno(), 1, 6)

    @pytest.mark.parametrize("generation", [5, 6], ids=["past", "another's"])
    def test_refuses(self, generation: int) -> None:
        board = _core.FenceBoard(1)
        board.set(0, 5, 1)
        script = f"""
try:
    _core.fence_arm(fd, 0, {generation})
except errors.LeaseLostError:
    print("refused")
"""
        with child(script, board) as process:
            out, _ = process.communicate(timeout=60)
        assert out == b"refused\n" or (generation == 5 and process.returncode == -signal.SIGKILL)

    def test_no_board(self) -> None:
        with pytest.raises((errors.CoreError, ValueError)):
            _core.fence_arm(-1, 0, 1)


@linux
class TestDieWithParent:
    def test_dies(self) -> None:
        """The parent of the process under test ends by itself; the pipe that it kept open ends with it."""
        script = """
import os, time
from dagster_taskiq import _core
parent = os.getpid()
if os.fork() == 0:
    _core.die_with_parent(parent)
    os.write(1, b"ready")
    time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.read(5) == b"ready"
            process.kill()
            assert process.stdout.read() == b""

    def test_taken_back(self) -> None:
        """It goes on when its parent has died, and says so."""
        script = """
import os
from dagster_taskiq import _core
parent, (reader, writer) = os.getpid(), os.pipe()
if os.fork() == 0:
    os.close(writer)
    _core.die_with_parent(parent)
    _core.outlive_parent()
    os.write(1, b"ready")
    os.read(reader, 1)
    os.write(1, b"alive")
    os._exit(0)
os.close(reader)
os.wait()
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.read(5) == b"ready"
            process.kill()
            assert process.stdout.read() == b"alive"

    def test_parent_gone_already(self) -> None:
        with pytest.raises(errors.LeaseLostError):
            subprocess_code(f"_core.die_with_parent({2**22 + 1})")


def subprocess_code(line: str) -> None:
    """Run a line in a fresh interpreter, so that nothing sticks to this one; raise what it raises of LeaseLostError."""
    script = f"""
from dagster_taskiq import _core, errors
try:
    {line}
except errors.LeaseLostError:
    raise SystemExit(7)
"""
    if subprocess.run([sys.executable, "-c", script], check=False).returncode == 7:
        raise errors.LeaseLostError


def claim(store: _core.Store) -> int:
    """A claimed and started step ("run", "step", 1); its generation."""
    (run,) = store.run("begin_run", ["run", "coordinator", 600.0]).result()
    store.run("enqueue", ["run", run[1], "nonce", ["step"], [1], ["queue"]]).result()
    params = ["run", "step", 1, "owner", "nonce", 120.0, "host", "boot", "delivery", 1]
    (row,) = store.run("claim", params).result()
    generation = next(value for value in row if isinstance(value, int))
    assert store.run("claim_is_live", [generation]).result() == [(True,)]
    return generation


class TestBeat:
    def entry(self, generation: int, **changes: Any) -> dict[str, Any]:
        given = {"ttl": 120.0, "margin": 10.0, "heartbeat": 0.05, "claimed_ns": _core.boot_ns(), **changes}
        return {"run_id": "run", "step_key": "step", "attempt": 1, "generation": generation, **given}

    def test_renews(self, store: _core.Store) -> None:
        board = _core.FenceBoard(1)
        beat = _core.Beat(store, board=board)
        generation = claim(store)
        first = _core.boot_ns() + 110 * SECOND
        board.set(0, generation, first)
        beat.add(**self.entry(generation, slot=0))
        give_up = time.monotonic() + 60
        while _core.fence_deadline_ns(board.fileno(), 0, generation) <= first:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        beat.remove(generation)
        beat.remove(generation)
        beat.forget_message(generation)

    def test_tells_of_cancellation_and_loss(self, loop: _core.Loop, store: _core.Store) -> None:
        beat = _core.Beat(store)
        generation = claim(store)
        beat.add(**self.entry(generation))
        beat.add(**self.entry(generation + 1_000_000))
        store.run("cancel_run", ["run"]).result()
        wanted = {("cancel", generation), ("lease_lost", generation + 1_000_000)}
        while wanted:
            assert select.select([loop.fileno()], [], [], 60)[0]
            for event in loop.drain():
                assert isinstance(event, _core.Event)
                wanted.discard((event.kind, event.generation))

    def test_goes_on_without_its_object(self, store: _core.Store) -> None:
        board = _core.FenceBoard(1)
        generation = claim(store)
        board.set(0, generation, 1)
        _core.Beat(store, board=board).add(**self.entry(generation, slot=0))
        give_up = time.monotonic() + 60
        while _core.fence_deadline_ns(board.fileno(), 0, generation) <= 1:
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def test_each_lease_has_its_own_margin(self, store: _core.Store) -> None:
        board = _core.FenceBoard(2)
        beat = _core.Beat(store, board=board)
        now = _core.boot_ns()
        for slot, (ttl, margin) in enumerate(((100.0, 10.0), (20.0, 2.0))):
            beat.add(**self.entry(slot + 1, slot=slot, ttl=ttl, margin=margin, heartbeat=60.0, claimed_ns=now))
            assert _core.fence_deadline_ns(board.fileno(), slot, slot + 1) == now + int(ttl - margin) * SECOND

    @pytest.mark.parametrize(
        "changes",
        [{"ttl": -1}, {"ttl": 10.0}, {"margin": -1}, {"heartbeat": 0}, {"claimed_ns": 0}, {"slot": 1}, {"slot": -2}],
        ids=repr,
    )
    def test_wrong_entries(self, store: _core.Store, changes: dict[str, Any]) -> None:
        beat = _core.Beat(store, board=_core.FenceBoard(1))
        with pytest.raises((ValueError, TypeError, IndexError)):
            beat.add(**self.entry(1, **changes))

    def test_wrong_arguments(self, loop: _core.Loop, store: _core.Store) -> None:
        other = _core.SqsClient(_core.Loop(), region="us-east-1")
        for options in ({"margin": 1}, {"board": 3}, {"sqs": 3}, {"sqs": other}):
            with pytest.raises((TypeError, ValueError)):
                _core.Beat(store, **options)  # type: ignore[arg-type]
