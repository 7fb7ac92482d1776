"""Runs jobs while processes are killed and stopped, servers restart and connections break; then checks what is left.

    python -m tests.faults.runner --steps 500 --seed 7 --report report.json

Ends with status 1 when the checker (fault_checker.py) finds a violation.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """As a program; the folder's modules are on no path yet."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    from fault_run import main as run

    return run(__doc__)


if __name__ == "__main__":
    sys.exit(main())
