"""Runs a command with a throw-away PostgreSQL and SQS emulator; both are stopped afterwards.

    .venv/bin/python scripts/with_servers.py make -C tests/c check

The C tests find them in DTQ_TEST_DATABASE_URL and DTQ_TEST_SQS_ENDPOINT, pytest in DAGSTER_TASKIQ_TEST_DATABASE_URL and
DAGSTER_TASKIQ_TEST_SQS_ENDPOINT.  Servers that the environment names already are used instead.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from dagster_taskiq.dev import EmbeddedPostgres, EmbeddedSqs


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        # So that what was started is stopped, and the folder goes.
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    environment = dict(os.environ)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="dtq-test-servers-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # as root the server runs as another user
        if "DTQ_TEST_DATABASE_URL" not in environment:
            postgres = stack.enter_context(EmbeddedPostgres(folder, durable=False))
            environment["DTQ_TEST_DATABASE_URL"] = postgres.ensure_database("dtq_test")
        if "DTQ_TEST_SQS_ENDPOINT" not in environment:
            environment["DTQ_TEST_SQS_ENDPOINT"] = stack.enter_context(EmbeddedSqs(folder)).endpoint
        environment.setdefault("DAGSTER_TASKIQ_TEST_DATABASE_URL", environment["DTQ_TEST_DATABASE_URL"])
        environment.setdefault("DAGSTER_TASKIQ_TEST_SQS_ENDPOINT", environment["DTQ_TEST_SQS_ENDPOINT"])
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
