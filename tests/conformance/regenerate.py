"""Record what the multiprocess executor does, as the golden lists that our executor is compared with.

    python tests/conformance/regenerate.py                   # all cases
    python tests/conformance/regenerate.py retries checks    # of these themes
    python tests/conformance/regenerate.py --missing         # only cases that have no list yet
    python tests/conformance/regenerate.py --check           # compare only; status 1 where something differs

Read the diff before it is committed: it is what changed in Dagster, or in a case.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import conformance_bench
import services
from conformance_bench import Bench
from conformance_case import MULTIPROCESS, THEMES, cases
from conformance_observed import Observed
from conformance_rules import differences, normalised
from dagster import DagsterInstance


@contextmanager
def bench() -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="conformance-") as folder,
        services.database_server() as databases,
        databases.fresh(with_dagster=True) as database_url,
    ):
        home = Path(folder) / "home"
        conformance_bench.write_home(home, database_url)
        environment = conformance_bench.environment(home)
        os.environ.update(environment)
        with DagsterInstance.get() as instance:
            yield Bench(instance, environment)


def recorded(theme: str) -> dict[str, Observed]:
    if not (conformance_bench.GOLDEN / f"{theme}.json").exists():
        return {}
    return dict(conformance_bench.load_golden(theme)["cases"])


def record(made: Bench, theme: str, *, missing: bool) -> None:
    known = recorded(theme) if missing else {}
    for case in cases(theme):
        if case.id not in known:
            known[case.id] = made.observed(case, MULTIPROCESS)
            print(theme, case.id, known[case.id]["RUN"][-1], flush=True)
    wanted = {case.id for case in cases(theme)}
    conformance_bench.write_golden(theme, {name: known[name] for name in known if name in wanted})


def check(made: Bench, theme: str) -> bool:
    """Whether a case does something else than what is recorded."""
    known = recorded(theme)
    differs = False
    for case in cases(theme):
        now = normalised(made.observed(case, MULTIPROCESS), MULTIPROCESS)
        found = differences(now, normalised(known.get(case.id, {}), MULTIPROCESS))
        print(theme, case.id, "differs: - is recorded, + is now" if found else "as recorded", *found, sep="\n")
        differs = differs or bool(found)
    return differs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", default=list(THEMES), help="default: all")
    parser.add_argument("--missing", action="store_true", help="only cases that have no list yet")
    parser.add_argument("--check", action="store_true", help="compare, record nothing")
    options = parser.parse_args()
    with bench() as made:
        if options.check:
            differing = [theme for theme in options.themes if check(made, theme)]
            return 1 if differing else 0
        for theme in options.themes:
            record(made, theme, missing=options.missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
