"""What the benchmarks share: the machine's name, the table, the JSON file, programs in C, other interpreters."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CORE = Path(__file__).resolve().parent.parent / "src" / "core"
PACKAGES = ("libcurl", "openssl", "libpq", "libcjson")


def machine() -> dict[str, Any]:
    """What was measured on, and how busy it is."""
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])

    return "\n".join(line(cells) for cells in (header, *rows))


def write_json(file: Path | None, result: dict[str, Any]) -> None:
    """Into ``file``, when one is asked for."""
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n")


def compile_c(program: Path, sources: Sequence[Path]) -> Path:
    """A program that may use the core's headers and libraries."""

    def words(option: str) -> list[str]:
        return shlex.split(subprocess.check_output(["pkg-config", option, *PACKAGES], text=True))

    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", f"-I{CORE}", *words("--cflags")]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, *flags, "-o", program, *sources, *words("--libs"), "-lpthread", "-lm"], check=True)
    return program


def interpreter_with(package: str, other: str | None) -> str | None:
    """This interpreter or the other one, whichever can import the package."""
    for python in (sys.executable, other):
        if python:
            tried = subprocess.run([python, "-c", f"import {package}"], stderr=subprocess.DEVNULL, check=False)
            if not tried.returncode:
                return python
    return None
