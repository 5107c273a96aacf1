"""A run in a bucket: an object store as pyarrow sees it, over a local folder."""

import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.search import SimilarityIndex
from tests.vectors import build, make_run, uri
from transforms import storage
from transforms.errors import UserError

RUN = "s3://bucket/run"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "_filesystem", lambda scheme, host: files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bucket" / "run" / "index").mkdir(parents=True)
    return tmp_path / "bucket"


def test_an_index_in_a_bucket_is_built_extended_searched_and_copied_once(
    bucket: Path, tmp_path: Path
) -> None:
    make_run(bucket / "run", 2000)
    assert build(RUN, recipe="ivf-rabitq").manifest.rows == 2000
    make_run(bucket / "run", 300, first=2000, seed=1)
    assert build(RUN).manifest.rows == 2300
    for _ in range(2):
        index = SimilarityIndex.open(RUN)
        assert [match.uri for match in index.similar_by_uri(uri(2100), 1)] == [uri(2100)]
    copied = {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert copied <= index.manifest.files.names
    assert not list((bucket / "run" / "index").glob("*.json.*"))


def test_a_file_that_is_gone_from_the_bucket_is_one_clear_line(bucket: Path) -> None:
    make_run(bucket / "run", 100)
    build(RUN)
    shutil.rmtree(bucket.parent / "cache")
    next((bucket / "run" / "index").glob("*.rows")).unlink()
    with pytest.raises(UserError, match=r"s3://bucket/run/index/segment-.*\.rows"):
        SimilarityIndex.open(RUN)
