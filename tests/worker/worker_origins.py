"""Where a job's code is, as Dagster writes it, for warm parents that no run asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def job_origin(module: str, target: str, job: str) -> str:
    """The JSON of a job's origin: ``job`` of what is named ``target`` in a module of this folder."""
    pointer = {
        "__class__": "ModuleCodePointer",
        "fn_name": target,
        "module": module,
        "working_directory": str(Path(__file__).parent),
    }
    repository = {
        "__class__": "RepositoryPythonOrigin",
        "code_pointer": pointer,
        "container_context": None,
        "container_image": None,
        "entry_point": ["dagster"],
        "executable_path": sys.executable,
    }
    return json.dumps({"__class__": "PipelinePythonOrigin", "pipeline_name": job, "repository_origin": repository})
