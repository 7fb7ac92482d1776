"""Each test and each case that docs/parity.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

from conformance_case import all_cases

TESTS = Path(__file__).parent.parent
TEXT = (TESTS.parent / "docs" / "parity.md").read_text()


def test_the_tests_it_names_exist() -> None:
    named = re.findall(r"`([a-z0-9]+/test_\w+\.py)::(test_\w+)`", TEXT)
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if not re.search(rf"def {name}\(", (TESTS / file).read_text())]
    assert missing == []


def test_the_cases_it_names_exist() -> None:
    lists = re.findall(r"\bcases? ((?:`\w+`(?:, )?)+)", TEXT)
    named = {case for found in lists for case in re.findall(r"`(\w+)`", found)}
    assert len(named) > 15
    assert named <= {case.id for _, case in all_cases()}
