"""Vectors out of Parquet, a row group at a time, as the index takes them: float32, by its metric.

Parquet keeps what the network gave; normalising belongs here. Memory is that of one row group,
whatever the size of a file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms import storage
from transforms.errors import UserError
from transforms.schema import ROW_GROUP, open_output

Vectors = NDArray[np.float32]
Metric = Literal["cosine", "ip", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

_COLUMN = "embedding"
_SPREAD = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A file of `embeddings/`, by its name there, and its number of rows."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """`vectors` (n, D) float32 as the metric compares them; `usable` (n,) bool is false where one can't be.

    What is not usable is NaN, infinite or all zeros; its row is all zeros here.
    """

    vectors: Vectors
    usable: NDArray[np.bool_]


def prepare(vectors: Vectors, metric: Metric) -> Prepared:
    """Unit length for cosine, as they are for the others."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    usable: NDArray[np.bool_] = np.isfinite(squares) & (squares > 0)
    if metric == "cosine":
        vectors = np.divide(vectors, np.sqrt(np.where(usable, squares, 1))[:, None], dtype=np.float32)
    if not usable.all():
        vectors = np.where(usable[:, None], vectors, np.float32(0))
    return Prepared(np.ascontiguousarray(vectors, np.float32), usable)


def read_vectors(file: str) -> Iterator[Vectors]:
    """(n, D) float32 blocks of a file of `embeddings/`, one a row group; raises `UserError` if damaged."""
    with open_output(file, _COLUMN) as parquet:
        for group in range(parquet.num_row_groups):
            yield _block(parquet, group)


def read_rows(file: str, rows: Sequence[int]) -> Vectors:
    """(len(rows), D) float32: those rows of a file, in that order; raises `UserError` if damaged."""
    with open_output(file, _COLUMN) as parquet:
        ends = np.cumsum([parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        blocks = {int(group): _block(parquet, int(group)) for group in np.unique(groups)}
    starts = np.concatenate([[0], ends])
    return np.stack([blocks[int(g)][row - starts[g]] for g, row in zip(groups, rows, strict=True)])


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows drawn from a row group: their ids, and (n, D) float32 vectors as they were stored."""

    ids: NDArray[np.int64]
    vectors: Vectors


def sample_vectors(
    folder: str, parts: Sequence[Part], rows: int, rng: np.random.Generator
) -> Iterator[Sample]:
    """About `rows` vectors in all, from row groups drawn at random, an equal share of each.

    Four times as many groups are read as would do: neighbours in a file come from one folder. A row's
    id is its place in all the parts together.
    """
    first_ids = np.cumsum([0, *(part.rows for part in parts)])
    groups = [
        (index, group) for index, part in enumerate(parts) for group in range(-(-part.rows // ROW_GROUP))
    ]
    drawn = [groups[at] for at in rng.permutation(len(groups))[: -(-_SPREAD * rows // ROW_GROUP)]]
    share = rows / sum(min(ROW_GROUP, parts[index].rows - group * ROW_GROUP) for index, group in drawn)
    for index, group in drawn:
        with open_output(storage.join(folder, parts[index].name), _COLUMN) as parquet:
            group = min(group, parquet.num_row_groups - 1)
            before = sum(parquet.metadata.row_group(earlier).num_rows for earlier in range(group))
            block = _block(parquet, group)
        chosen = np.sort(rng.permutation(len(block))[: int(np.ceil(share * len(block)))])
        yield Sample(first_ids[index] + before + chosen, block[chosen])


def _block(parquet: pq.ParquetFile, group: int) -> Vectors:
    column = pa.concat_arrays(parquet.read_row_group(group, columns=[_COLUMN])[_COLUMN].chunks)
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise UserError(f"row group {group}: a row has no vector; remove the file and embed again")
    # by its buffer: to_numpy would import pandas, where there is one, which takes a second
    kind = np.dtype(f"f{column.type.value_type.bit_width // 8}")
    numbers = np.frombuffer(flat.buffers()[1], kind, len(flat), flat.offset * kind.itemsize)
    return np.asarray(numbers.reshape(-1, column.type.list_size), np.float32)
