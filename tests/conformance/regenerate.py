"""Record what the multiprocess executor does, as the golden lists that our executor is compared with.

    python tests/conformance/regenerate.py              # all cases, some ten minutes
    python tests/conformance/regenerate.py retries checks
    python tests/conformance/regenerate.py --missing    # only cases that have no list yet

Read the diff before it is committed: it is what changed in Dagster.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conformance_bench
import services
from conformance_case import MULTIPROCESS, THEMES, cases
from dagster import DagsterInstance


def recorded(theme: str) -> dict[str, conformance_bench.Observed]:
    if not (conformance_bench.GOLDEN / f"{theme}.json").exists():
        return {}
    return dict(conformance_bench.load_golden(theme)["cases"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", default=list(THEMES), help="default: all")
    parser.add_argument("--missing", action="store_true", help="only cases that have no list yet")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="conformance-") as folder,
        services.database_server() as databases,
        databases.fresh(with_dagster=True) as database_url,
    ):
        home = Path(folder) / "home"
        conformance_bench.write_home(home, database_url)
        os.environ.update(conformance_bench.environment(home, "http://127.0.0.1:1"))
        with DagsterInstance.get() as instance:
            bench = conformance_bench.Bench(instance)
            for theme in options.themes:
                known = recorded(theme) if options.missing else {}
                for case in cases(theme):
                    if case.id not in known:
                        known[case.id] = bench.observed(case, MULTIPROCESS)
                        print(theme, case.id, known[case.id]["RUN"][-1], flush=True)
                wanted = {case.id for case in cases(theme)}
                conformance_bench.write_golden(theme, {name: known[name] for name in known if name in wanted})


if __name__ == "__main__":
    main()
