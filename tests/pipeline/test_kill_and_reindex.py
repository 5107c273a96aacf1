"""Killed at random moments, an index job leaves the old index working and ends with the new one."""

import random
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.kills import kill_after
from tests.vectors import build, make_run, open_index, uri

KILLS = 4


def start(run: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs", "index", str(run), "--rebuild", "--recipe", "ivf-sq8"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def file_count(run: Path) -> int:
    return len(list((run / "index").iterdir()))


def has_files(run: Path, target: int) -> bool:
    return file_count(run) >= target


def test_a_killed_build_leaves_the_old_index_and_is_made_up_for(tmp_path: Path) -> None:
    rng = random.Random(4)
    run = tmp_path / "run"
    make_run(run, 6000, 64)
    built = build(run, recipe="exact").manifest.built
    killed = 0
    for _ in range(KILLS):
        target = file_count(run) + rng.randrange(1, 6)
        kill_after(start(run), partial(has_files, run, target), rng.random() / 20)
        index = open_index(run)
        killed += index.manifest.built == built
        assert index.similar_by_uri(uri(77), 1)[0].uri == uri(77)
    assert killed, "the kills came too late to mean anything"
    manifest = build(run, recipe="ivf-sq8", rebuild=True).manifest
    assert manifest.recipe == "IVF256,SQ8"
    assert open_index(run).similar_by_uri(uri(5999), 1)[0].uri == uri(5999)
    left = {file.name for file in (run / "index").iterdir()}
    assert left == {"index.json", ".lock", *manifest.files.names}
