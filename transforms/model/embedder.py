"""uint8 images to vectors and labels: scaling, the network, softmax and top-k as one graph.

Batches come in few sizes, shrink when memory runs out, and are halved down to the image that the
network rejects.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from transforms.errors import EmbedFailure, ModelRejected, NonFiniteVector, UserError
from transforms.model.hub import load_network
from transforms.model.network import Network
from transforms.model.source import identify_model, locate_model
from transforms.storage import first_line

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """Which model, by handle and by `identify_model`, so that every worker finds the same; and what it gives."""

    handle: str
    digest: str
    batch_size: int = 32
    top_k: int = 5
    keep_logits: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.top_k < 0:
            raise UserError(f"--top-k must not be negative, not {self.top_k}")


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """`vectors` (n, D) float32; `top_classes` (n, k) int32 and `top_probabilities` (n, k) float32, best first.

    `logits` is (n, C) float32 where they were asked for. k is at most C.
    """

    vectors: NDArray[np.float32]
    top_classes: NDArray[np.int32]
    top_probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """Row i of `batch` is of the image at `kept[i]`; every other image is in `rejected`, with its reason."""

    batch: EmbeddedBatch
    kept: Sequence[int]
    rejected: Sequence[tuple[int, EmbedFailure]]
