"""The source files that a process has imported, apart from installed packages: ``worker start --reload`` looks whether
they have changed."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping

_PYTHON = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))

CodeFiles = Mapping[str, int]
"""Paths with the times of their last change, in ns; 0 where that is not known to be before the import."""


def imported_files(begun_ns: int, failure: BaseException | None) -> dict[str, int]:
    """Of the modules that are loaded now, and of those whose import has failed.  ``begun_ns``: when the first of them
    may have been read."""
    paths = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    files = {}
    for path in paths.union(_files_of(failure)):
        if os.path.isabs(path) and not _installed(path):
            changed = _changed_at(path)
            files[path] = changed if changed < begun_ns else 0
    return files


def changed_file(files: CodeFiles) -> str | None:
    """One that is not as it was; None: all are."""
    return next((path for path, changed in files.items() if _changed_at(path) != changed), None)


def _files_of(failure: BaseException | None) -> Iterator[str]:
    while failure is not None:
        if isinstance(failure, SyntaxError) and failure.filename:
            yield failure.filename
        for frame, _ in traceback.walk_tb(failure.__traceback__):
            yield frame.f_code.co_filename
        failure = failure.__cause__ or failure.__context__


def _installed(path: str) -> bool:
    return path.startswith(_PYTHON) or not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep))


def _changed_at(path: str) -> int:
    """-1 for a file that is gone: an editor may be replacing it."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1
