"""How much of the truth a search finds, and how fast: held-out queries against exact neighbours."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np

from transforms.errors import UserError
from transforms.vector_index import Best, Hits, Ids, SearchSetting, VectorIndex
from transforms.vector_store import PRECISIONS, range_codec
from transforms.vectors import Metric, Vectors

# Recall is told for these numbers of neighbours; the one in the middle is what --min-recall means.
AT = (1, 10, 100)
# Candidates for each result: the fewest that do, and what the codes need where they are coarse.
_CANDIDATES = (5, 20)
_LEAST_EFFORT, _MOST_EFFORT = 4, 4_096
# Queries that are timed, each by itself as a person sends them, and for how long at most.
_TIMED, _TIMED_S = 200, 2.0

_SHAPES = 4 * 8


@dataclass(frozen=True, eq=False)
class Queries:
    """(q,) row `ids` of queries that are rows of the index, and their (q, D) prepared `vectors`."""

    ids: Ids
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of one setting: recall@1, @10 and @100, and queries a second on one thread, one at a time."""

    setting: SearchSetting
    recall: tuple[float, float, float]
    qps: float

    def to_json(self) -> dict[str, Any]:
        recall = {f"recall@{k}": round(value, 4) for k, value in zip(AT, self.recall, strict=True)}
        return {**asdict(self.setting), **recall, "qps_one_thread": round(self.qps, 1)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Measurement":
        setting = SearchSetting(int(values["effort"]), int(values["candidates"]))
        first, tenth, hundredth = (float(values[f"recall@{k}"]) for k in AT)
        return Measurement(setting, (first, tenth, hundredth), float(values["qps_one_thread"]))


def merge_truths(truths: Sequence[Hits], metric: Metric) -> Hits:
    """The nearest of several (q, n) lists of neighbours, best first."""
    scores = np.concatenate([truth.scores for truth in truths], axis=1)
    ids = np.concatenate([truth.ids for truth in truths], axis=1)
    order = np.argsort(scores if metric == "l2" else -scores, axis=1, kind="stable")
    order = order[:, : max(truth.ids.shape[1] for truth in truths)]
    return Hits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1))


def measure(
    index: VectorIndex, queries: Queries, truth: Hits, left_out: Ids, min_recall: float
) -> tuple[Measurement, ...]:
    """Ever greater effort, until recall@10 reaches `min_recall` or nothing more can be done."""
    done: list[Measurement] = []
    exact = [ids[(ids >= 0) & (ids != own)] for ids, own in zip(truth.ids, queries.ids, strict=True)]
    exact = [ids[~np.isin(ids, left_out)] for ids in exact]
    for setting in settings(index):
        done.append(_measure(index, queries, exact, setting))
        if done[-1].recall[1] >= min_recall:
            break
    return tuple(done)


def settings(index: VectorIndex) -> Iterator[SearchSetting]:
    """What can be tried, the cheapest first."""
    if index.most_effort is None:
        yield SearchSetting()
        return
    effort = min(_LEAST_EFFORT, index.most_effort)
    while True:
        for candidates in _CANDIDATES if index.rescores else (1,):
            yield SearchSetting(effort, candidates)
        if effort >= min(index.most_effort, _MOST_EFFORT):
            return
        effort = min(2 * effort, index.most_effort, _MOST_EFFORT)


def choose(measurements: Sequence[Measurement], min_recall: float) -> Measurement:
    """The fastest that reaches the recall, or the one that comes nearest."""
    enough = [one for one in measurements if one.recall[1] >= min_recall]
    if enough:
        return max(enough, key=lambda one: one.qps)
    return max(measurements, key=lambda one: (round(one.recall[1], 3), one.qps))


def _measure(
    index: VectorIndex, queries: Queries, exact: Sequence[Ids], setting: SearchSetting
) -> Measurement:
    few = _found(index, queries, AT[1], setting)
    many = _found(index, queries, AT[2], setting)
    recall = (_recall(few, exact, AT[0]), _recall(few, exact, AT[1]), _recall(many, exact, AT[2]))
    return Measurement(setting, recall, _speed(index, queries.vectors, setting))


def _found(index: VectorIndex, queries: Queries, k: int, setting: SearchSetting) -> list[Ids]:
    """What a search finds for each query, beside itself."""
    ids = index.search(queries.vectors, k + 1, setting).ids
    return [row[row != own][:k] for row, own in zip(ids, queries.ids, strict=True)]


def _recall(found: Sequence[Ids], exact: Sequence[Ids], k: int) -> float:
    shares = [
        len(np.intersect1d(ours[:k], theirs[:k])) / len(theirs[:k])
        for ours, theirs in zip(found, exact, strict=True)
        if len(theirs)
    ]
    return float(np.mean(shares)) if shares else 1.0


def _speed(index: VectorIndex, vectors: Vectors, setting: SearchSetting) -> float:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        start, done = time.perf_counter(), 0
        for vector in vectors[:_TIMED]:
            index.search(vector[None], AT[1], setting)
            done += 1
            if time.perf_counter() - start > _TIMED_S:
                break
        return done / (time.perf_counter() - start)
    finally:
        faiss.omp_set_num_threads(threads)


def ceilings(sample: Vectors, queries: Vectors, metric: Metric) -> dict[str, float]:
    """recall@10 of exact search over a sample, by the precision that its vectors are stored with.

    No index that keeps no more of its vectors finds more.
    """
    exact = list(_nearest(sample, queries, metric))
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        codec = range_codec(precision, sample.min(axis=0), sample.max(axis=0))
        stored = codec.decode(codec.encode(sample))
        found[precision] = round(_recall(list(_nearest(stored, queries, metric)), exact, AT[1]), 4)
    return found


def _nearest(vectors: Vectors, queries: Vectors, metric: Metric) -> Ids:
    best = Best(len(queries), AT[1], metric)
    best.add(queries, vectors, np.arange(len(vectors)))
    return best.hits().ids


def save_arrays(path: str, ids: Ids, numbers: Vectors) -> None:
    """Queries or truth: both shapes, then both arrays, as plain numbers."""
    two = ids.reshape(len(ids), -1)
    with open(path, "wb") as file:
        np.array([*two.shape, *numbers.shape], np.int64).tofile(file)
        two.tofile(file)
        numbers.tofile(file)


def load_arrays(path: str) -> tuple[Ids, Vectors]:
    """What `save_arrays` wrote, ids (q,) if there is one a row; raises `UserError` if it is damaged."""
    data = np.fromfile(path, np.uint8)
    rows, width, others, wide = (
        (int(side) for side in data[:_SHAPES].view(np.int64)) if len(data) > _SHAPES else (0,) * 4
    )
    ends = _SHAPES + 8 * rows * width
    if min(rows, width, others, wide) < 1 or len(data) != ends + 4 * others * wide:
        raise UserError(f"{path} is damaged; build the index again with --rebuild")
    ids = data[_SHAPES:ends].view(np.int64).reshape(rows, width)
    return ids[:, 0] if width == 1 else ids, data[ends:].view(np.float32).reshape(others, wide)
