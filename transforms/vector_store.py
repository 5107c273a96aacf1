"""Vectors by row id in plain files that are memory-mapped: for rescoring, and for answers without an index.

A file is n x D numbers, row after row, of float32, float16 or uint8. The last splits each dimension's
range into 255 steps, and takes a quarter of the bytes at a recall of 0.996.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transforms.vectors import Vectors

Precision = Literal["float32", "float16", "uint8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "uint8")

_STEPS = 255


@dataclass(frozen=True, eq=False)
class Codec:
    """How a vector is stored: `low` and `step` (D,) float32 are each dimension's range, for uint8."""

    precision: Precision
    low: Vectors
    step: Vectors

    @property
    def dtype(self) -> "np.dtype[np.generic]":
        return np.dtype(self.precision)

    @property
    def width(self) -> int:
        return len(self.low)

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def encode(self, vectors: Vectors) -> NDArray[np.generic]:
        """(n, D) of the stored type; what lies outside of the ranges is cut to them."""
        if self.precision != "uint8":
            return vectors.astype(self.dtype, copy=False)
        steps = (vectors - self.low) / self.step
        return np.clip(np.rint(steps, out=steps), 0, _STEPS, out=steps).astype(np.uint8)

    def decode(self, stored: NDArray[np.generic]) -> Vectors:
        """(n, D) float32."""
        vectors = stored.astype(np.float32, copy=False)
        if self.precision == "uint8":
            vectors *= self.step
            vectors += self.low
        return vectors


def range_codec(precision: Precision, low: Vectors, high: Vectors) -> Codec:
    """The codec for (D,) ranges of each dimension."""
    step = (high - low) / np.float32(_STEPS)
    return Codec(precision, low, np.where(step > 0, step, np.float32(1)))


def plain_codec(precision: Precision, width: int) -> Codec:
    """The codec of floats, which need no ranges."""
    return Codec(precision, np.zeros(width, np.float32), np.ones(width, np.float32))


class VectorStore:
    """Rows of several files, one after the other: row id 0 is the first row of the first file."""

    def __init__(self, files: Sequence[str], rows: Sequence[int], codec: Codec) -> None:
        """Raises `OSError` or `ValueError` if a file has not its rows."""
        self._codec = codec
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._maps = [
            np.memmap(file, codec.dtype, "r", shape=(count, codec.width)) if count else _nothing(codec)
            for file, count in zip(files, rows, strict=True)
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int) -> Iterator[tuple[int, Vectors]]:
        """All rows in order: the id of the first, and (n, D) float32 of at most so many, floats as views."""
        for start, stored in zip(self._starts, self._maps, strict=False):
            for first in range(0, len(stored), rows):
                yield int(start) + first, self._codec.decode(stored[first : first + rows])

    def take(self, ids: NDArray[np.int64]) -> Vectors:
        """(n, D) float32 of those rows, which must exist."""
        which = np.searchsorted(self._starts, ids, side="right") - 1
        stored = np.empty((len(ids), self._codec.width), self._codec.dtype)
        for part in np.unique(which):
            chosen = which == part
            stored[chosen] = self._maps[part][ids[chosen] - self._starts[part]]
        return self._codec.decode(stored)


def _nothing(codec: Codec) -> NDArray[np.generic]:
    return np.empty((0, codec.width), codec.dtype)
