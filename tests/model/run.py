#!/usr/bin/env python3
"""Check the model of the protocol (protocol.pml) exhaustively with spin.

Each configuration buys some faults; its whole state space is searched for broken properties and for hangs.  Each
mutation takes one rule out of the protocol, and must be caught by its configuration.  Needs spin and a C compiler."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("protocol.pml")
DEPTH = 5000
"""Steps of the longest behaviour that is followed; pan says so when one is longer, and the check fails."""

PROPERTIES = (
    "terminal_is_final",
    "live_process_has_a_claim",
    "one_live_process",
    "attempt_runs_once",
    "one_outcome_of_each_attempt",
    "takes_over_what_it_saw",
    "success_is_in_the_log",
    "nothing_begins_after_the_end",
    "run_ends",
    "nothing_is_left",
    "every_outcome_is_reported",
)

CONFIGURATIONS: Mapping[str, Mapping[str, int]] = {
    "calm": {"OP_RETRIES": 1},
    "messages": {
        "LOST_MESSAGES": 2,
        "COPIES": 2,
        "RECEIVES": 2,
        "LOST_REPLIES": 1,
        "OP_RETRIES": 1,
        "WORKER_CRASHES": 1,
        "LATE": 1,
    },
    "nobody_takes_it": {
        "GIVES_UP": 1,
        "LOST_MESSAGES": 3,
        "COPIES": 1,
        "RECEIVES": 2,
        "WORKER_CRASHES": 1,
        "LATE": 1,
    },
    "worker_deaths": {"ATTEMPTS": 3, "WORKER_CRASHES": 2, "PROCESS_CRASHES": 1, "LATE": 1},
    "stalls": {"STALLS": 2, "PROCESS_CRASHES": 1, "WORKER_CRASHES": 1, "LATE": 1},
    "resume": {"EXECUTOR_CRASHES": 2, "WORKER_CRASHES": 1, "PROCESS_CRASHES": 1, "OP_RETRIES": 1, "LATE": 1},
    "two_executors": {
        "SECOND_EXECUTORS": 1,
        "EXECUTOR_CRASHES": 1,
        "WORKER_CRASHES": 1,
        "PROCESS_CRASHES": 1,
        "LATE": 1,
    },
    "three_attempts": {
        "ATTEMPTS": 3,
        "SECOND_EXECUTORS": 1,
        "EXECUTOR_CRASHES": 1,
        "WORKER_CRASHES": 1,
        "PROCESS_CRASHES": 1,
        "OP_RETRIES": 1,
    },
    "resume_and_stall": {"EXECUTOR_CRASHES": 1, "STALLS": 1, "WORKER_CRASHES": 1, "PROCESS_CRASHES": 1, "LATE": 1},
    "cancel": {
        "CANCELS": 1,
        "UNWANTED": 1,
        "EXECUTOR_CRASHES": 1,
        "WORKER_CRASHES": 1,
        "STALLS": 1,
        "LATE": 1,
    },
    "orphan": {
        "NO_RESUME": 1,
        "EXECUTOR_CRASHES": 1,
        "CANCELS": 1,
        "WORKER_CRASHES": 1,
        "STALLS": 1,
        "LOST_MESSAGES": 1,
        "LATE": 1,
    },
    "breaks_off": {
        "BREAKS": 1,
        "SECOND_EXECUTORS": 1,
        "EXECUTOR_CRASHES": 1,
        "WORKER_CRASHES": 1,
        "STALLS": 1,
    },
    "drain": {"DRAINS": 2, "WORKER_CRASHES": 1, "STALLS": 1, "LATE": 1},
    "drain_and_cancel": {"DRAINS": 1, "CANCELS": 1, "WORKER_CRASHES": 1, "COPIES": 1, "LATE": 1},
}
"""Name -> constants of protocol.pml; the others are 0, with two workers and two attempts."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule taken out by the switch BUG_<NAME>, where it is noticed, and which property is broken."""

    configuration: str
    property: str
    extra: Mapping[str, int] | None = None


MUTATIONS: Mapping[str, Mutation] = {
    "look_before_lost": Mutation("worker_deaths", "one_outcome_of_each_attempt"),
    "no_log_fence": Mutation("worker_deaths", "one_outcome_of_each_attempt"),
    "no_look_after_crash": Mutation("worker_deaths", "one_outcome_of_each_attempt"),
    "no_resend": Mutation("messages", "run_ends"),
    "heartbeat_by_owner": Mutation("messages", "run_ends"),
    "no_coordinator": Mutation("two_executors", "one_outcome_of_each_attempt"),
    "adopt_first": Mutation("resume", "one_outcome_of_each_attempt"),
    "no_run_guard": Mutation("orphan", "nothing_begins_after_the_end"),
    "no_fence": Mutation("stalls", "live_process_has_a_claim"),
    "no_generation": Mutation("stalls", "live_process_has_a_claim"),
    "no_slow_poll": Mutation("calm", "run_ends", {"LOST_NOTIFIES": 1}),
    "no_coordinator_fence": Mutation("two_executors", "one_outcome_of_each_attempt"),
    "one_predecessor": Mutation("resume", "one_outcome_of_each_attempt"),
    "no_connection_check": Mutation("two_executors", "one_outcome_of_each_attempt"),
    "check_before_connecting": Mutation("two_executors", "one_outcome_of_each_attempt"),
    "blind_takeover": Mutation("two_executors", "takes_over_what_it_saw"),
    "adopt_live": Mutation("resume", "run_ends"),
    "no_clearing": Mutation("breaks_off", "nothing_is_left"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found.

    ``complete``: the whole state space was seen.  ``broken``: the property that does not hold, or None.  ``story``: how
    it came to that, one line for each thing that happened.  ``seconds``: of the search alone."""

    name: str
    constants: dict[str, int]
    complete: bool
    broken: str | None
    states: int
    transitions: int
    depth: int
    seconds: float
    story: list[str]


def switches() -> set[str]:
    """The rules that the model can leave out, without their prefix BUG_."""
    return set(re.findall(r"\bBUG_(\w*[A-Z])\b", MODEL.read_text()))


def tools() -> list[str]:
    """The programs that are needed and not there."""
    return [name for name in ("spin", os.environ.get("CC", "cc")) if shutil.which(name) is None]


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(float(match[1])) if match else 0


def _story(folder: Path, defines: Sequence[str]) -> list[str]:
    """The trail that pan left, in words."""
    trail = next(folder.glob("*.trail"))
    told = subprocess.run(
        ["spin", "-t", "-k", trail.name, *defines, str(MODEL)], cwd=folder, capture_output=True, text=True
    ).stdout
    lines = (" ".join(line.split()).replace("by s_", "by ") for line in told.splitlines())
    return [line[2:] for line in lines if line.startswith("> ")]


def search(
    name: str, constants: Mapping[str, int], *, cycles: bool = False, memory: int = 3800, optimise: bool = True
) -> Result:
    """Search the state space of the model with these constants; at most ``memory`` MB.

    ``cycles``: look for a behaviour without end instead (twice the states).  ``optimise``: compile for long, search
    fast."""
    defines = [f"-D{key}={value}" for key, value in constants.items()]
    kind = ["-DNP"] if cycles else ["-DSAFETY"]
    with tempfile.TemporaryDirectory(prefix="dtq-model-") as temporary:
        folder = Path(temporary)
        _run(["spin", "-a", *defines, str(MODEL)], folder)
        compiler = os.environ.get("CC", "cc")
        level = "-O1" if optimise else "-O0"
        _run([compiler, level, "-w", "-DNOREDUCE", f"-DMEMLIM={memory}", *kind, "-o", "pan", "pan.c"], folder)
        command = ["nice", "-n", "10", "./pan", "-n", f"-m{DEPTH}", *(["-l"] if cycles else [])]
        began = time.monotonic()
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
        seconds = time.monotonic() - began
        errors = _number(r"errors: (\d+)", found)
        story = _story(folder, defines) if errors else []
    complete = "errors: " in found and not any(
        word in found for word in ("max search depth too small", "reached -DMEMLIM", "Search not completed")
    )
    broken = None
    if errors:
        said = re.search(r"pan:\d+: (.*)", found)
        text = said[1] if said else "unknown"
        broken = next((name for name in PROPERTIES if name in text), text)
    return Result(
        name=name,
        constants=dict(constants),
        complete=complete,
        broken=broken,
        states=_number(r"([\d.e+]+) states, stored", found),
        transitions=_number(r"([\d.e+]+) transitions", found),
        depth=_number(r"depth reached (\d+)", found),
        seconds=round(seconds, 1),
        story=story,
    )


def check(name: str, *, cycles: bool = False, memory: int = 3800) -> Result:
    """One of CONFIGURATIONS."""
    return search(name, CONFIGURATIONS[name], cycles=cycles, memory=memory)


def mutate(name: str, *, memory: int = 3800) -> Result:
    """One of MUTATIONS, in its configuration."""
    mutation = MUTATIONS[name]
    constants = {**CONFIGURATIONS[mutation.configuration], **(mutation.extra or {}), f"BUG_{name.upper()}": 1}
    return search(name, constants, memory=memory, optimise=False)


def _say(result: Result, good: bool) -> None:
    outcome = result.broken or ("holds" if result.complete else "not finished")
    print(
        f"{'ok  ' if good else 'FAIL'} {result.name:24} {outcome:28} {result.states:>10} states"
        f" {result.transitions:>11} transitions  depth {result.depth:>4}  {result.seconds:>6} s",
        flush=True,
    )
    if not good:
        print("\n".join(f"     {line}" for line in result.story), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="configurations and mutations; all of both when none is given")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--cycles", action="store_true", help="show that configurations have no endless behaviour")
    parser.add_argument("--memory", type=int, default=3800, metavar="MB", help="for one search (default: %(default)s)")
    parser.add_argument("--story", action="store_true", help="print how each mutation is caught")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    if options.list:
        for name, constants in CONFIGURATIONS.items():
            print(f"configuration {name:24} {' '.join(f'{key}={value}' for key, value in constants.items())}")
        for name, mutation in MUTATIONS.items():
            print(f"mutation      {name:24} {mutation.configuration}: {mutation.property}")
        return 0
    if missing := tools():
        parser.error(f"not found: {', '.join(missing)}")
    names = options.names or [*CONFIGURATIONS, *(() if options.cycles else MUTATIONS)]
    if unknown := set(names) - {*CONFIGURATIONS, *MUTATIONS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    results, failures = [], 0
    for name in names:
        if name in CONFIGURATIONS:
            result = check(name, cycles=options.cycles, memory=options.memory)
            good = result.complete and result.broken is None
        else:
            result = mutate(name, memory=options.memory)
            good = result.broken == MUTATIONS[name].property
        _say(result, good)
        if options.story and good and result.story:
            print("\n".join(f"     {line}" for line in result.story))
        failures += not good
        results.append(asdict(result) | {"good": good})
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
