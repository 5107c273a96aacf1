"""`pnasvec embed` as a person runs it: flags to config, what is printed, exit codes."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.embed import DEFAULT_MODEL, config_of, parse
from pipeline.config import ModelConfig
from pipeline.runners import beam_options, is_local
from transforms.sample import write_samples

BASE = ["a.txt", "--output", "run"]


def test_defaults() -> None:
    config = config_of(parse(BASE)[0])
    assert config.model.handle == DEFAULT_MODEL
    assert config.decode.resize == "crop"
    assert config.fetch.max_bytes == 64 << 20
    assert config.output.shard_size == 2000
    assert not config.fetch.web.allow_private


def test_every_flag_reaches_the_config() -> None:
    flags = (
        "--uri-column u --keep-columns a,b --model m --labels l --batch-size 7 --resize pad --max-bytes 1KiB "
        "--max-pixels 9 --allow-truncated --threads 3 --timeout 2.5 --retries 1 --allow-private-addresses "
        "--top-k 2 --logits --float16 --shard-size 11 --retry-failures "
        "--engine hub --precision float16 --device cpu"
    )
    config = config_of(parse([*BASE, *flags.split()])[0])
    assert (config.input.uri_column, config.input.keep_columns) == ("u", ("a", "b"))
    assert config.model == ModelConfig("m", "l", 7, "hub", "float16", "cpu")
    assert (config.decode.resize, config.decode.max_pixels, config.decode.allow_truncated) == ("pad", 9, True)
    assert (config.fetch.max_bytes, config.threads) == (1024, 3)
    assert (config.fetch.web.timeout_s, config.fetch.web.retries, config.fetch.web.allow_private) == (
        2.5,
        1,
        True,
    )
    output = config.output
    assert (output.top_k, output.logits, output.float16, output.shard_size) == (2, True, True, 11)
    assert config.retry_failures


def test_beam_flags_may_stand_anywhere() -> None:
    flags, theirs = parse(["--project", "p", *BASE, "--runner=DataflowRunner", "--region", "r", "b.txt"])
    assert flags.inputs == ["a.txt", "b.txt"]
    assert theirs == {"project": "p", "runner": "DataflowRunner", "region": "r"}


def test_our_flag_wins_over_one_of_beams() -> None:
    flags, theirs = parse([*BASE, "--labels", "names.txt", "--project", "p"])
    assert flags.labels == "names.txt"
    assert theirs == {"project": "p"}


@pytest.mark.parametrize("runner", [None, "DirectRunner", "FnApiRunner", "directrunner"])
def test_the_local_runner_goes_by_three_names(runner: str | None) -> None:
    assert is_local(beam_options({"runner": runner} if runner else {}))
    assert not is_local(beam_options({"runner": "FlinkRunner"}))


def test_a_run_on_the_command_line(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "extra.txt").write_text("missing.jpg\n")
    command = [sys.executable, "-m", "jobs", "embed", str(photos), str(tmp_path / "extra.txt")]
    command += ["--model", "small", "--output", str(run), "--strict"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert "48 images embedded now" in done.stderr
    assert "NotFound" in done.stderr
    assert f"pnasvec status {run}" in done.stderr
    for noise in ("cuda", "WARNING", "Traceback", "absl"):
        assert noise not in done.stderr
    again = subprocess.run([*command[:-1]], capture_output=True, text=True)
    assert again.returncode == 0
    assert "0 images embedded now" in again.stderr


def test_status_as_table_and_json(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    run = str(tmp_path / "run")
    assert main(["embed", str(photos), "--model", "small", "--output", run]) == 0
    capsys.readouterr()
    assert main(["status", run]) == 0
    assert "complete" in capsys.readouterr().out
    assert main(["status", run, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "complete"
    assert status["counts"]["embedded"] == 48


def test_names_in_brackets_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[").mkdir()
    (tmp_path / "[" / "x].jpg").write_text("no image")
    run = str(tmp_path / "o[" / "b]")
    assert main(["embed", str(tmp_path / "["), "--model", "small", "--output", run]) == 0
    assert f"pnasvec status {run}" in capsys.readouterr().err
    assert main(["status", run]) == 0
    assert "[" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(photos: Path, tmp_path: Path) -> None:
    """Stopped while the model works, which is where every layer wraps the interrupt in its own error."""
    run = tmp_path / "run"
    write_samples(str(tmp_path / "many"), 1500, 5)
    command = [sys.executable, "-m", "jobs", "embed", str(tmp_path / "many"), "--model", "small"]
    command += ["--output", str(run), "--shard-size", "20"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(run.glob("embeddings/part-*"))) < 3:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate()
    assert process.returncode == 130, printed
    assert printed.endswith("pnasvec: stopped; the same command goes on from here\n")
    assert "Traceback" not in printed


def test_a_job_that_fails_says_why_and_exits_with_1(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "embeddings").write_text("a file where a folder must be")
    assert main(["embed", str(photos), "--model", "small", "--output", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert "the job failed" in printed
    assert "embeddings" in printed
    assert "Traceback" not in printed
