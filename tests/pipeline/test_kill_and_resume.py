"""Killed at ten random moments, process tree and all, a run ends with the rows of an undisturbed one."""

import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import OutputConfig
from tests.kills import kill_after
from tests.runs import RunOutcome, read_rows, run_embed
from transforms.sample import write_samples

IMAGES, SHARD, KILLS = 240, 6, 10


def start(run: Path, listing: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs", "embed", str(listing), "--model", "small", "--output", str(run)]
    command += ["--shard-size", str(SHARD), "--batch-size", "4", "--threads", "2", "--precision", "float32"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def part_count(run: Path) -> int:
    return len(list(run.glob("embeddings/part-*.parquet")))


def has_come_to(run: Path, parts: int | None) -> bool:
    """So many files are there; None: the lock was taken."""
    return (run / ".lock").exists() if parts is None else part_count(run) >= parts


def test_a_run_killed_ten_times_has_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    rng = random.Random(20)
    write_samples(str(tmp_path / "photos"), IMAGES, 3)
    names = sorted(path.name for path in (tmp_path / "photos").glob("*.jpg"))
    listing = tmp_path / "photos" / "list.txt"
    listing.write_text("\n".join([*names, *names[:9], "missing.jpg", "list.txt"]))
    disturbed = tmp_path / "disturbed"
    log = []
    for _ in range(KILLS):
        new_parts = rng.randrange(4)
        target = part_count(disturbed) + new_parts if new_parts else None
        kill_after(start(disturbed, listing), partial(has_come_to, disturbed, target), rng.random() / 4)
        rows = read_rows(disturbed / "embeddings")["uri"].to_pylist()
        assert len(rows) == len(set(rows))
        log.append(len(rows))
    assert log == sorted(log), "a kill lost rows that were written"
    assert 0 < log[-1] < IMAGES, f"the kills came too late to mean anything: {log}"
    print(f"rows after each of {KILLS} kills: {log}")  # noqa: T201
    output = OutputConfig(shard_size=SHARD)
    resumed = run_embed(disturbed, listing, output=output)
    undisturbed = run_embed(tmp_path / "undisturbed", listing, output=output)
    assert_same_rows(resumed, undisturbed)
    assert resumed.manifest.tally is not None
    assert undisturbed.manifest.tally is not None
    for tally in (resumed.manifest.tally, undisturbed.manifest.tally):
        assert (tally.given, tally.duplicate, tally.embedded) == (IMAGES + 11, 9, IMAGES)
    assert not list(disturbed.rglob("*.tmp"))


def assert_same_rows(one: RunOutcome, other: RunOutcome) -> None:
    first, second = one.rows.sort_by("uri"), other.rows.sort_by("uri")
    for column in ("uri", "width", "height", "format", "sha256"):
        assert first[column].equals(second[column])
    vectors = [np.stack(rows["embedding"].to_pylist()) for rows in (first, second)]
    assert np.allclose(*vectors, atol=1e-4)
    assert one.errors == other.errors
    assert len(one.failures) == len(other.failures) == 2
