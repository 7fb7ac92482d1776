"""The command line, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
import services
from click.testing import CliRunner

from dagster_taskiq._core import Loop
from dagster_taskiq.cli import main
from dagster_taskiq.dev.sqs import call
from dagster_taskiq.store import IdempotencyStore

COMMAND = [sys.executable, "-m", "dagster_taskiq.cli"]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all commands and groups."""
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


def run(*arguments: str, status: int = 0) -> str:
    """Standard output of a command; checks its exit status."""
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout if status == 0 else ended.stderr


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, result.output
    inner: click.Command = main
    for name in path:
        assert isinstance(inner, click.Group)
        inner = inner.commands[name]
    if not isinstance(inner, click.Group):
        assert "Example" in result.output
    for parameter in inner.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


def test_help_imports_neither_dagster_nor_the_core() -> None:
    code = "import sys, dagster_taskiq.cli; print(*{'dagster', 'taskiq', 'dagster_taskiq._core'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_missing_database_names_the_setting() -> None:
    for arguments in (["status"], ["worker", "list"], ["worker", "start"], ["db", "check"]):
        error = run(*arguments, status=1)
        assert "DAGSTER_TASKIQ_DATABASE_URL" in error
        assert "Traceback" not in error


def test_bad_timing_names_both_settings(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("execution: {config: {lease_ttl: 20, heartbeat_interval: 10, database_url: 'postgresql:///x'}}")
    error = run("worker", "start", "-y", str(config), status=1)
    assert "lease_ttl" in error
    assert "heartbeat_interval" in error


def test_unreachable_database_is_one_line() -> None:
    error = run("status", "--database-url", "postgresql://nobody@127.0.0.1:1/none", status=1)
    assert error.startswith("Error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--database-url", "nonsense"], ["database_url", "postgresql://"]),
        (["status", "--database-url", "postgresql+psycopg2://u:secret@127.0.0.1/x"], ["database_url", "postgresql://"]),
        (["queue", "create", "q", "--region", "x", "--endpoint-url", "127.0.0.1:1"], ["AWS_ENDPOINT_URL_SQS"]),
    ],
)
def test_what_is_no_url_is_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    error = run(*arguments, status=1)
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert "secret" not in error


def test_an_instance_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "none"))
    error = run("status", status=1)
    assert str(tmp_path / "none") in error
    assert "DAGSTER_TASKIQ_DATABASE_URL" in error
    assert "Traceback" not in error


def test_dev_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = run("dev", "--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path / "data"), status=1)
    assert "--port" in error
    assert not (tmp_path / "data").exists()


def test_migrate_and_check(database_url: str) -> None:
    for command in (["db", "check"], ["status"], ["worker", "list"]):
        error = run(*command, "--database-url", database_url, status=1)
        assert "tables" in error
        assert "dagster-taskiq db migrate" in error
    assert "migration" in run("db", "migrate", "--database-url", database_url)
    run("db", "migrate", "--database-url", database_url)
    run("db", "check", "--database-url", database_url)


def test_database_of_the_instance(dagster_home: Path, database_url: str) -> None:
    run("db", "migrate")
    assert services.rows(database_url, "SELECT count(*) FROM dagster_taskiq_runs") == [(0,)]


def test_queue_create(sqs_endpoint: str) -> None:
    name = "created-by-command"
    first = run("queue", "create", name, "--max-receive-count", "7")
    assert run("queue", "create", name, "--max-receive-count", "7") == first
    urls = [call(sqs_endpoint, "GetQueueUrl", QueueName=one)["QueueUrl"] for one in (name, f"{name}-dead")]
    assert urls[0] in first
    found = call(sqs_endpoint, "GetQueueAttributes", QueueUrl=urls[0], AttributeNames=["RedrivePolicy"])["Attributes"]
    policy = json.loads(found["RedrivePolicy"])
    assert policy["deadLetterTargetArn"].endswith(f":{name}-dead")
    assert int(policy["maxReceiveCount"]) == 7
    for url in urls:
        call(sqs_endpoint, "DeleteQueue", QueueUrl=url)


def test_status_and_list(
    database_url: str,
    make_queue: Callable[[], services.Queue],
    worker_process: Callable[..., services.WorkerHandle],
) -> None:
    queues = sorted([make_queue().name, make_queue().name])
    worker = worker_process(queues, slots=3, env={"DAGSTER_TASKIQ_DATABASE_URL": database_url})
    document = json.loads(run("status", "--json", "--database-url", database_url))
    (row,) = document["workers"]
    assert (row["name"], row["pid"], row["slots"], row["alive"]) == (worker.name, worker.pid, 3, True)
    assert sorted(row["queues"]) == queues
    assert {entry["queue"]: entry["workers"] for entry in document["queues"]} == {
        **dict.fromkeys(queues, 1),
        "dagster": 0,
    }
    assert json.loads(run("worker", "list", "--json", "--database-url", database_url))[0]["name"] == worker.name
    for table in (run("status", "--database-url", database_url), run("worker", "list", "--database-url", database_url)):
        assert worker.name in table
    assert worker.stop() == 0
    assert json.loads(run("status", "--json", "--database-url", database_url))["workers"] == []


def test_status_names_queues_that_no_worker_has_ever_served(database_url: str) -> None:
    run("db", "migrate", "--database-url", database_url)
    with closing(Loop()) as loop:
        store = IdempotencyStore(loop, database_url)
        generation = store.begin_run("a-run", "nonce", 3600.0).result().generation
        store.enqueue("a-run", generation, [("step", 1, "misspelt")]).result()
    entries = json.loads(run("status", "--json", "--database-url", database_url))["queues"]
    assert {entry["queue"]: (entry["queued"], entry["workers"]) for entry in entries} == {
        "dagster": (0, 0),
        "misspelt": (1, 0),
    }


@pytest.mark.timeout(300)
def test_demo(tmp_path: Path, processes: services.Processes) -> None:
    with services.server_folder() as folder:
        demo = processes.start("demo", [*COMMAND, "demo", "--json", "--keep", str(folder / "data")])
        family: set[int] = set()
        services.wait_for(
            lambda: family.update(services.descendants(demo.pid)) or demo.popen.poll() is not None, "", 240
        )
        assert demo.wait() == 0, demo.output
        document = json.loads(demo.output[demo.output.index("{\n") : demo.output.rindex("}\n") + 2])
        assert family
        services.wait_for(
            lambda: not any(services.alive(pid) for pid in family), "the end of all that the demo started"
        )
    assert document["success"]
    states = {(step["step"], step["attempt"]): step["state"] for step in document["steps"]}
    assert len(states) > 30
    assert states["fetch_climate_normal", 1] == "failed"
    assert states["fetch_climate_normal", 2] == "succeeded"
    assert states["fill_gaps", 1] == states["describe_gaps", 1] == "skipped"
    ran = [step for step in document["steps"] if step["state"] == "succeeded"]
    assert all(step["worker"] and step["run_time"] > 0 and step["deliveries"] >= 1 for step in ran)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_dev(processes: services.Processes, number: signal.Signals) -> None:
    with services.server_folder() as folder:
        dev = processes.start("dev", [*COMMAND, "dev", "--data-dir", str(folder / "data"), "--slots", "1"])
        url = dev.wait_for_log(r"^Ready: (http://127\.0\.0\.1:\d+)", 240).group(1)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/server_info", timeout=30) as answer:
            assert "dagster_webserver_version" in json.load(answer)
        assert (folder / "data" / "env").stat().st_mode & 0o777 == 0o600
        family = services.descendants(dev.pid)
        for address in listening(family):
            assert address.startswith("127.0.0.1:")
        dev.send(number)
        assert dev.wait() == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        services.wait_for(lambda: not any(services.alive(pid) for pid in family), "the end of all that dev started")


def listening(pids: list[int]) -> list[str]:
    """Addresses that these processes listen on, from /proc."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir() if Path(f"/proc/{pid}/fd").exists() else []:
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                loopback = address == "0100007F"
                found.append(f"{'127.0.0.1' if loopback else address}:{int(port, 16)}")
    return found
