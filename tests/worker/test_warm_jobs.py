"""What Dagster works out of a job's definition is worked out by the warm parent, once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from unittest.mock import Mock

import pytest
from dagster import DagsterInstance, Definitions, JobDefinition, asset, job, op, repository, serialize_value
from worker_origins import job_origin

from dagster_taskiq import _core, warm_jobs
from dagster_taskiq.levers import LEVERS, WARM_JOBS, all_but
from dagster_taskiq.processes import WarmParentHandle, WarmParents
from dagster_taskiq.trial import trial

Test = Callable[[WarmParentHandle], Awaitable[None]]


@op
def nothing() -> None:
    pass


@job
def small() -> None:
    nothing()


@asset
def thing() -> int:
    return 1


class CacheableAssetsDefinition:
    """By its name, as Dagster's is known."""


def is_worked_out(definition: JobDefinition) -> bool:
    return definition._run_config_schema is not None


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: Definitions(jobs=[one])])
def test_the_schema_stays_with_the_definition(wrap: Callable[[JobDefinition], object]) -> None:
    @job(name="small")
    def one() -> None:
        nothing()

    assert not is_worked_out(one)
    warm_jobs.work_out(wrap(one), "small")
    assert is_worked_out(one)


def test_the_schema_of_a_repositorys_job() -> None:
    @repository
    def several() -> list[JobDefinition]:
        return [small]

    warm_jobs.work_out(several, "small")
    assert is_worked_out(several.get_job("small"))


def test_assets_become_jobs_once() -> None:
    definitions = Definitions(assets=[thing])
    warm_jobs.work_out(definitions, "__ASSET_JOB")
    assert definitions.has_resolved_repository_def()
    assert is_worked_out(definitions.get_repository_def().get_job("__ASSET_JOB"))


def test_assets_that_are_computed_are_left_to_the_step() -> None:
    definitions = Mock(spec=Definitions, assets=[CacheableAssetsDefinition()])
    warm_jobs.work_out(definitions, "small")
    assert not definitions.method_calls


@pytest.mark.parametrize("target", [None, lambda: small, small.graph, [thing]])
def test_other_targets_are_left_alone(target: object) -> None:
    warm_jobs.work_out(target, "small")


def test_another_job_than_the_target() -> None:
    @job
    def other() -> None:
        nothing()

    warm_jobs.work_out(other, "small")
    assert not is_worked_out(other)


# ---- in a warm parent -----------------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "notes"
    monkeypatch.setenv("LAZY_JOBS_NOTES", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return file


def run(test: Test, first: str = "first", levers: Iterable[str] = LEVERS) -> None:
    """``test`` with a warm parent that was started for a step of the job ``first``."""

    async def with_parent() -> None:
        parents = WarmParents(_core.FenceBoard(4), levers=levers)
        try:
            with DagsterInstance.get() as instance:
                reference = serialize_value(instance.get_ref())
            await test(await parents.get("", job_origin("lazy_jobs", "lazy", first), reference))
        finally:
            await parents.close()

    asyncio.run(with_parent())


async def has_forked(parent: WarmParentHandle) -> None:
    """It has dealt with what came before, and forks still."""
    step = await parent.take_step()
    step.dismiss()
    assert (await step.wait()).exit_code == 0


def test_each_job_once(notes: Path) -> None:
    async def test(parent: WarmParentHandle) -> None:
        for name in ("first", "second", "first", "second"):
            parent.expect_job(name)
        await has_forked(parent)
        made = [line.split() for line in notes.read_text().splitlines()]
        # Each by a throw-away child first.
        assert [name for name, _ in made] == ["first", "first", "second", "second"]
        assert [int(pid) == parent.pid for _, pid in made] == [False, True, False, True]

    run(test)


@pytest.mark.parametrize("name", ["broken", "threaded", "unknown"])
def test_one_that_cannot_be_had(notes: Path, name: str) -> None:
    async def test(parent: WarmParentHandle) -> None:
        parent.expect_job(name)
        await has_forked(parent)
        made = [line.split() for line in notes.read_text().splitlines()]
        assert parent.pid not in [int(pid) for made_name, pid in made if made_name == name]

    run(test)


def test_off(notes: Path) -> None:
    async def test(parent: WarmParentHandle) -> None:
        parent.expect_job("second")
        await has_forked(parent)
        assert not notes.exists()

    run(test, levers=all_but([WARM_JOBS]))


def test_a_trial_that_hangs() -> None:
    assert trial(lambda: time.sleep(1000), lambda: "", seconds=1) == "it ended with status -14"
