"""The fault runner's form for continuous integration: as many steps as a few minutes allow."""

from __future__ import annotations

import os
from pathlib import Path

import fault_run
import pytest

STEPS = int(os.environ.get("FAULT_TEST_STEPS", "2000"))
SEED = int(os.environ.get("FAULT_TEST_SEED", "1"))
MINUTES = float(os.environ.get("FAULT_TEST_MINUTES", "2.5"))
"""After so many no further run is launched: a slow machine runs fewer steps."""


@pytest.mark.faults
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path) -> None:
    options = fault_run.Options(steps=STEPS, seed=SEED, gap=2.0, runs_at_once=3, minutes=MINUTES)
    report = fault_run.run(options, tmp_path / "faults", log=print)
    print(fault_run.summary(report))
    assert report.violations == []
    assert report.trouble == []
    assert report.started >= report.steps
    assert sum(report.faults.values()) > 0
