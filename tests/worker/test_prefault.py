"""Copying ahead what steps write to."""

from __future__ import annotations

import os
import resource
import sys

import pytest

from dagster_taskiq import _core, prefault
from dagster_taskiq.errors import UnsupportedError
from dagster_taskiq.prefault import Prefault

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell which pages a process has")
MEMORY = 512 * resource.getpagesize()


class Pages:
    """Memory that a child writes to."""

    def __init__(self) -> None:
        self.content = bytearray(b"a") * MEMORY

    def write(self) -> int:
        """To each page; the faults that it cost."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for place in range(0, MEMORY, resource.getpagesize()):
            self.content[place] += 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def step(known: Prefault, pages: Pages) -> int:
    """A step process that is forked now: the faults of its writing."""
    reader, writer = os.pipe()
    asks = known.asks
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            known.copy()
            os.write(writer, str(pages.write()).encode())
            if asks:
                known.tell()
            code = 0
        finally:
            os._exit(code)
    known.forked(pid)
    _, status = os.waitpid(pid, 0)
    known.reaped(pid)
    faults = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    assert status == 0
    return faults


def test_the_next_one_copies_what_the_first_has_written_to() -> None:
    pages, known = Pages(), Prefault()
    assert step(known, pages) >= 500
    assert not known.asks
    if _core.populate_pages(_core.own_pages()):
        pytest.skip("this kernel copies nothing on demand")
    assert step(known, pages) < 100
    assert pages.content == b"a" * MEMORY


def test_who_had_no_step_says_nothing_and_the_next_is_asked() -> None:
    known = Prefault()
    assert known.asks
    known.forked(1)
    assert not known.asks
    known.reaped(1)
    assert known.asks


def test_who_wrote_to_too_much_is_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "MEMORY_MAX", MEMORY // 2)
    pages, known = Pages(), Prefault()
    for _ in range(prefault.TRIES):
        assert known.asks
        step(known, pages)
    assert not known.asks
    assert step(known, pages) >= 500


def test_what_is_no_list_of_pages() -> None:
    with pytest.raises(ValueError, match="no list of pages"):
        _core.populate_pages(b"12345")
    with pytest.raises(TypeError):
        _core.present_pages("text")  # type: ignore[arg-type]


def huge_kib() -> int:
    """Of this process' memory, what is in huge pages."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))


def test_memory_is_moved_into_huge_pages_and_stays_what_it_is() -> None:
    content = bytearray(os.urandom(1024)) * 16 * 1024
    before = bytes(content)
    try:
        moved = _core.collapse_pages(256 * 1024 * 1024)
    except UnsupportedError:
        pytest.skip("this kernel has no huge pages on demand")
    if not moved:
        pytest.skip("this kernel has no huge page left")
    assert huge_kib() * 1024 >= moved
    assert content == before


def test_what_is_no_number_of_bytes() -> None:
    with pytest.raises(OverflowError):
        _core.collapse_pages(-1)
    with pytest.raises(TypeError):
        _core.collapse_pages("all")  # type: ignore[arg-type]
