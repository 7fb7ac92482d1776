"""Each test that docs/reliability.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_the_tests_it_names_exist() -> None:
    text = (TESTS.parent / "docs" / "reliability.md").read_text()
    named = re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if not re.search(rf"def {name}\(", (TESTS / file).read_text())]
    assert missing == []
