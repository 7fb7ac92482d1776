"""SQSBroker under TaskIQ's own programs, with tasks that are not ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import services
from taskiq import SendTaskError

from dagster_taskiq.broker import MESSAGE_BYTES_MAX, SQSBroker
from dagster_taskiq.errors import PayloadTooLargeError, QueueMissingError

HERE = Path(__file__).parent


def start_taskiq(processes: services.Processes, queue: services.Queue, folder: Path, *arguments: str) -> Any:
    command = ["-m", "taskiq", "worker", "broker_app:broker", "--workers", "1", "--max-async-tasks", "2", *arguments]
    return processes.start(
        "taskiq",
        [sys.executable, *command],
        env={"BROKER_APP_QUEUE": queue.name, "WORKER_TEST_FOLDER": str(folder), "PYTHONPATH": str(HERE)},
    )


@pytest.fixture
def broker(queue: services.Queue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SQSBroker:
    """The application's broker, as its clients use it."""
    return SQSBroker(queue.name)


def task_of(broker: SQSBroker) -> Any:
    @broker.task(task_name="broker_app:write")
    async def write(name: str, text: str) -> None:
        raise AssertionError("runs in the worker only")

    return write


def arrived(folder: Path, name: str) -> Callable[[], bool]:
    return lambda: (folder / name).exists() and bool((folder / name).read_text())


async def test_a_foreign_application(
    broker: SQSBroker, queue: services.Queue, processes: services.Processes, tmp_path: Path
) -> None:
    worker = start_taskiq(processes, queue, tmp_path)
    await broker.startup()
    try:
        write = task_of(broker)
        for number in range(5):
            await write.kiq(f"file-{number}", "ü" * number + "!")
        await write.kicker().with_labels(delay=1).kiq("late", "!")
    finally:
        await broker.shutdown()
    for name in [*(f"file-{number}" for number in range(5)), "late"]:
        services.wait_for(arrived(tmp_path, name), name)
    services.wait_for(lambda: queue.counts() == (0, 0), "an empty queue")
    assert (tmp_path / "file-3").read_text() == "üüü!"
    worker.stop()


async def test_step_receiver_serves_both(
    broker: SQSBroker,
    queue: services.Queue,
    processes: services.Processes,
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application's own tasks run beside ours; what nobody knows is not lost."""
    monkeypatch.setenv("DAGSTER_TASKIQ_DATABASE_URL", database_url)
    start_taskiq(processes, queue, tmp_path, "--receiver", "dagster_taskiq.receiver:StepReceiver")
    await broker.startup()
    try:
        write = task_of(broker)
        # The label would have TaskIQ acknowledge before the task has run.
        await write.kicker().with_labels(ack_type="nonsense").kiq("file", "!")
    finally:
        await broker.shutdown()
    queue.call("SendMessage", MessageBody="garbage")
    services.wait_for(arrived(tmp_path, "file"), "the file")
    (dead,) = services.wait_for(queue.dead_messages, "a message in the dead-letter queue")
    assert dead["Body"] == "garbage"
    services.wait_for(lambda: queue.counts() == (0, 0), "an empty queue")


async def test_labels(broker: SQSBroker, queue: services.Queue, make_queue: Any) -> None:
    other = make_queue()
    await broker.startup()
    try:
        write = task_of(broker)
        await write.kicker().with_labels(queue=other.name).kiq("a", "b")
        with pytest.raises(SendTaskError) as caught:
            await write.kiq("a", "x" * MESSAGE_BYTES_MAX)
        assert isinstance(caught.value.__cause__, PayloadTooLargeError)
        assert str(MESSAGE_BYTES_MAX) in str(caught.value.__cause__)
        with pytest.raises(SendTaskError) as caught:
            await write.kicker().with_labels(delay=901).kiq("a", "b")
        assert "900" in str(caught.value.__cause__)
        with pytest.raises(SendTaskError) as caught:
            await write.kicker().with_labels(queue="no-such-queue").kiq("a", "b")
        assert isinstance(caught.value.__cause__, QueueMissingError)
    finally:
        await broker.shutdown()
    assert queue.counts() == (0, 0)
    (message,) = other.call("ReceiveMessage")["Messages"]
    assert json.loads(message["Body"])["kwargs"] == {}
    assert json.loads(message["Body"])["args"] == ["a", "b"]


async def test_listen_hands_back_what_nobody_took(broker: SQSBroker, queue: services.Queue) -> None:
    for number in range(3):
        queue.call("SendMessage", MessageBody=str(number))
    await broker.startup()
    listening = broker.listen()
    taken = await anext(listening)
    await listening.aclose()
    await taken.ack()
    await broker.shutdown()
    assert sum(queue.counts()) == 2
    services.wait_for(lambda: queue.counts() == (2, 0), "two visible messages")
