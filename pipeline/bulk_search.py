"""Similar images for a list of queries, as a Beam job: from URIs to one Parquet file of hits.

    sources ─ read ─ split ─┬─ indexed ── Reshuffle ─ [ vectors from Parquet ─ search ─ write ] ──┬─ join
                            └─ new ────── Reshuffle ─ [ load ─ embed ─ search ─ write ] ──────────┘

Each group of queries writes a file of its own beside the output; the last step makes one of them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from tempfile import TemporaryDirectory
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.execution import JobFailed, execute
from pipeline.index_manifest import IndexManifest
from pipeline.runners import new_pipeline
from pipeline.search import SimilarityIndex
from transforms import storage
from transforms.errors import UserError
from transforms.fetch import FetchLimits
from transforms.hits import hits_schema
from transforms.load import LoadImages, LoadSettings
from transforms.read import ReadRefs, Source, inspect_source, read_refs
from transforms.records import EmbeddedImage, Failure, Shard, ShardEnd
from transforms.schema import encode_parquet, read_columns
from transforms.vectors import Vectors

# Queries that are searched together: enough for every core, few enough for their hits to stay small.
_GROUP = 2_000
_URIS = pa.schema([pa.field("uri", pa.string(), nullable=False)])


@dataclass(frozen=True, slots=True)
class BulkConfig:
    """Queries of a list, folder or glob against the index of `run`; `threads` fetch and decode."""

    run: str
    queries: str
    output: str
    k: int = 10
    where: str | None = None
    threads: int = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Hits of some queries in a file of their own; what failed has a URI and a reason."""

    file: str
    queries: int
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BulkOutcome:
    """Queries that were answered, and some of those that were not."""

    queries: int
    failed: int
    examples: tuple[tuple[str, str], ...]


def bulk_search(config: BulkConfig, options: PipelineOptions) -> BulkOutcome:
    """Answer all queries; raises `UserError` before any work starts, `JobFailed` after."""
    index = SimilarityIndex.open(config.run)
    if config.k < 1:
        raise UserError(f"k must be at least 1, not {config.k}")
    if config.where is not None:
        index.search(np.ones((1, index.manifest.width), np.float32), 1, config.where)  # is it a condition?
    output = storage.resolve(config.output, ".")
    pipeline = new_pipeline(options)
    _build(pipeline, config, _survey(index, inspect_source(config.queries, None)), index.manifest, output)
    execute(pipeline, options, lambda _: nullcontext())
    summary = f"{output}.summary"
    try:
        table = read_columns(summary, ["queries", "failed", "uri", "reason"])
    finally:
        storage.delete(summary)
    [row] = table.to_pylist()
    return BulkOutcome(row["queries"], row["failed"], tuple(zip(row["uri"], row["reason"], strict=True)))


@dataclass(frozen=True, slots=True)
class _Queries:
    source: Source
    any_new: bool


def _survey(index: SimilarityIndex, source: Source) -> _Queries:
    """Whether any query is not indexed: only then is the model needed."""
    tables = read_refs(source, _URIS)
    return _Queries(source, any((index.find(table["uri"].to_pylist()) < 0).any() for table in tables))


def _build(
    root: beam.Pipeline, config: BulkConfig, queries: _Queries, manifest: IndexManifest, output: str
) -> None:
    split = (
        root
        | "Sources" >> beam.Create([queries.source])
        | ReadRefs(_URIS)
        | "Split" >> beam.ParDo(_Split(config.run)).with_outputs("new", main="indexed")
    )
    indexed = split.indexed | "SpreadIndexed" >> beam.Reshuffle()
    groups = [indexed | "SearchIndexed" >> beam.ParDo(_SearchIndexed(config, output))]
    if queries.any_new:
        new = split.new | "SpreadNew" >> beam.Reshuffle() | _embed(manifest, config.threads)
        groups.append(new | "SearchNew" >> beam.ParDo(_SearchNew(config, output)))
    (groups | beam.Flatten() | "Groups" >> beam.combiners.ToList() | "Join" >> beam.Map(join_groups, output))


def _embed(manifest: IndexManifest, threads: int) -> beam.PTransform:
    """PCollection[Shard] -> PCollection[EmbeddedImage | Failure | ShardEnd], as the run's own images went."""
    from pipeline.query_model import settings_of  # imports TensorFlow
    from transforms.embed import EmbedImages

    embedder, preprocessing = settings_of(manifest.identity)
    ahead = 2 * embedder.batch_size + threads
    load = LoadImages(LoadSettings(FetchLimits(), preprocessing, threads, ahead))
    return load | EmbedImages(embedder)


def hits_table(
    index: SimilarityIndex, queries: Sequence[str], vectors: Vectors, config: BulkConfig
) -> pa.Table:
    """query_uri, rank, uri, score of (n, D) vectors, query after query."""
    hits = index.search(vectors, config.k, config.where)
    there = hits.ids >= 0
    rank = np.broadcast_to(np.arange(1, hits.ids.shape[1] + 1, dtype=np.int32), hits.ids.shape)
    asked = np.broadcast_to(np.arange(len(queries))[:, None], hits.ids.shape)
    uris = index.rows(hits.ids[there], ["uri"])["uri"]
    columns = [
        pa.array(queries, pa.string()).take(pa.array(asked[there])),
        pa.array(rank[there]),
        uris.combine_chunks(),
        pa.array(hits.scores[there]),
    ]
    return pa.Table.from_arrays(columns, schema=hits_schema())


def join_groups(groups: Iterable[Group], output: str) -> None:
    """One file out of those of the groups, in order of their names, a row group at a time."""
    groups = sorted(groups, key=lambda group: group.file)
    failed = [failure for group in groups for failure in group.failed]
    with TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "hits.parquet")
        with pq.ParquetWriter(path, hits_schema(), compression="zstd") as writer:
            for group in groups:
                writer.write_table(read_columns(group.file, hits_schema().names).cast(hits_schema()))
        storage.write_whole(output, pa.memory_map(path).read_buffer())
    for group in groups:
        storage.delete(group.file)
    summary = pa.table(
        {
            "queries": [sum(group.queries for group in groups)],
            "failed": [len(failed)],
            "uri": [[uri for uri, _ in failed[:5]]],
            "reason": [[reason for _, reason in failed[:5]]],
        }
    )
    storage.write_whole(f"{output}.summary", encode_parquet(summary))


def _write_group(output: str, table: pa.Table, queries: Sequence[str]) -> str:
    """The name depends on the queries alone: a bundle that is run again overwrites its file."""
    digest = blake2b("\n".join(queries).encode(), digest_size=10).hexdigest()
    file = f"{output}.part-{digest}"
    storage.write_whole(file, encode_parquet(table))
    return file


class _Split(beam.DoFn):  # type: ignore[misc]
    """Tables of URIs to groups of row ids, near each other in Parquet, and shards of those not indexed."""

    def __init__(self, run: str) -> None:
        self._run = run

    def setup(self) -> None:
        self._index = SimilarityIndex.open(self._run)

    def process(self, refs: pa.Table) -> Iterator[Any]:
        uris = refs["uri"].to_pylist()
        ids = self._index.find(uris)
        known = np.sort(ids[ids >= 0])
        for start in range(0, len(known), _GROUP):
            yield known[start : start + _GROUP]
        new = pa.array(np.flatnonzero(ids < 0))
        for start in range(0, len(new), _GROUP):
            yield beam.pvalue.TaggedOutput("new", Shard(refs.take(new[start : start + _GROUP])))


class _Search(beam.DoFn):  # type: ignore[misc]
    def __init__(self, config: BulkConfig, output: str) -> None:
        self._config = config
        self._output = output

    def setup(self) -> None:
        self._index = SimilarityIndex.open(self._config.run)


class _SearchIndexed(_Search):
    def process(self, ids: "np.ndarray[Any, np.dtype[np.int64]]") -> Iterator[Group]:
        uris = self._index.rows(ids, ["uri"])["uri"].to_pylist()
        table = hits_table(self._index, uris, self._index.vectors_of(ids), self._config)
        yield Group(_write_group(self._output, table, uris), len(uris))


class _SearchNew(_Search):
    def start_bundle(self) -> None:
        self._open: dict[str, list[EmbeddedImage | Failure]] = {}

    def process(self, row: EmbeddedImage | Failure | ShardEnd) -> Iterator[Group]:
        if isinstance(row, ShardEnd):
            return
        shard = row.ref.shard
        rows = self._open.setdefault(shard.name, [])
        rows.append(row)
        if len(rows) == len(shard):
            yield self._answer(self._open.pop(shard.name))

    def _answer(self, rows: Sequence[EmbeddedImage | Failure]) -> Group:
        embedded = sorted(
            (row for row in rows if isinstance(row, EmbeddedImage)), key=lambda row: row.ref.index
        )
        failed = tuple(
            (row.ref.uri, f"{row.error}: {row.message}") for row in rows if isinstance(row, Failure)
        )
        uris = [row.ref.uri for row in embedded]
        if embedded:
            vectors = np.stack([row.vector for row in embedded])
            table = hits_table(self._index, uris, vectors, self._config)
        else:
            table = hits_schema().empty_table()
        return Group(
            _write_group(self._output, table, [*uris, *(uri for uri, _ in failed)]), len(uris), failed
        )

    def finish_bundle(self) -> None:
        if self._open:
            raise JobFailed(f"{len(self._open)} groups of queries ended without all their images")
