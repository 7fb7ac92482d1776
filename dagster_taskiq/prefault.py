"""Copying the memory that steps write to before they have a step.

After a fork parent and child share their memory, and the child's first write to a page costs a fault that copies it.
Python writes wherever it reads, for it counts references: a step of Dagster's copies a fifth of its warm parent, page
by page, and waits for each.  Which pages that are is much the same for all steps.  So the first step process of a warm
parent tells at its end, and later ones have these pages copied while they wait for their attempt.  A page that is
copied in vain costs memory, nothing else.

Linux tells which pages a process has to itself, and since 5.14 copies on demand; elsewhere nothing is done.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from typing import Final

from dagster_taskiq import _core
from dagster_taskiq.errors import CoreError

LIST_BYTES: Final = 1024 * 1024
"""The longest list of pages."""

MEMORY_MAX: Final = 64 * 1024 * 1024
"""Bytes that a process copies ahead at most.  A step that wrote to more is not like the others."""

TRIES: Final = 3
"""Lists that are looked at, until one can be used."""

_LENGTH: Final = struct.Struct("=Q")
_RANGE: Final = struct.Struct("=QQ")


class Prefault:
    """Made by the warm parent, which learns; inherited by its step processes, which copy and tell.

    They tell through memory that they share with it, one at a time: the list, then its length.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _LENGTH.size + LIST_BYTES)
        self._pages = b""
        self._tries = 0
        self._asked = 0

    # ---- the warm parent --------------------------------------------------------------------------------------------

    def forked(self, pid: int) -> None:
        """Whoever was forked while nobody has been asked is asked: see :meth:`tell`."""
        if self.asks:
            self._asked = pid

    def reaped(self, pid: int) -> None:
        """A step process is dead."""
        if pid != self._asked:
            return
        self._asked = 0
        (length,) = _LENGTH.unpack_from(self._shared)
        if length == 0:
            return  # it had no step, or did not come to its end
        _LENGTH.pack_into(self._shared, 0, 0)
        self._tries += 1
        with contextlib.suppress(CoreError):
            pages = _core.present_pages(self._shared[_LENGTH.size : _LENGTH.size + length])
            if _size(pages) <= MEMORY_MAX:
                self._pages = pages

    # ---- the step process -------------------------------------------------------------------------------------------

    @property
    def asks(self) -> bool:
        """Whether a process that is forked now is to tell."""
        return not self._pages and not self._asked and self._tries < TRIES

    def copy(self) -> None:
        """Have the pages copied that are known by now."""
        _core.populate_pages(self._pages)

    def tell(self) -> None:
        """Which pages this process has copied."""
        with contextlib.suppress(CoreError):
            pages = _core.own_pages()
            self._shared[_LENGTH.size : _LENGTH.size + len(pages)] = pages
            _LENGTH.pack_into(self._shared, 0, len(pages))


def _size(pages: bytes) -> int:
    return sum(end - begin for begin, end in _RANGE.iter_unpack(pages))
