"""Steps that start when the outputs are there that they need, and not when the steps that give them have ended."""

from __future__ import annotations

from typing import Any

import dagster
import pytest
import services
from dagster import DagsterRunStatus
from executor_bench import Bench, telling

from dagster_taskiq import coordinator

ATTEMPT = ["WORKER_STARTING", "WORKER_STARTED", "START", "SUCCESS"]
ON_OUTPUTS = {"step_dependency_config": {"require_upstream_step_success": False}}

pytestmark = pytest.mark.skipif(
    not hasattr(dagster.Executor, "step_dependency_config"), reason="this Dagster always waits for steps"
)


@pytest.mark.parametrize("told", [True, False])
def test_a_step_starts_while_the_one_whose_output_it_needs_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Which waits for that.  The run is told of the output, or, where the word is lost, looks itself."""
    monkeypatch.setattr(coordinator, "OUTPUT_POLL", 1e9 if told else 0.0)
    if not told:
        hear = coordinator.RunCoordinator._notified

        def miss(this: coordinator.RunCoordinator, payload: dict[str, Any]) -> None:
            if payload.get("state") != "claimed":
                hear(this, payload)

        monkeypatch.setattr(coordinator.RunCoordinator, "_notified", miss)
    bench.worker()
    bench.let_go()
    result = bench.run("early", **ON_OUTPUTS)
    assert result.success
    assert bench.output(result, "total") == 4
    assert {key: telling(types) for key, types in bench.logged(result.run_id).items()} == dict.fromkeys(
        ("gives_early", "uses_early", "plus_one", "total"), ATTEMPT
    )


def test_a_run_that_is_taken_over_meanwhile_knows_what_has_used_the_output(bench: Bench) -> None:
    bench.worker()
    run = bench.create("early", **ON_OUTPUTS)
    first = bench.run_worker(run)
    services.wait_for(lambda: ("plus_one", 1, "succeeded") in bench.rows(run.run_id), "what follows the output to end")
    first.kill()
    second = bench.run_worker(run, resume=True)
    second.wait_for_log("Taking the run over")
    bench.let_go()
    second.wait()
    assert bench.status(run) == DagsterRunStatus.SUCCESS.value, second.output
    assert bench.rows(run.run_id) == [
        (key, 1, "succeeded") for key in ("gives_early", "plus_one", "total", "uses_early")
    ]
    logged = bench.logged(run.run_id)
    assert telling(logged["uses_early"]) == telling(logged["plus_one"]) == ATTEMPT
