"""Files of a shard: when they appear, what they hold, what running twice does."""

from collections import Counter
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from tests.rows import embedded, failed, row_format, shard
from transforms.records import EmbeddedImage, Failure, Forgotten, Shard, ShardEnd
from transforms.schema import OutputFolders
from transforms.tally import Tally, total
from transforms.write import ForgetFailures, ShardRows, WriteShards


@pytest.fixture
def folders(tmp_path: Path) -> OutputFolders:
    return OutputFolders(str(tmp_path / "embeddings"), str(tmp_path / "failures"))


def uris(folder: str) -> list[str]:
    return [uri for path in sorted(Path(folder).glob("*")) for uri in pq.read_table(path)["uri"].to_pylist()]


def fill(images: Shard, rows: list[EmbeddedImage | Failure]) -> ShardRows:
    collected = ShardRows(images)
    complete = [collected.add(row) for row in rows]
    assert complete == [False] * (len(rows) - 1) + [True]
    return collected


def test_rows_are_written_in_the_order_of_the_input_however_they_come(folders: OutputFolders) -> None:
    images = shard("a", "b", "c", "d")
    rows = [embedded(images, i, [i, 0, 0, 0]) for i in (2, 0, 3)]
    fill(images, [*rows, failed(images, 1)]).write(folders, row_format())
    assert uris(folders.embeddings) == ["a", "c", "d"]
    assert uris(folders.failures) == ["b"]


def test_the_tally_of_a_shard_adds_up(folders: OutputFolders) -> None:
    images = shard("a", "b", "c")
    rows = [embedded(images, 0, [0, 0, 0, 0]), failed(images, 1), failed(images, 2, "EmptyFile")]
    tally = fill(images, rows).write(folders, row_format())
    assert (tally.embedded, tally.pending) == (1, -3)
    assert tally.failed == Counter(NotFound=1, EmptyFile=1)
    assert tally.seconds.embed == 0.5


def test_a_second_run_of_a_shard_replaces_its_files(folders: OutputFolders) -> None:
    images = shard("a", "b")
    fill(images, [failed(images, 0), failed(images, 1)]).write(folders, row_format())
    assert uris(folders.embeddings) == []
    fill(images, [embedded(images, i, [0, 0, 0, 0]) for i in (0, 1)]).write(folders, row_format())
    assert uris(folders.embeddings) == ["a", "b"]
    assert uris(folders.failures) == []


def test_no_other_file_is_left_behind(folders: OutputFolders, tmp_path: Path) -> None:
    images = shard("a")
    fill(images, [embedded(images, 0, [0, 0, 0, 0])]).write(folders, row_format())
    assert [path.name for path in tmp_path.rglob("*.*")] == [f"part-{images.name}.parquet"]


def test_shards_that_come_mixed_are_told_apart(folders: OutputFolders) -> None:
    first, second = shard("a", "b"), shard("c")
    rows = [
        embedded(first, 1, [0, 0, 0, 0]),
        embedded(second, 0, [0, 0, 0, 0]),
        ShardEnd(second, 0.25, 0.5),
        failed(first, 0),
        ShardEnd(first, 0.25, 0.5),
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        tallies = pipeline | beam.Create([rows]) | beam.FlatMap(list) | WriteShards(folders, row_format())
        sums = tallies | beam.CombineGlobally(total) | beam.Map(_summary)
        assert_that(sums, equal_to([(2, 1, -3, 0.5, 1.0)]))
    assert uris(folders.embeddings) == ["b", "c"] or uris(folders.embeddings) == ["c", "b"]


def _summary(tally: Tally) -> tuple[float, ...]:
    seconds = tally.seconds
    return tally.embedded, tally.failed.total(), tally.pending, seconds.fetch, seconds.decode


def test_a_shard_without_all_its_rows_is_an_error_not_a_loss(folders: OutputFolders) -> None:
    images = shard("a", "b")
    pipeline = beam.Pipeline(runner=FnApiRunner())
    rows = pipeline | beam.Create([[embedded(images, 0, [0, 0, 0, 0])]]) | beam.FlatMap(list)
    rows | WriteShards(folders, row_format())
    with pytest.raises(RuntimeError, match="without all their rows"):
        pipeline.run()


def test_forgotten_failures_vanish_and_the_others_stay(folders: OutputFolders) -> None:
    images, other = shard("a", "b", "c"), shard("d")
    fill(images, [failed(images, i) for i in range(3)]).write(folders, row_format())
    fill(other, [failed(other, 0)]).write(folders, row_format())
    file = str(Path(folders.failures) / f"part-{images.name}.parquet")
    gone = str(Path(folders.failures) / f"part-{other.name}.parquet")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        forgotten = [Forgotten(file, ("a",)), Forgotten(file, ("c", "zzz")), Forgotten(gone, ("d",))]
        pipeline | beam.Create(forgotten) | ForgetFailures()
    assert uris(folders.failures) == ["b"]
    assert not Path(gone).exists()
