"""Config: schemas, pydantic classes, secrets of the environment."""

from conformance_case import Case
from dagster import (
    Config,
    ConfigMapping,
    EnvVar,
    Field,
    OpExecutionContext,
    RunConfig,
    StringSource,
    configured,
    graph,
    job,
    op,
)
from pydantic import Field as PydanticField


class Inner(Config):
    depth: int = 1


class Settings(Config):
    word: str
    times: int = PydanticField(default=2, ge=1)
    inner: Inner = Inner()
    names: list[str] = PydanticField(default_factory=list)
    maybe: int | None = None


@op
def reads_settings(config: Settings) -> str:
    return f"{config.word * config.times} {config.inner.depth} {config.names} {config.maybe}"


@job
def configured_pydantic() -> None:
    reads_settings()


@job(config=RunConfig(ops={"reads_settings": Settings(word="from the job", inner=Inner(depth=4))}))
def configured_by_the_job() -> None:
    reads_settings()


@op(config_schema={"secret": StringSource, "plain": Field(str, default_value="default")})
def reads_secret(context: OpExecutionContext) -> str:
    return f"{context.op_config['secret']}, {context.op_config['plain']}"


@job
def configured_from_environment() -> None:
    reads_secret()


@configured(reads_secret, config_schema={"which": str})
def reads_with_name(config: dict[str, str]) -> dict[str, str]:
    return {"secret": config["which"], "plain": "configured"}


@job
def configured_op() -> None:
    reads_with_name()


@graph
def inside() -> str:
    return reads_settings()


def spread(config: dict[str, int]) -> dict[str, object]:
    return {"ops": {"inside": {"ops": {"reads_settings": {"config": {"word": "x", "times": config["size"]}}}}}}


@op
def reads_environment() -> str:
    return str(EnvVar("CONFORMANCE_SECRET").get_value())


@job
def configured_environment_variable() -> None:
    reads_environment()


@graph
def outside() -> None:
    inside()


configured_graph = outside.to_job(
    name="configured_graph", config=ConfigMapping(config_schema={"size": int}, config_fn=spread)
)


class Checked(Config):
    number: int = PydanticField(gt=10)


@op
def reads_checked(config: Checked) -> int:
    return config.number


@job
def configured_wrongly() -> None:
    """What pydantic refuses fails the step: Dagster's own schema does not know the limit."""
    reads_checked()


SETTINGS = {"word": "ab", "times": 3, "inner": {"depth": 2}, "names": ["x", "y"]}

CASES = [
    Case("configured_pydantic", config={"ops": {"reads_settings": {"config": SETTINGS}}}),
    Case("configured_by_the_job", config={"ops": {"reads_settings": {"config": {"word": "w", "maybe": 4}}}}),
    Case(
        "configured_from_environment",
        config={"ops": {"reads_secret": {"config": {"secret": {"env": "CONFORMANCE_SECRET"}}}}},
    ),
    Case("configured_op", config={"ops": {"reads_with_name": {"config": {"which": "given"}}}}),
    Case("configured_graph", config={"size": 2}, own_config=True),
    Case("configured_environment_variable"),
    Case("configured_wrongly", config={"ops": {"reads_checked": {"config": {"number": 3}}}}, success=False),
]
