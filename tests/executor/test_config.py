"""Settings: precedence, conversions, and combinations that cannot keep the promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import job, op, validate_run_config

from dagster_taskiq import taskiq_executor
from dagster_taskiq.config import Settings, load_yaml
from dagster_taskiq.errors import ConfigError


@op
def nothing() -> None:
    pass


@job(executor_def=taskiq_executor)
def any_job() -> None:
    nothing()


def test_defaults() -> None:
    settings = Settings.from_config({}, environ={})
    assert (settings.queue, settings.lease_ttl, settings.heartbeat_interval) == ("dagster", 120.0, 10.0)
    assert settings.margin == pytest.approx(10.1)


def test_the_config_block_comes_before_the_environment_and_that_before_defaults() -> None:
    environ = {"DAGSTER_TASKIQ_QUEUE": "from-environment", "DAGSTER_TASKIQ_SIGNING_KEY": "key"}
    assert Settings.from_config({}, environ=environ).queue == "from-environment"
    settings = Settings.from_config({"queue": "from-config"}, environ=environ)
    assert (settings.queue, settings.signing_key) == ("from-config", "key")


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        signing_key="s3cret", previous_signing_keys=("old-s3cret",), database_url="postgresql://u:s3cret@h/d"
    )
    assert "s3cret" not in repr(settings)


def test_backoff_and_an_explicit_null() -> None:
    settings = Settings.from_config({"backoff": {"base": 1, "cap": 5}, "no_worker_warning": None}, environ={})
    assert (settings.backoff_base, settings.backoff_cap, settings.no_worker_warning) == (1.0, 5.0, None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lease_ttl": 20, "heartbeat_interval": 10}, ["lease_ttl", "heartbeat_interval"]),
        ({"visibility_timeout": 15, "heartbeat_interval": 10}, ["visibility_timeout", "heartbeat_interval"]),
        ({"visibility_timeout": 50_000}, ["visibility_timeout", "43200"]),
        ({"lease_ttl": 0}, ["lease_ttl"]),
        ({"backoff": {"base": 10, "cap": 1}}, ["backoff"]),
        ({"backoff": {"bas": 10}}, ["backoff.bas"]),
        ({"quue": "x"}, ["quue", "queue"]),
        ({"priority_queues": [{"queue": "high"}]}, ["priority_queues", "high"]),
        ({"priority_queues": [{"queue": "high", "priority": 1, "slots": 2}]}, ["priority_queues", "slots"]),
        ({"priority_queues": [{"queue": "high", "priority": True}]}, ["priority_queues", "True"]),
        ({"priority_queues": "high"}, ["priority_queues", "list"]),
        ({"tag_concurrency_limits": "abc"}, ["tag_concurrency_limits", "list"]),
        ({"tag_concurrency_limits": ["abc"]}, ["tag_concurrency_limits", "abc"]),
        ({"tag_concurrency_limits": [{"key": "a", "limit": "2"}]}, ["tag_concurrency_limits", "'2'"]),
        ({"tag_concurrency_limits": [{"key": "a", "limit": 2, "max": 3}]}, ["tag_concurrency_limits", "max"]),
        ({"reuse_connections": "false"}, ["reuse_connections", "false"]),
        ({"lease_ttl": "soon"}, ["lease_ttl", "soon"]),
        ({"lease_ttl": float("nan")}, ["lease_ttl", "nan"]),
        ({"lease_ttl": float("inf")}, ["lease_ttl", "inf"]),
        ({"visibility_timeout": 60.5}, ["visibility_timeout", "60.5"]),
        ({"max_concurrent": True}, ["max_concurrent", "True"]),
        ({"backoff": 5}, ["backoff", "base", "cap"]),
        ({"queue": ["a", "b"]}, ["queue", "text"]),
        ({"signing_key": 12345}, ["signing_key", "quotes"]),
        ({"worker_loss_retries": -1}, ["worker_loss_retries"]),
        ({"queue": ""}, ["queue"]),
        ({"max_concurrent": 0}, ["max_concurrent"]),
        ({"previous_signing_keys": ["old"]}, ["previous_signing_keys", "signing_key"]),
        ({"signing_key": ""}, ["signing_key", "empty"]),
        ({"signing_key": "new", "previous_signing_keys": [123]}, ["previous_signing_keys", "quotes"]),
        ({"signing_key": "new", "previous_signing_keys": ["old", ""]}, ["previous_signing_keys", "empty"]),
        ({"code_locations": 3}, ["code_locations"]),
        ({"code_locations": [1]}, ["code_locations", "1"]),
        ({"code_locations": ""}, ["code_locations", "empty"]),
        ({"code_locations": " , "}, ["code_locations", "empty"]),
        ({"load_timeout": 0}, ["load_timeout"]),
        ({"retention": 60}, ["retention", "7200"]),
    ],
)
def test_what_cannot_work_is_refused_by_name(config: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_config(config, environ={})
    assert all(word in str(caught.value) for word in words)


def test_a_key_from_an_empty_variable_is_refused(tmp_path: Path) -> None:
    """Else a worker would take every message, and nobody would know."""
    with pytest.raises(ConfigError, match="DAGSTER_TASKIQ_SIGNING_KEY"):
        Settings.from_config({}, environ={"DAGSTER_TASKIQ_SIGNING_KEY": ""})
    path = tmp_path / "worker.yaml"
    path.write_text("execution: {config: {signing_key: {env: KEY}}}")
    with pytest.raises(ConfigError, match="signing_key"):
        Settings.from_config(load_yaml(path, environ={"KEY": ""}), environ={})


def test_keys_are_not_shown_where_they_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_config({"signing_key": "new", "previous_signing_keys": [12345]}, environ={})
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_are_finite_however_they_are_given(value: float) -> None:
    with pytest.raises(ConfigError, match="lease_ttl"):
        Settings(lease_ttl=value)


def test_yaml_with_environment_variables(tmp_path: Path) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text(
        "execution:\n  config:\n    queue: {env: Q}\n    lease_ttl: {env: TTL}\n    heartbeat_interval: 2\n"
    )
    block = load_yaml(path, environ={"Q": "mine", "TTL": "30"})
    settings = Settings.from_config(block, environ={})
    assert (settings.queue, settings.lease_ttl) == ("mine", 30.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("execution: {config: {queue: {env: NOPE}}}", "NOPE"),
        ("execution: [1]", "execution"),
        ("queue: mine", "execution"),
        ("[1]", "execution"),
        ("a: [", "worker.yaml"),
    ],
)
def test_yaml_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_yaml(path, environ={})


def test_an_empty_yaml_file_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text("")
    assert load_yaml(path, environ={}) == {}


def test_job_config_accepts_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    config = {
        "queue": "q",
        "queue_url": "http://127.0.0.1/q",
        "region": "eu-central-1",
        "endpoint_url": "http://127.0.0.1:1",
        "database_url": {"env": "THE_KEY"},
        "retries": {"disabled": {}},
        "max_concurrent": 3,
        "tag_concurrency_limits": [{"key": "a", "limit": 1}],
        "visibility_timeout": 60,
        "lease_ttl": 60,
        "heartbeat_interval": 5,
        "worker_loss_retries": 0,
        "backoff": {"base": 1},
        "no_worker_warning": None,
        "no_worker_timeout": 5,
        "signing_key": {"env": "THE_KEY"},
    }
    validated = validate_run_config(any_job, {"execution": {"config": config}})
    resolved = {**validated["execution"]["taskiq"], "database_url": "postgresql://", "signing_key": "secret"}
    assert Settings.from_config(resolved, environ={}).max_concurrent == 3


def test_the_schema_has_every_setting() -> None:
    """Except those that only workers read."""
    schema = set(taskiq_executor.config_schema.config_type.fields)
    of_workers = {"previous_signing_keys", "code_locations", "load_timeout", "retention"}
    settings = set(Settings.__dataclass_fields__) - {"backoff_base", "backoff_cap"} - of_workers
    assert settings | {"backoff"} <= schema


def test_settings_of_workers() -> None:
    environ = {"DAGSTER_TASKIQ_SIGNING_KEY": "c", "DAGSTER_TASKIQ_PREVIOUS_SIGNING_KEYS": "b, a"}
    settings = Settings.from_config({"code_locations": ["one", "two"], "retention": None}, environ=environ)
    assert settings.previous_signing_keys == ("b", "a")
    assert (settings.code_locations, settings.retention) == (("one", "two"), None)
    assert Settings.from_config({"retention": "86400"}, environ={}).retention == 86400.0
