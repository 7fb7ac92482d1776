#!/usr/bin/env python3
"""Measures how long it takes from the launch of a run to RUN_START: this package's run launcher beside Dagster's
default one, whose run worker is a fresh process.

Both launch as users do, through a Dagster webserver (GraphQL), which has the code location in a code server of its own;
one PostgreSQL, two webservers with a DAGSTER_HOME each.  The launchers take turns; a first launch of each is not
counted, so that this package's worker has its warm parent and the servers have everything imported.

*launch* is from the request to launch to RUN_START.  *launcher* begins at RUN_STARTING, the event that Dagster writes
just before it calls the launcher: what it does before (making the run) is the same for both.

    python run_start.py
    python run_start.py --rounds 10 --json run_start.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bed import Bed, bed, spread
from common import columns, machine, write_json
from steps import wait_for

from dagster_taskiq.dev.service import free_port

HERE = Path(__file__).resolve().parent
JOB = "chain_2"
RUN_SECONDS = 60.0
STEPS, RUNS = "dagster", "dagster-runs"
LAUNCHERS = {
    "default": {"run_launcher": {"module": "dagster", "class": "DefaultRunLauncher"}},
    "taskiq": {"run_launcher": {"module": "dagster_taskiq", "class": "TaskIQRunLauncher"}},
}
AT_ONCE = {"run_coordinator": {"module": "at_once", "class": "AtOnce"}}

LOCATION = """
import bench_jobs
from dagster import Definitions
definitions = Definitions(jobs=[bench_jobs.{job}])
"""
LAUNCH = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, runConfigData: {}}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
READY = """
query { repositoriesOrError { __typename ... on RepositoryConnection { nodes { name location { name } } } } }
"""


class Webserver:
    """A webserver whose instance has one of the launchers."""

    def __init__(self, made: Bed, launcher: str, workspace: Path) -> None:
        home = made.make_home(f"home-{launcher}", **LAUNCHERS[launcher], **AT_ONCE)
        environment = {**made.environment, "DAGSTER_HOME": str(home), "BENCH_EXECUTOR": "in_process"}
        self._url = f"http://127.0.0.1:{(port := free_port())}/graphql"
        command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", workspace]
        made.start(f"webserver-{launcher}", command, environment)
        self._selector: dict[str, str] = {}
        wait_for(self._ready, f"the webserver with the launcher {launcher}")

    def _ready(self) -> bool:
        try:
            found = self._ask(READY)["repositoriesOrError"]
        except OSError:
            return False
        for node in found.get("nodes") or ():
            self._selector = {
                "repositoryName": node["name"],
                "repositoryLocationName": node["location"]["name"],
                "pipelineName": JOB,
            }
        return bool(self._selector)

    def launch(self) -> str:
        """The id of the run."""
        answer = self._ask(LAUNCH, selector=self._selector)["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise SystemExit(f"the run was not launched: {answer}")
        return str(answer["run"]["runId"])

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            data: dict[str, Any] = json.load(response)["data"]
        return data


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    with bed() as made:
        for queue in (STEPS, RUNS):
            made.make_queue(queue)
        location = made.folder / "location.py"
        location.write_text(LOCATION.format(job=JOB))
        workspace = made.folder / "workspace.yaml"
        workspace.write_text(json.dumps({"load_from": [{"python_file": str(location)}]}))
        made.environment["BENCH_EXECUTOR"] = "in_process"
        made.start_worker("-q", RUNS)
        servers = {name: Webserver(made, name, workspace) for name in LAUNCHERS}
        os.environ.update(made.environment)
        return _launch_in_turns(servers, options.rounds)


def _launch_in_turns(servers: dict[str, Webserver], rounds: int) -> dict[str, list[dict[str, float]]]:
    from dagster import DagsterInstance

    samples: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    with DagsterInstance.get() as instance:
        for number in range(rounds + 1):
            for name, server in servers.items():
                before = time.time()
                sample = _times(instance, server.launch(), before)
                if number:
                    samples[name].append(sample)
                print(
                    f"{'round ' + str(number) if number else 'warm-up'}: {name} {sample['launch'] * 1000:.0f} ms",
                    file=sys.stderr,
                )
    return samples


def _times(instance: Any, run_id: str, before: float) -> dict[str, float]:
    """Seconds, once the run has ended."""
    deadline = time.monotonic() + RUN_SECONDS
    while not (run := instance.get_run_by_id(run_id)).is_finished:
        if time.monotonic() > deadline:
            raise SystemExit(f"run {run_id} does not end; its events are:\n{_story(instance, run_id)}")
        time.sleep(0.2)
    if not run.is_success:
        raise SystemExit(f"run {run_id} has failed; its events are:\n{_story(instance, run_id)}")
    when = {
        entry.dagster_event.event_type_value: entry.timestamp
        for entry in reversed(instance.all_logs(run_id))
        if entry.dagster_event
    }
    return {
        "launch": when["PIPELINE_START"] - before,
        "launcher": when["PIPELINE_START"] - when["PIPELINE_STARTING"],
        "run": when["PIPELINE_SUCCESS"] - before,
    }


def _story(instance: Any, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def table(samples: dict[str, list[dict[str, float]]]) -> str:
    def cells(name: str, what: str) -> str:
        return spread([one[what] * 1000 for one in samples[name]], 0)

    def median(name: str, what: str) -> float:
        return statistics.median(one[what] for one in samples[name])

    times = {what: median("default", what) / median("taskiq", what) for what in ("launch", "launcher", "run")}
    rows = [(name, *(cells(name, what) for what in times)) for name in samples]
    rows.append(("times faster", *(f"{value:.1f}" for value in times.values())))
    return columns(("ms", "launch to RUN_START", "launcher to RUN_START", "launch to the run's end"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=7, help="launches of each that are measured (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before = machine()
    samples = measure(options)
    write_json(options.json, {"machine": before, "rounds": options.rounds, "samples": samples})
    print(json.dumps(before))
    print(table(samples))


if __name__ == "__main__":
    main()
