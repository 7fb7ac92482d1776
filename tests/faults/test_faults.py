"""The fault runner's form for continuous integration: every kind of fault, and 2,000 steps."""

from __future__ import annotations

import os
from pathlib import Path

import fault_run
import pytest
from fault_schedule import WEIGHTS

STEPS = int(os.environ.get("FAULT_TEST_STEPS", "2000"))
SEED = int(os.environ.get("FAULT_TEST_SEED", "1"))
MINUTES = float(os.environ.get("FAULT_TEST_MINUTES", "0")) or None
"""After so many no further run is launched; without, when there have been so many steps."""


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path) -> None:
    options = fault_run.Options(steps=STEPS, seed=SEED, minutes=MINUTES)
    report = fault_run.run(options, tmp_path / "faults", log=print)
    print(fault_run.summary(report))
    assert report.violations == []
    assert report.trouble == []
    assert report.started >= report.steps_run
    if MINUTES is None:
        assert report.steps >= STEPS
    if report.steps >= 2000:
        assert {kind for kind, weight in WEIGHTS.items() if weight} <= set(report.faults)
