"""Killed at random moments, an index job leaves the old index working and ends with the new one."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.vectors import build, make_run, open_index, uri

KILLS = 4
_POLL_S = 0.02


def start(run: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs", "index", str(run), "--rebuild", "--recipe", "ivf-sq8"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def kill_after(process: "subprocess.Popen[bytes]", index: Path, new_files: int, delay_s: float) -> None:
    """Kill it `delay_s` after that many files more are there."""
    target = len(list(index.iterdir())) + new_files
    while process.poll() is None:
        ready = len(list(index.iterdir())) >= target
        try:
            process.wait(delay_s if ready else _POLL_S)
        except subprocess.TimeoutExpired:
            if ready:
                break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_build_leaves_the_old_index_and_is_made_up_for(tmp_path: Path) -> None:
    rng = random.Random(4)
    run = tmp_path / "run"
    make_run(run, 6000, 64)
    built = build(run, recipe="exact").manifest.built
    killed = 0
    for _ in range(KILLS):
        kill_after(start(run), run / "index", rng.randrange(1, 6), rng.random() / 20)
        index = open_index(run)
        killed += index.manifest.built == built
        assert index.similar_by_uri(uri(77), 1)[0].uri == uri(77)
    assert killed, "the kills came too late to mean anything"
    manifest = build(run, recipe="ivf-sq8", rebuild=True).manifest
    assert manifest.recipe == "IVF256,SQ8"
    assert open_index(run).similar_by_uri(uri(5999), 1)[0].uri == uri(5999)
    left = {file.name for file in (run / "index").iterdir()}
    assert left == {"index.json", ".lock", *manifest.files.names}
