"""The checker itself: a history in which all is well passes, and each kind of bad one is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fault_checker import Evidence, Logged, Row, Run, check

SECOND = 1_000_000_000


def line(what: str, attempt: int, generation: int, at: float, **more: Any) -> dict[str, Any]:
    """Of the history of step "a" of run "r"; the process has the generation's number."""
    fields = {"run": "r", "step": "a", "pid": generation, "pid_start": str(generation)}
    return {"what": what, **fields, "attempt": attempt, "generation": generation, "boot_ns": int(at * SECOND), **more}


def log(*kinds: tuple[str, int]) -> list[Logged]:
    """Events of step "a", in order: type and process."""
    return [Logged("r", "a", order, kind, pid) for order, (kind, pid) in enumerate(kinds)]


def lost_once() -> Evidence:
    """A step whose first attempt was lost in the middle and whose second one succeeded; 99 is the run worker."""
    return Evidence(
        history=[
            line("start", 1, 11, 1.0),
            line("tick", 1, 11, 1.5),
            line("start", 2, 12, 9.0),
            line("end", 2, 12, 9.2),
        ],
        rows=[Row("r", "a", 1, "lost", 11, 11, True), Row("r", "a", 2, "succeeded", 12, 12, True)],
        log=log(
            ("STEP_START", 11), ("STEP_UP_FOR_RETRY", 99), ("STEP_START", 12), ("STEP_OUTPUT", 12), ("STEP_SUCCESS", 12)
        ),
        runs=[Run("r", "SUCCESS", "ended")],
    )


def rules(evidence: Evidence) -> set[str]:
    return {violation.rule for violation in check(evidence)}


def test_a_loss_and_a_retry_are_no_violation() -> None:
    assert check(lost_once()) == []


def test_a_success_that_its_row_does_not_know_is_no_violation() -> None:
    """The process was killed between its last event and its end; the log's word counts."""
    evidence = lost_once()
    evidence.rows = [evidence.rows[0], replace(evidence.rows[1], state="failed")]
    assert check(evidence) == []


def test_an_interrupted_op_with_a_retry_policy_is_no_violation() -> None:
    evidence = Evidence(
        history=[line("start", 1, 11, 1.0)],
        rows=[Row("r", "a", 1, "cancelled", 11, 11, True)],
        log=log(("STEP_START", 11), ("STEP_UP_FOR_RETRY", 11)),
        runs=[Run("r", "CANCELED", "ended")],
    )
    assert check(evidence) == []
    evidence.runs = [Run("r", "SUCCESS", "ended")]
    assert rules(evidence) == {"no outcome"}


def test_an_attempt_that_starts_twice() -> None:
    evidence = lost_once()
    evidence.history = [*evidence.history, line("start", 2, 12, 9.1)]
    assert "started twice" in rules(evidence)


def test_an_attempt_that_starts_under_two_generations() -> None:
    evidence = lost_once()
    evidence.history = [*evidence.history, line("start", 2, 13, 10.0)]
    assert rules(evidence) == {"started twice", "foreign generation"}


def test_a_process_that_writes_after_the_start_of_the_next_one() -> None:
    evidence = lost_once()
    evidence.history = [*evidence.history, line("tick", 1, 11, 9.1)]
    assert rules(evidence) == {"overlap"}


def test_a_process_that_was_seen_alive_by_the_next_one() -> None:
    evidence = lost_once()
    evidence.history = [*evidence.history[:2], line("start", 2, 12, 9.0, alive=[11]), evidence.history[3]]
    assert rules(evidence) == {"overlap"}


def test_a_start_under_a_generation_whose_row_was_given_to_another() -> None:
    evidence = lost_once()
    evidence.rows = [evidence.rows[0], replace(evidence.rows[1], generation=14)]
    assert rules(evidence) == {"foreign generation"}


@pytest.mark.parametrize("change", [{"started": False}, {"pid": 1234}])
def test_a_start_that_the_row_does_not_know(change: dict[str, Any]) -> None:
    evidence = lost_once()
    evidence.rows = [replace(evidence.rows[0], **change), evidence.rows[1]]
    assert "no row" in rules(evidence)


def test_a_start_without_any_row() -> None:
    evidence = lost_once()
    evidence.rows = evidence.rows[:1]
    assert "no row" in rules(evidence)


@pytest.mark.parametrize("state", ["queued", "claimed"])
def test_a_row_that_is_not_settled(state: str) -> None:
    evidence = lost_once()
    evidence.rows = [evidence.rows[0], replace(evidence.rows[1], state=state)]
    assert "not settled" in rules(evidence)


def test_a_row_between_that_is_missing() -> None:
    evidence = lost_once()
    evidence.rows = [evidence.rows[0], replace(evidence.rows[1], attempt=3)]
    assert "attempts" in rules(evidence)


def test_a_late_success_before_the_retry() -> None:
    """Its INSERT got its number first and was committed after the executor had looked."""
    evidence = lost_once()
    evidence.log = log(
        ("STEP_START", 11), ("STEP_SUCCESS", 11), ("STEP_UP_FOR_RETRY", 99), ("STEP_START", 12), ("STEP_SUCCESS", 12)
    )
    assert "several outcomes" in rules(evidence)


@pytest.mark.parametrize("kind", ["STEP_SUCCESS", "STEP_OUTPUT"])
def test_an_event_of_a_lost_attempt_after_its_retry(kind: str) -> None:
    evidence = lost_once()
    evidence.log = log(
        ("STEP_START", 11), ("STEP_UP_FOR_RETRY", 99), (kind, 11), ("STEP_START", 12), ("STEP_OUTPUT", 12)
    )
    assert "late event" in rules(evidence)


def test_an_event_after_the_last_one() -> None:
    evidence = lost_once()
    evidence.log = [*evidence.log, Logged("r", "a", 99, "STEP_OUTPUT", 12)]
    assert rules(evidence) == {"late event"}


@pytest.mark.parametrize("last", ["STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"])
def test_two_ends_of_one_attempt(last: str) -> None:
    evidence = lost_once()
    evidence.log = [*evidence.log, Logged("r", "a", 99, last, 99)]
    assert "several outcomes" in rules(evidence)


def failed_after_success(pid: int, outage: bool) -> Any:
    evidence = lost_once()
    evidence.log = [*evidence.log, Logged("r", "a", 99, "STEP_FAILURE", pid, outage)]
    evidence.rows = [evidence.rows[0], replace(evidence.rows[1], state="failed")]
    return evidence


def test_a_success_that_its_own_process_takes_for_not_stored() -> None:
    assert rules(failed_after_success(12, outage=True)) == set()


@pytest.mark.parametrize(("pid", "outage"), [(12, False), (99, True)])
def test_a_success_that_somebody_else_or_something_else_takes_back(pid: int, outage: bool) -> None:
    assert "several outcomes" in rules(failed_after_success(pid, outage))


def test_a_step_without_an_end_in_a_run_that_succeeded() -> None:
    evidence = lost_once()
    evidence.log = evidence.log[:-1]
    assert "no outcome" in rules(evidence)


def test_a_step_without_an_end_in_a_run_that_nobody_finished() -> None:
    evidence = lost_once()
    evidence.log = evidence.log[:-1]
    evidence.runs = [Run("r", "FORSAKEN", "active", forsaken=True)]
    assert check(evidence) == []


def test_a_row_that_succeeded_against_the_log() -> None:
    evidence = lost_once()
    evidence.log = [*evidence.log[:-1], Logged("r", "a", 99, "STEP_FAILURE", 99)]
    assert rules(evidence) == {"records differ"}


def test_a_success_whose_op_has_not_ended() -> None:
    evidence = lost_once()
    evidence.history = evidence.history[:-1]
    assert rules(evidence) == {"records differ"}


def test_a_success_whose_op_has_failed() -> None:
    evidence = lost_once()
    evidence.history = [*evidence.history, line("raise", 2, 12, 9.3)]
    assert rules(evidence) == {"records differ"}


@pytest.mark.parametrize("run", [Run("r", "STARTED", "ended"), Run("r", "SUCCESS", "active")])
def test_a_run_that_has_not_ended(run: Run) -> None:
    evidence = lost_once()
    evidence.runs = [run]
    assert "run not ended" in rules(evidence)


@pytest.mark.parametrize(
    ("rule", "left"),
    [("message left", {"messages": 1}), ("process left", {"processes": ["1"]}), ("slot left", {"busy": {"w": 1}})],
)
def test_what_is_left_over(rule: str, left: dict[str, Any]) -> None:
    assert rules(replace(lost_once(), **left)) == {rule}
