"""The source distribution, as Dataflow's --setup_file stages it, in an empty environment."""

import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(folder),
        "sdist",
        "-d",
        str(folder),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


def test_the_sdist_holds_packages_and_model_but_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "setup.py",
        "pyproject.toml",
        "README.md",
        "jobs/__main__.py",
        "transforms/model/pnasnet.py",
    } <= names
    assert {"transforms/model/imagenet_1001.tsv", "transforms/model/small/saved_model.pb"} <= names
    assert not any(name.startswith(("tests", "benchmarks", "demo")) for name in names)


def test_it_installs_in_an_empty_environment_and_its_command_runs(sdist: Path, tmp_path: Path) -> None:
    """Without its dependencies: --help must not need them. Nothing is fetched."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = [
        str(Path(sys.executable).with_name("uv")),
        "pip",
        "install",
        "--offline",
        "--no-deps",
        "--quiet",
    ]
    subprocess.run([*install, "--python", str(python), str(next(tmp_path.glob("*.whl")))], check=True)
    for arguments in (["--help"], ["embed", "--help"], ["index", "--help"], ["search", "--help"]):
        done = subprocess.run([str(python.with_name("pnasvec")), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "pnasvec" in done.stdout
