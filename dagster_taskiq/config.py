"""Settings that executor and worker share: where they come from, what they mean, which combinations are refused.

Precedence: a value in the config block, else the environment, else the default.

**The margin.** A step process must be dead before its lease ends on PostgreSQL's clock, so it is killed ``margin``
seconds before the lease could end.  The margin covers what a lease cannot see::

    margin >= kappa + ttl * (rho_db + rho_worker) + sigma

``kappa`` is the time from the kernel timer to the death of the process, the ``rho`` are the rate errors of
PostgreSQL's clock and of the worker's, and ``sigma`` is the largest forward step of PostgreSQL's wall clock within one
lease (a fail-over to a host with another clock included).  Commit delay and lost replies add nothing: the deadline
counts from before the last *confirmed* renewal was sent.  The rates used here add up to 8 % (chrony slews a clock by
at most 8.3 %).

**Liveness.** A worker must be able to miss a few heartbeats and one slow reconnect without losing its steps::

    ttl - margin > 3 * heartbeat + 5 s

The 5 s are those after which the store takes a silent connection for dead (``STALL_MS`` in ``dtq_store.c``), once the
renewal's caller has given up, which it does after one heartbeat (1 to 15 s).  So of a connection that falls silent just
after a renewal, the next renewal goes out after one heartbeat and the silence is noticed ``max(heartbeat, 5 s)`` later;
for heartbeats of 1 s and more that leaves at least 2 s for the new connection.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import yaml

from dagster_taskiq.errors import ConfigError

KILL_LATENCY: Final = 0.25
"""Seconds from the kernel timer of a step process to its death (kappa)."""

CLOCK_RATE_ERROR: Final = 0.04
"""Rate error allowed to each of PostgreSQL's clock and the worker's (rho)."""

CLOCK_STEP: Final = 0.25
"""Seconds of the largest forward step of PostgreSQL's wall clock within a lease (sigma)."""

MISSED_HEARTBEATS: Final = 3
"""Heartbeats in a row that may fail before a lease is in danger."""

WORST_RENEWAL: Final = 5.0
"""Seconds until a silent connection counts as lost (``STALL_MS`` in ``dtq_store.c``)."""

MIN_RETENTION: Final = 7200.0
"""Seconds; younger rows are never pruned."""

MAX_VISIBILITY: Final = 43_200
"""Seconds; SQS's own limit."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The shared settings.  Times in seconds; a combination that cannot keep the protocol's promises raises
    ``ConfigError``, which names the settings."""

    queue: str = "dagster"
    queue_url: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    database_url: str | None = field(default=None, repr=False)
    max_concurrent: int | None = None
    tag_concurrency_limits: tuple[Mapping[str, Any], ...] = ()
    priority_queues: tuple[Mapping[str, Any], ...] = ()
    visibility_timeout: int = 60
    lease_ttl: float = 120.0
    heartbeat_interval: float = 10.0
    worker_loss_retries: int = 2
    backoff_base: float = 30.0
    backoff_cap: float = 600.0
    no_worker_warning: float | None = 60.0
    no_worker_timeout: float | None = None
    signing_key: str | None = field(default=None, repr=False)
    previous_signing_keys: tuple[str, ...] = field(default=(), repr=False)
    reuse_connections: bool = True
    code_locations: tuple[str, ...] = ()
    load_timeout: float = 300.0
    retention: float | None = 15 * 86_400.0

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_keys()
        self._check_lists()
        slack = self.lease_ttl - self.margin
        needed = MISSED_HEARTBEATS * self.heartbeat_interval + WORST_RENEWAL
        if slack <= needed:
            raise ConfigError(
                f"lease_ttl ({self.lease_ttl:g} s) is too short for heartbeat_interval ({self.heartbeat_interval:g} s):"
                f" less the safety margin of {self.margin:.2f} s it leaves {slack:.2f} s, but a reconnect and"
                f" {MISSED_HEARTBEATS} heartbeats take {needed:g} s. Raise lease_ttl or lower heartbeat_interval."
            )
        if self.visibility_timeout <= 2 * self.heartbeat_interval:
            raise ConfigError(
                f"visibility_timeout ({self.visibility_timeout} s) must be more than twice heartbeat_interval"
                f" ({self.heartbeat_interval:g} s), with which it is renewed."
            )

    def _check_ranges(self) -> None:
        for name in sorted(REAL):
            value = getattr(self, name)
            # Comparisons with nan are all false, so that it would pass each of the others.
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} must be a number, not {value:g}.")
        for name in ("lease_ttl", "heartbeat_interval", "backoff_base", "backoff_cap", "load_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name):g}.")
        for name in ("no_worker_warning", "no_worker_timeout", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be more than 0 or absent, not {value:g}.")
        if self.backoff_cap < self.backoff_base:
            raise ConfigError(f"backoff cap ({self.backoff_cap:g} s) is below backoff base ({self.backoff_base:g} s).")
        if self.worker_loss_retries < 0:
            raise ConfigError(f"worker_loss_retries must be 0 or more, not {self.worker_loss_retries}.")
        if not 0 < self.visibility_timeout <= MAX_VISIBILITY:
            raise ConfigError(
                f"visibility_timeout must be 1..{MAX_VISIBILITY} s (SQS's limit), not {self.visibility_timeout}."
            )
        if not self.queue:
            raise ConfigError("queue must have a name.")
        if not isinstance(self.reuse_connections, bool):
            raise ConfigError(f"reuse_connections must be true or false, not {self.reuse_connections!r}.")
        if self.retention is not None and self.retention < MIN_RETENTION:
            raise ConfigError(f"retention must be at least {MIN_RETENTION:g} s, or null, not {self.retention:g}.")

    def _check_keys(self) -> None:
        """No message shows a key."""
        if self.signing_key == "":
            # Without a word, signatures would no longer be checked.
            raise ConfigError(
                f"signing_key ({ENVIRONMENT['signing_key']}) is empty. Give the key, or leave the setting out for"
                " messages without signatures."
            )
        for key in self.previous_signing_keys:
            if not isinstance(key, str):
                raise ConfigError(
                    f"previous_signing_keys must be a list of texts, and one is of type {type(key).__name__};"
                    " in YAML, put it in quotes."
                )
            if not key:
                raise ConfigError("previous_signing_keys has an empty key.")
        if self.previous_signing_keys and not self.signing_key:
            raise ConfigError("previous_signing_keys needs a signing_key.")

    def _check_lists(self) -> None:
        for location in self.code_locations:
            # Runs without a code location have the name "".
            if not isinstance(location, str):
                raise ConfigError(
                    f"code_locations must be a list of names, not {location!r}; in YAML, put it in quotes."
                )
        for band in self.priority_queues:
            if not (
                isinstance(band, Mapping)
                and set(band) == {"queue", "priority"}
                and (band["queue"] and isinstance(band["queue"], str))
                and _is_whole(band["priority"])
            ):
                raise ConfigError(
                    f"priority_queues must be a list of {{queue, priority}}, whole numbers; not {band!r}."
                )
        for limit in self.tag_concurrency_limits:
            if not (
                isinstance(limit, Mapping)
                and {"key", "limit"} <= set(limit) <= {"key", "value", "limit"}
                and (limit["key"] and isinstance(limit["key"], str))
                and _is_whole(limit["limit"])
            ):
                raise ConfigError(
                    "tag_concurrency_limits must be a list of {key, limit} or {key, value, limit}, limit a whole"
                    f" number; not {limit!r}."
                )

    @property
    def margin(self) -> float:
        """Seconds before the end of its lease at which a step process is killed (see the module's text)."""
        return margin_of(self.lease_ttl)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from a config block (of a job, or of a worker's YAML).  Raises ``ConfigError`` for a name that no
        setting has."""
        own = {f.name for f in fields(cls)} - {"backoff_base", "backoff_cap"}
        known = own | {"backoff", *EXECUTOR_ONLY}
        unknown = set(config) - known
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}. Known are: {', '.join(sorted(known))}.")
        values: dict[str, Any] = {
            name: environ[variable]
            for name, variable in ENVIRONMENT.items()
            # An empty variable is as good as none, but an empty key is refused.
            if environ.get(variable) or (name == "signing_key" and variable in environ)
        }
        values.update((name, config[name]) for name in own if config.get(name) is not None)
        for name in NULLABLE & set(config):
            values[name] = config[name]
        backoff = config.get("backoff") or {}
        if not isinstance(backoff, Mapping):
            raise ConfigError(f"backoff must be a mapping with base, cap or both, not {backoff!r}.")
        for name, value in backoff.items():
            if name not in ("base", "cap"):
                raise ConfigError(f"unknown setting backoff.{name}. Known are: base, cap.")
            values[f"backoff_{name}"] = value
        for name in LISTS:
            values[name] = _as_tuple(name, values.get(name))
        return cls(**{name: _converted(name, value) for name, value in values.items()})


def margin_of(lease_ttl: float) -> float:
    """The margin in seconds for leases of that length (see the module's text)."""
    return KILL_LATENCY + lease_ttl * 2 * CLOCK_RATE_ERROR + CLOCK_STEP


ENVIRONMENT: Final[Mapping[str, str]] = {
    "queue": "DAGSTER_TASKIQ_QUEUE",
    "queue_url": "DAGSTER_TASKIQ_QUEUE_URL",
    "database_url": "DAGSTER_TASKIQ_DATABASE_URL",
    "signing_key": "DAGSTER_TASKIQ_SIGNING_KEY",
    "previous_signing_keys": "DAGSTER_TASKIQ_PREVIOUS_SIGNING_KEYS",
}
"""Setting -> variable that gives its value where the config block does not."""

EXECUTOR_ONLY: Final = ("retries", "step_dependency_config")
"""Entries of the block that only the executor reads, as Dagster's own executors define them."""

TEXTS: Final = frozenset({"queue", "queue_url", "region", "endpoint_url", "database_url", "signing_key"})
LISTS: Final = ("tag_concurrency_limits", "priority_queues", "previous_signing_keys", "code_locations")
TEXT_LISTS: Final = frozenset({"previous_signing_keys", "code_locations"})
WHOLE: Final = frozenset({"max_concurrent", "visibility_timeout", "worker_loss_retries"})
REAL: Final = frozenset(
    {
        *("lease_ttl", "heartbeat_interval", "backoff_base", "backoff_cap"),
        *("no_worker_warning", "no_worker_timeout", "load_timeout", "retention"),
    }
)

NULLABLE: Final = frozenset({"no_worker_warning", "retention"})
"""Settings for which an explicit null differs from leaving them out."""


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Of text: its parts between commas, as the environment has lists."""
    if isinstance(value, str) and name in TEXT_LISTS:
        parts = tuple(part.strip() for part in value.split(",") if part.strip())
        if name == "code_locations" and not parts:
            raise ConfigError(f"{name} is empty. Name code locations, or leave the setting out for all of them.")
        return parts
    if not isinstance(value, (list, tuple, type(None))):
        raise ConfigError(f"{name} must be a list, not {type(value).__name__}.")
    return tuple(value or ())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _converted(name: str, value: Any) -> Any:
    """Numbers may come as text (from the environment)."""
    if value is None:
        return value
    if name in TEXTS and not isinstance(value, str):
        # YAML reads a key of digits as a number, and would have lost its leading zeros.
        raise ConfigError(f"{name} must be text, not {type(value).__name__}; in YAML, put it in quotes.")
    kind = int if name in WHOLE else float if name in REAL else None
    if kind is None:
        return value
    try:
        number = kind(value)
        if isinstance(value, bool) or not math.isfinite(number) or (isinstance(value, float) and number != value):
            raise ValueError(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be a {'whole ' if kind is int else ''}number, not {value!r}.") from None
    return number


def load_yaml(path: str | Path, *, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The block ``execution: config:`` of a YAML file, with each ``{env: NAME}`` replaced.  Raises ``ConfigError``
    naming file and entry."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    if document and (not isinstance(document, dict) or "execution" not in document):
        raise ConfigError(f"{path}: expected a mapping with `execution: config:`, where the settings are.")
    block: Any = document
    for name in ("execution", "config"):
        if not isinstance(block, dict):
            raise ConfigError(f"{path}: expected a mapping with `execution: config:`.")
        block = block.get(name) or {}
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: `execution: config:` is not a mapping.")
    return {name: _resolve_env(value, f"{path}: {name}", environ) for name, value in block.items()}


def _resolve_env(value: Any, where: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"env"}:
            try:
                return environ[value["env"]]
            except KeyError:
                raise ConfigError(f"{where}: the environment variable {value['env']} is not set.") from None
        return {name: _resolve_env(inner, f"{where}.{name}", environ) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolve_env(inner, where, environ) for inner in value]
    return value


def _from_dagster(names: Sequence[str]) -> dict[str, Any]:
    """Fields that Dagster's own multiprocess executor has, where this version has them."""
    from dagster import multiprocess_executor

    own = multiprocess_executor.config_schema.config_type.fields  # type: ignore[union-attr]
    return {name: own[name] for name in names if name in own}


def executor_config_schema() -> dict[str, Any]:
    """The executor's config schema.  Nothing has a default value here, so that the environment comes before
    :class:`Settings`' defaults."""

    # A worker reads its settings too, and does without the second that this import takes.
    from dagster import Bool, Field, Float, Int, Noneable, StringSource

    def optional(dagster_type: Any, description: str) -> Field:
        return Field(dagster_type, is_required=False, description=description)

    return {
        **_from_dagster(("retries", "tag_concurrency_limits", "step_dependency_config")),
        "queue": optional(StringSource, "Name of the SQS queue. Default: DAGSTER_TASKIQ_QUEUE, else `dagster`."),
        "priority_queues": optional(
            [{"queue": StringSource, "priority": Int}],
            "Queues for steps of at least that priority; `queue` is for the rest. Default: none.",
        ),
        "queue_url": optional(
            StringSource, "URL of that queue, where its name cannot be looked up. Default: DAGSTER_TASKIQ_QUEUE_URL."
        ),
        "region": optional(StringSource, "AWS region. Default: AWS_REGION, AWS_DEFAULT_REGION."),
        "endpoint_url": optional(
            StringSource, "SQS endpoint. Default: AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL, else the region's."
        ),
        "database_url": optional(
            StringSource,
            "PostgreSQL URL of the idempotency store. Default: DAGSTER_TASKIQ_DATABASE_URL, else the Dagster instance's"
            " own PostgreSQL.",
        ),
        "max_concurrent": optional(Noneable(Int), "Steps of a run that may be in flight at once. Default: no limit."),
        "visibility_timeout": optional(Int, "Seconds for which a delivery stays hidden between renewals. Default: 60."),
        "lease_ttl": optional(Float, "Seconds for which a claim holds without renewal. Default: 120."),
        "heartbeat_interval": optional(Float, "Seconds between two renewals of a lease. Default: 10."),
        "worker_loss_retries": optional(Int, "How often a step is run again after its worker was lost. Default: 2."),
        "backoff": optional(
            {
                "base": optional(
                    Float, "Seconds before a step that nobody took is sent again; doubles each time. Default: 30."
                ),
                "cap": optional(Float, "Seconds; the longest such wait. Default: 600."),
            },
            "When a step that waits in the queue is sent once more.",
        ),
        "no_worker_warning": optional(
            Noneable(Float),
            "Seconds after which an event warns that no worker serves a step's queue; null: never. Default: 60.",
        ),
        "no_worker_timeout": optional(
            Noneable(Float),
            "Seconds after which a step fails because no worker serves its queue. Default: null, which means never.",
        ),
        "signing_key": optional(
            Noneable(StringSource),
            "Key with which messages are signed. Default: DAGSTER_TASKIQ_SIGNING_KEY, else unsigned.",
        ),
        "reuse_connections": optional(
            Bool,
            "Whether the run worker uses its connections to the Dagster instance's PostgreSQL again, where Dagster"
            " would open one for each event. Default: true.",
        ),
    }
