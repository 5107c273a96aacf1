"""Parts to segments, each by itself: side table, stored vectors, codes, neighbours of the queries."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import faiss
import numpy as np

from transforms import storage
from transforms.count import INDEXED, count
from transforms.errors import UserError
from transforms.faiss_index import list_distance
from transforms.index_files import IndexFiles, Segment, read_codec
from transforms.index_job import NEIGHBOURS, BuildJob, once, peak_mb, prepared, put
from transforms.index_train import Trained
from transforms.recall import Queries, load_arrays, save_arrays
from transforms.sealed import SealedFile
from transforms.side_table import read_side_rows, uri_lookup, write_side_rows
from transforms.vector_index import Best, Ids
from transforms.vector_store import Codec
from transforms.vectors import Part, Vectors, read_vectors

# Rows of a block whose distance to their lists is looked at.
_WATCHED = 128


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


def fill_segment(task: SegmentTask, trained: Trained, job: BuildJob) -> Filled:
    """Rows, stored vectors, codes and truth of some parts; raises `UserError` for a damaged part."""
    marker = job.folder.file(f"segment-{job.key}-{task.number:06d}.json")
    filled = once(marker, Filled, lambda: _fill(task, trained, job))
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
        self._truth = Best(len(self._queries.ids), NEIGHBOURS, job.metric)
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
                vectors = prepared(block, self._job)
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
            peak_mb=peak_mb(),
        )

    def _put_truth(self) -> SealedFile:
        truth = self._truth.hits()
        save_arrays(f"{self._path}.truth", truth.ids, truth.scores)
        return put(self._job.folder, f"{self._path}.truth")


def _codec(trained: Trained, job: BuildJob) -> Codec | None:
    if job.recipe.store is None:
        return None
    return read_codec(job.folder, IndexFiles((), job.recipe.store, trained.ranges), job.width)
