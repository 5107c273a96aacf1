"""How far a run is, by what lies on disk: promised, running, interrupted, complete."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import OutputConfig
from pipeline.manifest import Manifest, save_manifest
from pipeline.run_folder import RunFolder, locked
from pipeline.status import status_of
from tests.runs import RunOutcome
from transforms.errors import UserError


def test_no_run_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        status_of(RunFolder(str(tmp_path)))


def test_before_the_plan_nothing_is_known(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    save_manifest(run, Manifest.begin({"model": {"handle": "small"}}, ()))
    assert status_of(run).state == "interrupted"
    with locked(run):
        assert status_of(run).state == "running"


def test_a_damaged_plan_is_one_clear_line(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    save_manifest(run, Manifest.begin({"model": {"handle": "small"}}, ()))
    (tmp_path / "plan.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        status_of(run)


def test_rows_on_disk_are_counted_while_it_runs(
    photos: Path, tmp_path: Path, embed: Callable[..., RunOutcome]
) -> None:
    (tmp_path / "bad.txt").write_text("missing.jpg\n")
    outcome = embed(photos, tmp_path / "bad.txt", output=OutputConfig(shard_size=10))
    run = RunFolder(str(outcome.run))
    next(iter((outcome.run / "embeddings").iterdir())).unlink()
    save_manifest(run, Manifest.begin(outcome.manifest.identity, ()))  # as it was before the end
    status = status_of(run)
    assert status.state == "interrupted"
    tally = status.tally
    assert tally.given == 49
    assert tally.failed == {"NotFound": 1}
    assert 35 <= tally.embedded <= 39
    assert tally.adds_up()
