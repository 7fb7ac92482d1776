"""Tags that steer single steps and runs, and the settings of a step that follow from them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dagster_taskiq.config import Settings
from dagster_taskiq.errors import ConfigError

QUEUE_TAG: Final = "dagster-taskiq/queue"
"""On an op or a job: the queue that its steps are sent to, instead of the executor's."""

GROUP_TAG: Final = "dagster-taskiq/group"
"""On an op, a job or a run: steps of one group run one after the other, where their queue is a FIFO queue."""

PRIORITY_TAG: Final = "dagster-taskiq/priority"
"""On an op: a whole number; of steps that are ready at the same time, higher ones are sent first."""

RUN_PRIORITY_TAG: Final = "dagster-taskiq/run_priority"
"""On a run: a whole number that is added to the priority of each of its steps."""

RUN_QUEUE_TAG: Final = "dagster-taskiq/run_queue"
"""On a run or a job: the queue that its run worker is sent to, instead of the run launcher's ``run_queue``."""

TASK_ID_TAG: Final = "dagster-taskiq/task_id"
"""Put on a run by the run launcher: the id of the SQS message of its newest run worker."""

DAGSTER_PRIORITY_TAG: Final = "dagster/priority"
"""Dagster's own tag, which counts where :data:`PRIORITY_TAG` is absent on an op, :data:`RUN_PRIORITY_TAG` on a run."""

TIME_LIMIT_TAG: Final = "dagster-taskiq/time_limit"
"""On an op: seconds that one attempt may run; then it is stopped and fails."""

MEMORY_LIMIT_TAG: Final = "dagster-taskiq/memory_limit"
"""On an op: MiB of data that its step process may have; what asks for more fails."""

LEASE_TAG: Final = "dagster-taskiq/lease_ttl"
"""On an op: seconds for which a claim holds without renewal, instead of the executor's ``lease_ttl``."""

VISIBILITY_TAG: Final = "dagster-taskiq/visibility_timeout"
"""On an op: seconds for which a delivery stays hidden between renewals, instead of the executor's."""

LOSSES_TAG: Final = "dagster-taskiq/worker_loss_retries"
"""On an op: how often it is run again after its worker was lost, instead of the executor's setting."""

CELERY_TAGS: Final[Mapping[str, str]] = {
    QUEUE_TAG: "dagster-celery/queue",
    PRIORITY_TAG: "dagster-celery/priority",
    RUN_PRIORITY_TAG: "dagster-celery/run_priority",
}
"""Ours -> dagster-celery's name, which counts where ours is absent."""


PREFIX: Final = "dagster-taskiq/"

KNOWN: Final = frozenset(
    {
        *(QUEUE_TAG, GROUP_TAG, PRIORITY_TAG, RUN_PRIORITY_TAG, RUN_QUEUE_TAG, TASK_ID_TAG),
        *(TIME_LIMIT_TAG, MEMORY_LIMIT_TAG, LEASE_TAG, VISIBILITY_TAG, LOSSES_TAG),
    }
)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What the tags of a step and of its run make of an executor's settings.  ``time_limit`` in seconds or None,
    ``memory_limit`` in MiB or None."""

    queue: str
    group: str | None
    priority: int
    lease_ttl: float
    visibility_timeout: int
    worker_loss_retries: int
    time_limit: float | None
    memory_limit: int | None


def step_settings(
    step_key: str, step_tags: Mapping[str, str], run_tags: Mapping[str, str], settings: Settings
) -> StepSettings:
    """The settings of one step.  The queue is the step's own, else the run's, else the executor's for its priority; the
    group is the step's own, else the run's; the other tags count on the op only.  Raises ``ConfigError`` that names
    step and tag."""

    def own(tag: str, convert: Callable[[str], Any], default: Any) -> Any:
        return _converted(f"step {step_key!r}", tag, _get(step_tags, tag), convert, default)

    priority = own(PRIORITY_TAG, int, None)
    if priority is None:
        # Dagster takes whatever is in its own tag, and so do we.
        priority = whole_or_zero(step_tags.get(DAGSTER_PRIORITY_TAG))
    of_run = _converted("the run", RUN_PRIORITY_TAG, _get(run_tags, RUN_PRIORITY_TAG), int, None)
    priority += whole_or_zero(run_tags.get(DAGSTER_PRIORITY_TAG)) if of_run is None else of_run
    limit = own(TIME_LIMIT_TAG, float, None)
    if limit is not None and limit <= 0:
        raise ConfigError(f"step {step_key!r}: tag {TIME_LIMIT_TAG} must be more than 0 seconds, not {limit:g}.")
    memory = own(MEMORY_LIMIT_TAG, int, None)
    if memory is not None and memory <= 0:
        raise ConfigError(f"step {step_key!r}: tag {MEMORY_LIMIT_TAG} must be more than 0 MiB, not {memory}.")
    checked = settings
    if any(tag in step_tags for tag in (LEASE_TAG, VISIBILITY_TAG, LOSSES_TAG)):
        own_settings = {
            "lease_ttl": own(LEASE_TAG, float, settings.lease_ttl),
            "visibility_timeout": own(VISIBILITY_TAG, int, settings.visibility_timeout),
            "worker_loss_retries": own(LOSSES_TAG, int, settings.worker_loss_retries),
        }
        try:
            checked = replace(settings, **own_settings)
        except ConfigError as error:
            raise ConfigError(f"the tags of step {step_key!r}: {error}") from None
    return StepSettings(
        queue=_get(step_tags, QUEUE_TAG) or _get(run_tags, QUEUE_TAG) or _queue_for(priority, settings),
        group=step_tags.get(GROUP_TAG) or run_tags.get(GROUP_TAG),
        priority=priority,
        lease_ttl=checked.lease_ttl,
        visibility_timeout=checked.visibility_timeout,
        worker_loss_retries=checked.worker_loss_retries,
        time_limit=limit,
        memory_limit=memory,
    )


def _queue_for(priority: int, settings: Settings) -> str:
    """The queue of the highest band that the priority reaches."""
    bands = [band for band in settings.priority_queues if priority >= band["priority"]]
    return str(max(bands, key=lambda band: int(band["priority"]))["queue"]) if bands else settings.queue


def celery_tags_in_use(run_tags: Mapping[str, str], steps: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """dagster-celery's tags that count in a run with such steps -> the names that they should have here."""
    used = {QUEUE_TAG, RUN_PRIORITY_TAG} & {ours for ours, theirs in CELERY_TAGS.items() if theirs in run_tags}
    for step_tags in steps:
        used |= {QUEUE_TAG, PRIORITY_TAG} & {ours for ours, theirs in CELERY_TAGS.items() if theirs in step_tags}
    return {CELERY_TAGS[ours]: ours for ours in used}


def unknown_tags(run_tags: Mapping[str, str], steps: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags with our prefix that nothing looks at, as misspelt ones -> the name that may be meant, or ""."""
    used = {tag for tags in (run_tags, *steps) for tag in tags if tag.startswith(PREFIX)}
    return {tag: next(iter(difflib.get_close_matches(tag, KNOWN, n=1)), "") for tag in used - KNOWN}


def _get(tags: Mapping[str, str], tag: str) -> str | None:
    value = tags.get(tag)
    return value if value is not None or tag not in CELERY_TAGS else tags.get(CELERY_TAGS[tag])


def _converted(whose: str, tag: str, text: str | None, convert: Callable[[str], Any], default: Any) -> Any:
    if text is None:
        return default
    try:
        value = convert(text)
        # nan and inf are numbers to float().
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    except (ValueError, OverflowError):
        kind = "a whole number" if convert is int else "a number"
        raise ConfigError(f"{whose}: tag {tag} must be {kind}, not {text!r}.") from None


def whole_or_zero(text: str | None) -> int:
    """Of Dagster's own tags, which may have anything in them."""
    try:
        return int(text) if text else 0
    except ValueError:
        return 0
