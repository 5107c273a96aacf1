"""The query library: `SimilarityIndex` over a run folder. No Beam; no TensorFlow unless an image is given."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.index_manifest import IndexManifest, index_folder, load_index_manifest
from pipeline.manifest import load_manifest
from pipeline.run_folder import RunFolder
from transforms import storage
from transforms.errors import FetchFailure, UserError
from transforms.index_files import open_side_table, open_vectors
from transforms.side_table import SideTable
from transforms.vector_index import Hits, Ids, Mask, VectorIndex
from transforms.vectors import Vectors, prepare, read_rows

if TYPE_CHECKING:
    from pipeline.query_model import QueryModel

_FIELDS = ("uri", "label", "probability", "width", "height", "format")


@dataclass(frozen=True, slots=True)
class Match:
    """An image that was found. `score` is cosine or inner product, or for l2 the distance.

    `kept` has the columns that were carried from the input.
    """

    uri: str
    score: float
    label: str | None
    probability: float | None
    width: int | None
    height: int | None
    format: str | None
    kept: Mapping[str, Any]


class SimilarityIndex:
    """What `pnasvec index` built, opened to be queried; from any number of threads."""

    def __init__(
        self, run: RunFolder, manifest: IndexManifest, vectors: VectorIndex, images: SideTable
    ) -> None:
        self.run = run
        self.manifest = manifest
        self._vectors = vectors
        self._images = images
        self._condition: tuple[str, Mask] | None = None

    @staticmethod
    def open(run: str | os.PathLike[str]) -> "SimilarityIndex":
        """The index of a run folder on any storage; raises `UserError` if there is none, or it is damaged.

        Opened while a new one replaces it, it is the old one or the new one.
        """
        folder = RunFolder(storage.resolve(os.fspath(run), "."))
        manifest = _published(folder)
        while True:
            try:
                return _open(folder, manifest)
            except UserError:
                before, manifest = manifest, _published(folder)
                if manifest.built == before.built:
                    raise

    def __len__(self) -> int:
        """Images that can be found."""
        return self.manifest.rows

    def similar(self, image: bytes | str | Path, k: int = 10, where: str | None = None) -> list[Match]:
        """The k images most like an image: its bytes, or its path or URI. Loads the run's model once.

        Raises `UserError` if it can't be read or decoded, or the model is not the run's.
        """
        name = "the query image" if isinstance(image, bytes) else storage.resolve(os.fspath(image), ".")
        data = image if isinstance(image, bytes) else _fetch(name)
        return self.similar_by_vector(self._model.vector(data, name)[0], k, where)

    def similar_by_uri(self, uri: str, k: int = 10, where: str | None = None) -> list[Match]:
        """The k images most like an indexed one, itself the first; raises `UserError` if it isn't indexed."""
        found = self.find([uri, storage.resolve(uri, ".")])
        if (found < 0).all():
            raise UserError(f"{uri} is not in the index of {self.run.uri}")
        return self.similar_by_vector(self.vectors_of(found[found >= 0][:1])[0], k, where)

    def similar_by_vector(
        self, vector: "Vectors | Sequence[float]", k: int = 10, where: str | None = None
    ) -> list[Match]:
        """The k images most like a (D,) vector; raises `UserError` for another width, NaN or zeros."""
        hits = self.search(np.asarray(vector, np.float32).reshape(1, -1), k, where)
        return self._matches(hits.ids[0], hits.scores[0])

    def search(self, vectors: Vectors, k: int = 10, where: str | None = None) -> Hits:
        """Scores and row ids, (n, k or as many as there are), for (n, D) vectors; raises `UserError`."""
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.width:
            raise UserError(
                f"the index of {self.run.uri} has vectors of {self.manifest.width:,} numbers,"
                f" the query has {vectors.shape[-1]:,}"
            )
        prepared = prepare(vectors, self.manifest.metric)
        if not prepared.usable.all():
            raise UserError("a query vector is all zeros, or holds NaN or infinity")
        allowed = None if where is None else self._rows_where(where)
        return self._vectors.search(prepared.vectors, k, self.manifest.setting, allowed)

    def find(self, uris: Sequence[str]) -> Ids:
        """(n,) row ids of URIs, -1 for those that can't be found."""
        ids = self._images.find(uris)
        ids[ids >= 0] = np.where(self._vectors.usable[ids[ids >= 0]], ids[ids >= 0], -1)
        return ids

    def rows(self, ids: Ids, columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of rows, in the order of their ids."""
        return self._images.take(ids, columns)

    def vectors_of(self, ids: Ids) -> Vectors:
        """(n, D) float32 vectors of rows, as Parquet has them; raises `UserError` if a file is gone."""
        parts = [part for segment in self.manifest.files.segments for part in segment.parts]
        starts = np.concatenate([[0], np.cumsum([part.rows for part in parts], dtype=np.int64)])
        which = np.searchsorted(starts, ids, side="right") - 1
        vectors = np.empty((len(ids), self.manifest.width), np.float32)
        for part in np.unique(which):
            chosen = np.flatnonzero(which == part)
            file = storage.join(self.run.outputs.embeddings, parts[part].name)
            found = read_rows(file, (ids[chosen] - starts[part]).tolist())
            if found.shape[1] != self.manifest.width:
                raise UserError(f"{file} holds vectors of another width than the index")
            vectors[chosen] = found
        return vectors

    def _rows_where(self, condition: str) -> Mask:
        """The last condition's rows are remembered: many queries often have one."""
        from transforms.condition import rows_where  # DuckDB takes 0.1 s to import

        known = self._condition
        if known is None or known[0] != condition:
            known = self._condition = (condition, rows_where(condition, self._images))
        return known[1]

    def _matches(self, ids: Ids, scores: Vectors) -> list[Match]:
        ids, scores = ids[ids >= 0], scores[ids >= 0]
        rows = self.rows(ids).to_pylist()
        return [
            Match(
                score=float(score),
                kept={name: value for name, value in row.items() if name not in _FIELDS},
                **{name: row.get(name) for name in _FIELDS},
            )
            for row, score in zip(rows, scores, strict=True)
        ]

    @cached_property
    def _model(self) -> "QueryModel":
        from pipeline.query_model import QueryModel  # TensorFlow takes seconds to import

        return QueryModel(self.manifest.identity)


def _fetch(uri: str) -> bytes:
    from transforms.fetch import FetchLimits, fetch_image

    try:
        return fetch_image(uri, FetchLimits()).data
    except FetchFailure as error:
        raise UserError(f"{uri}: {error}") from error


def _published(run: RunFolder) -> IndexManifest:
    manifest = load_index_manifest(run)
    if manifest is None:
        embedded = load_manifest(run) is not None
        hint = f"has no index; build it with: pnasvec index {run.uri}" if embedded else "is no run folder"
        raise UserError(f"{run.uri} {hint}")
    return manifest


def _open(run: RunFolder, manifest: IndexManifest) -> SimilarityIndex:
    embedded = load_manifest(run)
    if embedded is not None and embedded.identity != manifest.identity:
        raise UserError(
            f"{run.uri}: the index was built from other embeddings; build it again with --rebuild"
        )
    folder = index_folder(run)
    images = open_side_table(folder, manifest.files)
    vectors = open_vectors(folder, manifest.files, manifest.metric, manifest.width)
    folder.sweep_cache(manifest.files.names)
    return SimilarityIndex(run, manifest, vectors, images)
