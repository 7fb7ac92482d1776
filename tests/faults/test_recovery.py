"""After each failure things go on.  How long that takes is printed, not asserted; docs/reliability.md has figures."""

from __future__ import annotations

from pathlib import Path

import fault_recovery
import pytest


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", list(fault_recovery.KINDS))
def test_things_go_on(kind: str, tmp_path: Path) -> None:
    seconds = fault_recovery.KINDS[kind](tmp_path / "stack")
    print(f"{kind}: {seconds:.2f} s ({fault_recovery.meaning(kind)})")
