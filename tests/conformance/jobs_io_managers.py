"""IO managers."""

import os

from conformance_case import Case
from conformance_ops import one, plus_one
from dagster import (
    ConfigurableIOManager,
    EnvVar,
    FilesystemIOManager,
    In,
    InputContext,
    Out,
    OutputContext,
    RetryPolicy,
    input_manager,
    io_manager,
    job,
    op,
)
from dagster import IOManager as Base


class Files(ConfigurableIOManager):
    """Keeps text in files and says so."""

    folder: str = "conformance_text"

    def _path(self, context: OutputContext | InputContext) -> str:
        if isinstance(context, InputContext):
            assert context.upstream_output is not None
            identifier = context.upstream_output.get_identifier()
        else:
            identifier = context.get_identifier()
        folder = os.path.join(os.environ["DAGSTER_HOME"], self.folder)
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, "-".join(identifier))

    def handle_output(self, context: OutputContext, obj: object) -> None:
        with open(self._path(context), "w") as file:
            file.write(repr(obj))
        context.add_output_metadata({"characters": len(repr(obj))})
        context.log.info(f"kept {obj}")

    def load_input(self, context: InputContext) -> int:
        with open(self._path(context)) as file:
            value = int(file.read())
        context.add_input_metadata({"value": value})
        context.log.info(f"found {value}")
        return value


class NoOutput(Base):
    def handle_output(self, context: OutputContext, obj: object) -> None:
        raise OSError("the disk is full")

    def load_input(self, context: InputContext) -> int:
        return 0


class NoInput(Base):
    def handle_output(self, context: OutputContext, obj: object) -> None:
        pass

    def load_input(self, context: InputContext) -> int:
        raise OSError("the file is gone")


@io_manager(required_resource_keys={"base"})
def with_a_resource(context) -> Base:  # type: ignore[no-untyped-def]
    assert context.resources.base == "the base"
    return NoInput()


@io_manager
def full_disk() -> Base:
    return NoOutput()


@io_manager
def lost_files() -> Base:
    return NoInput()


@job(resource_defs={"io_manager": Files()})
def io_custom() -> None:
    plus_one(one())


@job(resource_defs={"io_manager": FilesystemIOManager(base_dir=EnvVar("CONFORMANCE_FILES"))})
def io_filesystem_elsewhere() -> None:
    plus_one(one())


@op(out={"text": Out(int, io_manager_key="text"), "pickle": Out(int)})
def two_managers() -> tuple[int, int]:
    return 4, 5


@op
def multiply(first: int, second: int) -> int:
    return first * second


@job(resource_defs={"text": Files()})
def io_two_managers() -> None:
    text, pickled = two_managers()
    multiply(text, pickled)


@job(resource_defs={"io_manager": full_disk})
def io_output_fails() -> None:
    plus_one(one())


@job(resource_defs={"io_manager": lost_files})
def io_input_fails() -> None:
    plus_one(one())


@job(resource_defs={"io_manager": lost_files}, op_retry_policy=RetryPolicy(max_retries=1))
def io_input_fails_with_policy() -> None:
    plus_one(one())


@job(resource_defs={"io_manager": with_a_resource, "base": "the base"})
def io_with_a_resource() -> None:
    one()


@input_manager
def from_elsewhere(_context: InputContext) -> int:
    return 100


@op(ins={"value": In(int, input_manager_key="from_elsewhere")})
def reads_elsewhere(value: int) -> int:
    return value


@job(resource_defs={"from_elsewhere": from_elsewhere})
def io_input_manager() -> None:
    reads_elsewhere()


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("this is not to be pickled")


@op
def gives_unpicklable() -> object:
    return Unpicklable()


@job
def io_output_cannot_be_pickled() -> None:
    gives_unpicklable()


CASES = [
    Case("io_custom"),
    Case("io_filesystem_elsewhere"),
    Case("io_two_managers"),
    Case("io_output_fails", success=False),
    Case("io_input_fails", success=False),
    Case("io_input_fails_with_policy", success=False),
    Case("io_with_a_resource"),
    Case("io_input_manager"),
    Case("io_output_cannot_be_pickled", success=False),
]
