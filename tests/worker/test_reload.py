"""Code that changes under a worker, and code that cannot be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster
import pytest

from dagster_taskiq.code_files import changed_file, imported_files

HERE = Path(__file__).parent

CODE = """
from dagster import job, op
from worker_jobs import note, wait_for_release

@op
def quick():
    note("{version}")

@op
def other():
    note("{version}")

@op
def slow():
    note("{version}")
    wait_for_release()
    note("{version}-end")

@op
def slow_too():
    note("{version}")

@job
def work():
    quick(), other(), slow(), slow_too()
"""
BROKEN = f"{CODE.format(version='broken')}\nraise RuntimeError('cannot be imported')\n"


@pytest.fixture
def code(stage: Any, tmp_path: Path) -> Path:
    """The file that is the stage's code location."""
    path = tmp_path / "changing_jobs.py"
    stage.origin["repository_origin"]["code_pointer"] = {
        "__class__": "FileCodePointer",
        "fn_name": "work",
        "python_file": str(path),
        "working_directory": str(HERE),
    }
    stage.begin_run()
    return path


def error_of(stage: Any, step_key: str) -> str:
    return str(stage.outcome(step_key).error)


def test_changed_code_is_imported_again(stage: Any, start_worker: Any, code: Path) -> None:
    """By the next step; what runs goes on with the code that it has."""
    code.write_text(CODE.format(version="first"))
    worker = start_worker(args=["--reload"])
    stage.send("slow")
    stage.wait_for_note("first", "slow")
    code.write_text(CODE.format(version="second"))
    stage.send("quick")
    stage.wait_for_note("second", "quick")
    code.write_text(BROKEN)
    stage.send("other")
    stage.wait_for_state("other", "failed")
    assert "cannot be imported" in error_of(stage, "other")
    code.write_text(CODE.format(version="third"))
    stage.send("slow_too")
    stage.wait_for_note("third", "slow_too")
    stage.release()
    stage.wait_for_state("slow", "succeeded")
    stage.wait_for_note("first-end", "slow")
    assert worker.output.count(f"{code} has changed") == 3
    stage.begin_run()
    stage.send("quick")
    stage.wait_for_state("quick", "succeeded")
    assert worker.output.count("a warm parent is ready") == 4


def test_a_file_that_cannot_be_imported_is_no_code_location(stage: Any, start_worker: Any, code: Path) -> None:
    """Every step says so, also of a file that is wrong at its end only, until it has been put right."""
    code.write_text(BROKEN)
    worker = start_worker()
    for key in ("quick", "other"):
        stage.send(key)
        stage.wait_for_state(key, "failed")
        assert "cannot be imported" in error_of(stage, key)
    code.write_text(CODE.format(version="right"))
    stage.send("slow_too")
    stage.wait_for_note("right", "slow_too")
    assert worker.output.count("a warm parent is ready") == 1


def test_what_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own modules, those that could not be imported too; not what is installed."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("own_module", ""), ("no_python", "this is not"), ("own_user", "import no_python")):
        (tmp_path / f"{name}.py").write_text(text)
    begun = max((tmp_path / f"{name}.py").stat().st_mtime_ns for name in ("own_module", "no_python", "own_user")) + 1
    __import__("own_module")
    with pytest.raises(SyntaxError) as failure:
        __import__("own_user")
    files = imported_files(begun, failure.value)
    assert {Path(path).name for path in files if Path(path).parent == tmp_path} == {
        "own_module.py",
        "no_python.py",
        "own_user.py",
    }
    assert not {pytest.__file__, json.__file__, dagster.__file__} & files.keys()
    files = {path: changed for path, changed in files.items() if Path(path).parent == tmp_path}
    assert changed_file(files) is None
    (tmp_path / "own_module.py").unlink()
    assert changed_file(files) == str(tmp_path / "own_module.py")
