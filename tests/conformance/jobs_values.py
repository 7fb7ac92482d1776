"""Metadata of each kind, expectations, and what else a step says."""

from collections.abc import Iterator

from conformance_case import Case
from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetSelection,
    Definitions,
    ExpectationResult,
    MetadataValue,
    OpExecutionContext,
    Out,
    Output,
    TableColumn,
    TableRecord,
    TableSchema,
    asset,
    define_asset_job,
    job,
    op,
)

KINDS = {
    "bool": True,
    "int": 3,
    "float": 1.5,
    "text": "words",
    "null": None,
    "url": MetadataValue.url("http://example.com"),
    "path": MetadataValue.path("/a/path"),
    "notebook": MetadataValue.notebook("/a/notebook"),
    "json": MetadataValue.json({"a": [1, 2]}),
    "md": MetadataValue.md("**bold**"),
    "asset": MetadataValue.asset(AssetKey("some_asset")),
    "job": MetadataValue.job("values_metadata", "somewhere"),
    "python": MetadataValue.python_artifact(MetadataValue),
    "table": MetadataValue.table([TableRecord({"a": 1})], TableSchema([TableColumn("a", "int")])),
    "schema": MetadataValue.table_schema(TableSchema([TableColumn("a", "int")])),
    "timestamp": MetadataValue.timestamp(1.0),
}


@op
def gives_metadata() -> Output[int]:
    return Output(1, metadata=KINDS)


@op
def materialises(context: OpExecutionContext) -> None:
    context.log_event(AssetMaterialization("with_all_kinds", metadata=KINDS))


@op
def adds_metadata(context: OpExecutionContext) -> int:
    context.add_output_metadata({"added": 1, "run": MetadataValue.dagster_run(context.run_id)})
    return 1


@job
def values_metadata() -> None:
    gives_metadata()
    materialises()
    adds_metadata()


@op(out=Out(int))
def expects() -> Iterator[ExpectationResult | Output[int]]:
    yield ExpectationResult(True, label="kept", description="as hoped", metadata={"rows": 3})
    yield ExpectationResult(False, label="broken", description="not as hoped")
    yield Output(1)


@job
def values_expectations() -> None:
    expects()


@asset(group_name="values", metadata=KINDS)
def with_definition_metadata(context) -> int:  # type: ignore[no-untyped-def]
    context.add_asset_metadata({"late": 2.5})
    return 1


@op(out={"empty": Out(str), "none": Out(), "tuple": Out(tuple), "set": Out(), "deep": Out(dict)})
def gives_odd_values():  # type: ignore[no-untyped-def]
    return "", None, (1, 2), frozenset({1}), {"a": {"b": [None, b"\x00", 1e300]}}


@op
def takes_odd_values(empty, none, pair, group, deep) -> str:  # type: ignore[no-untyped-def]
    return f"{empty!r} {none!r} {pair!r} {group!r} {deep!r}"


@job
def values_odd() -> None:
    empty, none, pair, group, deep = gives_odd_values()
    takes_odd_values(empty, none, pair, group, deep)


CASES = [
    Case("values_metadata"),
    Case("values_expectations"),
    Case("values_assets"),
    Case("values_odd"),
]

DEFINITIONS = Definitions(
    assets=[with_definition_metadata], jobs=[define_asset_job("values_assets", AssetSelection.groups("values"))]
)
