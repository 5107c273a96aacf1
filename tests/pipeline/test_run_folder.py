"""Run folders: one writer at a time, leftovers swept, leases on stores without locks."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import run_folder
from pipeline.run_folder import RunFolder, is_locked, locked, write_json
from transforms.errors import UserError

HOLD = """
import sys
from pipeline.run_folder import RunFolder, locked
with locked(RunFolder(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_another_process_is_kept_out_until_the_first_is_killed(run: RunFolder) -> None:
    command = [sys.executable, "-c", HOLD, run.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(run)
        with pytest.raises(UserError, match="another run is writing there"), locked(run):
            pass
        holder.kill()
        holder.wait()
        assert not is_locked(run)
        with locked(run):
            assert is_locked(run)
    assert not is_locked(run)


def test_a_lease_keeps_others_out_until_it_ends(run: RunFolder) -> None:
    """On object stores; here the same code on a local folder."""
    with run_folder._lease(run), pytest.raises(UserError, match="lease until"), run_folder._lease(run):
        pass
    with run_folder._lease(run):
        pass
    assert not Path(run.lock).exists()


@pytest.mark.parametrize(
    "lease", [{}, {"until": "2020-01-01T00:00:00+00:00"}, {"until": "soon"}, {"until": 3}]
)
def test_a_lease_that_is_over_or_nonsense_keeps_nobody_out(run: RunFolder, lease: dict[str, object]) -> None:
    write_json(run.lock, lease)
    with run_folder._lease(run):
        assert "until" in Path(run.lock).read_text()


def test_sweeping_takes_only_half_written_files(run: RunFolder) -> None:
    folder = Path(run.outputs.embeddings)
    folder.mkdir(parents=True)
    for name in (".part-a.parquet.1f.tmp", "part-a.parquet", "notes.tmp"):
        (folder / name).touch()
    run.sweep()
    assert sorted(path.name for path in folder.iterdir()) == ["notes.tmp", "part-a.parquet"]
    assert run.parts(run.outputs.embeddings) == [str(folder / "part-a.parquet")]


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written"),
        locked(RunFolder(str(tmp_path / "file" / "run"))),
    ):
        pass
