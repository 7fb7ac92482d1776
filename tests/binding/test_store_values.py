"""Store: values there and back, errors, notifications."""

from __future__ import annotations

import asyncio
import math
import select
from typing import Any

import pytest

from dagster_taskiq import _bridge, _core, errors

STRANGE = [
    *(
        "plain",
        "",
        "NULL",
        "null",
        'a "quoted" one',
        "back\\slash",
        "{braces}",
        "com,ma",
        " space ",
        "ä漢😀",
        "\n\t",
        "'",
    ),
]


def register(store: _core.Store, identity: str, queues: Any) -> None:
    store.run("register_worker", [identity, "name", "host", 7, "start", "boot", queues, 3, 60.0]).result()


def workers(store: _core.Store) -> list[tuple[Any, ...]]:
    result: list[tuple[Any, ...]] = store.run("list_workers", []).result()
    return result


class TestValues:
    def test_arrays_of_text(self, store: _core.Store) -> None:
        register(store, "w", STRANGE)
        (row,) = workers(store)
        assert STRANGE in row

    def test_empty_array(self, store: _core.Store) -> None:
        register(store, "w", ())
        (row,) = workers(store)
        assert [] in row

    @pytest.mark.parametrize("text", [text for text in STRANGE if text])
    def test_text(self, store: _core.Store, text: str) -> None:
        register(store, text, ["q"])
        (row,) = workers(store)
        assert row[0] == text

    def test_types_of_columns(self, store: _core.Store) -> None:
        register(store, "w", ["q"])
        (row,) = workers(store)
        letters = _core.statements()["list_workers"][1]
        kinds = {"t": str, "j": str, "i": int, "f": float, "b": bool, "T": list, "I": list}
        assert [type(value) for value in row] == [kinds[letter] for letter in letters]

    def test_nulls(self, store: _core.Store) -> None:
        row = store.run("begin_run", ["run", "coordinator", 60]).result()[0]
        again = store.run("get_run", ["run"]).result()[0]
        assert row[:3] == again[:3] == ("run", again[1], "active")
        assert None in row, "there is no previous generation yet"

    def test_integers(self, store: _core.Store) -> None:
        (before,) = store.run("begin_run", ["run", "coordinator", 60.0]).result()
        assert store.run("renew_run", ["run", before[1], 1e3]).result() == [("active",)]
        assert store.run("renew_run", ["run", -(2**63), 0.5]).result() == []
        assert store.run("renew_run", ["run", 2**63 - 1, 0.5]).result() == []
        with pytest.raises(OverflowError):
            store.run("renew_run", ["run", 2**63, 0.5])

    def test_parts(self, store: _core.Store) -> None:
        text = "ä" * 3_000_000
        digest = _core.sha256_hex(text)
        missing = store.run("missing_parts", [[digest, "0" * 64]]).result()
        assert sorted(missing) == sorted([(digest,), ("0" * 64,)])
        store.run("put_part", [digest, text]).result()
        assert store.run("get_parts", [[digest]]).result() == [(digest, text)]

    def test_convert(self, store: _core.Store) -> None:
        operation = store.run("missing_parts", [["x"]], convert=lambda rows: [row[0] for row in rows])
        assert operation.result() == ["x"]
        assert operation.result() == ["x"]

    def test_convert_that_fails(self, store: _core.Store) -> None:
        operation = store.run("missing_parts", [["x"]], convert=lambda rows: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                operation.result()

    @pytest.mark.parametrize(
        ("name", "params", "error"),
        [
            ("no_such_statement", [], ValueError),
            ("get_run", [], ValueError),
            ("get_run", ["a", "b"], ValueError),
            ("get_run", [1], TypeError),
            ("get_run", [b"a"], TypeError),
            ("get_run", ["a\0b"], ValueError),
            ("get_run", ["\ud800"], UnicodeEncodeError),
            ("get_run", 3, TypeError),
            ("renew_run", ["r", "1", 1.0], TypeError),
            ("renew_run", ["r", 1.5, 1.0], TypeError),
            ("renew_run", ["r", 1, "1"], TypeError),
            ("missing_parts", [3], TypeError),
            ("missing_parts", [["a", 3]], TypeError),
            ("missing_parts", [["a\0"]], ValueError),
        ],
        ids=repr,
    )
    def test_wrong(self, store: _core.Store, name: str, params: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            store.run(name, params)

    def test_not_a_number(self, store: _core.Store) -> None:
        with pytest.raises(errors.StoreError):
            store.run("begin_run", ["run", "coordinator", math.nan]).result()

    def test_script_has_no_result(self, store: _core.Store) -> None:
        assert store.script("CREATE TABLE a (x int); INSERT INTO a VALUES (1);").result() is None


class TestErrors:
    def test_sqlstate(self, store: _core.Store) -> None:
        with pytest.raises(errors.StoreError) as caught:
            store.script("SELECT 1/0").result()
        assert (caught.value.sqlstate, caught.value.retryable) == ("22012", False)
        assert "division" in str(caught.value)

    def test_no_tables(self, loop: _core.Loop, database_url: str) -> None:
        with pytest.raises(errors.StoreSchemaError) as caught:
            _core.Store(loop, database_url).run("get_run", ["r"]).result()
        assert caught.value.sqlstate == "42P01"

    def test_unreachable(self, loop: _core.Loop) -> None:
        store = _core.Store(loop, "postgresql://127.0.0.1:1/none", operation_timeout=0.2)
        with pytest.raises((errors.StoreConnectionError, errors.OperationTimeoutError)) as caught:
            store.run("migrations", []).result()
        assert caught.value.retryable

    def test_password_is_not_told(self, loop: _core.Loop) -> None:
        store = _core.Store(loop, "postgresql://me:secret@127.0.0.1:1/none", operation_timeout=0.2)
        with pytest.raises(errors.CoreError) as caught:
            store.run("migrations", []).result()
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("url", ["postgresql://[", "nonsense=1", 3, "a\0b"])
    def test_wrong_url(self, loop: _core.Loop, url: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            _core.Store(loop, url)


class TestNotifications:
    def test_drained(self, loop: _core.Loop, store: _core.Store) -> None:
        store.listen("channel").result()
        store.script("SELECT pg_notify('channel', 'ä'); SELECT pg_notify('other', 'no')").result()
        events: list[Any] = []
        while not any(event.kind == "notification" for event in events):
            assert select.select([loop.fileno()], [], [], 30)[0]
            events += loop.drain()
        (event,) = [event for event in events if event.kind == "notification"]
        assert (event.channel, event.payload, event.generation) == ("channel", "ä", 0)
        assert "channel" in repr(event)

    async def test_subscribed(self, loop: _core.Loop, store: _core.Store) -> None:
        got: asyncio.Queue[_core.Event] = asyncio.Queue()
        unsubscribe = _bridge.subscribe(loop, got.put_nowait)
        await store.listen("channel")
        for number in range(3):
            await store.script(f"SELECT pg_notify('channel', '{number}')")
        payloads: list[str | None] = []
        while len(payloads) < 3:
            event = await asyncio.wait_for(got.get(), 30)
            if event.kind == "notification":
                payloads.append(event.payload)
        assert payloads == ["0", "1", "2"]
        unsubscribe()
        unsubscribe()
        await store.script("SELECT pg_notify('channel', 'nobody listens')")
        await store.unlisten("channel")
        assert got.empty()

    async def test_a_subscriber_that_fails_does_not_stop_the_others(self, loop: _core.Loop, store: _core.Store) -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        got = asyncio.Event()

        def fails(event: _core.Event) -> None:
            raise LookupError(event.kind)

        def works(event: _core.Event) -> None:
            if event.kind == "notification":
                got.set()

        _bridge.subscribe(loop, fails)
        _bridge.subscribe(loop, works)
        await store.listen("channel")
        await store.script("SELECT pg_notify('channel', '')")
        await asyncio.wait_for(got.wait(), 30)
        assert {type(problem["exception"]) for problem in problems} == {LookupError}


def test_statements() -> None:
    table = _core.statements()
    assert "claim" in table
    for params, columns, sql in table.values():
        assert set(params) <= set("tifbjTIFB")
        assert set(columns) <= set("tifbjTIFB")
        assert f"${len(params) + 1}" not in sql
