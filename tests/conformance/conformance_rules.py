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


def _last(pattern: str) -> Change:
    """Put the lines that match behind the others, in the order of the alphabet."""
    matches = re.compile(pattern).match
    return lambda observed: {
        key: [line for line in lines if not matches(line)] + sorted(line for line in lines if matches(line))
        for key, lines in observed.items()
    }


def _with_names_sorted(pattern: str) -> Change:
    """Put the names between the brackets of a line that matches in the order of the alphabet."""
    matcher = re.compile(rf"({pattern})\[([^\]]*)\]")

    def ordered(found: re.Match[str]) -> str:
        return f"{found[1]}[{', '.join(sorted(found[2].split(', ')))}]"

    return lambda observed: {key: [matcher.sub(ordered, line) for line in lines] for key, lines in observed.items()}


def _without_choice_of_failure(observed: Observed) -> Observed:
    """Where several steps fail, take the error out of the run's failure."""
    failed = [key for key, lines in observed.items() if any(line.startswith("STEP_FAILURE ") for line in lines)]
    if len(failed) < 2:
        return observed
    return _replacing(r"^PIPELINE_FAILURE error=.*", "PIPELINE_FAILURE error=<of one of the steps>")(observed)


def _without_error_of_the_run(observed: Observed) -> Observed:
    """Where a step failed outside of user code, take the error out of the run's failure."""
    outside = re.compile("STEP_FAILURE source=(FRAMEWORK_ERROR|INTERRUPT)")
    if any(outside.search(line) for lines in observed.values() for line in lines):
        return _replacing(r"^PIPELINE_FAILURE error=.*", "PIPELINE_FAILURE error=<of the step>")(observed)
    return observed


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
    Rule(
        "one-step-at-a-time",
        (IN_PROCESS,),
        "steps run one after another there, so none waits for a slot of a pool",
        _dropping("ENGINE_EVENT message=Step blocked by "),
    ),
    Rule(
        "order-of-resources",
        BOTH,
        "the resources whose teardown failed are a set: it is chance in which order they are named",
        _with_names_sorted("ENGINE_EVENT message=Teardown of resources "),
    ),
    Rule(
        "order-of-hooks",
        BOTH,
        "the hooks of an op are a set: it is chance which comes first",
        _last("HOOK_"),
    ),
    Rule(
        "death-of-a-process",
        (MULTIPROCESS,),
        "of a step process that dies multiprocess says that it died; ours names exit code or signal, and the memory",
        _replacing(
            r"error=(ChildProcessCrashException: .*|StepProcessCrashed: .*(exit code|SIG).*)",
            "error=<the process died>",
        ),
    ),
    Rule(
        "framework-error-event",
        (MULTIPROCESS,),
        "steps run by `dagster api execute_step`, as under Dagster's executors for containers: it adds an engine event",
        _dropping(
            "ENGINE_EVENT message=(An exception was thrown during step execution that is likely a framework error"
            "|Step execution terminated by interrupt)"
        ),
    ),
    Rule(
        "error-of-the-run",
        (MULTIPROCESS,),
        "of a step that failed outside of user code multiprocess makes an error of its own; ours is the step's",
        _without_error_of_the_run,
    ),
    Rule(
        "first-failure",
        BOTH,
        "a run fails with the error of the step that failed first; of steps that run side by side that is chance",
        _without_choice_of_failure,
    ),
    Rule(
        "jitter",
        BOTH,
        "the wait before a retry with jitter is drawn by lot",
        _replacing(r"wait=\d+\.\d{5,}", "wait=<by lot>"),
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
