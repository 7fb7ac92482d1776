"""The job whose steps the worker tests run, one by one.

Each op writes what it does into the folder that WORKER_TEST_FOLDER names: a line in ``history`` (opened O_APPEND, so
that lines of several processes do not mix), or a file of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg2
from dagster import RetryPolicy, job, op

import dagster_taskiq

# Written once, by the process that imports this, whatever it forks later.
sys.stdout.write("worker_jobs was imported\n")


def folder() -> Path:
    return Path(os.environ["WORKER_TEST_FOLDER"])


def note(what: str) -> None:
    """One line: what, which step, which attempt, which generation, which process."""
    line = " ".join(
        (
            what,
            os.environ["DAGSTER_TASKIQ_STEP_KEY"],
            *map(str, (dagster_taskiq.step_attempt(), dagster_taskiq.fencing_token(), os.getpid())),
        )
    )
    descriptor = os.open(folder() / "history", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def wait_for_release(name: str = "release") -> None:
    while not (folder() / name).exists():
        time.sleep(0.01)


@op
def quick() -> int:
    note("start")
    print("quick was here")
    note("end")
    return 1


@op
def other() -> None:
    note("start")
    note("end")


@op
def slow() -> None:
    note("start")
    try:
        wait_for_release()
    finally:
        note("finally")
    note("end")


@op
def slow_too() -> None:
    note("start")
    wait_for_release()
    note("end")


@op
def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("start")
    wait_for_release()


@op
def family() -> None:
    """Has a child, which would outlive it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    (folder() / "child").write_text(str(child.pid))
    note("start")
    wait_for_release()


@op
def boom() -> None:
    raise ValueError("boom")


@op(retry_policy=RetryPolicy(max_retries=1))
def retried() -> None:
    raise ValueError("again")


@op
def exits() -> None:
    os._exit(7)


@op
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@op
def greedy() -> None:
    pages = []
    while True:
        pages.append(b"x" * (8 << 20))


@op
def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@op
def deaf() -> None:
    """Lets nothing out."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            note("deaf")


@op
def leaves() -> None:
    sys.exit(3)


@op
def lingers() -> None:
    """Leaves a thread and an exit handler, which wait in turn."""

    def thread() -> None:
        wait_for_release("release_thread")
        note("thread")

    def handler() -> None:
        wait_for_release("release_handler")
        note("handler")

    note("start")
    atexit.register(handler)
    threading.Thread(target=thread).start()


@op
def look() -> None:
    """What the world looks like from inside a step."""
    descriptors = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    connection = psycopg2.connect(os.environ["DAGSTER_TASKIQ_DATABASE_URL"])
    with connection.cursor() as cursor:
        cursor.execute("SHOW application_name")
        (application_name,) = cursor.fetchone()
    connection.close()
    seen: dict[str, Any] = {
        "application_name": application_name,
        "environment": dict(os.environ),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "descriptors": descriptors,
        "threads": [thread.name for thread in threading.enumerate()],
        "leader": os.getpgid(0) == os.getpid() == os.getsid(0),
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "signals": {
            number.name: str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGALRM)
        },
        "wakeup": signal.set_wakeup_fd(-1),
        "token": dagster_taskiq.fencing_token(),
        "attempt": dagster_taskiq.step_attempt(),
    }
    (folder() / "seen").write_text(json.dumps(seen))


@job
def work() -> None:
    quick()
    other()
    slow()
    slow_too()
    stubborn()
    family()
    boom()
    retried()
    exits()
    killed()
    greedy()
    crashes()
    deaf()
    leaves()
    lingers()
    look()
