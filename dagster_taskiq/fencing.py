"""What op code can learn about the attempt it runs in.

The fencing token is the generation of the claim under which this step process runs: a number that PostgreSQL hands out
once and never again, larger for every later claim.  An op that writes to something of its own can send it along and
have the receiver refuse a smaller one than it has seen: then an attempt that was taken for dead cannot overwrite the
work of its successor.
"""

from __future__ import annotations

import os

TOKEN_VARIABLE = "DAGSTER_TASKIQ_FENCING_TOKEN"
RUN_VARIABLE = "DAGSTER_TASKIQ_RUN_ID"
STEP_VARIABLE = "DAGSTER_TASKIQ_STEP_KEY"
ATTEMPT_VARIABLE = "DAGSTER_TASKIQ_ATTEMPT"
WORKER_VARIABLE = "DAGSTER_TASKIQ_WORKER"


def fencing_token() -> int | None:
    """The generation of the claim that this process runs under; None outside a step process of a worker."""
    text = os.environ.get(TOKEN_VARIABLE)
    return int(text) if text else None


def step_attempt() -> int | None:
    """Dagster's number of this attempt, 1 for the first, losses counted (``context.retry_number`` leaves them out);
    None outside a step process.
    """
    text = os.environ.get(ATTEMPT_VARIABLE)
    return int(text) if text else None
