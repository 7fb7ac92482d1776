"""Each case does under our executor what it does under Dagster's own ones, event by event.

``multiprocess`` starts an interpreter for each step, so what it does is recorded (golden/, regenerate.py).
"""

from __future__ import annotations

import pytest
from conformance_bench import Bench
from conformance_case import IN_PROCESS, MULTIPROCESS, TASKIQ, Case, all_cases
from conformance_observed import RUN
from conformance_rules import differences, normalised

ALL = all_cases()
every_case = pytest.mark.parametrize(
    ("theme", "case"), [pytest.param(theme, case, id=f"{theme}-{case.id}") for theme, case in ALL]
)


def compare(bench: Bench, theme: str, case: Case, reference: str) -> None:
    ours = normalised(bench.observed(case, TASKIQ), reference)
    theirs = normalised(bench.reference(theme, case, reference), reference)
    assert not (found := differences(ours, theirs)), f"{case.id}: - is {reference}, + is ours\n" + "\n".join(found)


@every_case
def test_as_multiprocess_does(bench: Bench, theme: str, case: Case) -> None:
    compare(bench, theme, case, MULTIPROCESS)
    status = "STATUS SUCCESS" if case.success else "STATUS FAILURE"
    assert bench.observed(case, TASKIQ)[RUN][-1] == status


@pytest.mark.parametrize(
    ("theme", "case"),
    [pytest.param(theme, case, id=f"{theme}-{case.id}") for theme, case in ALL if not case.not_in_process],
)
def test_as_in_process_does(bench: Bench, theme: str, case: Case) -> None:
    compare(bench, theme, case, IN_PROCESS)
