#!/usr/bin/env python3
"""Measures what a step costs under this executor and others: chains and fan-outs of steps that do nothing; where asked
for (--shapes mapped: takes minutes a run), mapped steps by the thousand.

Starts its own PostgreSQL (TCP on the loopback, scram passwords, as Dagster's storage and as ours), its own SQS (see
stub_sqs.py), a worker of ours with two slots, and, where asked for, Redis and a worker of dagster-celery with two
processes.  Every round runs all executors on one job before the next round starts, so that a machine that is busy for
a while is busy for all of them; a first, unmeasured round warms up what can be warm.  Compare columns, not rounds.

Beside wall time it counts the CPU time of everything that takes part, PostgreSQL included, which a busy machine
disturbs less.  *Slope* is what each further step costs: from the smaller and the larger size of the same shape, so that
what a run costs once stays out.

    python steps.py
    python steps.py --rounds 5 --celery /path/to/a/venv/with/dagster-celery/bin/python --json result.json
    python steps.py --executors in_process taskiq --outputs nothing --tls
    python steps.py --executors in_process taskiq --without rehearsal
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, write_json
from tls import encrypt, encrypted_postgres

from dagster_taskiq.dev.postgres import EmbeddedPostgres
from dagster_taskiq.dev.service import Service, free_port
from dagster_taskiq.dev.sqs import REGION, call

HERE = Path(__file__).resolve().parent
SLOTS = 2
EXECUTORS = ("taskiq", "in_process", "multiprocess", "celery")
START_SECONDS = 120.0
SIZES = {"chain": (10, 50), "fan": (30, 150), "mapped": (1000, 10_000)}
FEW = {"chain": (2, 6), "fan": (4, 12), "mapped": (4, 12)}
"""For executors whose steps take a second and more."""

SLOW = ("multiprocess", "celery")
CONFIG: dict[str, dict[str, Any]] = {
    "taskiq": {},
    "in_process": {},
    "multiprocess": {"max_concurrent": SLOTS},
    "celery": {},
}
CELERY_APP = "dagster_celery.app"


@dataclass(frozen=True)
class Sample:
    """One run.  Times in seconds; ``cpu`` by who used it; ``peak_mib`` of the run worker's memory, so far."""

    executor: str
    job: str
    steps: int
    wall: float
    cpu: dict[str, float]
    peak_mib: float


class Driver:
    """The process in which the runs of one executor are executed (steps_driver.py)."""

    def __init__(self, executor: str, python: str, folder: Path, environment: dict[str, str]) -> None:
        self.executor = executor
        self._log = folder / f"driver-{executor}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "steps_driver.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=HERE,
            )
        self.pid = self._process.pid
        self._read()

    def run(self, job: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        config = {"execution": {"config": CONFIG[self.executor]}}
        self._process.stdin.write(json.dumps({"job": job, "config": config}) + "\n")
        self._process.stdin.flush()
        result = self._read()
        if not result["success"]:
            raise SystemExit(f"{self.executor}: {job} failed; see {self._log}")
        return result

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the driver of {self.executor} ended:\n{self._log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bed:
    """The servers and processes of a measurement."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dagster-taskiq-bench-"))
        self.folder.chmod(0o755)
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._stack = stack
        self.roots: dict[str, list[int]] = {}
        postgres = stack.enter_context((encrypted_postgres if options.tls else EmbeddedPostgres)(self.folder))
        if options.tls:
            encrypt(postgres)
        self.roots["postgresql"] = [postgres_pid(postgres)]
        url = postgres.ensure_database("dagster")
        home = self.folder / "home"
        home.mkdir()
        config = {"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}
        (home / "dagster.yaml").write_text(json.dumps(config))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DAGSTER", "PG"))},
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "BENCH_OUTPUTS": options.outputs,
            "DAGSTER_TASKIQ_DATABASE_URL": url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        }
        if "taskiq" in options.executors:
            self._start_ours(options)
        if "celery" in options.executors:
            self._start_celery(options.celery)
        self.drivers = []
        for executor in options.executors:
            python = options.celery if executor == "celery" else sys.executable
            environment = {**self.environment, "BENCH_EXECUTOR": executor}
            driver = Driver(executor, python, self.folder, environment)
            stack.callback(driver.close)
            self.drivers.append(driver)

    def _start_ours(self, options: argparse.Namespace) -> None:
        port = free_port()
        endpoint = f"http://127.0.0.1:{port}"
        self._service("sqs", [sys.executable, HERE / "stub_sqs.py", "--port", str(port)])
        wait_for(lambda: answers(endpoint), "the SQS server")
        call(endpoint, "CreateQueue", QueueName="dagster")
        self.environment["AWS_ENDPOINT_URL_SQS"] = endpoint
        command = [sys.executable, "-m", "dagster_taskiq.cli", "worker", "start", "--slots", str(SLOTS)]
        for lever in options.without:
            command += ["--without", lever]
        worker = self._service("worker", command)
        worker.wait_until(lambda: " serves " in worker.last_lines(1000), START_SECONDS)

    def _start_celery(self, python: str) -> None:
        port = free_port()
        server = shutil.which("redis-server")
        if server is None:
            raise SystemExit("there is no redis-server on the PATH, which dagster-celery needs here")
        self._service("redis", [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder])
        url = f"redis://127.0.0.1:{port}/0"
        CONFIG["celery"] = {"broker": url, "backend": url}
        command = [python, "-m", "celery", "-A", CELERY_APP, "-b", url, "--result-backend", url, "worker"]
        # Its queue is named dagster; the prefetching of one message per process is what dagster-celery recommends.
        command += ["-Q", "dagster", "-c", str(SLOTS), "--prefetch-multiplier", "1", "-l", "INFO"]
        worker = self._service("celery", command)
        worker.wait_until(lambda: " ready." in worker.last_lines(1000), START_SECONDS)

    def _service(self, name: str, command: list[Any]) -> Service:
        log = self.folder / f"{name}.log"
        environment = {**self.environment, "BENCH_EXECUTOR": "celery" if name == "celery" else "taskiq"}
        service = Service(name, command, log=log, env=environment, cwd=HERE)
        service.start()
        self._stack.callback(stop, service)
        # Its keeper, which is our child; what it runs is counted with it.
        self.roots[name] = [pid for pid in children(os.getpid()) if is_keeper_of(pid, command)]
        return service

    def measure(self, driver: Driver, job: str) -> Sample:
        shape, _, size = job.partition("_")
        roots = {**self.roots, "run worker": [driver.pid]}
        before = cpu_seconds(roots)
        wall = driver.run(job)["seconds"]
        # Processes that end with the run count once they have been reaped.
        time.sleep(0.2)
        after = cpu_seconds(roots)
        cpu = {name: after[name] - before[name] for name in roots}
        return Sample(driver.executor, job, int(size) + (shape != "chain"), wall, cpu, peak_mib(driver.pid))


# ---- processes ------------------------------------------------------------------------------------------------------

TICKS = os.sysconf("SC_CLK_TCK")


def processes() -> dict[int, tuple[int, float]]:
    """pid -> (parent, CPU seconds of it and of its children that have been waited for)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            found[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return found


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def children(pid: int) -> list[int]:
    return [one for one, (parent, _) in processes().items() if parent == pid]


def is_keeper_of(pid: int, command: list[Any]) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return words[-len(command) - 1 : -1] == [str(word) for word in command]


def cpu_seconds(roots: dict[str, list[int]]) -> dict[str, float]:
    table = processes()
    totals = {}
    for name, pids in roots.items():
        family = list(pids)
        for pid in family:
            family += [one for one, (parent, _) in table.items() if parent == pid]
        totals[name] = sum(table[pid][1] for pid in family if pid in table)
    return totals


def postgres_pid(postgres: EmbeddedPostgres) -> int:
    return int((postgres.data / "postmaster.pid").read_text().split()[0])


def answers(endpoint: str) -> bool:
    try:
        call(endpoint, "ListQueues")
    except OSError:
        return False
    return True


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} does not answer")
        time.sleep(0.05)


def stop(service: Service) -> None:
    # The second request tells a worker not to wait for its long polls.
    service.ask_to_stop()
    service.stop()


@contextmanager
def bed(options: argparse.Namespace) -> Iterator[Bed]:
    with ExitStack() as stack:
        yield Bed(options, stack)


# ---- measuring and telling ------------------------------------------------------------------------------------------


def sizes_of(executor: str, shape: str, small: bool) -> tuple[int, int]:
    return FEW[shape] if small or executor in SLOW else SIZES[shape]


def measure(options: argparse.Namespace) -> list[Sample]:
    samples = []
    with bed(options) as made:
        for number in range(options.rounds + 1):
            for shape in options.shapes:
                for index in (0, 1):
                    for driver in made.drivers:
                        # A run of thousands of steps is no warm-up.
                        small = options.small or (shape == "mapped" and not number)
                        size = sizes_of(driver.executor, shape, small)[index]
                        sample = made.measure(driver, f"{shape}_{size}")
                        if number:
                            samples.append(sample)
                        print(
                            f"{'round ' + str(number) if number else 'warm-up'}: {sample.executor} {sample.job}"
                            f" {sample.wall * 1000 / sample.steps:.0f} ms a step",
                            file=sys.stderr,
                        )
    return samples


def summary(samples: list[Sample], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each executor and shape.  Milliseconds for each step."""
    rows = []
    for shape in options.shapes:
        for executor in options.executors:
            small, large = sizes_of(executor, shape, options.small)
            found = {
                size: [one for one in samples if (one.executor, one.job) == (executor, f"{shape}_{size}")]
                for size in (small, large)
            }
            pairs = list(zip(found[small], found[large], strict=True))
            slopes = [(b.wall - a.wall) * 1000 / (b.steps - a.steps) for a, b in pairs]
            cpu_slopes = [(sum(b.cpu.values()) - sum(a.cpu.values())) * 1000 / (b.steps - a.steps) for a, b in pairs]
            whole = [one.wall * 1000 / one.steps for one in found[large]]
            parts = {
                name: statistics.median(one.cpu[name] * 1000 / one.steps for one in found[large])
                for name in found[large][0].cpu
            }
            rows.append(
                {
                    "shape": shape,
                    "executor": executor,
                    "sizes": [small, large],
                    "slope_ms": statistics.median(slopes),
                    "slope_spread_ms": [min(slopes), max(slopes)],
                    "cpu_slope_ms": statistics.median(cpu_slopes),
                    "whole_run_ms_per_step": statistics.median(whole),
                    "cpu_ms_per_step": {name: value for name, value in parts.items() if value >= 0.05},
                    "run_worker_cpu_slope_ms": statistics.median(
                        (b.cpu["run worker"] - a.cpu["run worker"]) * 1000 / (b.steps - a.steps) for a, b in pairs
                    ),
                    "run_worker_peak_mib": max(one.peak_mib for one in found[large]),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'shape':7}{'executor':14}{'sizes':>10}{'slope ms':>10}{'(spread)':>16}{'CPU slope':>11}{'whole run':>11}"
        "   run worker's peak   CPU by process, ms a step"
    ]
    for row in rows:
        low, high = row["slope_spread_ms"]
        parts = ", ".join(f"{name} {value:.1f}" for name, value in row["cpu_ms_per_step"].items())
        sizes = "{}, {}".format(*row["sizes"])
        lines.append(
            f"{row['shape']:7}{row['executor']:14}{sizes:>10}{row['slope_ms']:10.1f}{f'({low:.0f}..{high:.0f})':>16}"
            f"{row['cpu_slope_ms']:11.1f}{row['whole_run_ms_per_step']:11.1f}{row['run_worker_peak_mib']:16.0f} MiB"
            f"   {parts}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument(
        "--executors",
        nargs="+",
        choices=EXECUTORS,
        help="what to compare (default: all; celery only with --celery)",
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=tuple(SIZES), default=["chain", "fan"], help="default: chain and fan"
    )
    parser.add_argument(
        "--outputs",
        choices=("number", "nothing"),
        default="number",
        help="what ops hand on: a number, through the default IO manager; nothing but their order (default: number)",
    )
    parser.add_argument(
        "--tls", action="store_true", help="connections to PostgreSQL with TLS, as managed ones want it"
    )
    parser.add_argument("--small", action="store_true", help="small sizes for all, to try the script out")
    parser.add_argument("--celery", metavar="PYTHON", help="interpreter of an environment with dagster-celery[redis]")
    parser.add_argument(
        "--without", action="append", default=[], metavar="LEVER", help="switch one of our worker's levers off"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    if options.executors is None:
        options.executors = [name for name in EXECUTORS if name != "celery" or options.celery]
    if "celery" in options.executors and not options.celery:
        parser.error("celery needs --celery PYTHON")
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before = machine() | {"outputs": options.outputs, "tls": options.tls}
    samples = measure(options)
    rows = summary(samples, options)
    result = {"machine": before, "load_average_after": os.getloadavg(), "rounds": options.rounds, "rows": rows}
    write_json(options.json, result)
    print(json.dumps(before))
    print(table(rows))


if __name__ == "__main__":
    main()
