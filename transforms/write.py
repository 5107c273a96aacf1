"""Rows to Parquet, a file the moment its shard is complete.

A shard's files depend on the shard alone, so a bundle that is run again overwrites them. Failures
are written first: killed in between, the images without a row are simply still to do.
"""

import time
from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import storage
from transforms.count import EMBEDDED, FAILED, count
from transforms.records import EmbeddedImage, Failure, Forgotten, Shard, ShardEnd
from transforms.schema import OutputFolders, RowFormat, embeddings_table, encode_parquet, failures_table
from transforms.tally import StepSeconds, Tally


class WriteShards(beam.PTransform):  # type: ignore[misc]
    """PCollection[EmbeddedImage | Failure | ShardEnd] -> PCollection[Tally], one a shard."""

    def __init__(self, folders: OutputFolders, row_format: RowFormat) -> None:
        super().__init__()
        self._folders = folders
        self._row_format = row_format

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return rows | beam.ParDo(_WriteShards(self._folders, self._row_format))


class ForgetFailures(beam.PTransform):  # type: ignore[misc]
    """PCollection[Forgotten] -> nothing: takes those rows out of `failures/`."""

    def expand(self, forgotten: beam.PCollection) -> beam.PCollection:
        return (
            forgotten
            | "ByFile" >> beam.GroupBy(lambda row: row.file)
            | "Rewrite" >> beam.FlatMapTuple(lambda file, rows: forget_failures(file, rows))
        )


class ShardRows:
    """The rows of one shard, until the last of them is there."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._embedded: list[EmbeddedImage] = []
        self._failed: list[Failure] = []

    def add(self, row: EmbeddedImage | Failure) -> bool:
        """Take a row; True when the shard is complete."""
        if isinstance(row, Failure):
            self._failed.append(row)
        else:
            self._embedded.append(row)
        return len(self._embedded) + len(self._failed) == len(self.shard)

    def write(self, folders: OutputFolders, row_format: RowFormat) -> Tally:
        """Write both files, in the order of the input; a file without rows is removed."""
        start = time.perf_counter()
        self._embedded.sort(key=lambda row: row.ref.index)
        self._failed.sort(key=lambda row: row.ref.index)
        name = f"part-{self.shard.name}.parquet"
        embeddings = storage.join(folders.embeddings, name)
        failures = storage.join(folders.failures, name)
        if self._failed:
            table = failures_table(self.shard, self._failed, row_format)
            storage.write_whole(failures, encode_parquet(table))
        if self._embedded:
            table = embeddings_table(self.shard, self._embedded, row_format)
            storage.write_whole(embeddings, encode_parquet(table))
        else:
            storage.delete(embeddings)
        if not self._failed:
            storage.delete(failures)
        return self._tally(time.perf_counter() - start)

    def _tally(self, write_s: float) -> Tally:
        return Tally(
            embedded=len(self._embedded),
            pending=-len(self.shard),
            failed=Counter(row.error for row in self._failed),
            seconds=StepSeconds(write=write_s, embed=sum(row.embed_s for row in self._embedded)),
        )


def forget_failures(file: str, forgotten: Iterator[Forgotten]) -> Iterator[None]:
    """Rewrite a failures file without these URIs, or remove it when none is left."""
    gone = pa.array([uri for row in forgotten for uri in row.uris], pa.string())
    if not storage.exists(file):
        return
    with storage.open_input(file) as source:
        table = pq.read_table(source)
    left = table.filter(pc.invert(pc.is_in(table["uri"], gone)))
    if len(left):
        storage.write_whole(file, encode_parquet(left))
    else:
        storage.delete(file)
    yield from ()


class _WriteShards(beam.DoFn):  # type: ignore[misc]
    def __init__(self, folders: OutputFolders, row_format: RowFormat) -> None:
        self._folders = folders
        self._row_format = row_format

    def start_bundle(self) -> None:
        self._open: dict[str, ShardRows] = {}

    def process(self, row: EmbeddedImage | Failure | ShardEnd) -> Iterator[Tally]:
        if isinstance(row, ShardEnd):
            yield Tally(seconds=StepSeconds(fetch=row.fetch_s, decode=row.decode_s))
            return
        count(FAILED if isinstance(row, Failure) else EMBEDDED)
        shard = row.ref.shard
        rows = self._open.setdefault(shard.name, ShardRows(shard))
        if rows.add(row):
            del self._open[shard.name]
            yield rows.write(self._folders, self._row_format)

    def finish_bundle(self) -> None:
        if self._open:
            raise RuntimeError(f"{len(self._open)} shards ended without all their rows")
