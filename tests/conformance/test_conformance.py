"""Each case does under our executor what it does under Dagster's own ones, event by event.

``multiprocess`` starts a process for each step, so what it does is recorded (golden/); a few cases run under it here,
and ``regenerate.py --check`` runs them all.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import services
from conformance_bench import Bench, load_golden
from conformance_case import IN_PROCESS, MULTIPROCESS, TASKIQ, THEMES, Case, all_cases, cases
from conformance_observed import RUN, observe
from conformance_rules import RULES, differences, normalised
from dagster import DagsterEventType

from dagster_taskiq.inline import inline_worker

ALL = all_cases()
PAGE = Path(__file__).parent.parent.parent / "docs" / "parity.md"

RUN_BY_MULTIPROCESS = ("basics_chain", "retries_policy", "dynamic_collect", "checks_blocked", "failures_os_exit")

ONE_AT_A_TIME = ("limits_pool", "limits_tag", "limits_max_concurrent")

WITHOUT_SERVERS = (
    "basics_single",
    "basics_chain",
    "basics_diamond",
    "basics_op_selection",
    "basics_nested_graphs",
    "basics_skip",
    "basics_foreign_tags",
    "dynamic_collect",
    "failures_plain",
    "retries_requested",
    "retries_requested_too_often",
)
"""What dagster-celery's tests run with ``task_always_eager``."""


def chosen(wanted: list[tuple[str, Case]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("theme", "case"), [pytest.param(theme, case, id=f"{theme}-{case.id}") for theme, case in wanted]
    )


def compare(bench: Bench, theme: str, case: Case, reference: str) -> None:
    ours = normalised(bench.observed(case, TASKIQ), reference)
    theirs = normalised(bench.reference(theme, case, reference), reference)
    assert not (found := differences(ours, theirs)), f"{case.id}: - is {reference}, + is ours\n" + "\n".join(found)


@chosen(ALL)
def test_as_multiprocess_does(bench: Bench, theme: str, case: Case) -> None:
    compare(bench, theme, case, MULTIPROCESS)
    assert bench.observed(case, TASKIQ)[RUN][-1] == ("STATUS SUCCESS" if case.success else "STATUS FAILURE")


@chosen([(theme, case) for theme, case in ALL if not case.not_in_process])
def test_as_in_process_does(bench: Bench, theme: str, case: Case) -> None:
    compare(bench, theme, case, IN_PROCESS)


@chosen([(theme, case) for theme, case in ALL if case.id in WITHOUT_SERVERS])
def test_without_servers_as_in_process_does(bench: Bench, theme: str, case: Case) -> None:
    with inline_worker():
        result = bench.run(case, TASKIQ)
    ours = normalised(observe(bench.instance, result.run_id), IN_PROCESS)
    theirs = normalised(bench.reference(theme, case, IN_PROCESS), IN_PROCESS)
    assert not (found := differences(ours, theirs)), f"{case.id}: - is in_process, + is ours\n" + "\n".join(found)


@chosen(ALL)
def test_the_caller_is_given_what_is_logged(bench: Bench, theme: str, case: Case) -> None:
    # An event of captured logs has no step key; what is planned is logged before the executor has the run.
    elsewhere = {"ENGINE_EVENT", "LOGS_CAPTURED", "ASSET_MATERIALIZATION_PLANNED", "ASSET_CHECK_EVALUATION_PLANNED"}
    types = {kind.value for kind in DagsterEventType} - elsewhere
    observed = bench.observed(case, TASKIQ)
    logged = {
        key: [kind for line in lines if (kind := line.partition(" ")[0]) in types]
        for key, lines in observed.items()
        if key != RUN
    }
    yielded = dict(bench.yielded[case.id, TASKIQ])
    assert yielded == {key: kinds for key, kinds in logged.items() if kinds}


@chosen([(theme, case) for theme, case in ALL if case.id in ONE_AT_A_TIME])
def test_limits_keep_steps_apart(bench: Bench, theme: str, case: Case) -> None:
    bench.observed(case, TASKIQ)
    assert services.most_at_once(bench.order[case.id, TASKIQ]) == 1


@chosen([(theme, case) for theme, case in ALL if case.id in RUN_BY_MULTIPROCESS])
def test_multiprocess_does_what_is_recorded(bench: Bench, theme: str, case: Case) -> None:
    now = normalised(bench.observed(case, MULTIPROCESS), MULTIPROCESS)
    assert not differences(now, normalised(bench.reference(theme, case, MULTIPROCESS), MULTIPROCESS))


@pytest.mark.timeout(1200)
def test_every_rule_is_of_use(bench: Bench) -> None:
    used: set[str] = set()
    for theme, case in ALL:
        for reference in (MULTIPROCESS, IN_PROCESS):
            if reference == IN_PROCESS and case.not_in_process:
                continue
            normalised(bench.observed(case, TASKIQ), reference, used)
            normalised(bench.reference(theme, case, reference), reference, used)
    assert used == {rule.name for rule in RULES}


def test_there_are_at_least_80_jobs() -> None:
    assert len({case.job for _, case in ALL}) >= 80
    assert len({case.id for _, case in ALL}) == len(ALL)


@pytest.mark.parametrize("theme", THEMES)
def test_each_case_is_recorded(theme: str) -> None:
    assert sorted(load_golden(theme)["cases"]) == sorted(case.id for case in cases(theme))


@pytest.mark.parametrize(
    "changed",
    [
        {"a": ["STEP_START", "STEP_FAILURE"], RUN: ["PIPELINE_START"]},
        {"a": ["STEP_SUCCESS", "STEP_START"], RUN: ["PIPELINE_START"]},
        {"a": ["STEP_START", "STEP_START", "STEP_SUCCESS"], RUN: ["PIPELINE_START"]},
        {RUN: ["PIPELINE_START"]},
        {"a": ["STEP_START", "STEP_SUCCESS"], "b": ["STEP_SKIPPED"], RUN: ["PIPELINE_START"]},
    ],
)
@pytest.mark.parametrize("reference", [MULTIPROCESS, IN_PROCESS])
def test_a_difference_is_seen(changed: dict[str, list[str]], reference: str) -> None:
    plain = {"a": ["STEP_START", "STEP_SUCCESS"], RUN: ["PIPELINE_START"]}
    assert differences(normalised(changed, reference), normalised(plain, reference))
    assert not differences(normalised(plain, reference), normalised(plain, reference))


def test_the_page_has_each_rule_with_its_reason() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z_, ]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(rule.name, ", ".join(rule.against), rule.reason) for rule in RULES]
