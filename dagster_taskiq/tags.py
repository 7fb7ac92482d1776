"""Tags that steer single steps and runs, and how a step's settings follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

QUEUE_TAG: Final = "dagster-taskiq/queue"
"""On an op or a job: the queue that its steps are sent to, instead of the executor's."""

PRIORITY_TAG: Final = "dagster-taskiq/priority"
"""On an op: a whole number; of steps that are ready at the same time, higher ones are sent first."""

RUN_PRIORITY_TAG: Final = "dagster-taskiq/run_priority"
"""On a run: a whole number that is added to the priority of each of its steps."""

RUN_QUEUE_TAG: Final = "dagster-taskiq/run_queue"
"""On a run or a job: the queue that its run worker is sent to, instead of the run launcher's ``run_queue``."""

TASK_ID_TAG: Final = "dagster-taskiq/task_id"
"""Put on a run by the run launcher: the id of the SQS message of its newest run worker."""

DAGSTER_PRIORITY_TAG: Final = "dagster/priority"
"""Dagster's own tag, honoured where :data:`PRIORITY_TAG` is absent."""


def queue_of(step_tags: Mapping[str, str], run_tags: Mapping[str, str], default: str) -> str:
    """The queue of a step: its own tag, else the run's, else the executor's."""
    return step_tags.get(QUEUE_TAG) or run_tags.get(QUEUE_TAG) or default


def priority_of(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> int:
    """The priority of a step; what is no whole number counts as 0."""
    own = step_tags.get(PRIORITY_TAG, step_tags.get(DAGSTER_PRIORITY_TAG))
    return _whole(own) + _whole(run_tags.get(RUN_PRIORITY_TAG))


def _whole(text: str | None) -> int:
    try:
        return int(text) if text else 0
    except ValueError:
        return 0
