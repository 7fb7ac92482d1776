"""Runs the jobs of bench_jobs.py in this process, one for each line of its input.

A line is JSON: {"job": "chain_10", "config": {...}}; the answer is a line of JSON with the seconds of the run, the CPU
seconds of this process, and the types of each step's events.  The process stays, so that imports and first runs are
not measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import bench_jobs
from dagster import DagsterInstance, execute_job, reconstructable


def run(instance: DagsterInstance, job: str, config: dict[str, Any]) -> dict[str, Any]:
    reconstructed = reconstructable(getattr(bench_jobs, job))
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    result = execute_job(reconstructed, instance, run_config=config)
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"success": result.success, "seconds": seconds, "driver_cpu_seconds": cpu, "run_id": result.run_id}


def main() -> None:
    # Whatever else writes to standard output must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with DagsterInstance.get() as instance:
        answers.write("{}\n")
        for line in sys.stdin:
            answers.write(json.dumps(run(instance, **json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
