import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.contact_sheet import sheet
from pipeline.search import Match
from tests.vectors import make_run, uri


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    make_run(run, 300)
    assert main(["index", str(run)]) == 0
    return run


def test_index_says_what_it_built(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(run), "--rebuild", "--min-recall", "0.9"]) == 0
    said = capfd.readouterr().err
    assert "300 images, cosine, Flat" in said
    assert "300 images added in" in said
    assert f"pnasvec search {run} IMAGE" in said
    assert main(["index", str(run)]) == 0
    assert "Nothing to do" in capfd.readouterr().err


def test_a_recall_that_is_asked_for_and_not_reached_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", 1500, 64)
    arguments = ["index", str(tmp_path / "run"), "--recipe", "IVF16,PQ8x4", "--min-recall", "0.99"]
    assert main(arguments) == 3
    said = capfd.readouterr().err
    assert "No setting reaches recall@10 0.99" in said
    assert "--recipe exact: 256 bytes an image" in said
    assert main(["search", str(tmp_path / "run"), "--uri", uri(3)]) == 0


def test_a_table_for_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(run), "--uri", uri(7), "-k", "2"]) == 0
    said = capsys.readouterr().out
    assert uri(7) in said
    assert "1.000" in said
    assert "label 2" in said


def test_json_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(run), uri(7), "-k", "2", "--json", "--where", "width > 0"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["uri"], first["kept"]) == (uri(7), {"group": 1})
    assert first["score"] > second["score"]


def test_a_vector_out_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = np.ones(32, np.float32)
    np.save(tmp_path / "v.npy", vector)
    (tmp_path / "v.json").write_text(json.dumps(vector.tolist()))
    answers = []
    for name in ("v.npy", "v.json"):
        assert main(["search", str(run), "--vector", str(tmp_path / name), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


def test_parquet_of_one_query(run: Path, tmp_path: Path) -> None:
    assert main(["search", str(run), "--uri", uri(7), "--output", str(tmp_path / "hits.parquet")]) == 0
    hits = pq.read_table(tmp_path / "hits.parquet")
    assert hits["rank"].to_pylist() == list(range(1, 11))
    assert hits["uri"][0].as_py() == uri(7)


def test_a_list_of_queries(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "queries.txt").write_text("\n".join(map(uri, range(20))))
    output = tmp_path / "hits.parquet"
    arguments = ["search", str(run), "--queries", str(tmp_path / "queries.txt"), "--output", str(output)]
    assert main([*arguments, "--runner", "FnApiRunner"]) == 0
    assert len(pq.read_table(output)) == 200
    assert "20 queries in" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "search for one thing"),
        (["a.jpg", "--uri", "b"], "search for one thing"),
        (["--queries", "x.txt"], "--queries needs --output"),
        (["--queries", "x.txt", "--output", "y", "--json"], "leave --json"),
        (["--uri", "x", "--runner", "FnApiRunner"], "Beam options are for --queries"),
        (["--uri", "gs://bucket/none.jpg"], "is not in the index"),
        (["--uri", "x", "--kk", "3"], "unknown flag --kk"),
        (["--vector", "none.npy"], "--vector none.npy"),
        (["missing.jpg"], "missing.jpg"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.splitlines()) == 1


def test_a_contact_sheet_holds_its_pictures_and_shows_hostile_text_as_text(
    photos: Path, tmp_path: Path
) -> None:
    photo = str(next(photos.glob("*.jpg")))
    evil = "<script>alert(1)</script>\"'.jpg"
    matches = [
        Match(photo, 0.9876, "<b>disc</b>", 0.5, 1, 1, "jpeg", {}),
        Match(f"/no/{evil}", 0.5, None, None, None, None, None, {}),
    ]
    page = sheet(evil, matches)
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert "0.988" in page
    assert "NotFound" in page
    assert "<script" not in page
    assert html.escape("<b>disc</b>") in page
    assert not re.search(r"https?://", page)
