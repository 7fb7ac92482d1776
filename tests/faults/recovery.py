"""Measures how long it takes until things go on after a failure, and prints a table.

    python -m tests.faults.recovery --repeat 3 --report recovery.json

Times are seconds on one machine; nothing here asserts them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> int:
    """As a program; the folder's modules are on no path yet."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    import fault_recovery

    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each kind (default %(default)s)")
    parser.add_argument("--only", default="", help="comma-separated kinds")
    parser.add_argument("--report", type=Path, help="file for the times, as JSON")
    options = parser.parse_args()
    chosen = list(filter(None, options.only.split(","))) or list(fault_recovery.KINDS)
    times: dict[str, list[float]] = {}
    for kind in chosen:
        measure: Callable[..., Any] = fault_recovery.KINDS[kind]
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory(prefix="dtq-recovery-") as folder:
                begun = time.monotonic()
                times.setdefault(kind, []).append(round(measure(Path(folder) / "stack"), 2))
                print(f"{kind}: {times[kind][-1]:.2f} s (took {time.monotonic() - begun:.0f} s)", flush=True)
    if options.report:
        options.report.write_text(json.dumps(times, indent=2) + "\n")
    for kind, values in times.items():
        print(f"{kind:16} {' '.join(f'{value:6.2f}' for value in sorted(values))}   {fault_recovery.meaning(kind)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
