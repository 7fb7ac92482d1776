"""The core's table of errors and dagster_taskiq.errors."""

from __future__ import annotations

import builtins
import inspect
import pickle

import pytest

from dagster_taskiq import _core, errors

PYTHON_ONLY = {
    "DagsterTaskiqError",
    "ConfigError",
    "StaleWriteError",
    "StepTimeLimitError",
    "WarmParentError",
    "SqsError",
}
"""Classes that the core never raises itself."""


def test_each_code_has_a_class() -> None:
    for name, number, sentence, _, python in _core.ERROR_TABLE:
        if number == 0:
            assert (name, python) == ("ok", "")
            continue
        assert sentence
        found = getattr(errors, python, None)
        assert found is None or issubclass(found, errors.CoreError), python
        assert found or issubclass(getattr(builtins, python), (ValueError, MemoryError)), python


def test_numbers_and_names_are_unique() -> None:
    assert len({row[0] for row in _core.ERROR_TABLE}) == len(_core.ERROR_TABLE)
    assert len({row[1] for row in _core.ERROR_TABLE}) == len(_core.ERROR_TABLE)


def test_each_class_is_used() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert classes - PYTHON_ONLY == {row[4] for row in _core.ERROR_TABLE if row[4] not in vars(builtins)} - {""}


def test_what_an_error_carries() -> None:
    with pytest.raises(errors.PayloadError) as caught:
        _core.decode_step_task(b"{")
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.code, error.name, error.retryable) == (20, "parse", False)
    assert (error.http_status, error.system_errno, error.service_code, error.sqlstate) == (None, None, None, None)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, vars(again)) == (type(error), error.args, vars(error))


def test_timeouts_are_timeouts() -> None:
    assert issubclass(errors.OperationTimeoutError, TimeoutError)
