"""Parquet to an index: train on a sample, fill a segment of rows at a time, merge, measure.

Every step leaves files whose names depend on the build alone, and a marker when it is done: a build
that was killed goes on from there, and a bundle that is run again finds its work done.
"""

import json
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import apache_beam as beam
import faiss
import numpy as np

from transforms import storage
from transforms.count import INDEXED, count
from transforms.errors import UserError
from transforms.faiss_index import Recipe, list_distance, merge_indexes, sample_rows, train_index
from transforms.index_files import IndexFiles, IndexFolder, Segment, open_vectors, read_codec, read_left_out
from transforms.recall import Measurement, Queries, load_arrays, measure, merge_truths, save_arrays
from transforms.sealed import SealedFile, seal
from transforms.side_table import read_side_rows, uri_lookup, write_side_rows
from transforms.vector_index import Best, Hits, Ids, SearchSetting
from transforms.vector_store import Codec, range_codec
from transforms.vectors import Metric, Part, Sample, Vectors, prepare, read_vectors, sample_vectors

# Neighbours kept of each query: 100 to compare with, the query itself, and some that may be removed.
_NEIGHBOURS = 128
_QUERIES = 1_000
# Rows of a block whose distance to their lists is looked at.
_WATCHED = 128


@dataclass(frozen=True)
class BuildJob:
    """What every step of one build knows: `key` names its files, `previous` is what it adds to."""

    folder: IndexFolder
    embeddings: str
    key: str
    recipe: Recipe
    metric: Metric
    width: int
    memory: int
    min_recall: float
    previous: IndexFiles
    removed_uris: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Trained:
    """What training left: codes without a row, encoding of stored vectors, queries held out.

    `list_distance` is the mean distance of the queries to their lists.
    """

    codes: SealedFile | None
    ranges: SealedFile | None
    queries: SealedFile
    list_distance: float
    peak_mb: float = 0.0

    def to_json(self) -> dict[str, Any]:
        files = {"codes": self.codes, "ranges": self.ranges, "queries": self.queries}
        sealed = {name: file and file.to_json() for name, file in files.items()}
        return {**sealed, "list_distance": self.list_distance, "peak_mb": self.peak_mb}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Trained":
        codes, ranges, queries = (
            SealedFile.from_json(values[name]) if values[name] else None
            for name in ("codes", "ranges", "queries")
        )
        assert queries is not None
        return Trained(codes, ranges, queries, float(values["list_distance"]), float(values["peak_mb"]))


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """Parts that are filled together; `first` is the id of their first row."""

    number: int
    first: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A segment; its codes and truth, which are merged; ids of its rows that are in no result."""

    number: int
    first: int
    segment: Segment
    codes: SealedFile | None
    truth: SealedFile | None
    unusable: tuple[int, ...]
    removed: tuple[int, ...]
    list_distance: float
    peak_mb: float

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "first": self.first,
            "segment": self.segment.to_json(),
            "codes": self.codes and self.codes.to_json(),
            "truth": self.truth and self.truth.to_json(),
            "unusable": self.unusable,
            "removed": self.removed,
            "list_distance": self.list_distance,
            "peak_mb": self.peak_mb,
        }

    @property
    def coded(self) -> int:
        """Rows that have codes."""
        return self.segment.rows - len({*self.unusable, *self.removed})

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Filled":
        return Filled(
            values["number"],
            values["first"],
            Segment.from_json(values["segment"]),
            SealedFile.from_json(values["codes"]) if values["codes"] else None,
            SealedFile.from_json(values["truth"]) if values["truth"] else None,
            tuple(values["unusable"]),
            tuple(values["removed"]),
            values["list_distance"],
            values["peak_mb"],
        )


@dataclass(frozen=True)
class Built:
    """A whole index, not yet published, and what is known of it.

    `drift` is how much farther from its lists what was added lies than what they were made for.
    """

    files: IndexFiles
    measurements: tuple[Measurement, ...]
    unusable: int
    list_distance: float
    drift: float | None
    peak_mb: float


class TrainIndex(beam.PTransform):  # type: ignore[misc]
    """PCollection[tuple[Part, ...]], the parts to sample -> PCollection[Trained]."""

    def __init__(self, job: BuildJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return parts | "Train" >> beam.Map(train, self._job)


class FillSegments(beam.PTransform):  # type: ignore[misc]
    """PCollection[SegmentTask] -> PCollection[Filled]; `trained` is a PCollection of one `Trained`."""

    def __init__(self, job: BuildJob, trained: beam.PCollection) -> None:
        super().__init__()
        self._job = job
        self._trained = trained

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        trained = beam.pvalue.AsSingleton(self._trained)
        return (
            tasks | "SpreadTasks" >> beam.Reshuffle() | "Fill" >> beam.Map(fill_segment, trained, self._job)
        )


class MergeIndex(beam.PTransform):  # type: ignore[misc]
    """PCollection[Filled] -> PCollection[Built] of one; `trained` is a PCollection of one `Trained`."""

    def __init__(self, job: BuildJob, trained: beam.PCollection) -> None:
        super().__init__()
        self._job = job
        self._trained = trained

    def expand(self, filled: beam.PCollection) -> beam.PCollection:
        trained = beam.pvalue.AsSingleton(self._trained)
        return (
            filled
            | "All" >> beam.combiners.ToList()
            | "Merge" >> beam.Map(merge_and_measure, trained, self._job)
        )


def train(parts: tuple[Part, ...], job: BuildJob) -> Trained:
    """Codes, ranges and queries, from a sample of the parts; raises `UserError` if no row can be compared."""
    marker = job.folder.file(f"trained-{job.key}.json")
    return _once(marker, Trained, lambda: _train(parts, job))


def _train(parts: tuple[Part, ...], job: BuildJob) -> Trained:
    rows = sum(part.rows for part in parts)
    queries = min(_QUERIES, -(-rows // 10) if job.recipe.codes else rows)
    wanted = min(sample_rows(job.recipe, rows, job.width, job.memory), rows - queries)
    drawn = sample_vectors(job.embeddings, parts, wanted + queries, np.random.default_rng(0))
    tap = SampleTap(job, queries, queries / (wanted + queries))
    codes, distance = None, 0.0
    with job.folder.scratch() as scratch:
        if job.recipe.codes:
            try:
                index = train_index(job.recipe, job.width, job.metric, job.memory, tap.training(drawn))
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"--recipe {job.recipe.text}: FAISS can't train it on {wanted:,} of {rows:,} vectors;"
                    " name another --recipe, such as exact"
                ) from error
            distance = list_distance(index, tap.queries.vectors)
            path = os.path.join(scratch, f"trained-{job.key}.faiss")
            faiss.write_index(index, path)
            codes = put(job.folder, path)
        else:
            for _ in tap.training(drawn):
                pass
        path = os.path.join(scratch, f"queries-{job.key}.bin")
        save_arrays(path, tap.queries.ids, tap.queries.vectors)
        held_out = put(job.folder, path)
        ranges = _put_ranges(job, scratch, tap) if job.recipe.store == "uint8" else None
    return Trained(codes, ranges, held_out, distance, _peak_mb())


class SampleTap:
    """Takes the queries out of a sample, and the range of each dimension, while the rest goes to training."""

    def __init__(self, job: BuildJob, queries: int, share: float) -> None:
        self._job = job
        self._wanted = queries
        self._share = share
        self._queries: list[Sample] = []
        self.low = np.full(job.width, np.inf, np.float32)
        self.high = np.full(job.width, -np.inf, np.float32)

    @property
    def queries(self) -> Queries:
        return Queries(
            np.concatenate([sample.ids for sample in self._queries])[: self._wanted],
            np.concatenate([sample.vectors for sample in self._queries])[: self._wanted],
        )

    def training(self, samples: Iterator[Sample]) -> Iterator[Vectors]:
        """The (n, D) prepared vectors that are no queries."""
        for sample in samples:
            vectors = _prepared(sample.vectors, self._job)
            usable = vectors.any(axis=1)
            ids, vectors = sample.ids[usable], vectors[usable]
            if not len(vectors):
                continue
            np.minimum(self.low, vectors.min(axis=0), out=self.low)
            np.maximum(self.high, vectors.max(axis=0), out=self.high)
            held = int(np.ceil(self._share * len(vectors)))
            self._queries.append(Sample(ids[:held], vectors[:held]))
            if held < len(vectors):
                yield vectors[held:]
        if not self._queries:
            raise UserError(f"{self._job.embeddings}: every vector is zero, NaN or infinite")


def _prepared(vectors: Vectors, job: BuildJob) -> Vectors:
    """Raises `UserError` for vectors of another width than the run's."""
    if vectors.shape[1] != job.width:
        raise UserError(
            f"{job.embeddings}: a file holds vectors of {vectors.shape[1]:,}, the run's are {job.width:,}"
        )
    return prepare(vectors, job.metric).vectors


def _put_ranges(job: BuildJob, scratch: str, tap: SampleTap) -> SealedFile:
    codec = range_codec("uint8", tap.low, tap.high)
    path = os.path.join(scratch, f"ranges-{job.key}.bin")
    np.stack([codec.low, codec.step]).tofile(path)
    return put(job.folder, path)


def fill_segment(task: SegmentTask, trained: Trained, job: BuildJob) -> Filled:
    """Rows, stored vectors, codes and truth of some parts; raises `UserError` for a damaged part."""
    marker = job.folder.file(f"segment-{job.key}-{task.number:06d}.json")
    filled = _once(marker, Filled, lambda: _fill(task, trained, job))
    count(INDEXED, filled.segment.rows)
    return filled


def _fill(task: SegmentTask, trained: Trained, job: BuildJob) -> Filled:
    with job.folder.scratch() as scratch:
        name = f"segment-{job.key}-{task.number:06d}"
        writer = _SegmentWriter(os.path.join(scratch, name), task, trained, job)
        for part in task.parts:
            writer.add(part)
        return writer.finish()


class _SegmentWriter:
    """The files of one segment, while its parts go by."""

    def __init__(self, path: str, task: SegmentTask, trained: Trained, job: BuildJob) -> None:
        self._path = path
        self._task = task
        self._job = job
        self._next = task.first
        self._codec = _codec(trained, job)
        self._codes = None
        if trained.codes is not None and job.recipe.is_mergeable:
            self._codes = faiss.read_index(job.folder.open_checked(trained.codes))
        self._trained = trained
        self._queries = Queries(*load_arrays(job.folder.open_checked(trained.queries)))
        self._truth = Best(len(self._queries.ids), _NEIGHBOURS, job.metric)
        self._side: list[Any] = []
        self._unusable: list[Ids] = []
        self._removed: list[Ids] = []
        self._distances: list[float] = []

    def add(self, part: Part) -> None:
        """Raises `UserError` if the part has not its rows."""
        file = storage.join(self._job.embeddings, part.name)
        side = read_side_rows(file)
        wanted = self._wanted(side["uri"].to_pylist())
        self._removed.append(self._next + np.flatnonzero(~wanted))
        self._side.append(side)
        done = 0
        with open(f"{self._path}.rows", "ab") as store:
            for block in read_vectors(file):
                vectors = _prepared(block, self._job)
                if self._codec is not None:
                    store.write(self._codec.encode(vectors).data)
                self._index(vectors, wanted[done : done + len(block)])
                done += len(block)
        if not len(side) == part.rows == done:
            raise UserError(f"{file} has {len(side):,} rows, not {part.rows:,}; build again with --rebuild")

    def _wanted(self, uris: Sequence[str]) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        gone = self._job.removed_uris
        return np.array([uri not in gone for uri in uris], np.bool_) if gone else np.ones(len(uris), np.bool_)

    def _index(self, vectors: Vectors, wanted: "np.ndarray[Any, np.dtype[np.bool_]]") -> None:
        ids = np.arange(self._next, self._next + len(vectors), dtype=np.int64)
        usable = vectors.any(axis=1)
        self._unusable.append(ids[~usable])
        self._next += len(vectors)
        ids, vectors = ids[usable & wanted], np.ascontiguousarray(vectors[usable & wanted])
        if not len(ids):
            return
        if self._codes is not None:
            self._codes.add_with_ids(vectors, ids)
            if self._job.previous.segments:
                self._distances.append(list_distance(self._codes, vectors[:_WATCHED]))
        if self._job.recipe.codes:
            self._truth.add(self._queries.vectors, vectors, ids)

    def finish(self) -> Filled:
        """Put the files where the index lies."""
        job, side, codes = self._job, f"{self._path}.arrow", None
        uris = [uri for table in self._side for uri in table["uri"].to_pylist()]
        write_side_rows(side, self._side)
        uri_lookup(uris).tofile(f"{self._path}.uris")
        if self._codes is not None:
            faiss.write_index(self._codes, f"{self._path}.faiss")
            codes = put(job.folder, f"{self._path}.faiss")
        truth = self._put_truth() if job.recipe.codes else None
        segment = Segment(
            self._task.parts,
            put(job.folder, side),
            put(job.folder, f"{self._path}.uris"),
            put(job.folder, f"{self._path}.rows", digest=False) if self._codec is not None else None,
        )
        return Filled(
            number=self._task.number,
            first=self._task.first,
            segment=segment,
            codes=codes,
            truth=truth,
            unusable=tuple(np.concatenate(self._unusable).tolist()),
            removed=tuple(np.concatenate(self._removed).tolist()),
            list_distance=float(np.mean(self._distances)) if self._distances else 0.0,
            peak_mb=_peak_mb(),
        )

    def _put_truth(self) -> SealedFile:
        truth = self._truth.hits()
        save_arrays(f"{self._path}.truth", truth.ids, truth.scores)
        return put(self._job.folder, f"{self._path}.truth")


def _codec(trained: Trained, job: BuildJob) -> Codec | None:
    if job.recipe.store is None:
        return None
    return read_codec(job.folder, IndexFiles((), job.recipe.store, trained.ranges), job.width)


def merge_and_measure(filled: Sequence[Filled], trained: Trained, job: BuildJob) -> Built:
    """The index of what was there and what was filled."""
    filled = sorted(filled, key=lambda one: one.number)
    segments = (*job.previous.segments, *(one.segment for one in filled))
    left_out = np.concatenate(
        [
            read_left_out(job.folder, job.previous),
            *(np.array((*one.unusable, *one.removed), np.int64) for one in filled),
        ]
    )
    files = IndexFiles(segments, job.recipe.store, trained.ranges, trained.codes, queries=trained.queries)
    with job.folder.scratch() as scratch:
        if job.recipe.codes:
            files = _merge_codes(files, filled, scratch, job)
        files = replace(files, left_out=put_left_out(job.folder, job.key, left_out, scratch))
        truth = _merge_truth(filled, job)
        if truth is not None:
            save_arrays(os.path.join(scratch, f"truth-{job.key}.bin"), truth.ids, truth.scores)
            files = replace(files, truth=put(job.folder, os.path.join(scratch, f"truth-{job.key}.bin")))
    return Built(
        files,
        _measure(files, truth, job),
        unusable=sum(len(one.unusable) for one in filled),
        list_distance=trained.list_distance,
        drift=_drift(filled, trained) if job.previous.segments else None,
        peak_mb=max([_peak_mb(), trained.peak_mb, *(one.peak_mb for one in filled)]),
    )


def _merge_codes(files: IndexFiles, filled: Sequence[Filled], scratch: str, job: BuildJob) -> IndexFiles:
    """One file of codes; where that is more than memory takes, those of the segments stay as they are."""
    parts = (*job.previous.codes, *(one.codes for one in filled if one.codes))
    coded = job.previous.coded + sum(one.coded for one in filled)
    if job.recipe.is_mergeable and sum(part.size for part in parts) > job.memory:
        return replace(files, codes=parts, coded=coded)
    path = os.path.join(scratch, f"codes-{job.key}.faiss")
    faiss.write_index(_merged(files, filled, parts, job), path)
    return replace(files, codes=(put(job.folder, path),), coded=coded)


def _merged(
    files: IndexFiles, filled: Sequence[Filled], parts: Sequence[SealedFile], job: BuildJob
) -> faiss.Index:
    assert files.trained is not None
    if job.recipe.is_mergeable:
        trained = faiss.read_index(job.folder.open_checked(files.trained))
        return merge_indexes(trained, [job.folder.open_checked(part) for part in parts])
    index = faiss.read_index(job.folder.open_checked((*job.previous.codes, files.trained)[0]))
    for one in filled:
        _add_all(index, one, job)
    return index


def _add_all(index: faiss.Index, filled: Filled, job: BuildJob) -> None:
    """Add a segment's rows to codes that can't be merged."""
    row = filled.first
    skipped = np.array((*filled.unusable, *filled.removed), np.int64)
    for part in filled.segment.parts:
        for block in read_vectors(storage.join(job.embeddings, part.name)):
            ids = np.arange(row, row + len(block), dtype=np.int64)
            kept = ~np.isin(ids, skipped)
            index.add_with_ids(np.ascontiguousarray(_prepared(block, job)[kept]), ids[kept])
            row += len(block)


def _merge_truth(filled: Sequence[Filled], job: BuildJob) -> Hits | None:
    """Exact neighbours of the queries among all rows; None where every search is exact."""
    files = [job.previous.truth, *(one.truth for one in filled)]
    parts = [load_arrays(job.folder.open_checked(file)) for file in files if file]
    return merge_truths([Hits(scores, ids) for ids, scores in parts], job.metric) if parts else None


def _measure(files: IndexFiles, truth: Hits | None, job: BuildJob) -> tuple[Measurement, ...]:
    index = open_vectors(job.folder, files, job.metric, job.width)
    assert files.queries is not None
    queries = Queries(*load_arrays(job.folder.open_checked(files.queries)))
    if truth is None:
        truth = index.search(queries.vectors, _NEIGHBOURS, SearchSetting())
    return measure(index, queries, truth, read_left_out(job.folder, files), job.min_recall)


def _drift(filled: Sequence[Filled], trained: Trained) -> float | None:
    """How many times farther from its lists what was added lies."""
    rows = sum(one.segment.rows for one in filled)
    if not rows or not trained.list_distance:
        return None
    return sum(one.list_distance * one.segment.rows for one in filled) / rows / trained.list_distance


def put_left_out(folder: IndexFolder, key: str, ids: Ids, scratch: str) -> SealedFile | None:
    """Record which rows are in no result."""
    if not len(ids):
        return None
    path = os.path.join(scratch, f"left-out-{key}.bin")
    np.unique(ids).tofile(path)
    return put(folder, path)


def put(folder: IndexFolder, path: str, *, digest: bool = True) -> SealedFile:
    """Seal a local file and move it to where the index lies; raises `UserError`."""
    sealed = seal(path, os.path.basename(path), digest=digest)
    try:
        storage.put_file(path, folder.file(sealed.name))
    except storage.STORAGE_ERRORS as error:
        raise UserError(
            f"{folder.file(sealed.name)}: cannot be written: {storage.first_line(error)}"
        ) from error
    return sealed


Result = TypeVar("Result", Trained, Filled)


def _once(marker: str, kind: type[Result], work: Callable[[], Result]) -> Result:
    """The result of a step, from its marker if it was done before."""
    if storage.exists(marker):
        return kind.from_json(json.loads(storage.read_text(marker)))
    result = work()
    storage.write_whole(marker, json.dumps(result.to_json()).encode())
    return result


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
