"""A code location whose import hangs, after it has said which process it is in."""

from __future__ import annotations

import os
import time
from pathlib import Path

(Path(os.environ["WORKER_TEST_FOLDER"]) / "importing").write_text(str(os.getpid()))
while True:
    time.sleep(1000)
