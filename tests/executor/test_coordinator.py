"""The coordinator alone: what reaches it between two waits, and what its servers refuse."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
import services
from proxies import SqsProxy

from dagster_taskiq import coordinator as module
from dagster_taskiq._core import Loop
from dagster_taskiq.config import Settings
from dagster_taskiq.coordinator import RunCoordinator
from dagster_taskiq.errors import ConfigError
from dagster_taskiq.migrations import migrate
from dagster_taskiq.notices import Cancelling, Ended, Notice, Trouble, Unserved, Untaken
from dagster_taskiq.requests import LAST_RETRY, retry_pause
from dagster_taskiq.sender import Message
from dagster_taskiq.sqs import Credentials, make_client
from dagster_taskiq.store import IdempotencyStore, run_application_name, run_channel, step_application_name

Make = Callable[..., RunCoordinator]


@pytest.fixture
def make(database_url: str, queue: services.Queue) -> Iterator[Make]:
    """Makes coordinators of one run."""
    usual = Settings(queue=queue.name, lease_ttl=60, heartbeat_interval=1)

    with ExitStack() as stack:

        def one(
            credentials: Any = None, endpoint: str | None = None, settings: Settings = usual, **options: Any
        ) -> RunCoordinator:
            loop = Loop()
            stack.callback(loop.close)
            store = IdempotencyStore(loop, database_url)
            migrate(store)
            return RunCoordinator(
                settings,
                "a-run",
                loop=loop,
                store=store,
                sqs=make_client(loop, credentials=credentials, endpoint=endpoint),
                make_message=lambda key, attempt: Message(b"a message", {}),
                **options,
            )

        yield one


def wait_for_notice(coordinator: RunCoordinator, kind: type[Notice]) -> Any:
    def look() -> Notice | None:
        return next((notice for notice in coordinator.wait(0.1) if isinstance(notice, kind)), None)

    return services.wait_for(look, kind.__name__)


def test_a_signal_that_came_before_a_wait_ends_it(make: Make) -> None:
    """While steps are sent, or a lost one is fenced, nobody looks for interrupts."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        coordinator = make(wake_fd=reader)
        coordinator.begin()
        os.write(writer, b"x")
        coordinator.poll()
        assert coordinator.wait(None) == []
    finally:
        os.close(reader)
        os.close(writer)


def test_one_that_is_superseded_at_its_end_leaves(make: Make) -> None:
    """Its exception, or its success, would end a run that another carries on."""
    superseded: list[int] = []
    first = make(on_superseded=lambda _run_id, generation: superseded.append(generation))
    second = make(on_superseded=lambda _run_id, generation: superseded.append(generation))
    first.begin()
    second.begin()
    first.end()
    assert superseded == [first.generation]
    second.end()
    assert superseded == [first.generation]


def test_a_queued_row_of_a_run_that_is_cancelled_is_settled_whoever_cancels(
    make: Make, queue: services.Queue, database_url: str
) -> None:
    """Even when the word of it is lost and nobody receives the message."""
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("step", 1, queue.name)])
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'queued'"
    services.wait_for(lambda: coordinator.poll() or services.rows(database_url, sql), "the row")
    services.rows(database_url, "UPDATE dagster_taskiq_runs SET state = 'cancelling'")
    wait_for_notice(coordinator, Cancelling)
    assert wait_for_notice(coordinator, Ended).outcome.state == "cancelled"


def test_nothing_is_sent_before_it_is_released(make: Make, queue: services.Queue, database_url: str) -> None:
    """Not even when the row is said to be in the queue again."""
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("held", 1, queue.name)], held=True)
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'queued'"
    services.wait_for(lambda: coordinator.poll() or services.rows(database_url, sql), "the row")
    again = json.dumps({"step_key": "held", "attempt": 1, "state": "queued"})
    services.rows(database_url, "SELECT pg_notify(%s, %s)", [run_channel("a-run"), again])
    coordinator.submit([("other", 1, queue.name)])
    services.wait_for(lambda: coordinator.poll() or queue.counts()[0], "the other one's message")
    assert queue.counts()[0] == 1
    coordinator.release([("held", 1)])
    services.wait_for(lambda: coordinator.poll() or queue.counts()[0] == 2, "the message")


def test_an_attempt_that_is_cancelled_before_it_has_a_row_never_starts(make: Make, queue: services.Queue) -> None:
    """The run goes on: another step is not touched."""
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("unwanted", 1, queue.name), ("wanted", 1, queue.name)])
    coordinator.cancel_attempts([("unwanted", 1)])
    outcome = wait_for_notice(coordinator, Ended).outcome
    assert (outcome.step_key, outcome.state, outcome.claimed_at) == ("unwanted", "cancelled", None)
    assert coordinator.in_flight == 1


def test_an_unwanted_attempt_that_comes_back_into_the_queue_is_cancelled(
    make: Make, queue: services.Queue, database_url: str
) -> None:
    """A worker that was asked to cancel it may hand it back instead."""
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("step", 1, queue.name)])
    sql = "SELECT 1 FROM dagster_taskiq_steps WHERE state = 'queued'"
    services.wait_for(lambda: coordinator.poll() or services.rows(database_url, sql), "the row")
    with closing(Loop()) as loop:
        store = IdempotencyStore(loop, database_url)
        who = {"owner": "me", "nonce": "n", "host": "h", "boot_id": "b", "delivery_id": "d"}
        claim = store.claim("a-run", "step", 1, ttl=60, deliveries=1, **who).result()
        assert claim.generation is not None
        coordinator.cancel_attempts([("step", 1)])
        asked = "SELECT 1 FROM dagster_taskiq_steps WHERE cancel_requested"
        services.wait_for(lambda: coordinator.poll() or services.rows(database_url, asked), "the request")
        assert store.hand_back("a-run", "step", 1, claim.generation).result()
    assert wait_for_notice(coordinator, Ended).outcome.state == "cancelled"


def test_credentials_that_cannot_be_renewed_for_a_while(make: Make, queue: services.Queue) -> None:
    failing = False

    def provider() -> Credentials:
        if failing:
            raise ConnectionError("the token service is away")
        return "key", "secret", None, int(time.time()) + 1

    coordinator = make(provider)
    coordinator.begin()
    failing = True
    coordinator.submit([("step", 1, queue.name)])
    assert "the token service is away" in wait_for_notice(coordinator, Trouble).message
    failing = False
    services.wait_for(lambda: coordinator.poll() or queue.counts()[0] == 1, "the message")


def test_however_often_something_failed_it_is_tried_again_soon() -> None:
    assert 0 < retry_pause(100_000) <= LAST_RETRY + 0.05


# ---- taking over and ending ------------------------------------------------------------------------------------------


def test_the_connections_of_all_earlier_coordinators_are_ended(make: Make, database_url: str) -> None:
    """The second died before it had ended those of the first."""
    first, second, third, fourth = (make() for _ in range(4))
    first.begin()
    late = psycopg2.connect(database_url, application_name=run_application_name(first.generation))
    second.begin()
    row = third.begin()
    assert row.unfenced == [first.generation, second.generation]
    third.take_over(row.unfenced)
    with pytest.raises(psycopg2.OperationalError):
        late.cursor().execute("SELECT 1")
    late.close()
    fenced = "SELECT 1 FROM dagster_taskiq_runs WHERE unfenced = '{}'"
    services.wait_for(lambda: third.poll() or services.rows(database_url, fenced), "the end of fencing")
    assert fourth.begin().unfenced == [third.generation]


CLAIMED = """
    INSERT INTO dagster_taskiq_steps (run_id, step_key, attempt, state, queue, enqueued_by, generation, lease, owner,
        nonce, claimed_at, started_at)
    VALUES ('a-run', 'step', 1, 'claimed', 'q', 'x', 999, now() + interval '1 second', 'w', 'n', now(), now())
"""


@pytest.mark.parametrize("successor", [False, True])
def test_no_claim_is_left_at_the_end(make: Make, database_url: str, successor: bool) -> None:
    """Its worker is dead; maybe the first run worker is too, after it had ended the run."""
    coordinator = make()
    coordinator.begin()
    services.rows(database_url, CLAIMED)
    if successor:
        services.rows(database_url, "UPDATE dagster_taskiq_runs SET state = 'ended', ended_at = now()")
        coordinator = make()
        assert coordinator.begin().state == "ended"
    coordinator.end()
    sql = "SELECT state, cancel_requested FROM dagster_taskiq_steps"
    assert services.rows(database_url, sql) == [("lost", True)]


def test_a_signal_ends_the_wait_for_the_last_claims(make: Make, database_url: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    coordinator = make(wake_fd=reader)
    coordinator.begin()
    services.rows(database_url, CLAIMED.replace("1 second", "1 hour"))
    ending = threading.Thread(target=coordinator.end)
    ending.start()
    services.wait_for_rows(database_url, "SELECT 1 FROM dagster_taskiq_steps WHERE cancel_requested")
    while ending.is_alive():
        os.write(writer, b"x")
        ending.join(0.1)
    assert services.rows(database_url, "SELECT state FROM dagster_taskiq_steps") == [("claimed",)]
    os.close(reader)
    os.close(writer)


def test_connections_that_cannot_be_ended_are_waited_for_once(
    make: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of a superuser, and the store's role is none."""
    monkeypatch.setattr(module, "FENCE_PAUSES", (0.0,))
    role = "role_" + uuid.uuid4().hex[:8]
    services.rows(database_url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    loop = Loop()
    restricted = psycopg2.extensions.make_dsn(database_url, user=role, password="secret")
    coordinator = make(log_stores=[IdempotencyStore(loop, restricted)])
    coordinator.begin()
    names = [step_application_name(generation) for generation in (1, 2)]
    others = [psycopg2.connect(database_url, application_name=name) for name in names]
    pauses: list[float] = []
    monkeypatch.setattr(coordinator, "idle", pauses.append)
    coordinator.fence([1, 2])
    assert pauses.count(module.LOG_GRACE) == 1
    assert all(name in wait_for_notice(coordinator, Trouble).message for name in names[:1])
    for other in others:
        other.close()
    loop.close()


# ---- what others say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["no json", "[1]", '{"state": "lost"}', '{"step_key": [], "attempt": {}}'])
def test_a_notification_of_somebody_else(make: Make, database_url: str, payload: str) -> None:
    coordinator = make()
    coordinator.begin()
    services.rows(database_url, "SELECT pg_notify('dtq_run_arun', %s), pg_notify('dtq_run_arun', %s)", ["{}", payload])
    services.rows(database_url, "UPDATE dagster_taskiq_runs SET state = 'cancelling'")
    services.rows(database_url, """SELECT pg_notify('dtq_run_arun', '{"run_state": "cancelling"}')""")
    wait_for_notice(coordinator, Cancelling)


def test_a_descriptor_above_1023(make: Make) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2100), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 2000)
    try:
        os.set_blocking(high, False)
        coordinator = make(wake_fd=high)
        coordinator.begin()
        os.write(writer, b"x")
        assert coordinator.wait(None) == []
    finally:
        for descriptor in (reader, writer, high):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_queue_that_does_not_exist(make: Make) -> None:
    coordinator = make()
    coordinator.begin()
    coordinator.submit([("step", 1, "no-such-queue")])
    with pytest.raises(ConfigError, match="dagster-taskiq queue create no-such-queue"):
        wait_for_notice(coordinator, Ended)


GONE = 400, b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "gone"}'


def test_a_queue_whose_messages_can_be_counted_is_there(make: Make, queue: services.Queue) -> None:
    """Nothing is sent meanwhile, that would show it; so a later absence is a new one."""
    away = threading.Event()

    def refuse(action: str, body: bytes) -> tuple[int, bytes] | None:
        return GONE if action == "GetQueueAttributes" and away.is_set() else None

    with SqsProxy(queue.endpoint, refuse) as proxy:
        coordinator = make(endpoint=proxy.endpoint, settings=replace(impatient(queue), backoff_cap=600.0))
        coordinator.begin()
        away.set()
        coordinator.submit([("step", 1, queue.name)])
        services.wait_for(lambda: coordinator.poll() or proxy.counts()["GetQueueAttributes"], "a look")
        watched = coordinator._sender._queues[queue.name]
        services.wait_for(lambda: coordinator.poll() or watched.missing_since is not None, "the answer")
        away.clear()
        services.wait_for(lambda: coordinator.poll() or watched.missing_since is None, "another answer")
        assert proxy.counts()["SendMessageBatch"] == 1


def test_a_throttled_entry_is_sent_again_whoever_is_called_at_fault(make: Make, queue: services.Queue) -> None:
    refused = threading.Event()

    def refuse_once(action: str, body: bytes) -> tuple[int, bytes] | None:
        if action != "SendMessageBatch" or refused.is_set():
            return None
        refused.set()
        ids = [entry["Id"] for entry in json.loads(body)["Entries"]]
        failed = [{"Id": one, "Code": "RequestThrottled", "Message": "slower", "SenderFault": True} for one in ids]
        return 200, json.dumps({"Failed": failed, "Successful": []}).encode()

    with SqsProxy(queue.endpoint, refuse_once) as proxy:
        coordinator = make(endpoint=proxy.endpoint)
        coordinator.begin()
        coordinator.submit([("step", 1, queue.name)])
        services.wait_for(lambda: coordinator.poll() or queue.counts()[0] == 1, "the message")
    assert refused.is_set()


# ---- queues that nobody serves ---------------------------------------------------------------------------------------


def test_a_gap_between_workers_is_no_queue_that_nobody_serves(
    make: Make, queue: services.Queue, database_url: str
) -> None:
    """The step has waited for hours behind a backlog when the only worker is started anew."""
    settings = replace(impatient(queue), no_worker_warning=3600.0, no_worker_timeout=3600.0)
    with SqsProxy(queue.endpoint) as proxy, closing(Loop()) as loop:
        coordinator = make(endpoint=proxy.endpoint, settings=settings)
        coordinator.begin()
        coordinator.submit([("step", 1, queue.name)])
        (flight,) = coordinator._run.flights.values()
        flight.since -= 7200
        older = "UPDATE dagster_taskiq_steps SET queued_at = queued_at - interval '2 hours' RETURNING 1"
        services.wait_for(lambda: coordinator.poll() or services.rows(database_url, older), "the row")
        watched = coordinator._sender._queues[queue.name]
        unserved: list[Unserved] = []

        def wait_until(condition: Callable[[], object], what: str) -> None:
            def look() -> object:
                unserved.extend(notice for notice in coordinator.wait(0.1) if isinstance(notice, Unserved))
                return condition()

            services.wait_for(look, what)

        wait_until(lambda: proxy.counts()["GetQueueAttributes"] >= 2 and not watched.looking, "looks that find nobody")
        assert not unserved
        store = IdempotencyStore(loop, database_url)
        store.register_worker("w", "worker", "h", 1, "b", [queue.name], 1).result()
        assert watched.unserved_since is not None
        watched.unserved_since -= 7200
        wait_until(lambda: watched.unserved_since is None, "a look that finds the worker")
        store.remove_worker("w").result()
        wait_until(lambda: watched.unserved_since is not None, "a look that finds nobody")
        assert not unserved and coordinator.in_flight == 1
        watched.unserved_since -= 7200
        wait_until(lambda: any(notice.attempts for notice in unserved), "the step's end")


def test_nobody_need_care_whether_a_queue_is_served(make: Make, queue: services.Queue) -> None:
    settings = replace(impatient(queue), no_worker_warning=None, no_worker_timeout=None)
    with SqsProxy(queue.endpoint) as proxy:
        coordinator = make(endpoint=proxy.endpoint, settings=settings)
        coordinator.begin()
        coordinator.submit([("step", 1, queue.name)])
        services.wait_for(lambda: coordinator.poll() or proxy.counts()["GetQueueAttributes"], "a look")


# ---- messages that vanish --------------------------------------------------------------------------------------------


def impatient(queue: services.Queue) -> Settings:
    return Settings(queue=queue.name, lease_ttl=60, heartbeat_interval=0.1, backoff_base=0.1, backoff_cap=0.1)


def test_without_permission_to_count_messages_lost_ones_are_sent_again(make: Make, queue: services.Queue) -> None:
    def refuse(action: str, body: bytes) -> tuple[int, bytes] | None:
        if action != "GetQueueAttributes":
            return None
        return 403, b'{"__type": "com.amazonaws.sqs#AccessDeniedException", "message": "not authorized"}'

    with SqsProxy(queue.endpoint, refuse) as proxy:
        coordinator = make(endpoint=proxy.endpoint, settings=impatient(queue))
        coordinator.begin()
        coordinator.submit([("step", 1, queue.name)])
        assert "sqs:GetQueueAttributes" in wait_for_notice(coordinator, Trouble).message
        services.wait_for(lambda: coordinator.poll() or queue.counts()[0] >= 3, "copies of the message")
        assert proxy.counts()["GetQueueAttributes"] == 1


@contextmanager
def thief(queue: services.Queue) -> Iterator[None]:
    """Takes every message of ours away and leaves those of others."""
    ended = threading.Event()

    def steal() -> None:
        while not ended.is_set():
            found = queue.call("ReceiveMessage", MaxNumberOfMessages=10, VisibilityTimeout=0, WaitTimeSeconds=1)
            for message in found.get("Messages", []):
                if message["Body"] == "a message":
                    queue.call("DeleteMessage", ReceiptHandle=message["ReceiptHandle"])

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_step_of_a_shared_backlog_is_not_given_up(make: Make, queue: services.Queue, database_url: str) -> None:
    """Messages of other runs are in the queue: nobody can tell whose are missing."""
    queue.call("SetQueueAttributes", Attributes={"RedrivePolicy": ""})
    queue.call("SendMessage", MessageBody="of another run")
    coordinator = make(settings=impatient(queue))
    coordinator.begin()
    for step in ("one", "two"):
        coordinator.submit([(step, 1, queue.name)])
    sql = "SELECT 1 FROM dagster_taskiq_steps HAVING min(sends) > 7"
    with thief(queue):
        seen: list[Notice] = []
        services.wait_for(lambda: seen.extend(coordinator.wait(0.1)) or services.rows(database_url, sql), "re-sends")
    assert not [notice for notice in seen if isinstance(notice, Untaken)]
