"""Every exception that dagster-taskiq raises of its own.

The C core raises the classes under :class:`CoreError`; which code has which class is one table
(``dagster_taskiq._core.ERROR_TABLE``). Wrong arguments are ``ValueError`` or ``TypeError``, as usual, and too little
memory is ``MemoryError``.
"""

from __future__ import annotations


class DagsterTaskiqError(Exception):
    """Base of all exceptions of this package."""


class ConfigError(DagsterTaskiqError):
    """A setting is missing or does not fit; the message names the setting and what to do."""


class StaleWriteError(DagsterTaskiqError):
    """A later claim has written what this attempt was about to write."""


class WarmParentError(DagsterTaskiqError):
    """The process from which step processes are forked could not be started, or is gone."""


class StepTimeLimitError(DagsterTaskiqError):
    """Raised in op code whose step has run longer than its tag ``dagster-taskiq/time_limit`` allows."""


class CoreError(DagsterTaskiqError):
    """Base of what the C core raises; raised itself when a system call failed.

    ``code`` and ``name`` never change their meaning from one version to the next; the message may.
    """

    code: int = 0
    """The core's number of this error, see ``ERROR_TABLE``; 0 when Python code raised it."""
    name: str = ""
    """The core's name of this error, for logs and metrics."""
    retryable: bool = False
    """Whether the same call may succeed later without a change by the caller."""
    http_status: int | None = None
    """Of the HTTP answer that is to blame, if any."""
    system_errno: int | None = None
    """Of the system call that is to blame, if any."""
    service_code: str | None = None
    """AWS's error type without its prefix, if AWS is to blame."""
    sqlstate: str | None = None
    """PostgreSQL's five characters, if PostgreSQL is to blame."""


class ClosedError(CoreError):
    """The loop was closed before or while the operation ran."""


class ForkedError(CoreError):
    """A handle was used in a forked child; only the process that made it may use it."""


class OperationTimeoutError(CoreError, TimeoutError):
    """The operation's deadline, or the time that the caller was willing to wait, has passed."""


class OperationCancelledError(CoreError):
    """The operation was ended by ``Operation.cancel``."""


class UnsupportedError(CoreError):
    """This platform has no such facility."""


class LeaseLostError(CoreError):
    """The lease of a step attempt is past, or another claim has taken its place."""


# Messages


class PayloadError(CoreError, ValueError):
    """A message is not a step task that this version can read."""


class PayloadVersionError(PayloadError):
    """A step task was written by another version of dagster-taskiq."""


class PayloadSignatureError(PayloadError):
    """A signing key is configured, and the message is not signed by it."""


class PayloadTooLargeError(PayloadError):
    """A size limit is exceeded."""


# Amazon SQS


class CredentialsError(CoreError):
    """There are no AWS credentials, or they cannot be used."""


class SqsError(CoreError):
    """Base of what goes wrong between us and SQS."""


class SqsTransportError(SqsError):
    """SQS could not be reached, or its TLS certificate cannot be trusted."""


class SqsThrottledError(SqsError):
    """SQS asks for fewer requests, and went on asking until the deadline."""


class SqsUnavailableError(SqsError):
    """SQS answered with a failure of its own until the deadline."""


class SqsServiceError(SqsError):
    """SQS refused the request; ``service_code`` says why."""


class QueueMissingError(SqsServiceError):
    """There is no such queue in this region and account."""


class SqsChecksumError(SqsError):
    """A message arrived damaged."""


class SqsResponseError(SqsError):
    """SQS's answer could not be understood."""


# The idempotency store


class StoreError(CoreError):
    """PostgreSQL refused a statement; ``sqlstate`` says why."""


class StoreConnectionError(StoreError):
    """PostgreSQL could not be reached, or the connection was lost, until the deadline."""


class StoreSchemaError(StoreError):
    """The tables of dagster-taskiq are missing or of another version."""
