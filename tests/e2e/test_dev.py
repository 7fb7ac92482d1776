"""``dagster-taskiq dev`` under somebody's code that changes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import services

COMMAND = [sys.executable, "-m", "dagster_taskiq.cli", "dev"]

CODE = """
from pathlib import Path
from dagster import Definitions, job, op
from dagster_taskiq import taskiq_executor

@op
def says():
    Path(__file__).with_name("said").write_text("{word}")

@job(executor_def=taskiq_executor)
def speech():
    says()

defs = Definitions(jobs=[speech])
"""

LAUNCH = """mutation { launchRun(executionParams: {
  selector: {repositoryLocationName: "speech.py", repositoryName: "__repository__", jobName: "speech"}
  runConfigData: "{}"
}) { __typename ... on LaunchRunSuccess { run { runId } } } }"""


def graphql(url: str, query: str) -> Any:
    request = urllib.request.Request(
        f"{url}/graphql", data=json.dumps({"query": query}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)["data"]


def launch(url: str) -> str:
    """As the web UI's button does; the id of the run, which has succeeded."""
    run_id: str = graphql(url, LAUNCH)["launchRun"]["run"]["runId"]
    query = f'{{ runOrError(runId: "{run_id}") {{ ... on Run {{ status }} }} }}'
    services.wait_for(lambda: graphql(url, query)["runOrError"]["status"] == "SUCCESS", "the run's success", 120)
    return run_id


@pytest.mark.timeout(300)
def test_runs_go_over_the_queue_with_the_code_as_it_is(tmp_path: Path, processes: services.Processes) -> None:
    code = tmp_path / "speech.py"
    code.write_text(CODE.format(word="first"))
    with services.server_folder() as folder:
        command = [*COMMAND, "-f", str(code), "--data-dir", str(folder / "data"), "--slots", "1"]
        dev = processes.start("dev", command)
        url = dev.wait_for_log(r"^Ready: (http://127\.0\.0\.1:\d+)", 240).group(1)
        exports = dict(word.split("=", 1) for word in shlex.split((folder / "data" / "env").read_text()) if "=" in word)
        database_url = exports["DAGSTER_TASKIQ_DATABASE_URL"]
        run_id = launch(url)
        assert (tmp_path / "said").read_text() == "first"
        sql = "SELECT step_key, worker_name FROM dagster_taskiq_steps WHERE run_id = %s"
        assert services.rows(database_url, sql, [f"launch-{run_id}"]) == [("run", "runs")]
        assert services.rows(database_url, sql, [run_id]) == [("says", "worker-1")]
        code.write_text(CODE.format(word="second"))
        launch(url)
        assert (tmp_path / "said").read_text() == "second"
        # Workers that are killed come back.
        for (pid,) in services.rows(database_url, "SELECT pid FROM dagster_taskiq_workers"):
            os.kill(pid, signal.SIGKILL)
        for name in ("runs", "worker-1"):
            log = folder / "data" / "logs" / f"{name}.log"
            services.wait_for(lambda log=log: log.read_text().count(" serves ") == 2, f"the return of {name}")
        family = services.descendants(dev.pid)
        dev.send(signal.SIGTERM)
        assert dev.wait() == 0
        services.wait_for(lambda: not any(map(services.alive, family)), "the end of all that dev started")


@pytest.mark.timeout(300)
def test_code_that_cannot_be_loaded_is_told_with_its_error(tmp_path: Path, processes: services.Processes) -> None:
    code = tmp_path / "speech.py"
    code.write_text("raise RuntimeError('not today')")
    with services.server_folder() as folder:
        dev = processes.start("dev", [*COMMAND, "-f", str(code), "--data-dir", str(folder / "data")])
        assert dev.wait(240) == 1
    assert "the code location speech.py could not be loaded" in dev.output
    assert "RuntimeError: not today" in dev.output
