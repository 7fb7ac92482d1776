"""Tags: whose count, what they are worth, and what is said of those that make no sense."""

from __future__ import annotations

import pytest

from dagster_taskiq.config import Settings
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.tags import celery_tags_in_use, step_settings

SETTINGS = Settings()


def test_without_tags_a_step_has_the_executors_settings() -> None:
    found = step_settings("s", {}, {}, SETTINGS)
    assert (found.queue, found.priority, found.time_limit, found.memory_limit) == ("dagster", 0, None, None)
    assert (found.lease_ttl, found.visibility_timeout, found.worker_loss_retries) == (120.0, 60, 2)


def test_the_ops_queue_comes_before_the_runs_and_that_before_the_executors() -> None:
    run_tags = {"dagster-taskiq/queue": "of-run"}
    assert step_settings("s", {"dagster-taskiq/queue": "of-op"}, run_tags, SETTINGS).queue == "of-op"
    assert step_settings("s", {}, run_tags, SETTINGS).queue == "of-run"


def test_priorities_of_op_and_run_add_up() -> None:
    run_tags = {"dagster-taskiq/run_priority": "-3"}
    both = {"dagster-taskiq/priority": "5", "dagster/priority": "7"}
    assert step_settings("s", both, run_tags, SETTINGS).priority == 2
    assert step_settings("s", {"dagster/priority": "7"}, run_tags, SETTINGS).priority == 4
    assert step_settings("s", both, {"dagster/priority": "2"}, SETTINGS).priority == 7
    assert step_settings("s", both, {**run_tags, "dagster/priority": "2"}, SETTINGS).priority == 2
    assert step_settings("s", both, {"dagster/priority": "soon"}, SETTINGS).priority == 5


def test_an_op_has_settings_of_its_own() -> None:
    own = {
        "dagster-taskiq/time_limit": "2.5",
        "dagster-taskiq/memory_limit": "512",
        "dagster-taskiq/lease_ttl": "300",
        "dagster-taskiq/visibility_timeout": "90",
        "dagster-taskiq/worker_loss_retries": "0",
    }
    found = step_settings("s", own, {}, SETTINGS)
    assert (found.time_limit, found.memory_limit) == (2.5, 512)
    assert (found.lease_ttl, found.visibility_timeout, found.worker_loss_retries) == (300.0, 90, 0)


@pytest.mark.parametrize(
    ("step_tags", "run_tags", "words"),
    [
        ({"dagster-taskiq/priority": "high"}, {}, ["'s'", "dagster-taskiq/priority", "whole number", "high"]),
        ({}, {"dagster-taskiq/run_priority": "1.5"}, ["the run", "dagster-taskiq/run_priority"]),
        ({"dagster-taskiq/time_limit": "-1"}, {}, ["'s'", "dagster-taskiq/time_limit"]),
        ({"dagster-taskiq/time_limit": "nan"}, {}, ["dagster-taskiq/time_limit"]),
        ({"dagster-taskiq/memory_limit": "0"}, {}, ["'s'", "dagster-taskiq/memory_limit", "more than 0"]),
        ({"dagster-taskiq/memory_limit": "2Gi"}, {}, ["'s'", "dagster-taskiq/memory_limit", "whole number", "2Gi"]),
        ({"dagster-taskiq/time_limit": "inf"}, {}, ["dagster-taskiq/time_limit", "inf"]),
        ({"dagster-taskiq/lease_ttl": "nan"}, {}, ["'s'", "dagster-taskiq/lease_ttl", "nan"]),
        ({"dagster-taskiq/lease_ttl": "inf"}, {}, ["'s'", "dagster-taskiq/lease_ttl", "inf"]),
        ({"dagster-taskiq/lease_ttl": "5"}, {}, ["'s'", "lease_ttl", "heartbeat_interval"]),
        ({"dagster-taskiq/visibility_timeout": "99999"}, {}, ["'s'", "visibility_timeout", "43200"]),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    step_tags: dict[str, str], run_tags: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        step_settings("s", step_tags, run_tags, SETTINGS)
    for word in words:
        assert word in str(refusal.value)


def test_celerys_tags_count_where_ours_are_absent() -> None:
    theirs = {"dagster-celery/queue": "of-celery", "dagster-celery/priority": "4"}
    run_tags = {"dagster-celery/run_priority": "1"}
    found = step_settings("s", theirs, run_tags, SETTINGS)
    assert (found.queue, found.priority) == ("of-celery", 5)
    assert step_settings("s", {**theirs, "dagster-taskiq/queue": "ours"}, {}, SETTINGS).queue == "ours"
    assert celery_tags_in_use({}, [theirs, {}]) == {
        "dagster-celery/queue": "dagster-taskiq/queue",
        "dagster-celery/priority": "dagster-taskiq/priority",
    }
    # A priority of steps says nothing on a run.
    assert celery_tags_in_use({**theirs, **run_tags}, [{}]) == {
        "dagster-celery/queue": "dagster-taskiq/queue",
        "dagster-celery/run_priority": "dagster-taskiq/run_priority",
    }


def test_a_step_goes_to_the_queue_of_the_highest_priority_that_it_reaches() -> None:
    bands = ({"queue": "urgent", "priority": 10}, {"queue": "high", "priority": 1})
    settings = Settings(priority_queues=bands)

    def queue(priority: int, **run_tags: str) -> str:
        return step_settings("s", {"dagster-taskiq/priority": str(priority)}, run_tags, settings).queue

    assert [queue(priority) for priority in (0, 1, 9, 10, 11)] == ["dagster", "high", "high", "urgent", "urgent"]
    assert queue(0, **{"dagster-taskiq/run_priority": "10"}) == "urgent"
    assert queue(10, **{"dagster-taskiq/queue": "of-run"}) == "of-run"
    own = {"dagster-taskiq/queue": "of-op", "dagster-taskiq/priority": "10"}
    assert step_settings("s", own, {}, settings).queue == "of-op"


def test_the_group_is_the_ops_or_the_runs() -> None:
    run_tags = {"dagster-taskiq/group": "of-run"}
    assert step_settings("s", {}, {}, SETTINGS).group is None
    assert step_settings("s", {}, run_tags, SETTINGS).group == "of-run"
    assert step_settings("s", {"dagster-taskiq/group": "of-op"}, run_tags, SETTINGS).group == "of-op"
