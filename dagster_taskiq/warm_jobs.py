"""What Dagster works out of its definitions, once for all steps of a job.

The first step of a job in a process has Dagster put the code location's definitions together (assets into jobs), and
make a schema of the job's run config, op by op.  Dagster keeps both with the definitions: a second step in the same
process costs nothing.  A forked step process is always at its first, which is 2 ms for a job of 50 ops, 20 ms for one
of 500, and more for a code location with many assets.  So the warm parent has it done before it forks.

Where the target of the code location is a function, Dagster calls it anew for each step; there is nothing to keep then.
Assets that are computed when a location is loaded (``CacheableAssetsDefinition``) are left alone as well: a step takes
them as its run has stored them.
"""

from __future__ import annotations

import warnings
from typing import Any


def work_out(target: Any, name: str) -> None:
    """Of the job ``name``, where ``target`` (what a code pointer leads to) has it.  Raises what Dagster raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = _job(target, name)
    # A property that Dagster's documentation does not name; without it there is nothing to do.
    getattr(job, "run_config_schema", None)


def _job(target: Any, name: str) -> Any:
    from dagster import Definitions, JobDefinition, RepositoryDefinition

    if isinstance(target, JobDefinition):
        return target if target.name == name else None
    if isinstance(target, RepositoryDefinition):
        return target.get_job(name)
    if isinstance(target, Definitions) and not any(_is_computed(asset) for asset in target.assets or ()):
        resolve = getattr(target, "resolve_job_def", None) or target.get_job_def
        return resolve(name)
    return None


def _is_computed(asset: Any) -> bool:
    return any(kind.__name__ == "CacheableAssetsDefinition" for kind in type(asset).__mro__)
