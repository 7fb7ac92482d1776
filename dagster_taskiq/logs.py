"""Structured logs of a worker: one line each, as text or as JSON.

What a line is about travels in ``extra`` (:func:`fields`), so that both forms, and a user's own handlers, have it by
name.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import IO, Any

FIELDS = ("worker", "queue", "message_id", "deliveries", "run_id", "step_key", "attempt", "generation", "pid")
"""Names that a log record may carry beside its message; absent or None ones are left out."""

ROOT = "dagster_taskiq"


def fields(**values: Any) -> dict[str, Any]:
    """``extra`` of a log call.  Raises ``KeyError`` for a name that is not one of :data:`FIELDS`."""
    for name in values:
        if name not in FIELDS:
            raise KeyError(name)
    return values


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO message  run_id=… step_key=…``"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {record.levelname} {record.getMessage()}"
        about = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        if about:
            line = f"{line}  {about}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure(*, json_lines: bool = False, level: int | str = logging.INFO, stream: IO[str] | None = None) -> None:
    """Write this package's logs to ``stream`` (standard error); other loggers stay as they are.  A second call replaces
    the first one's handler.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    logger = logging.getLogger(ROOT)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}


def _timestamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"
