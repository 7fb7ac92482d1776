"""A forked child refuses, and its parent lives on."""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from services import Queue

from dagster_taskiq import _core, errors


def in_child(work: Callable[[], Any]) -> None:
    """Run ``work`` in a forked child; the test fails when it does."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads: here they are the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def refuses(call: Callable[[], Any]) -> None:
    with pytest.raises(errors.ForkedError):
        call()


def test_child_is_refused(loop: _core.Loop, client: _core.SqsClient, queue: Queue) -> None:
    poll = client.receive(queue.url, wait=20, max_messages=1)
    done = client.call("ListQueues")
    done.result()

    def child() -> None:
        refuses(poll.result)
        refuses(done.result)
        refuses(poll.done)
        refuses(poll.cancel)
        refuses(poll.watch)
        refuses(loop.fileno)
        refuses(loop.drain)
        refuses(loop.close)
        refuses(client.stats)
        refuses(client.refresh_credentials)
        refuses(lambda: client.set_credentials("a", "b"))
        refuses(lambda: client.receive(queue.url))
        refuses(lambda: client.send(queue.url, [{"body": "x"}]))
        refuses(lambda: client.delete(queue.url, ["x"]))
        refuses(lambda: client.change_visibility(queue.url, [("x", 1)]))
        refuses(lambda: client.call("ListQueues"))
        refuses(lambda: _core.SqsClient(loop, region="eu-central-1"))
        refuses(lambda: _core.Store(loop, "postgresql://"))

    in_child(child)
    client.send(queue.url, [{"body": "after the fork"}]).result()
    assert [message["body"] for message in poll.result()] == [b"after the fork"]


def test_child_frees_what_it_inherited(sqs_endpoint: str, queue: Queue) -> None:
    """Without waiting for a thread that it does not have."""
    loop = _core.Loop()
    client = _core.SqsClient(loop, region="us-east-1", endpoint=sqs_endpoint, access_key_id="a", secret_access_key="b")
    kept = [client.receive(queue.url, wait=20)]
    kept[0].watch()

    def child() -> None:
        nonlocal loop, client
        del loop, client
        kept.clear()
        gc.collect()

    in_child(child)
    client.send(queue.url, [{"body": "x"}]).result()
    assert len(kept[0].result()) == 1
    loop.close()


def test_child_may_have_a_loop_of_its_own(client: _core.SqsClient, sqs_endpoint: str) -> None:
    client.call("ListQueues").result()

    def child() -> None:
        own = _core.Loop()
        other = _core.SqsClient(
            own, region="us-east-1", endpoint=sqs_endpoint, access_key_id="a", secret_access_key="b"
        )
        other.call("ListQueues").result(30)
        own.close()

    in_child(child)
    client.call("ListQueues").result()


def test_store_is_refused(store: _core.Store) -> None:
    def child() -> None:
        refuses(lambda: store.run("migrations", []))
        refuses(lambda: store.listen("x"))
        refuses(lambda: store.unlisten("x"))
        refuses(lambda: store.script("SELECT 1"))
        refuses(lambda: _core.Beat(store))

    in_child(child)
    assert store.run("migrations", []).result()
