"""A TaskIQ application that knows nothing of Dagster, for ``taskiq worker broker_app:broker``."""

from __future__ import annotations

import os
from pathlib import Path

from dagster_taskiq.broker import SQSBroker

broker = SQSBroker(os.environ["BROKER_APP_QUEUE"])


@broker.task
async def write(name: str, text: str) -> None:
    (Path(os.environ["WORKER_TEST_FOLDER"]) / name).write_text(text)
