"""Assets."""

from collections.abc import Iterator
from typing import Any

from conformance_case import Case
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetOut,
    AssetSelection,
    AssetSpec,
    DataVersion,
    Definitions,
    InputContext,
    IOManager,
    IOManagerDefinition,
    MaterializeResult,
    MetadataValue,
    OpExecutionContext,
    Out,
    Output,
    OutputContext,
    asset,
    define_asset_job,
    graph_asset,
    graph_multi_asset,
    job,
    multi_asset,
    observable_source_asset,
    op,
)


@asset(group_name="assets", metadata={"owner": "nobody"}, tags={"colour": "red"})
def raw() -> list[int]:
    return [1, 2, 3]


@asset(group_name="assets", code_version="2")
def doubled(context: AssetExecutionContext, raw: list[int]) -> list[int]:
    context.add_output_metadata({"rows": len(raw), "note": MetadataValue.md("**bold**")})
    return [2 * value for value in raw]


@asset(group_name="assets", deps=[doubled], key_prefix="deep")
def without_value() -> MaterializeResult:
    return MaterializeResult(metadata={"rows": 3}, data_version=DataVersion("v1"))


@multi_asset(outs={"first": AssetOut(), "second": AssetOut()}, group_name="multi")
def pair() -> tuple[int, int]:
    return 1, 2


@multi_asset(
    specs=[AssetSpec("sub_a", skippable=True), AssetSpec("sub_b", skippable=True), AssetSpec("sub_c", skippable=True)],
    can_subset=True,
    group_name="subset",
)
def subsettable(context: AssetExecutionContext) -> Iterator[MaterializeResult]:
    for key in sorted(context.op_execution_context.selected_asset_keys):
        yield MaterializeResult(asset_key=key, metadata={"key": key.to_user_string()})


@asset(output_required=False, group_name="optional")
def maybe() -> Iterator[Output[int]]:
    yield from ()


@asset(group_name="optional", ins={"value": AssetIn("maybe")})
def after_maybe(value: int) -> int:
    return value


@asset(group_name="failing")
def broken_asset() -> int:
    raise ValueError("no asset")


@asset(group_name="failing")
def after_broken(broken_asset: int) -> int:
    return broken_asset


@op
def fetch() -> int:
    return 20


@op
def refine(value: int) -> int:
    return value + 1


@graph_asset(group_name="graphs")
def from_graph() -> int:
    return refine(fetch())


@graph_multi_asset(outs={"graph_first": AssetOut(), "graph_second": AssetOut()}, group_name="graphs")
def several_from_graph() -> dict[str, int]:
    start = fetch()
    return {"graph_first": start, "graph_second": refine(start)}


given = AssetSpec("given").with_io_manager_key("constant")


@asset(group_name="sources")
def from_source(given: int) -> int:
    return given + 1


@observable_source_asset(group_name="observed")
def watched() -> DataVersion:
    return DataVersion("17")


@op(out=Out(int))
def speaks_of_assets(context: OpExecutionContext) -> Iterator[object]:
    context.log_event(AssetObservation("logged", metadata={"by": "log_event"}))
    yield AssetMaterialization(
        AssetKey(["made", "by_hand"]), description="by hand", metadata={"rows": 5}, tags={"kind": "manual"}
    )
    yield AssetMaterialization("partitioned_by_hand", partition="2024-01")
    yield AssetObservation("seen", metadata={"fresh": True}, partition="2024-01")
    yield Output(1)


@job
def assets_by_hand() -> None:
    speaks_of_assets()


@asset(group_name="outputs")
def with_output_metadata() -> Output[int]:
    return Output(3, metadata={"size": 1.5}, data_version=DataVersion("abc"), tags={"stage": "raw"})


@asset(group_name="external", deps=[AssetSpec("outside")])
def needs_outside() -> None:
    pass


class Constant(IOManager):
    def handle_output(self, context: OutputContext, obj: object) -> None:
        raise NotImplementedError

    def load_input(self, context: InputContext) -> int:
        return 30


def of_group(name: str) -> Any:
    return define_asset_job(f"assets_{name}", AssetSelection.groups(name))


GROUPS = ("assets", "multi", "subset", "optional", "failing", "graphs", "sources", "outputs", "external")

DEFINITIONS = Definitions(
    assets=[
        *(raw, doubled, without_value, pair, subsettable, maybe, after_maybe, broken_asset, after_broken),
        *(from_graph, several_from_graph, given, from_source, watched, with_output_metadata, needs_outside),
    ],
    jobs=[
        *(of_group(name) for name in GROUPS),
        define_asset_job("assets_observed", AssetSelection.assets("watched")),
    ],
    resources={"constant": IOManagerDefinition.hardcoded_io_manager(Constant())},
)

CASES = [
    Case("assets_assets"),
    Case("assets_assets", assets=["doubled"], name="assets_selection"),
    Case("assets_multi"),
    Case("assets_subset"),
    Case("assets_subset", assets=["sub_a", "sub_c"], name="assets_can_subset"),
    Case("assets_optional"),
    Case("assets_failing", success=False),
    Case("assets_graphs"),
    Case("assets_sources"),
    Case("assets_outputs"),
    Case("assets_external"),
    Case("assets_observed"),
    Case("assets_by_hand"),
]
