"""Vectors that look like a network's features: non-negative, in clusters of unequal size, of low rank.

A latent of 256 numbers with a falling spectrum, 2,000 centres with power-law sizes and noise around
them, through a random matrix and a rectifier, averaged over four draws as pooling does.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_LATENT, _CLUSTERS, _DRAWS = 256, 2_000, 4
_BLOCK = 2_048


def feature_like(count: int, width: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """(n, width) float32 blocks, `count` rows in all; `seed` decides the rows, never the distribution."""
    world = np.random.default_rng(12345)
    spectrum = np.arange(1, _LATENT + 1, dtype=np.float32) ** -0.5
    centres = world.standard_normal((_CLUSTERS, _LATENT), np.float32) * spectrum
    sizes = np.arange(1, _CLUSTERS + 1) ** -0.7
    matrix = world.standard_normal((_LATENT, width), np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - start)
        cluster = rng.choice(_CLUSTERS, rows, p=sizes / sizes.sum())
        latent = centres[cluster] + 0.7 * rng.standard_normal((rows, _LATENT), np.float32) * spectrum
        block = np.zeros((rows, width), np.float32)
        for _ in range(_DRAWS):
            drawn = latent + 0.5 * rng.standard_normal((rows, _LATENT), np.float32) * spectrum
            block += np.maximum(drawn @ matrix - 0.5, 0)
        block /= _DRAWS
        block += 0.01 * np.abs(rng.standard_normal((rows, width), np.float32))
        yield block
