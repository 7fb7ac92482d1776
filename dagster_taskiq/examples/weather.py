"""A weather report from a dozen stations: the first example, and what ``dagster-taskiq demo`` runs.

Each op below becomes a step that travels over SQS to a worker and runs there in a process of its own.  Nothing in the
ops knows of that: the only line that does is ``executor_def``.  The job shows fan-out (a dozen stations), fan-in (one
table of them), dynamic mapping (one step for each month found in the data), branching (the steps on the branch not
taken are skipped), an op that fails at first and is retried, a resource, and an IO manager that hands outputs from
step to step.
"""

import hashlib
import math
import statistics
from collections.abc import Iterator

from dagster import (
    Backoff,
    ConfigurableResource,
    Definitions,
    DynamicOut,
    DynamicOutput,
    FilesystemIOManager,
    In,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    job,
    op,
)

from dagster_taskiq import taskiq_executor

STATIONS = {
    "aarhus": 8.5,
    "bergen": 8.0,
    "cork": 10.2,
    "dresden": 9.6,
    "evora": 16.5,
    "faro": 18.1,
    "graz": 10.4,
    "helsinki": 6.2,
    "innsbruck": 9.3,
    "jena": 9.9,
    "kiruna": -1.0,
    "lyon": 12.8,
}
"""Station → its mean temperature in °C."""

Readings = dict[str, list[float]]
"""Month → the temperatures of its days in °C."""


class Archive(ConfigurableResource):  # type: ignore[type-arg]
    """An archive of daily temperatures: computed rather than fetched, so always the same."""

    days_per_month: int = 28
    months: int = 6

    def read(self, station: str) -> Readings:
        """The readings of a station; about every fiftieth is a sensor's fault and absurd."""
        readings: Readings = {}
        for month in range(1, self.months + 1):
            season = -9.0 * math.cos(2 * math.pi * (month - 1) / 12)
            days = []
            for day in range(1, self.days_per_month + 1):
                noise = hashlib.sha256(f"{station}/{month}/{day}".encode()).digest()
                fault = noise[1] < 5
                days.append(999.0 if fault else round(STATIONS[station] + season + noise[0] / 64 - 2, 2))
            readings[f"2024-{month:02}"] = days
        return readings


@op(config_schema={"station": str})
def read_station(context: OpExecutionContext, archive: Archive) -> Readings:
    """Read one station's temperatures from the archive."""
    station = context.op_config["station"]
    readings = archive.read(station)
    context.log.info("%s: %d readings", station, sum(map(len, readings.values())))
    return readings


@op
def drop_faults(readings: Readings) -> Readings:
    """Leave out what no thermometer can have measured."""
    return {month: [value for value in days if abs(value) < 60] for month, days in readings.items()}


@op
def merge_stations(stations: list[Readings]) -> Readings:
    """All stations' readings by month."""
    months = sorted({month for readings in stations for month in readings})
    return {month: sorted(value for readings in stations for value in readings.get(month, [])) for month in months}


@op(out={"complete": Out(is_required=False), "patchy": Out(is_required=False)})
def judge_coverage(context: OpExecutionContext, readings: Readings, archive: Archive) -> Iterator[Output[Readings]]:
    """Choose the branch: enough readings for a report, or too few."""
    expected = len(STATIONS) * archive.months * archive.days_per_month
    share = sum(map(len, readings.values())) / expected
    context.log.info("%.1f %% of the readings are usable", 100 * share)
    yield Output(readings, "complete" if share > 0.9 else "patchy")


@op
def fill_gaps(readings: Readings) -> Readings:
    """On the branch for patchy data: fill each month up with its median.  Skipped, as the data is complete."""
    longest = max(map(len, readings.values()))
    return {month: days + [statistics.median(days)] * (longest - len(days)) for month, days in readings.items()}


@op
def describe_gaps(readings: Readings) -> str:
    """On the branch for patchy data, too, and skipped with it."""
    return f"{len(readings)} months were filled up"


@op(out=DynamicOut(list[float]))
def split_months(readings: Readings) -> Iterator[DynamicOutput[list[float]]]:
    """One output for each month, so one step for each month after this one."""
    for month, days in readings.items():
        yield DynamicOutput(days, mapping_key=month.replace("-", "_"))


@op
def summarise_month(days: list[float]) -> dict[str, float]:
    """Mean and extremes of one month."""
    return {"mean": round(statistics.fmean(days), 2), "low": min(days), "high": max(days)}


@op(retry_policy=RetryPolicy(max_retries=3, delay=0.2, backoff=Backoff.EXPONENTIAL))
def fetch_climate_normal(context: OpExecutionContext) -> float:
    """Ask a service that is down at the first attempt; the op's RetryPolicy takes care of it."""
    if context.retry_number == 0:
        raise ConnectionError("the climate service does not answer (that is part of the example)")
    return 9.1


@op(ins={"months": In(list[dict[str, float]])})
def write_report(
    context: OpExecutionContext, months: list[dict[str, float]], climate_normal: float
) -> dict[str, float]:
    """The whole period against the climate normal."""
    mean = statistics.fmean(month["mean"] for month in months)
    report = {
        "months": float(len(months)),
        "mean": round(mean, 2),
        "low": min(month["low"] for month in months),
        "high": max(month["high"] for month in months),
        "above_normal": round(mean - climate_normal, 2),
    }
    context.add_output_metadata({"mean": report["mean"], "above_normal": report["above_normal"]})
    return report


@job(
    executor_def=taskiq_executor,
    resource_defs={"archive": Archive(), "io_manager": FilesystemIOManager()},
)
def weather_report() -> None:
    """Read, clean and merge a dozen stations, summarise each month, and write a report."""
    cleaned = []
    for station in STATIONS:
        readings = read_station.configured({"station": station}, name=f"read_{station}")()
        cleaned.append(drop_faults.alias(f"clean_{station}")(readings))
    complete, patchy = judge_coverage(merge_stations(cleaned))
    describe_gaps(fill_gaps(patchy))
    months = split_months(complete).map(summarise_month)
    write_report(months.collect(), fetch_climate_normal())


defs = Definitions(jobs=[weather_report])
