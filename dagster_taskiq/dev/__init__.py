"""The development stack: an embedded PostgreSQL and SQS emulator, both from pip, what ``dev`` and ``demo`` start."""

from .postgres import EmbeddedPostgres
from .service import DevServerError
from .sqs import EmbeddedSqs

__all__ = ["DevServerError", "EmbeddedPostgres", "EmbeddedSqs"]
