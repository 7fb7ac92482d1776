"""A code location that has a thread running after its import."""

from __future__ import annotations

import threading

from dagster import job, op

threading.Thread(target=threading.Event().wait, daemon=True).start()


@op
def nothing() -> None: ...


@job
def work() -> None:
    nothing()
