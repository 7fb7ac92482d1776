"""Resources: made, torn down, nested, failing."""

from collections.abc import Iterator
from contextlib import contextmanager

from conformance_case import Case
from dagster import (
    ConfigurableResource,
    InitResourceContext,
    OpExecutionContext,
    ResourceDependency,
    RetryPolicy,
    job,
    make_values_resource,
    op,
    resource,
)
from pydantic import PrivateAttr


@resource
def plain() -> str:
    return "plain"


@op(required_resource_keys={"plain"})
def uses_plain(context: OpExecutionContext) -> str:
    return str(context.resources.plain)


@op
def uses_none() -> str:
    return "none"


@job(resource_defs={"plain": plain})
def resources_plain() -> None:
    """Only the step that needs it makes it."""
    uses_plain()
    uses_none()


@resource
@contextmanager
def torn_down(context: InitResourceContext) -> Iterator[str]:
    assert context.log is not None
    context.log.info("opened")
    try:
        yield "open"
    finally:
        context.log.info("closed")


@op(required_resource_keys={"torn_down"})
def uses_torn_down(context: OpExecutionContext) -> str:
    context.log.info("used")
    return str(context.resources.torn_down)


@op(required_resource_keys={"torn_down"})
def fails_with_torn_down() -> None:
    raise ValueError("while the resource is open")


@job(resource_defs={"torn_down": torn_down})
def resources_teardown() -> None:
    uses_torn_down()


@job(resource_defs={"torn_down": torn_down})
def resources_teardown_after_failure() -> None:
    fails_with_torn_down()


@resource
def fails_to_come() -> None:
    raise RuntimeError("the resource cannot be had")


@op(required_resource_keys={"fails_to_come"})
def uses_broken() -> int:
    return 1


@op(required_resource_keys={"fails_to_come"}, retry_policy=RetryPolicy(max_retries=1, delay=0.1))
def uses_broken_again() -> int:
    return 1


@op
def follows(value: int) -> int:
    return value


@job(resource_defs={"fails_to_come": fails_to_come})
def resources_init_fails() -> None:
    follows(uses_broken())


@job(resource_defs={"fails_to_come": fails_to_come})
def resources_init_fails_with_policy() -> None:
    uses_broken_again()


@job(resource_defs={"fails_to_come": fails_to_come})
def resources_init_fails_for_one() -> None:
    """The other step is not concerned."""
    uses_broken()
    uses_none()


@resource
def breaks_at_the_end(context: InitResourceContext) -> Iterator[str]:
    yield "works"
    raise RuntimeError("cannot be closed")


@op(required_resource_keys={"breaks_at_the_end"})
def uses_breaking(context: OpExecutionContext) -> str:
    return str(context.resources.breaks_at_the_end)


@job(resource_defs={"breaks_at_the_end": breaks_at_the_end})
def resources_teardown_fails() -> None:
    uses_breaking()


class Inner(ConfigurableResource):
    word: str


class Outer(ConfigurableResource):
    inner: ResourceDependency[Inner]
    times: int = 2
    _prefix: str = PrivateAttr()

    def setup_for_execution(self, context: InitResourceContext) -> None:
        assert context.log is not None
        context.log.info("set up")
        self._prefix = ">"

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        assert context.log is not None
        context.log.info("torn down")

    def say(self) -> str:
        return self._prefix + self.inner.word * self.times


@op
def says(outer: Outer) -> str:
    return outer.say()


@job(resource_defs={"outer": Outer(inner=Inner(word="ha"))})
def resources_nested() -> None:
    says()


@resource(required_resource_keys={"plain"})
def on_top(context: InitResourceContext) -> str:
    return f"on top of {context.resources.plain}"


@op(required_resource_keys={"on_top"})
def uses_on_top(context: OpExecutionContext) -> str:
    return str(context.resources.on_top)


@job(resource_defs={"plain": plain, "on_top": on_top})
def resources_on_resources() -> None:
    uses_on_top()


@op(required_resource_keys={"values"})
def uses_values(context: OpExecutionContext) -> str:
    return f"{context.resources.values['colour']} {context.resources.values['size']}"


@job(resource_defs={"values": make_values_resource(colour=str, size=int)})
def resources_from_config() -> None:
    uses_values()


class WaitsForConfig(ConfigurableResource):
    secret: str
    number: int = 1


@op
def tells_secret(given: WaitsForConfig) -> str:
    return f"{given.secret} {given.number}"


@job(resource_defs={"given": WaitsForConfig.configure_at_launch()})
def resources_configured_at_launch() -> None:
    tells_secret()


IN_PROCESS_NO_STEP = "resources are made for the whole run there: when one cannot be had, no step starts"

CASES = [
    Case("resources_plain"),
    Case("resources_teardown"),
    Case("resources_teardown_after_failure", success=False),
    Case("resources_init_fails", success=False, not_in_process=IN_PROCESS_NO_STEP),
    Case("resources_init_fails_with_policy", success=False, not_in_process=IN_PROCESS_NO_STEP),
    Case("resources_init_fails_for_one", success=False, not_in_process=IN_PROCESS_NO_STEP),
    Case("resources_teardown_fails"),
    Case("resources_nested"),
    Case("resources_on_resources"),
    Case("resources_from_config", config={"resources": {"values": {"config": {"colour": "red", "size": 3}}}}),
    Case(
        "resources_configured_at_launch",
        config={"resources": {"given": {"config": {"secret": {"env": "CONFORMANCE_SECRET"}}}}},
    ),
]
