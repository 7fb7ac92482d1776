"""Simulated workers, for scale.py: as many as asked for, in one process.

Each has its own connection to PostgreSQL, its own SQS client, slots and heartbeat, and treats an attempt as a worker
does: poll, claim, beat, start, (sleep in the place of a step process), complete, delete; all of that is this package's
own.  What there is not is a step process and what that does.

``python simulated_workers.py``: settings as one line of JSON on the input; ``ready`` on the output when all of them
poll; they end with the end of the input, and then say as JSON what they have used.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dagster_taskiq import _bridge, _core, sqs
from dagster_taskiq.config import margin_of
from dagster_taskiq.payload import StepTask, unpack
from dagster_taskiq.slots import BATCH, Slots
from dagster_taskiq.store import IdempotencyStore

WORKER_HEARTBEAT = 15.0


@dataclass(frozen=True)
class Orders:
    """``events``: what a completion row gets: run id and job of the run that they are from, the step key -> the JSON
    text of its events; of a mapped step the key of the first one.  ``keys``: of the mapped steps, as many as there
    are."""

    url: str
    queue_url: str
    workers: int
    slots: int
    seconds: float
    run_id: str = ""
    job_name: str = ""
    events: dict[str, str] = field(default_factory=dict)
    first_key: str = ""
    keys: int = 0


class Answers:
    """The events of an attempt, made from those of a real one."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._spread: str | None = None

    def events(self, task: StepTask) -> str | None:
        orders = self._orders
        if not orders.events:
            return None
        name, bracket, key = task.step_key.partition("[")
        text = orders.events.get(task.step_key) or orders.events[f"{name}[{orders.first_key}]"]
        text = _with_key(text, orders.first_key, key.rstrip("]")) if bracket else self._expanded(text)
        return text.replace(orders.run_id, task.run_id).replace(f'"{orders.job_name}"', f'"{task.job_name}"')

    def _expanded(self, text: str) -> str:
        """With the events of the first key's output for every key."""
        if self._spread is None:
            first = self._orders.first_key
            events = []
            for event in json.loads(text):
                one = json.dumps(event)
                keys = range(self._orders.keys) if f'"{first}"' in one else (0,)
                events += [_with_key(one, first, f"k{number}") for number in keys]
            self._spread = "[" + ",".join(events) + "]"
        return self._spread


def _with_key(text: str, old: str, new: str) -> str:
    return text.replace(f'"{old}"', f'"{new}"').replace(f"[{old}]", f"[{new}]")


class Worker:
    def __init__(self, orders: Orders, answers: Answers, seen: Counter[str]) -> None:
        self._orders = orders
        self._answers = answers
        self._seen = seen
        self._identity = uuid.uuid4().hex
        self._loop = _core.Loop()
        self._client = sqs.make_client(self._loop)
        self._store = IdempotencyStore(self._loop, orders.url, application_name="dagster-taskiq-worker")
        self._beat = _core.Beat(self._store.core, sqs=self._client)
        self._slots = Slots(orders.slots, [BATCH])
        self._tasks: set[asyncio.Task[None]] = set()

    async def register(self) -> None:
        given = (self._identity, "simulated", socket.gethostname(), os.getpid(), uuid.uuid4().hex, ["dagster"])
        await self._store.register_worker(*given, self._orders.slots)

    async def serve(self) -> None:
        """Until it is cancelled."""
        beating = asyncio.ensure_future(self._beat_row())
        try:
            while True:
                count, wait = await self._slots.take(0)
                messages = await self._client.receive(self._orders.queue_url, max_messages=count, wait=wait)
                self._slots.polled(0, count, len(messages))
                received_ns = _core.boot_ns()
                for message in messages:
                    task = asyncio.ensure_future(self._handle(message, received_ns))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            beating.cancel()

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._store.remove_worker(self._identity)
        self._seen["requests"] += self._client.stats()["requests"]
        await _bridge.close(self._loop)

    async def _beat_row(self) -> None:
        while True:
            await asyncio.sleep(WORKER_HEARTBEAT)
            await self._store.heartbeat_worker(self._identity, len(self._tasks))

    async def _handle(self, message: dict[str, Any], received_ns: int) -> None:
        try:
            await self._run(unpack(message["body"]), message, received_ns)
            self._seen["message_bytes"] = max(self._seen["message_bytes"], len(message["body"]))
        finally:
            self._slots.give(1)

    async def _run(self, task: StepTask, message: dict[str, Any], received_ns: int) -> None:
        key = (task.run_id, task.step_key, task.attempt)
        claimed_ns = _core.boot_ns()
        claim = await self._store.claim(
            *key,
            owner=self._identity,
            nonce=uuid.uuid4().hex,
            ttl=task.lease_ttl,
            host="simulated",
            boot_id="simulated",
            delivery_id=message["message_id"],
            deliveries=1,
        )
        self._seen[claim.outcome] += 1
        if claim.outcome == "claimed" and claim.generation is not None:
            self._beat.add(
                *key,
                claim.generation,
                ttl=task.lease_ttl,
                margin=margin_of(task.lease_ttl),
                heartbeat=task.heartbeat,
                claimed_ns=claimed_ns,
                queue_url=self._orders.queue_url,
                receipt_handle=message["receipt_handle"],
                visibility=task.visibility,
                received_ns=received_ns,
            )
            assert await self._store.start(*key, claim.generation, pid=os.getpid(), pid_start="0")
            await asyncio.sleep(self._orders.seconds)
            events = self._answers.events(task)
            if task.step_key.endswith("]"):
                self._seen["row_bytes"] = max(self._seen["row_bytes"], len(events or ""))
            assert await self._store.complete(*key, claim.generation, "succeeded", events=events)
            self._beat.remove(claim.generation)
        await self._client.delete(self._orders.queue_url, [message["receipt_handle"]])


async def run(orders: Orders, end: asyncio.Future[None]) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    answers = Answers(orders)
    workers = [Worker(orders, answers, seen) for _ in range(orders.workers)]
    for worker in workers:
        await worker.register()
    serving = [asyncio.ensure_future(worker.serve()) for worker in workers]
    before = resource.getrusage(resource.RUSAGE_SELF)
    print("ready", flush=True)
    await asyncio.wait([end, *serving], return_when=asyncio.FIRST_COMPLETED)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if not end.done():
        await asyncio.gather(*serving)
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    for worker in workers:
        await worker.close()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**seen, "cpu": cpu}


async def main() -> None:
    orders = Orders(**json.loads(sys.stdin.readline()))
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sys.stdin, lambda: None if end.done() else end.set_result(None))
    print(json.dumps(await run(orders, end)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
