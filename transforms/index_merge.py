"""Segments to one index, whose recall is measured before anybody searches it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import faiss
import numpy as np

from transforms import storage
from transforms.faiss_index import merge_indexes
from transforms.index_files import IndexFiles, open_vectors, read_left_out
from transforms.index_fill import Filled
from transforms.index_job import NEIGHBOURS, BuildJob, peak_mb, prepared, put, put_left_out
from transforms.index_train import Trained
from transforms.recall import Measurement, Queries, ceilings, load_arrays, measure, merge_truths, save_arrays
from transforms.sealed import SealedFile
from transforms.vector_index import Hits, SearchSetting
from transforms.vectors import read_vectors, sample_vectors

# A sample on which precisions are compared: 8,192 x 4,320 floats are 142 MB.
_CEILING_ROWS, _CEILING_QUERIES = 8_192, 200


@dataclass(frozen=True)
class Built:
    """A whole index, not yet published, and what is known of it.

    `ceilings` is what more precise vectors could reach, where the recall that was asked for is not
    reached. `drift` is how much farther from its lists what was added lies than what they were made for.
    """

    files: IndexFiles
    measurements: tuple[Measurement, ...]
    ceilings: dict[str, float]
    unusable: int
    list_distance: float
    drift: float | None
    peak_mb: float


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
    measurements = _measure(files, truth, job)
    return Built(
        files,
        measurements,
        _ceilings(files, measurements, job),
        unusable=sum(len(one.unusable) for one in filled),
        list_distance=trained.list_distance,
        drift=_drift(filled, trained) if job.previous.segments else None,
        peak_mb=max([peak_mb(), trained.peak_mb, *(one.peak_mb for one in filled)]),
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
            index.add_with_ids(np.ascontiguousarray(prepared(block, job)[kept]), ids[kept])
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
        truth = index.search(queries.vectors, NEIGHBOURS, SearchSetting())
    return measure(index, queries, truth, read_left_out(job.folder, files), job.min_recall)


def _ceilings(files: IndexFiles, measurements: Sequence[Measurement], job: BuildJob) -> dict[str, float]:
    if max(one.recall[1] for one in measurements) >= job.min_recall:
        return {}
    assert files.queries is not None
    parts = [part for segment in files.segments for part in segment.parts]
    drawn = sample_vectors(job.embeddings, parts, _CEILING_ROWS, np.random.default_rng(0))
    sample = np.concatenate([prepared(block.vectors, job) for block in drawn])
    _, queries = load_arrays(job.folder.open_checked(files.queries))
    return ceilings(sample, queries[:_CEILING_QUERIES], job.metric)


def _drift(filled: Sequence[Filled], trained: Trained) -> float | None:
    """How many times farther from its lists what was added lies."""
    rows = sum(one.segment.rows for one in filled)
    if not rows or not trained.list_distance:
        return None
    return sum(one.list_distance * one.segment.rows for one in filled) / rows / trained.list_distance
