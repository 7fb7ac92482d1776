"""A repository that makes its jobs when somebody asks for them, and notes who did: job and process, in the file that
LAZY_JOBS_NOTES names."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from dagster import JobDefinition, job, op, repository


@op
def nothing() -> None:
    pass


def made(name: str) -> JobDefinition:
    with open(os.environ["LAZY_JOBS_NOTES"], "a") as notes:
        notes.write(f"{name} {os.getpid()}\n")
    if name == "broken":
        raise ValueError("broken")
    if name == "threaded":
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

    @job(name=name)
    def shape() -> None:
        nothing()

    return shape


def maker(name: str) -> Callable[[], JobDefinition]:
    return lambda: made(name)


@repository
def lazy() -> dict[str, dict[str, Callable[[], JobDefinition]]]:
    return {"jobs": {name: maker(name) for name in ("first", "second", "broken", "threaded")}}
