"""A sample to trained codes, the encoding of stored vectors, and queries that are held out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import faiss
import numpy as np

from transforms.errors import UserError
from transforms.faiss_index import list_distance, sample_rows, train_index
from transforms.index_job import BuildJob, once, peak_mb, prepared, put
from transforms.recall import Queries, save_arrays
from transforms.sealed import SealedFile
from transforms.vector_store import range_codec
from transforms.vectors import Part, Sample, Vectors, sample_vectors

_QUERIES = 1_000


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


class TrainIndex(beam.PTransform):  # type: ignore[misc]
    """PCollection[tuple[Part, ...]], the parts to sample -> PCollection[Trained]."""

    def __init__(self, job: BuildJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return parts | "Train" >> beam.Map(train, self._job)


def train(parts: tuple[Part, ...], job: BuildJob) -> Trained:
    """Codes, ranges and queries, from a sample of the parts; raises `UserError` if no row can be compared."""
    marker = job.folder.file(f"trained-{job.key}.json")
    return once(marker, Trained, lambda: _train(parts, job))


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
    return Trained(codes, ranges, held_out, distance, peak_mb())


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
            vectors = prepared(sample.vectors, self._job)
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


def _put_ranges(job: BuildJob, scratch: str, tap: SampleTap) -> SealedFile:
    codec = range_codec("uint8", tap.low, tap.high)
    path = os.path.join(scratch, f"ranges-{job.key}.bin")
    np.stack([codec.low, codec.step]).tofile(path)
    return put(job.folder, path)
