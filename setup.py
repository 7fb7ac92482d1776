"""Builds the C extension; everything else about the package is in pyproject.toml.

DTQ_SANITIZE, e.g. ``address,undefined``: build with these sanitizers of the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

LIBRARIES = ["libcurl", "libssl", "libcrypto", "libpq", "libcjson"]
"""pkg-config's names."""

HELP = """
dagster-taskiq's C core is built against libcurl, OpenSSL, libpq and cJSON, and {problem}.

  Debian, Ubuntu:  apt-get install gcc pkg-config libcurl4-openssl-dev libssl-dev libpq-dev libcjson-dev
  Homebrew:        brew install pkgconf curl openssl@3 libpq cjson
                   p=$(brew --prefix)/opt
                   export PKG_CONFIG_PATH="$p/curl/lib/pkgconfig:$p/openssl@3/lib/pkgconfig:$p/libpq/lib/pkgconfig"
"""


def pkg_config(*arguments: str) -> list[str]:
    """Words of pkg-config's answer about all libraries; ends the build with advice when it has none."""
    program = os.environ.get("PKG_CONFIG", "pkg-config")
    try:
        answer = subprocess.run([program, *arguments, *LIBRARIES], capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(HELP.format(problem=f"{program} could not be run: {error}"))
    if answer.returncode:
        sys.exit(HELP.format(problem=f"pkg-config does not find all of them:\n\n{answer.stderr.strip()}"))
    return answer.stdout.split()


def building() -> bool:
    """Whether this run compiles anything: metadata and source archives need no libraries."""
    return any(word.startswith(("build", "bdist", "install", "develop", "editable")) for word in sys.argv[1:])


def extension() -> Extension:
    compile_arguments = ["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden"]
    link_arguments: list[str] = []
    macros: list[tuple[str, str | None]] = [("_GNU_SOURCE", None)]
    # A free-threaded interpreter has no limited API.
    limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
    if limited:
        macros.append(("Py_LIMITED_API", "0x030A0000"))
    if building():
        compile_arguments += pkg_config("--cflags")
        link_arguments += pkg_config("--libs")
    sanitizers = os.environ.get("DTQ_SANITIZE")
    if sanitizers:
        compile_arguments += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1"]
        link_arguments += [f"-fsanitize={sanitizers}"]
    return Extension(
        "dagster_taskiq._core",
        sources=sorted(glob("src/core/*.c") + glob("src/binding/*.c")),
        depends=sorted(glob("src/core/*.h") + glob("src/core/*.def") + glob("src/binding/*.h")),
        include_dirs=["src/core", "src/binding"],
        define_macros=macros,
        extra_compile_args=compile_arguments,
        extra_link_args=link_arguments,
        py_limited_api=limited,
    )


CORE = extension()
setup(ext_modules=[CORE], options={"bdist_wheel": {"py_limited_api": "cp310"}} if CORE.py_limited_api else {})
