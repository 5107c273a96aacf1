"""Search by vector: codes find candidates, stored vectors score them again, few rows need no codes.

Knows row ids and nothing else. A search is widened until it has its k results, where there are k.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from transforms.faiss_index import most_effort, search_codes
from transforms.vector_store import VectorStore
from transforms.vectors import Metric, Vectors

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Rows of a filter up to which all are compared: 10,000 x 4,320 bytes take 20 ms.
_FEW_ROWS = 10_000
# Rows at once: 4,096 x 4,320 floats are 71 MB.
_BLOCK_ROWS = 4_096
# Bytes of decoded candidates at once: what stays in the cache.
_CACHE_BYTES = 4 << 20
# Fewest results that candidates are reckoned for: the best one alone needs more than its share.
_LEAST_K = 10


@dataclass(frozen=True, slots=True)
class SearchSetting:
    """`effort` is nprobe or efSearch; `candidates` for each result are scored again."""

    effort: int = 1
    candidates: int = 1


@dataclass(frozen=True, eq=False)
class Hits:
    """(n, k) `scores`, the best first, and row `ids`; -1 where there are no more."""

    scores: Vectors
    ids: Ids


class VectorIndex:
    """Codes, stored vectors or both; one of them may be missing."""

    def __init__(
        self, codes: faiss.Index | None, store: VectorStore | None, metric: Metric, usable: Mask
    ) -> None:
        """`usable` (n,) bool is false for rows that are in no result."""
        self._codes = codes
        self._store = store
        self._metric = metric
        self.usable = usable

    @property
    def most_effort(self) -> int | None:
        """The setting above which no search finds more; None where every search is exact."""
        return None if self._codes is None else most_effort(self._codes)

    @property
    def rescores(self) -> bool:
        return self._store is not None

    def search(self, queries: Vectors, k: int, setting: SearchSetting, allowed: Mask | None = None) -> Hits:
        """The k best rows for each of (n, D) prepared queries, among those `allowed` (rows,) bool."""
        mask = self.usable if allowed is None else self.usable & allowed
        rows = int(np.count_nonzero(mask))
        k = min(k, rows)
        if not k or not len(queries):
            return Hits(np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64))
        if self._store is not None and (self._codes is None or rows <= min(_FEW_ROWS, len(mask) // 2)):
            return self._scan(queries, k, None if rows == len(mask) else np.flatnonzero(mask))
        bits = None if rows == len(mask) else np.packbits(mask, bitorder="little")
        if self._store is None:
            return self._by_codes(queries, k, setting, bits)
        candidates = min(rows, setting.candidates * max(k, _LEAST_K))
        found = self._candidates(queries, candidates, k, setting.effort, bits)
        return self._rescore(queries, found.ids, k)

    def _by_codes(
        self, queries: Vectors, k: int, setting: SearchSetting, bits: NDArray[np.uint8] | None
    ) -> Hits:
        found = self._candidates(queries, k, k, setting.effort, bits)
        if self._metric == "ip":
            return found
        scores = 1 - found.scores / 2 if self._metric == "cosine" else np.sqrt(np.maximum(found.scores, 0))
        return Hits(np.asarray(scores, np.float32), found.ids)

    def _candidates(
        self, queries: Vectors, count: int, k: int, effort: int, bits: NDArray[np.uint8] | None
    ) -> Hits:
        """Searches again, four times as wide, the queries that have fewer than k."""
        most = most_effort(self._codes)
        distances, ids = search_codes(self._codes, queries, count, min(effort, most), bits)
        while effort < most and len(short := np.flatnonzero((ids >= 0).sum(axis=1) < k)):
            effort *= 4
            distances[short], ids[short] = search_codes(
                self._codes, queries[short], count, min(effort, most), bits
            )
        ids[(ids < 0) | (ids >= len(self.usable))] = -1
        return Hits(distances, ids)

    def _rescore(self, queries: Vectors, candidates: Ids, k: int) -> Hits:
        scores = np.empty(candidates.shape, np.float32)
        rows = max(1, _CACHE_BYTES // (queries.shape[1] * 4))
        columns = min(rows, candidates.shape[1])
        for start in range(0, len(queries), max(1, rows // columns)):
            some = slice(start, start + max(1, rows // columns))
            for first in range(0, candidates.shape[1], columns):
                few = slice(first, first + columns)
                scores[some, few] = self._scores(queries[some], candidates[some, few])
        order = np.argsort(scores if self._metric == "l2" else -scores, axis=1, kind="stable")[:, :k]
        ids = np.take_along_axis(candidates, order, axis=1)
        return Hits(np.take_along_axis(scores, order, axis=1), ids)

    def _scores(self, queries: Vectors, ids: Ids) -> Vectors:
        """Of each query with its own candidates; the worst there is for a candidate that is none."""
        assert self._store is not None
        rows = self._store.take(np.maximum(ids, 0).ravel()).reshape(*ids.shape, -1)
        if self._metric == "l2":
            rows -= queries[:, None]
            scores = np.sqrt(np.einsum("qcd,qcd->qc", rows, rows))
        else:
            scores = np.matmul(rows, queries[:, :, None])[:, :, 0]
        scores[ids < 0] = np.inf if self._metric == "l2" else -np.inf
        return np.asarray(scores, np.float32)

    def _scan(self, queries: Vectors, k: int, ids: Ids | None) -> Hits:
        """Compare with every row, or with those of these ids."""
        best = Best(len(queries), k, self._metric)
        for chosen, block in self._blocks(ids):
            best.add(queries, block, chosen)
        return best.hits()

    def _blocks(self, ids: Ids | None) -> Iterator[tuple[Ids, Vectors]]:
        assert self._store is not None
        if ids is None:
            for first, block in self._store.blocks(_BLOCK_ROWS):
                yield np.arange(first, first + len(block)), block
            return
        for start in range(0, len(ids), _BLOCK_ROWS):
            chosen = ids[start : start + _BLOCK_ROWS]
            yield chosen, self._store.take(chosen)


class Best:
    """The k best rows for n queries, over blocks of rows that come one after the other."""

    def __init__(self, queries: int, k: int, metric: Metric) -> None:
        self._metric = metric
        self._heap = faiss.ResultHeap(queries, k, keep_max=metric != "l2")
        self._k = k

    def add(self, queries: Vectors, block: Vectors, ids: Ids) -> None:
        """Compare (n, D) prepared queries with the (m, D) vectors of m rows."""
        kind = faiss.METRIC_L2 if self._metric == "l2" else faiss.METRIC_INNER_PRODUCT
        scores, found = faiss.knn(queries, block, min(self._k, len(block)), metric=kind)
        self._heap.add_result(scores, ids[found])

    def hits(self) -> Hits:
        self._heap.finalize()
        scores = np.sqrt(np.maximum(self._heap.D, 0)) if self._metric == "l2" else self._heap.D
        return Hits(scores, self._heap.I)
