"""What a run left, as lines of text: per step in their order, those of the run itself under ``RUN``.

A line is the event's type and what a user can see of it.  Values that differ from run to run are replaced (``<run>``,
``<home>``, ``<pid>``).  Beside Dagster's events there are lines ``LOG`` (``context.log`` and captured Python loggers),
``PRINTED`` (what compute logs hold, of lines that begin with :data:`PRINT_MARK`) and ``VALUE`` (outputs that the run's
IO manager stored).
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster import DagsterEvent, DagsterInstance

RUN = "RUN"
LONGEST = 2000
"""Characters of a line; longer ones are cut."""

PRINT_MARK = "printed by "
"""``printed by <step key>: <text>``."""

Observed = dict[str, list[str]]


def observe(instance: DagsterInstance, run_id: str) -> Observed:
    home = Path(instance.root_directory)
    mask = _Mask(run_id, home)
    lines: Observed = {RUN: []}
    printed: list[tuple[str, str]] = []
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None:
            text = f"LOG {logging.getLevelName(entry.level)} {entry.user_message}"
            lines.setdefault(entry.step_key or RUN, []).append(mask(text))
            continue
        key = event.step_key or _captured_step(event) or RUN
        lines.setdefault(key, []).append(mask(f"{event.event_type_value} {_details(event)}".strip()))
        if event.event_type_value == "LOGS_CAPTURED":
            printed += _printed(instance, run_id, event.event_specific_data.file_key)
    for key, text in [*printed, *_values(home / "storage" / run_id)]:
        lines.setdefault(key, []).append(mask(text))
    status = instance.get_run_by_id(run_id)
    assert status is not None
    lines[RUN].append(f"STATUS {status.status.value}")
    return lines


class _Mask:
    """Takes out of a text what differs from run to run."""

    def __init__(self, run_id: str, home: Path) -> None:
        self._run_id = run_id
        self._home = str(home)

    def __call__(self, text: str) -> str:
        text = text.replace(self._run_id, "<run>").replace(self._home, "<home>")
        text = re.sub(r"(pid[:= ]+|process )\d+", r"\1<pid>", text)
        text = re.sub(r"after [\d.]+ ?(ms|s\b|m\b)", "after <time>", text)
        text = re.sub(r"0x[0-9a-f]{6,}", "<address>", text)
        return text if len(text) <= LONGEST else f"{text[:200]}… of {len(text)} characters"


def _captured_step(event: DagsterEvent) -> str | None:
    """The one step whose output went into a file of compute logs."""
    keys = getattr(event.event_specific_data, "step_keys", None)
    return keys[0] if keys and len(keys) == 1 else None


# Details of an event


def _details(event: DagsterEvent) -> str:
    data = event.event_specific_data
    kind = event.event_type_value
    describe = _DESCRIPTIONS.get(kind)
    parts: dict[str, Any] = describe(data) if describe else {}
    if kind == "ENGINE_EVENT":
        parts["message"] = event.message
    if kind in ("RUN_FAILURE", "RUN_SUCCESS", "RUN_START", "HOOK_COMPLETED", "HOOK_SKIPPED", "STEP_SKIPPED"):
        parts["message"] = event.message
    error = getattr(data, "error", None)
    if error is not None:
        parts["error"] = _error(error)
    return " ".join(f"{name}={value}" for name, value in parts.items() if value not in (None, "", {}, []))


def _error(error: Any) -> str:
    """Class and message, those of the causes behind."""
    text = f"{error.cls_name}: {' '.join(_without_traceback(error.message).split())}"
    cause = error.cause or getattr(error, "context", None)
    return f"{text} <- {_error(cause)}" if cause else text


def _without_traceback(message: str) -> str:
    return message.partition("Stack Trace:")[0]


def _metadata(entries: Mapping[str, Any]) -> str:
    return ",".join(f"{name}:{type(value).__name__.removesuffix('MetadataValue')}" for name, value in entries.items())


def _output(data: Any) -> dict[str, Any]:
    handle = data.step_output_handle
    return {
        "output": handle.output_name,
        "mapping": handle.mapping_key,
        "type_check": _type_check(data.type_check_data),
        "metadata": _metadata(data.metadata),
    }


def _type_check(data: Any) -> str | None:
    if data is None:
        return None
    label = "ok" if data.success else f"failed({data.description})"
    return f"{label}[{_metadata(data.metadata)}]" if data.metadata else label


def _asset_event(event: Any) -> dict[str, Any]:
    return {
        "asset": event.asset_key.to_user_string(),
        "partition": event.partition,
        "description": event.description,
        "metadata": _metadata(event.metadata),
        "tags": ",".join(sorted(event.tags or {})),
    }


def _check(data: Any) -> dict[str, Any]:
    return {
        "asset": data.asset_key.to_user_string(),
        "check": data.check_name,
        "passed": data.passed,
        "severity": data.severity.value,
        "blocking": getattr(data, "blocking", None),
        "description": data.description,
        "metadata": _metadata(data.metadata),
    }


def _failure(data: Any) -> dict[str, Any]:
    user = data.user_failure_data
    return {
        "source": data.error_source.value if data.error_source else None,
        "label": user.label if user else None,
        "description": user.description if user else None,
        "metadata": _metadata(user.metadata) if user else None,
    }


_DESCRIPTIONS: Mapping[str, Any] = {
    "STEP_OUTPUT": _output,
    "STEP_INPUT": lambda data: {"input": data.input_name, "type_check": _type_check(data.type_check_data)},
    "HANDLED_OUTPUT": lambda data: {
        "output": data.output_name,
        "manager": data.manager_key,
        "metadata": _metadata(data.metadata),
    },
    "LOADED_INPUT": lambda data: {
        "input": data.input_name,
        "manager": data.manager_key,
        "from": ".".join(filter(None, (data.upstream_step_key, data.upstream_output_name))),
        "metadata": _metadata(data.metadata),
    },
    "ASSET_MATERIALIZATION": lambda data: _asset_event(data.materialization),
    "ASSET_OBSERVATION": lambda data: _asset_event(data.asset_observation),
    "ASSET_MATERIALIZATION_PLANNED": lambda data: {
        "asset": data.asset_key.to_user_string(),
        "partition": data.partition,
    },
    "ASSET_CHECK_EVALUATION": _check,
    "ASSET_CHECK_EVALUATION_PLANNED": lambda data: {
        "asset": data.asset_key.to_user_string(),
        "check": data.check_name,
    },
    "STEP_EXPECTATION_RESULT": lambda data: {
        "success": data.expectation_result.success,
        "label": data.expectation_result.label,
        "description": data.expectation_result.description,
        "metadata": _metadata(data.expectation_result.metadata),
    },
    "STEP_FAILURE": _failure,
    "STEP_UP_FOR_RETRY": lambda data: {"wait": data.seconds_to_wait},
    "RESOURCE_INIT_STARTED": lambda data: {"resources": ",".join(sorted(data.metadata))},
    "RESOURCE_INIT_SUCCESS": lambda data: {"resources": ",".join(sorted(data.metadata))},
    "RESOURCE_INIT_FAILURE": lambda data: {"resources": ",".join(sorted(data.metadata))},
}


# What else a run leaves


def _printed(instance: DagsterInstance, run_id: str, file_key: str) -> Iterator[tuple[str, str]]:
    """From the file that the UI shows for this event."""
    data = instance.compute_log_manager.get_log_data([run_id, "compute_logs", file_key])
    for name, content in (("stdout", data.stdout), ("stderr", data.stderr)):
        for line in (content or b"").decode(errors="replace").splitlines():
            if line.startswith(PRINT_MARK):
                key, _, text = line.removeprefix(PRINT_MARK).partition(": ")
                yield key, f"PRINTED {name} {text}"


def _values(folder: Path) -> Iterator[tuple[str, str]]:
    """Of the filesystem IO manager: ``<step key>/<output>``, with a mapping key below."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or parts[0] == "compute_logs":
            continue
        try:
            text = repr(pickle.loads(path.read_bytes()))
        except EOFError:
            # An output that could not be pickled leaves an empty file.
            text = "(nothing)"
        if len(text) > 200:
            text = f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        yield parts[0], f"VALUE {'/'.join(parts[1:])} = {text}"
