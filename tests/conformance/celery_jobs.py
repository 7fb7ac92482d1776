"""Jobs for what dagster-celery's tests look at beyond the events of a run."""

import os

from dagster import job, op

from dagster_taskiq import taskiq_executor

OTHER_QUEUE = "CELERY_TEST_OTHER_QUEUE"
"""Names the other queue, in the environment of run worker and workers."""


@op
def ranked() -> None:
    pass


def _ranked_job(tag: str) -> None:
    # Neither ascending nor descending, and not in the order of the names.
    for rank in (3, 0, 5, 1, 4, 2):
        ranked.alias(f"rank_{rank}").tag({tag: str(rank)})()


@job(executor_def=taskiq_executor)
def ranked_by_our_tag() -> None:
    _ranked_job("dagster-taskiq/priority")


@job(executor_def=taskiq_executor)
def ranked_by_dagsters_tag() -> None:
    _ranked_job("dagster/priority")


@op(tags={"dagster-taskiq/queue": os.environ.get(OTHER_QUEUE, "")})
def elsewhere() -> int:
    return 1


@op
def here() -> int:
    return 2


@job(executor_def=taskiq_executor)
def two_queues() -> None:
    here()
    elsewhere()
