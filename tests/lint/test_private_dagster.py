"""Nothing in the package imports what is private to Dagster."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dagster_taskiq"
FILES = sorted(PACKAGE.rglob("*.py"))
PRIVATE = re.compile(r"dagster(\w*)(\.\w+)*\._\w+(\.\w+)*")
OWN = "dagster_taskiq"


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import, and of each text that could be handed to an import function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def private(source: str) -> list[tuple[int, str]]:
    return [
        (line, name)
        for line, name in imported(ast.parse(source))
        if PRIVATE.fullmatch(name) and name.partition(".")[0] != OWN
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_public_names_only(path: Path) -> None:
    assert private(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import dagster._core",
        "import dagster._core.events as e",
        "from dagster import _core",
        "from dagster._serdes import x",
        "from dagster_postgres._x import y",
        "def f():\n    from dagster._utils.error import z",
        "import_module('dagster._core.definitions')",
    ],
)
def test_this_test_sees(source: str) -> None:
    assert private(source)


@pytest.mark.parametrize(
    "source",
    ["import dagster", "from dagster import job", "from dagster_taskiq import _core", "'is dagster._core private?'"],
)
def test_this_test_allows(source: str) -> None:
    assert not private(source)
