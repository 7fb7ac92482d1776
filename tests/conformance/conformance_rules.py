"""The differences that are meant.  docs/parity.md has the same names with the same reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conformance_case import IN_PROCESS, MULTIPROCESS
from conformance_observed import RUN, Observed

BOTH = (IN_PROCESS, MULTIPROCESS)

Change = Callable[[Observed], Observed]


@dataclass(frozen=True)
class Rule:
    """A change that is made to both sides before they are compared."""

    name: str
    against: tuple[str, ...]
    reason: str
    change: Change


def _dropping(pattern: str) -> Change:
    """Leave out the lines that match."""
    matches = re.compile(pattern).match
    return lambda observed: {
        key: kept for key, lines in observed.items() if (kept := [line for line in lines if not matches(line)])
    }


def _replacing(pattern: str, text: str) -> Change:
    matcher = re.compile(pattern)
    return lambda observed: {key: [matcher.sub(text, line) for line in lines] for key, lines in observed.items()}


RULES = (
    Rule(
        "executor-engine-events",
        BOTH,
        "each executor tells of its own doings: processes on one side; queue, worker and lease on the other",
        _dropping(
            r"ENGINE_EVENT message=(Executing steps |Finished steps in process|Multiprocess executor: "
            r"|Sending steps to queue|All steps have ended|Attempt \d+ of step )"
        ),
    ),
    Rule(
        "step-workers",
        (IN_PROCESS,),
        "a step that runs in the run's own process has no worker that starts",
        _dropping("STEP_WORKER_"),
    ),
    Rule(
        "captured-logs",
        (IN_PROCESS,),
        "one process writes one file of compute logs for all steps, not one for each",
        _dropping("LOGS_CAPTURED"),
    ),
    Rule(
        "resources-of-a-process",
        (IN_PROCESS,),
        "resources are made once in a process: there for the run, here for each step",
        _dropping("RESOURCE_INIT_"),
    ),
)


def normalised(observed: Observed, reference: str, used: set[str] | None = None) -> Observed:
    """After all rules for a comparison with this reference; ``used`` collects those that changed something."""
    for rule in RULES:
        if reference in rule.against:
            changed = rule.change(observed)
            if changed != observed and used is not None:
                used.add(rule.name)
            observed = changed
    return {key: lines for key, lines in observed.items() if lines}


def differences(ours: Observed, theirs: Observed) -> Sequence[str]:
    """Lines as a diff has them, by step."""
    import difflib

    found = []
    for key in sorted({*ours, *theirs}):
        here, there = ours.get(key, []), theirs.get(key, [])
        if here != there:
            found.append(f"--- {'the run itself' if key == RUN else key}")
            found += [line for line in difflib.ndiff(there, here) if not line.startswith("?")]
    return found
