import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.bulk_search import BulkConfig, BulkOutcome, bulk_search
from pipeline.runners import beam_options
from tests.runs import run_embed
from tests.vectors import build, make_run, open_index
from transforms.errors import UserError


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("bulk") / "run"
    run_embed(run, photos)
    build(run)
    return run


def search(run: Path, queries: object, output: Path, **settings: object) -> BulkOutcome:
    return bulk_search(BulkConfig(str(run), str(queries), str(output), **settings), beam_options({}))  # type: ignore[arg-type]


def test_indexed_and_new_queries_are_answered_and_failures_named(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    old, new = sorted(photos.glob("*.jpg"))[5], tmp_path / "new.jpg"
    shutil.copy(sorted(photos.glob("*.jpg"))[9], new)
    queries = tmp_path / "queries.txt"
    queries.write_text(f"{old}\nnew.jpg\nmissing.jpg\n")
    outcome = search(run, queries, tmp_path / "hits.parquet", k=4)
    assert (outcome.queries, outcome.failed) == (2, 1)
    assert outcome.examples[0][0] == str(tmp_path / "missing.jpg")
    assert outcome.examples[0][1].startswith("NotFound")
    hits = pq.read_table(tmp_path / "hits.parquet")
    assert hits.column_names == ["query_uri", "rank", "uri", "score"]
    index = open_index(run)
    for query, answer in ((old, index.similar_by_uri(str(old), 4)), (new, index.similar(new, 4))):
        rows = [row for row in hits.to_pylist() if row["query_uri"] == str(query)]
        assert [row["rank"] for row in rows] == [1, 2, 3, 4]
        assert [row["uri"] for row in rows] == [match.uri for match in answer]
        assert [row["score"] for row in rows] == pytest.approx([match.score for match in answer], abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"hits.parquet", "new.jpg", "queries.txt"}


def test_a_condition_holds_for_all(run: Path, photos: Path, tmp_path: Path) -> None:
    outcome = search(run, photos, tmp_path / "hits.parquet", where="uri like '%disc%'")
    hits = pq.read_table(tmp_path / "hits.parquet")
    assert outcome.queries == 48
    assert all("disc" in uri for uri in hits["uri"].to_pylist())
    assert len(hits) == 48 * 3


@pytest.mark.parametrize(
    ("settings", "complaint"), [({"k": 0}, "k must be"), ({"where": "widht = 3"}, "columns: uri")]
)
def test_mistakes_are_told_before_any_work(
    run: Path, photos: Path, tmp_path: Path, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        search(run, photos, tmp_path / "hits.parquet", **settings)


def test_indexed_queries_need_no_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 300)
    build(run)
    queries = tmp_path / "queries.txt"
    queries.write_text("gs://bucket/0000007.jpg\ngs://bucket/0000007.jpg\n")
    assert search(run, queries, tmp_path / "hits.parquet", k=2).queries == 2
    assert len(pq.read_table(tmp_path / "hits.parquet")) == 4
