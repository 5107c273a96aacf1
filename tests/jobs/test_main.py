"""The command line: commands, exit codes, errors of one line, and what is not imported to give them."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS, main
from jobs.arguments import Parser, byte_size
from transforms.errors import UserError

HEAVY = ("apache_beam", "tensorflow", "pyarrow", "cv2", "PIL")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a mistake prints: exactly one line."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pnasvec: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_no_command_and_no_such_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "command" in complaint(capsys)
    assert "'embde'" in complaint(capsys, "embde")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "--output", "r"], "inputs"),
        (["embed", "a.txt"], "--output"),
        (
            ["embed", "a.txt", "--output", "r", "--modle", "small"],
            "unknown flag --modle; did you mean --model?",
        ),
        (["embed", "a.txt", "--output", "r", "--zzzzzz"], "unknown flag --zzzzzz"),
        (["embed", "a.txt", "--output", "r", "--projekt=x"], "did you mean --project?"),
        (["embed", "a.txt", "--output", "r", "--top"], "unknown flag --top"),
        (["embed", "a.txt", "--output", "r", "--max-bytes", "lots"], "'lots' is no size"),
        (["embed", "a.txt", "--output", "r", "--resize", "stretch"], "stretch"),
        (["status"], "run"),
        (["status", "a", "b"], "b"),
        (["sample", "x", "--count", "many"], "many"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in complaint(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.txt"], "missing.txt: no such file, folder or glob"),
        (["*.nothing"], "no file matches"),
        (["list.xyz"], "a list must be named"),
        (["list.csv"], "--uri-column; its columns: a, b"),
        (["list.csv", "--uri-column", "c"], "no column 'c'; its columns: a, b"),
        (["list.csv", "--uri-column", "a", "--keep-columns", "d"], "no column 'd'"),
        (["list.txt", "--model", "nowhere"], "nowhere: no such folder"),
        (["list.txt", "--model", "."], "holds neither saved_model.pb nor a checkpoint"),
        (["list.txt", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["list.txt", "--batch-size", "some"], "'some' is neither a number nor auto"),
        (["list.txt", "--precision", "float8"], "float8"),
        (["list.txt", "--engine", "hub", "--precision", "bfloat16"], "leave out --precision bfloat16"),
        (["list.txt", "--threads", "0"], "--threads must be at least 1"),
        (["list.txt", "--shard-size", "0"], "--shard-size must be at least 1"),
        (["list.txt", "--top-k", "-1"], "--top-k"),
        (["list.txt", "--max-pixels", "0"], "--max-pixels must be at least 1"),
        (["list.txt", "--labels", "none.txt"], "--labels"),
        (["list.txt", "--direct_num_workers", "2"], "--direct_"),
        (["list.txt", "--runner", "NoSuchRunner"], "NoSuchRunner"),
        (["https://example.com/a.jpg"], "put image URLs into a text file"),
        (["list.txt", "--output", "list.txt/run"], "list.txt/run"),
    ],
)
def test_a_mistake_in_embed_stops_it_before_any_work(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "list.xyz").touch()
    before = sorted(tmp_path.rglob("*"))
    assert said in complaint(capsys, "embed", "--model", "small", "--output", "run", *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_status_of_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is no run folder" in complaint(capsys, "status", str(tmp_path))


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_of_every_command_is_quick(command: str) -> None:
    """Nothing heavy is imported to print it, nor to refuse a flag."""
    program = (
        "import sys; from jobs.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not sys.modules.keys() & {set(HEAVY)!r}, sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"pnasvec {command}" in done.stdout


def test_status_imports_neither_beam_nor_tensorflow(tmp_path: Path) -> None:
    program = (
        "import sys; from jobs.__main__ import main\n"
        "assert main(['status', sys.argv[1]]) == 2\n"
        "assert not sys.modules.keys() & {'apache_beam', 'tensorflow', 'keras'}"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("pnasvec 0.")


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("64MiB", 64 << 20), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("7b", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


def test_flags_are_not_abbreviated() -> None:
    parser = Parser(prog="x")
    parser.add_argument("--long-flag")
    with pytest.raises(UserError, match="nothing"):
        parser.parse_args(["--long", "nothing"])
