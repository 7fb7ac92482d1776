"""The module as a whole: what it exports, what its import does, interpreters, and its stub."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dagster_taskiq
from dagster_taskiq import _core

STUB = Path(dagster_taskiq.__file__).with_name("_core.pyi")
BINARY = _core.__file__
assert BINARY

ENDS_THE_PROCESS = {"abort", "exit", "_exit", "_Exit", "quick_exit", "__assert_fail"}


def run(script: str) -> str:
    """Standard output of a fresh interpreter."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


# The binary


def symbols(*options: str) -> set[str]:
    if not shutil.which("nm"):
        pytest.skip("needs nm of the binutils")
    listed = subprocess.run(["nm", "-D", *options, str(BINARY)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines()}


def test_exports_nothing_but_its_initializer() -> None:
    assert symbols("--defined-only") == {"PyInit__core"}


def test_never_ends_the_process() -> None:
    assert symbols("--undefined-only") & ENDS_THE_PROCESS == set()


# Its import


def test_import_is_cheap_and_quiet() -> None:
    out = run(
        """
import os, sys
before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
import dagster_taskiq, dagster_taskiq._core, dagster_taskiq.errors
heavy = {"dagster", "taskiq", "asyncio", "socket", "threading", "botocore", "dagster_taskiq._bridge"} & set(sys.modules)
print(sorted(heavy))
if before:
    print(len(os.listdir("/proc/self/task")), sorted(set(os.listdir("/proc/self/fd")) - before))
"""
    )
    assert out in ("[]\n1 []\n", "[]\n")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_thread_starts_with_the_first_operation_and_ends_with_close() -> None:
    out = run(
        """
import os, time
def threads(): return len(os.listdir("/proc/self/task"))
from dagster_taskiq import _core
loop = _core.Loop()
keys = {"access_key_id": "a", "secret_access_key": "b"}
client = _core.SqsClient(loop, region="us-east-1", endpoint="http://127.0.0.1:1", **keys)
print(threads())
operation = client.call("ListQueues")
print(threads() > 1)
loop.close()
# A thread that has been joined can be in /proc for a moment more.
deadline = time.monotonic() + 30
while threads() > 1 and time.monotonic() < deadline:
    time.sleep(0.001)
print(threads())
"""
    )
    assert out == "1\nTrue\n1\n"


def test_public_names() -> None:
    for name in dagster_taskiq.__all__:
        assert getattr(dagster_taskiq, name) is getattr(dagster_taskiq, name)
        assert name in dir(dagster_taskiq)
    with pytest.raises(AttributeError, match="nonsense"):
        dagster_taskiq.nonsense  # noqa: B018


IN_A_SUBINTERPRETER = """
from dagster_taskiq import _core, errors
try:
    _core.decode_step_task(b"{")
except errors.PayloadError as error:
    assert type(error) is errors.PayloadError
else:
    raise AssertionError
loop = _core.Loop()
client = _core.SqsClient(
    loop, region="us-east-1", endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b", max_attempts=1
)
try:
    client.call("ListQueues").result(30)
except errors.SqsTransportError:
    pass
else:
    raise AssertionError
left_open = _core.Loop()
_core.SqsClient(
    left_open, region="us-east-1", endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b"
).call("ListQueues")
"""

AWAITS = """
import asyncio
async def main():
    try:
        await client.call("ListQueues")
    except errors.SqsTransportError:
        return True
assert asyncio.run(main())
"""

if sys.version_info[:2] != (3, 12):
    # There (3.12.1) asyncio alone crashes the process once two interpreters have imported it.
    IN_A_SUBINTERPRETER += AWAITS


def test_subinterpreters() -> None:
    """Each has a module of its own; from 3.12 on also a GIL of its own.  Twice, for what the first leaves behind."""
    run(
        f"""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import sys
from dagster_taskiq import _core
code = f"import sys; sys.path[:] = {{sys.path}}\\n" + {IN_A_SUBINTERPRETER!r}
for _ in range(2):
    one = interpreters.create()
    problem = interpreters.run_string(one, code)
    assert problem is None, problem
    interpreters.destroy(one)
_core.Loop().close()
"""
    )


# Its stub

KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "any",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
}

Parameters = list[tuple[str, str, object]]
NEEDED = "needed"


def declared(function: ast.FunctionDef, *, method: bool) -> Parameters:
    arguments = function.args
    assert arguments.vararg is None
    assert arguments.kwarg is None
    positional = [(a.arg, "positional") for a in arguments.posonlyargs] + [(a.arg, "any") for a in arguments.args]
    defaults = [NEEDED] * (len(positional) - len(arguments.defaults)) + [
        ast.literal_eval(d) for d in arguments.defaults
    ]
    found: Parameters = [(*names, default) for names, default in zip(positional, defaults, strict=True)]
    for argument, given in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((argument.arg, "keyword", NEEDED if given is None else ast.literal_eval(given)))
    return found[1:] if method else found


def real(function: object, *, method: bool) -> Parameters:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    found: Parameters = [
        (p.name, KINDS[p.kind], NEEDED if p.default is p.empty else p.default) for p in signature.parameters.values()
    ]
    return found[1:] if method else found


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    named = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    values = {
        node.target.id: node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {**named, **values}


def test_stub_has_what_the_module_has() -> None:
    stub = members(ast.parse(STUB.read_text()).body)
    assert set(stub) == {name for name in vars(_core) if not name.startswith("__")}
    for name, node in stub.items():
        if isinstance(node, ast.FunctionDef):
            assert declared(node, method=False) == real(getattr(_core, name), method=False), name


CLASSES = ["Beat", "Event", "FenceBoard", "Loop", "Operation", "SqsClient", "Store"]
UNDECLARED = {"__doc__", "__module__", "__repr__", "__init__", "__getattribute__"}


@pytest.mark.parametrize("name", CLASSES)
def test_stub_has_what_the_class_has(name: str) -> None:
    kind = getattr(_core, name)
    node = members(ast.parse(STUB.read_text()).body)[name]
    assert isinstance(node, ast.ClassDef)
    stub = members(node.body)
    assert set(stub) - UNDECLARED == set(vars(kind)) - UNDECLARED
    for member, declaration in stub.items():
        if not isinstance(declaration, ast.FunctionDef):
            continue
        if declaration.decorator_list:
            assert inspect.isdatadescriptor(vars(kind)[member]), member
        elif member == "__new__":
            assert declared(declaration, method=True) == real(kind, method=False), name
        elif not member.startswith("__"):
            assert declared(declaration, method=True) == real(getattr(kind, member), method=True), f"{name}.{member}"


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_final_and_cannot_be_changed(name: str) -> None:
    kind = getattr(_core, name)
    with pytest.raises(TypeError):
        type("Sub", (kind,), {})
    with pytest.raises(TypeError):
        kind.new_attribute = 1
