"""Principal components of wide vectors, found by power iteration: seconds where FAISS's take minutes."""

from dataclasses import dataclass

import numpy as np

from transforms.vectors import Vectors

# More directions than are kept, and rounds: enough for the kept ones to settle.
_EXTRA, _ROUNDS = 32, 3


@dataclass(frozen=True, eq=False)
class Projection:
    """x -> matrix @ x + offset: `matrix` (d, D) float32 with orthonormal rows, `offset` (d,) float32."""

    matrix: Vectors
    offset: Vectors


def fit_projection(sample: Vectors, width: int, *, centred: bool) -> Projection:
    """The `width` directions of most variance of an (n, D) sample, in a random basis of their own.

    Not `centred`, they are those of most length, and inner products are kept as they are.
    """
    rng = np.random.default_rng(0)
    mean = sample.mean(axis=0) if centred else np.zeros(sample.shape[1], np.float32)
    columns = min(sample.shape[1], width + _EXTRA)
    basis = _orthonormal(rng.standard_normal((sample.shape[1], columns), np.float32))
    for _ in range(_ROUNDS):
        moved = sample @ basis - mean @ basis
        basis = _orthonormal(sample.T @ moved - np.outer(mean, moved.sum(axis=0)))
    moved = sample @ basis - mean @ basis
    _, turns = np.linalg.eigh(moved.T @ moved)
    best = basis @ turns[:, ::-1][:, :width]
    matrix = _orthonormal(rng.standard_normal((width, width), np.float32)) @ best.T
    return Projection(np.ascontiguousarray(matrix), -(matrix @ mean))


def _orthonormal(columns: Vectors) -> Vectors:
    return np.linalg.qr(columns)[0]
