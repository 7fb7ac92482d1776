"""Compute logs without mirror processes.

Dagster's local compute log manager points stdout and stderr of the process into files while a step runs.  So that the
output still comes out where it went before, it starts two processes for each of the two: a ``tail`` and a Python that
watches over it, which costs more than most steps do.  :func:`without_mirrors` gives the manager of a step process the
same ``capture_logs`` with one difference: what was captured comes out when the step has ended, written by the step
process itself.  The files, the marker of completion and the events are what they were.

Only that manager is touched, and those that keep their files through it until they upload them.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

LOCAL: Final = "LocalComputeLogManager"
"""Name of the class in Dagster, which is not exported."""

MIRROR: Final = "mirror_stream_to_file"
"""Name of the function of Dagster's that starts the processes; takes a stream and a path."""

COPY_BYTES: Final = 64 * 1024


def without_mirrors(manager: Any, warn: Callable[[str], None]) -> None:
    """Change ``manager``, where it is the local one or wraps it, for the rest of this process's life.  ``warn``: called
    when Dagster has changed so that this is not possible; the manager then stays as it is.
    """
    local = manager if _is_local(manager) else getattr(manager, "local_manager", None)
    if not _is_local(local):
        return
    try:
        local.__class__ = _changed(type(local))
    except Exception as error:
        warn(f"compute logs are captured with mirror processes ({type(error).__name__}: {error})")


def _is_local(manager: Any) -> bool:
    kind = type(manager)
    return kind.__name__ == LOCAL and kind.__module__.startswith("dagster.")


def _changed(kind: type) -> type:
    """A subclass whose ``capture_logs`` is Dagster's own, with another function under the name of the mirror's."""
    inner: Any = kind.__dict__["capture_logs"].__wrapped__
    if MIRROR not in inner.__code__.co_names:
        raise LookupError(f"{LOCAL}.capture_logs does not use {MIRROR} any more")
    scope = {**inner.__globals__, MIRROR: capture}
    capture_logs = types.FunctionType(inner.__code__, scope, inner.__name__, inner.__defaults__, inner.__closure__)
    return type(kind.__name__, (kind,), {"capture_logs": contextlib.contextmanager(capture_logs), "__slots__": ()})


@contextlib.contextmanager
def capture(stream: Any, path: str) -> Iterator[None]:
    """Append what this process and its children write to ``stream`` to the file ``path``; let it out at the end."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    target = _descriptor(stream)
    log = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if target is None:
            yield
            return
        begin = os.fstat(log).st_size
        stream.flush()
        outside = os.dup(target)
        try:
            os.dup2(log, target)
            try:
                yield
            finally:
                with contextlib.suppress(ValueError):
                    stream.flush()
                os.dup2(outside, target)
                _copy(log, begin, outside)
        finally:
            os.close(outside)
    finally:
        os.close(log)


def _descriptor(stream: Any) -> int | None:
    """None for a stream that is no file (or closed)."""
    try:
        number: int = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return number


def _copy(source: int, begin: int, target: int) -> None:
    """Whoever reads ``target`` may be gone: the file has it all."""
    with contextlib.suppress(OSError):
        while data := os.pread(source, COPY_BYTES, begin):
            begin += len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
