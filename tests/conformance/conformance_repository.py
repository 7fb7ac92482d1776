"""The code location, once for each executor; run workers and step processes load it by the function's name."""

from __future__ import annotations

import sys
from pathlib import Path

from dagster import Definitions

sys.path.insert(0, str(Path(__file__).parent))

import conformance_case


def in_process() -> Definitions:
    return conformance_case.definitions(conformance_case.IN_PROCESS)


def multiprocess() -> Definitions:
    return conformance_case.definitions(conformance_case.MULTIPROCESS)


def taskiq() -> Definitions:
    return conformance_case.definitions(conformance_case.TASKIQ)
