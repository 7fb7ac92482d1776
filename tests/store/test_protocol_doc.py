"""The table of moves is written twice, beside the SQL and in the documentation: both say the same."""

from __future__ import annotations

import re
from pathlib import Path

from dagster_taskiq import _core

ROOT = Path(__file__).parents[2]
STATES = "queued|claimed|succeeded|failed|cancelled|lost"


def moves_beside_the_sql() -> set[tuple[str, str, str]]:
    text = (ROOT / "src/core/dtq_store_sql.h").read_text()
    found = set()
    row = re.compile(rf"^ \*   (-|{STATES}) +({STATES})( \*)? +(\w+) +\S")
    for line in text.splitlines():
        if match := row.match(line):
            found.add((match[1], match[2], match[4]))
    return found


def moves_in_the_documentation() -> set[tuple[str, str, str]]:
    text = (ROOT / "docs/internals/protocol.md").read_text()
    row = re.compile(rf"^\| (none|{STATES}) \| ({STATES})¹? \| `(\w+)` \|", re.MULTILINE)
    return {(source.replace("none", "-"), target, statement) for source, target, statement in row.findall(text)}


def test_the_tables_agree() -> None:
    assert moves_beside_the_sql() == moves_in_the_documentation()
    assert len(moves_beside_the_sql()) == 23


def test_every_move_is_a_statement() -> None:
    assert {statement for _, _, statement in moves_beside_the_sql()} <= set(_core.statements())
