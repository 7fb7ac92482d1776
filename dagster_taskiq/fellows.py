"""The other workers of a host: who of them dies alone is noticed at once, and its claims are settled without waiting
for their leases.

A worker registers with its process id, the start time of its process, and the boot id of its host together with the
namespaces in which those two have their meaning (:func:`boot_id`).  Every worker with the same boot id watches the
others through process descriptors, which the kernel makes readable at their death.  Who they are it asks PostgreSQL:
at its own start (so a worker that is restarted finds its predecessor), when another registers (NOTIFY), and with its
heartbeat.

Of a dead worker's claims those that had not started go back into the queue.  A started one is lost once nobody of its
step process's group runs any more: normally all of them are dead by then, because the warm parent kills them when its
worker goes away; what is left is killed here.  A process that this one may not kill (another user's) leaves the claim
to its lease.  Several fellows may do all of this at once: each move has its guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

from dagster_taskiq.errors import CoreError
from dagster_taskiq.logs import fields
from dagster_taskiq.store import Fellow, FellowClaim, IdempotencyStore
from dagster_taskiq.warm_parent import process_start

logger = logging.getLogger(__name__)

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at a dead worker's claims: a claim that was on its way when it died can appear late."""

KILL_PATIENCE: Final = 5.0
"""Seconds to wait for killed processes to be gone, before the next look."""


def boot_id() -> str:
    """Names the host since its start, and the namespaces of process ids and of start times: within it a process id and
    a start time mean one process.  Empty where processes cannot be watched (no Linux, a kernel before 5.3, a /proc that
    shows another namespace); nothing of this module happens there.
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts = [file.read().strip(), str(os.stat("/proc/self/ns/pid").st_ino)]
    except (OSError, AttributeError):
        return ""
    with contextlib.suppress(OSError):  # kernels before 5.6 have one time for all
        parts.append(str(os.stat("/proc/self/ns/time").st_ino))
    return "/".join(parts)


class Fellows:
    """Watches the other workers of this host.  Lives on the worker's event loop."""

    def __init__(self, store: IdempotencyStore, *, identity: str, name: str, boot_id: str) -> None:
        self._store = store
        self._identity = identity
        self._name = name
        self._boot_id = boot_id
        self._watched: dict[str, int] = {}
        """Identity → process descriptor; -1: dead, and its claims are being settled, or not to be watched."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Ask who else is here, and watch whoever is new.  Raises ``CoreError``."""
        if not self._boot_id:
            return
        fellows = await self._store.fellows(self._boot_id, self._identity)
        for fellow in fellows:
            if fellow.identity not in self._watched:
                self._watch(fellow)
        here = {fellow.identity for fellow in fellows}
        for identity in self._watched.keys() - here:
            self._forget(identity)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for identity in list(self._watched):
            self._forget(identity)

    def _watch(self, fellow: Fellow) -> None:
        try:
            descriptor = open_process(fellow.pid, fellow.pid_start)
        except OSError as error:
            logger.warning("worker %s cannot be watched: %s", fellow.name, error, extra=fields(worker=fellow.identity))
            self._watched[fellow.identity] = -1
            return
        self._watched[fellow.identity] = descriptor
        if descriptor < 0:
            self._in_background(self._settle(fellow))
        else:
            asyncio.get_running_loop().add_reader(descriptor, self._died, fellow)

    def _died(self, fellow: Fellow) -> None:
        self._forget(fellow.identity)
        self._watched[fellow.identity] = -1
        self._in_background(self._settle(fellow))

    def _forget(self, identity: str) -> None:
        descriptor = self._watched.pop(identity, -1)
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, fellow: Fellow) -> None:
        """Its claims, until none is left; then its row."""
        about = fields(worker=fellow.identity, pid=fellow.pid)
        looked = False
        while True:
            try:
                if fellow not in await self._store.fellows(self._boot_id, self._identity):
                    # It took its leave, or another fellow was quicker.
                    self._forget(fellow.identity)
                    return
                if not looked:
                    logger.warning("worker %s on this host is dead: settling its claims", fellow.name, extra=about)
                claims = await self._store.claims_of(fellow.identity, self._boot_id)
                if looked and not claims:
                    await self._store.remove_worker(fellow.identity)
                    self._forget(fellow.identity)
                    return
                looked = True
                await asyncio.gather(*(self._settle_claim(fellow, claim) for claim in claims))
            except CoreError as error:
                logger.warning("the claims of worker %s cannot be settled yet: %s", fellow.name, error, extra=about)
            await asyncio.sleep(LOOK_AGAIN)

    async def _settle_claim(self, fellow: Fellow, claim: FellowClaim) -> None:
        key = (claim.run_id, claim.step_key, claim.attempt, claim.generation)
        about = fields(run_id=claim.run_id, step_key=claim.step_key, attempt=claim.attempt, generation=claim.generation)
        if not claim.started:
            if await self._store.hand_back(*key):
                logger.warning("handed back: worker %s died before it started", fellow.name, extra=about)
            return
        if claim.pid is None or not claim.pid_start:
            return
        gone = await asyncio.to_thread(end_group, claim.pid, claim.pid_start)
        if not gone:
            logger.warning("its step process still runs; the lease will end it", extra={**about, "pid": claim.pid})
            return
        reason = f"worker {fellow.name} died; worker {self._name} on the same host saw that its step process is gone"
        if await self._store.mark_lost(*key, reason):
            logger.warning("the step is lost: %s", reason, extra=about)


# ---- processes -------------------------------------------------------------------------------------------------------


def open_process(pid: int, start: str) -> int:
    """A process descriptor of the process with that id and start time; -1 when it is dead (a zombie is).  Raises
    ``OSError`` when that cannot be told.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        # The others say that the number is that of a thread by now.
        if isinstance(error, (ProcessLookupError, FileNotFoundError)) or error.errno == 22:
            return -1
        raise
    try:
        found = process_start(pid)
        if not _readable(descriptor):
            if not found:
                raise PermissionError(f"the start time of process {pid} is not to be read")
            if found == start:
                alive, descriptor = descriptor, -1
                return alive
        return -1
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def end_group(pid: int, start: str) -> bool:
    """Kill the process group that the process with this id and start time led, itself included, and wait until none of
    it runs.  False when that cannot be done or told.  Blocks, for up to :data:`KILL_PATIENCE`.

    A number that leads a group is not given to another process as long as the group has a member; so a process that has
    the number but another start time proves that the group is empty.
    """
    deadline = time.monotonic() + KILL_PATIENCE
    pause = 0.002
    while True:
        try:
            leader = open_process(pid, start)
            if leader >= 0:
                os.close(leader)
            elif process_start(pid) not in ("", start):
                return True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, 0)  # PermissionError: others' processes, which /proc may hide
            members = _running_members(pid)
            if leader < 0 and not members:
                return True
            _kill(pid, leader >= 0)
        except OSError:
            return False
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill(pid: int, leads: bool) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It has not come to make its group.
        if leads:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _running_members(group: int) -> list[int]:
    """Processes of a group that are not zombies."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state not in (b"Z", b"X"):
                found.append(int(name))
    return found


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
