"""Log lines of a worker."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dagster_taskiq import logs


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    logger = logging.getLogger(logs.ROOT)
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def lines(json_lines: bool) -> list[str]:
    stream = io.StringIO()
    logs.configure(json_lines=json_lines, stream=stream)
    logger = logging.getLogger("dagster_taskiq.anything")
    logger.info("the step %s", "ended", extra=logs.fields(run_id="r", step_key="s", attempt=2, generation=7, pid=None))
    logger.debug("not seen")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    return stream.getvalue().splitlines()


def test_text() -> None:
    first, second, *traceback = lines(json_lines=False)
    assert first.endswith("INFO the step ended  run_id=r step_key=s attempt=2 generation=7")
    assert second.endswith("ERROR failed")
    assert traceback[-1] == "ValueError: wrong"


def test_json() -> None:
    first, second = map(json.loads, lines(json_lines=True))
    assert (first["level"], first["message"], first["attempt"], first["generation"]) == ("INFO", "the step ended", 2, 7)
    assert "pid" not in first
    assert second["exception"].endswith("ValueError: wrong")


def test_a_field_must_be_known() -> None:
    with pytest.raises(KeyError):
        logs.fields(colour="red")
