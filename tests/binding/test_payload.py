"""encode_step_task and decode_step_task."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import random
from typing import Any

import pytest
from taskiq.formatters.json_formatter import JSONFormatter

from dagster_taskiq import _core, errors

TASK: dict[str, Any] = {
    "run_id": "0f9a7a6e-93b5-4b8e-9a1a-1f5b7fbb9d10",
    "step_key": "fan_out.step[7]",
    "attempt": 2,
    "job_name": "job",
    "queue": "dagster",
    "code_location": "repo.py",
    "lease_ttl": 120.0,
    "heartbeat": 10.5,
    "visibility": 60,
    "sent_at": 1767225600.25,
    "settings": '{"retry_mode": "enabled"}',
    "parts": {"job_origin": '{"a": 1}', "known_state": ("0" * 64, 123456)},
}


def encoded(signing_key: bytes | None = None, **changes: Any) -> bytes:
    return _core.encode_step_task({**TASK, **changes}, task_id="id-1", signing_key=signing_key)


def wrapped(task: str, **further: Any) -> bytes:
    """A TaskIQ message around a text of ours."""
    return json.dumps(
        {
            "task_id": "x",
            "task_name": "dagster_taskiq.execute_step",
            "labels": {},
            "labels_types": {},
            "args": [],
            "kwargs": {"task": task, **further},
        }
    ).encode()


def test_round_trip() -> None:
    assert _core.decode_step_task(encoded()) == {**TASK, "version": 1}
    assert _core.decode_step_task(encoded().decode()) == {**TASK, "version": 1}


def test_taskiq_reads_it() -> None:
    message = JSONFormatter().loads(encoded(b"key"))
    assert message.task_id == "id-1"
    assert message.task_name == "dagster_taskiq.execute_step"
    assert json.loads(message.kwargs["task"])["step_key"] == TASK["step_key"]


def random_text(r: random.Random) -> str:
    return "".join(
        chr(r.choice([r.randrange(1, 128), r.randrange(128, 0xD800), r.randrange(0xE000, 0x110000)]))
        for _ in range(r.randrange(1, 30))
    )


def test_random_round_trips() -> None:
    r = random.Random(7)
    for _ in range(500):
        parts: dict[str, Any] = {
            random_text(r): r.choice([random_text(r), (r.randbytes(32).hex(), r.randrange(1, 1 << 27))])
            for _ in range(r.randrange(5))
        }
        texts = {name: random_text(r) for name in ("run_id", "step_key", "job_name", "queue", "code_location")}
        numbers = {"attempt": r.randrange(1, 1 << 31), "lease_ttl": r.uniform(0.1, 1e6), "sent_at": r.uniform(0, 4e9)}
        task = {**TASK, **texts, **numbers, "settings": json.dumps({random_text(r): 1}), "parts": parts}
        key = r.choice([None, r.randbytes(20)])
        message = _core.encode_step_task(task, task_id=random_text(r), signing_key=key)
        assert _core.decode_step_task(message, signing_keys=[key] if key else []) == {**task, "version": 1}


class TestSignature:
    def test_is_hmac_sha256_of_the_text(self) -> None:
        kwargs = json.loads(encoded(b"key"))["kwargs"]
        assert kwargs["signature"] == hmac.new(b"key", kwargs["task"].encode(), hashlib.sha256).hexdigest()

    def test_any_of_the_keys_may_have_signed(self) -> None:
        assert _core.decode_step_task(encoded(b"old"), signing_keys=[b"new", b"old"])["queue"] == "dagster"

    def test_unsigned_is_refused_when_there_is_a_key(self) -> None:
        with pytest.raises(errors.PayloadSignatureError) as caught:
            _core.decode_step_task(encoded(), signing_keys=[b"key"])
        assert caught.value.name == "unsigned"

    def test_wrong_key_is_refused(self) -> None:
        with pytest.raises(errors.PayloadSignatureError) as caught:
            _core.decode_step_task(encoded(b"key"), signing_keys=[b"other"])
        assert caught.value.name == "signature"

    def test_a_changed_text_is_refused(self) -> None:
        message = encoded(b"key").replace(b'dagster\\"', b'Dagster\\"')
        assert message != encoded(b"key")
        with pytest.raises(errors.PayloadSignatureError):
            _core.decode_step_task(message, signing_keys=[b"key"])


class TestHostile:
    def test_every_truncation_is_refused(self) -> None:
        message = encoded()
        for length in range(len(message)):
            with pytest.raises(errors.PayloadError):
                _core.decode_step_task(message[:length])

    def test_every_changed_byte_is_refused_or_harmless(self) -> None:
        message, r = encoded(), random.Random(3)
        for at in range(len(message)):
            changed = message[:at] + bytes([r.randrange(256)]) + message[at + 1 :]
            with contextlib.suppress(errors.PayloadError):
                _core.decode_step_task(changed)

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"null",
            b"[]",
            b"\xff\xfe",
            b'{"task_name": "dagster_taskiq.execute_step"}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            wrapped("{}"),
            wrapped("[" * 100_000),
            wrapped("\x00"),
            wrapped('{"version": 1}'),
        ],
        ids=lambda message: repr(message[:40]),
    )
    def test_nonsense(self, message: bytes) -> None:
        with pytest.raises(errors.PayloadError):
            _core.decode_step_task(message)

    def test_another_version(self) -> None:
        text = json.dumps({**json.loads(json.loads(encoded())["kwargs"]["task"]), "version": 2})
        with pytest.raises(errors.PayloadVersionError):
            _core.decode_step_task(wrapped(text))

    def test_an_unknown_key(self) -> None:
        text = json.dumps({**json.loads(json.loads(encoded())["kwargs"]["task"]), "surprise": 2})
        with pytest.raises(errors.PayloadError):
            _core.decode_step_task(wrapped(text))

    def test_too_large(self) -> None:
        with pytest.raises(errors.PayloadTooLargeError):
            encoded(parts={"known_state": json.dumps("x" * 1_000_000)})
        with pytest.raises(errors.PayloadTooLargeError):
            _core.decode_step_task(wrapped("x" * 1_000_000))


class TestArguments:
    def test_missing_key(self) -> None:
        with pytest.raises(TypeError, match="lacks the key 'queue'"):
            _core.encode_step_task({k: v for k, v in TASK.items() if k != "queue"}, task_id="x")

    def test_unknown_key(self) -> None:
        with pytest.raises(TypeError, match="unknown key 'color'"):
            encoded(color="red")

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"queue": 3}, TypeError),
            ({"queue": "a\0b"}, ValueError),
            ({"queue": "\ud800"}, UnicodeEncodeError),
            ({"attempt": "1"}, TypeError),
            ({"attempt": 1 << 40}, OverflowError),
            ({"attempt": 1 << 70}, OverflowError),
            ({"heartbeat": None}, TypeError),
            ({"heartbeat": float("nan")}, ValueError),
            ({"parts": {"a": 3}}, TypeError),
            ({"parts": {"a": ("00", 1)}}, ValueError),
            ({"parts": {"a": ("g" * 64, 1)}}, ValueError),
            ({"parts": {"a": ("0" * 64, -1)}}, ValueError),
            ({"parts": {3: "x"}}, TypeError),
            ({"parts": []}, (TypeError, AttributeError)),
        ],
        ids=repr,
    )
    def test_wrong(self, changes: dict[str, Any], error: Any) -> None:
        with pytest.raises(error):
            encoded(**changes)

    def test_task_id_is_needed(self) -> None:
        with pytest.raises(TypeError, match="task_id"):
            _core.encode_step_task(TASK)  # type: ignore[call-arg]


def test_sha256_hex() -> None:
    assert _core.sha256_hex("ä") == _core.sha256_hex("ä".encode()) == hashlib.sha256("ä".encode()).hexdigest()
    with pytest.raises(TypeError):
        _core.sha256_hex(3)  # type: ignore[arg-type]
