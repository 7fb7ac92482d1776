"""How an attempt ended, judged by its events and by the end of its process, and the sentences that say so."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any, Final, Literal

from dagster_taskiq.memory import OomKills
from dagster_taskiq.step_handle import Exit, StepProcess
from dagster_taskiq.store import NOT_RUN

State = Literal["succeeded", "failed", "cancelled"]

RUN_WORKER: Final = "run worker"

_TERMINAL: dict[str, State] = {
    "STEP_SUCCESS": "succeeded",
    "STEP_SKIPPED": "succeeded",
    "STEP_FAILURE": "failed",
    "STEP_UP_FOR_RETRY": "failed",
}


def terminal_of(events: list[str] | None, step_key: str) -> str | None:
    """The type of the last event that ends the attempt."""
    for text in reversed(events or ()):
        if any(f'"{name}"' in text for name in _TERMINAL):
            event = json.loads(text)
            if event.get("event_type_value") in _TERMINAL and event.get("step_key") == step_key:
                return str(event["event_type_value"])
    return None


def judge(
    who: str, how: Exit, events: list[str] | None, terminal: str | None, step: StepProcess, host: str, killed: OomKills
) -> tuple[State, dict[str, Any] | None, str | None]:
    """State, error and reason of a step process that died under a living worker, unasked."""
    if terminal is not None:
        return _TERMINAL[terminal], None, terminal if terminal == "STEP_UP_FOR_RETRY" else None
    if how.exit_code == 0 and events is None:
        return "succeeded", None, "see Dagster's log for its events"
    if who == RUN_WORKER and how.exit_code == 1 and step.has_ended and step.raised is None:
        return "failed", None, "the run failed"
    error: dict[str, Any] = {
        "kind": "crash",
        "exit_code": how.exit_code,
        "signal": how.signal,
        "signal_name": _signal_name(how.signal),
        "max_rss_kib": how.max_rss_kib,
        "oom_kills": {"cgroup": killed.cgroup, "host": killed.host},
        "pid": step.pid,
        "host": host,
        "raised": step.raised,
    }
    error["message"] = _sentence(who, error, killed)
    return "failed", error, NOT_RUN if how.exit_code == 0 else "crash"


def _sentence(what: str, error: Mapping[str, Any], killed: OomKills) -> str:
    who = f"The {what} (pid {error['pid']} on {error['host']})"
    memory = f" Its peak memory was {error['max_rss_kib'] // 1024} MiB." if error["max_rss_kib"] else ""
    if error["signal"] is not None:
        cause = f" {_cause(killed)}" if error["signal"] == signal.SIGKILL else ""
        return f"{who} was killed by {error['signal_name']}.{memory}{cause}"
    if error["exit_code"] is None:
        return (
            f"{who} died together with its warm parent, which can be for want of memory on the host or in its cgroup."
        )
    if error["exit_code"] == 0:
        return f"{who} ended with exit code 0 and without an event that says how the step ended."
    raised = f" It raised {error['raised']} (the worker's log has the traceback)." if error["raised"] else ""
    if raised and error["raised"].startswith(("FileNotFoundError", "ModuleNotFoundError")):
        # As of the code location itself, where `dagster job execute -f` was run in another folder.
        raised += f" Its working directory is the worker's, {os.getcwd()}."
    return f"{who} ended with exit code {error['exit_code']}.{memory}{raised}"


def _cause(killed: OomKills) -> str:
    """Of a SIGKILL that was not ours, by what the kernel has counted while the step ran."""
    if killed.cgroup:
        return f"The cause is a want of memory: the kernel killed {killed.cgroup} of its cgroup's processes meanwhile."
    if killed.host:
        return (
            f"The likely cause is a want of memory: the kernel killed {killed.host} of the host's processes meanwhile."
        )
    if killed.host is None:
        return "The likely cause is a want of memory on the host or in its cgroup."
    return "Not for want of memory: the kernel has killed no process for that meanwhile. Somebody sent the signal."


def _signal_name(signum: int | None) -> str | None:
    if signum is None:
        return None
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
