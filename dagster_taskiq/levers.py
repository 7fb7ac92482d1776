"""What makes step processes cheap, and can be switched off piece by piece: to compare, or when one is suspected.

With any of them off a step sees the same world and logs the same events, later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dagster_taskiq.errors import ConfigError

WARM_INSTANCE: Final = "warm-instance"
"""Steps get the DagsterInstance that the warm parent has built."""

CONNECTION_REUSE: Final = "connection-reuse"
"""Connections to PostgreSQL are used again within one step (:mod:`dagster_taskiq.connection_reuse`)."""

COMPUTE_LOGS: Final = "compute-logs"
"""Output is captured without mirror processes (:mod:`dagster_taskiq.compute_logs`)."""

WARM_JOBS: Final = "warm-jobs"
"""Steps get the definitions and the schema that Dagster has made of their job (:mod:`dagster_taskiq.warm_jobs`)."""

REHEARSAL: Final = "rehearsal"
"""The warm parent goes through a step before it forks the first one (:mod:`dagster_taskiq.rehearsal`)."""

SPARES: Final = "spares"
"""A step process is made ahead of need, where a slot is free (:mod:`dagster_taskiq.processes`)."""

PREFAULT: Final = "prefault"
"""A step process copies the memory that steps write to before it has a step (:mod:`dagster_taskiq.prefault`)."""

HUGE_PAGES: Final = "huge-pages"
"""The warm parent's memory is in huge pages, which fork and exit handle faster (:mod:`dagster_taskiq.warm_parent`)."""

LENT_CONNECTIONS: Final = "lent-connections"
"""Connections to PostgreSQL are handed on from step to step (:mod:`dagster_taskiq.lent_connections`)."""

LEVERS: Final = frozenset(
    {
        *(WARM_INSTANCE, CONNECTION_REUSE, COMPUTE_LOGS, WARM_JOBS, REHEARSAL),
        *(SPARES, PREFAULT, HUGE_PAGES, LENT_CONNECTIONS),
    }
)


def all_but(without: Iterable[str]) -> frozenset[str]:
    """The levers that are on.  Raises ``ConfigError`` for a name that none has."""
    off = frozenset(name for names in without for name in names.replace(",", " ").split())
    if unknown := off - LEVERS:
        raise ConfigError(
            f"--without (DAGSTER_TASKIQ_WITHOUT): there is no lever {', '.join(sorted(unknown))}; there are:"
            f" {', '.join(sorted(LEVERS))}."
        )
    return LEVERS - off
