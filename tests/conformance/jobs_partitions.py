"""Partitions, ranges of them, and what a backfill launches."""

from collections.abc import Iterator

from conformance_case import Case
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetSelection,
    BackfillPolicy,
    DailyPartitionsDefinition,
    Definitions,
    LastPartitionMapping,
    MaterializeResult,
    MultiPartitionsDefinition,
    OpExecutionContext,
    StaticPartitionsDefinition,
    TimeWindowPartitionMapping,
    asset,
    define_asset_job,
    job,
    op,
    static_partitioned_config,
)

DAYS = DailyPartitionsDefinition(start_date="2024-01-01", end_date="2024-01-10")
COLOURS = StaticPartitionsDefinition(["red", "green"])
BOTH = MultiPartitionsDefinition({"day": DAYS, "colour": COLOURS})


@asset(partitions_def=DAYS, group_name="days")
def daily(context: AssetExecutionContext) -> str:
    return f"{context.partition_key} {context.partition_time_window.start:%Y-%m-%d}"


@asset(
    partitions_def=DAYS,
    group_name="days",
    ins={"daily": AssetIn(partition_mapping=TimeWindowPartitionMapping(start_offset=0))},
)
def daily_again(daily: str) -> str:
    return f"again {daily}"


@asset(partitions_def=DAYS, group_name="ranges", backfill_policy=BackfillPolicy.single_run())
def in_one_run(context: AssetExecutionContext) -> Iterator[MaterializeResult]:
    keys = context.partition_keys
    context.log.info(f"{keys[0]} to {keys[-1]}")
    yield MaterializeResult(metadata={"partitions": len(keys)})


@asset(partitions_def=BOTH, group_name="two_dimensions")
def by_day_and_colour(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset(partitions_def=COLOURS, group_name="colours")
def coloured(context: AssetExecutionContext) -> str:
    if context.partition_key == "green":
        raise ValueError("green is not possible")
    return context.partition_key


@asset(group_name="colours_together", ins={"coloured_well": AssetIn(partition_mapping=LastPartitionMapping())})
def last_colour(coloured_well: str) -> str:
    return coloured_well


@asset(partitions_def=COLOURS, group_name="colours_well")
def coloured_well(context: AssetExecutionContext) -> str:
    return context.partition_key


@static_partitioned_config(["small", "large"])
def sizes(partition: str) -> dict[str, object]:
    return {"ops": {"tells_size": {"config": {"size": partition}}}}


@op(config_schema={"size": str})
def tells_size(context: OpExecutionContext) -> str:
    return f"{context.op_config['size']} {context.partition_key}"


@job(config=sizes)
def partitions_of_a_job() -> None:
    tells_size()


PARTITION = "dagster/partition"
RANGE = {
    "dagster/asset_partition_range_start": "2024-01-02",
    "dagster/asset_partition_range_end": "2024-01-05",
}
GROUPS = ("days", "ranges", "two_dimensions", "colours", "colours_well")

CASES = [
    Case("partitions_days", tags={PARTITION: "2024-01-03"}),
    Case("partitions_days", tags={PARTITION: "2024-01-04", "dagster/backfill": "abcdefgh"}, name="partitions_backfill"),
    Case("partitions_ranges", tags={**RANGE, "dagster/backfill": "abcdefgh"}),
    Case(
        "partitions_two_dimensions",
        tags={
            PARTITION: "red|2024-01-02",
            "dagster/partition/day": "2024-01-02",
            "dagster/partition/colour": "red",
        },
    ),
    Case("partitions_colours", tags={PARTITION: "green"}, success=False),
    Case("partitions_colours_well", tags={PARTITION: "red"}),
    Case(
        "partitions_of_a_job",
        tags={PARTITION: "large", "dagster/partition_set": "partitions_of_a_job_partition_set"},
        config={"ops": {"tells_size": {"config": {"size": "large"}}}},
    ),
]

DEFINITIONS = Definitions(
    assets=[daily, daily_again, in_one_run, by_day_and_colour, coloured, last_colour, coloured_well],
    jobs=[define_asset_job(f"partitions_{name}", AssetSelection.groups(name)) for name in GROUPS],
)
