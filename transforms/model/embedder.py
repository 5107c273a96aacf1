"""uint8 images to vectors and labels: scaling, the network, softmax and top-k as one graph.

Batches come in few sizes, shrink when memory runs out, and are halved down to the image that the
network rejects.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from transforms.errors import EmbedFailure, ModelRejected, NonFiniteVector, UserError
from transforms.model.hub import load_network
from transforms.model.network import Network
from transforms.model.source import identify_model, locate_model

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """Which model, by handle and `identify_model`, so that each worker finds the same; and what it gives."""

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
    """Of n images: `vectors` (n, D) float32, `top_classes` (n, k) int32, `top_probabilities` (n, k) float32.

    Best class first, k at most C. `logits` is (n, C) float32 where they were asked for.
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


class _Results(NamedTuple):
    """What the graph gives for a batch; `finite` (n,) bool is false for rows with NaN or infinity."""

    vectors: NDArray[np.float32]
    top_classes: NDArray[np.int32]
    top_probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    finite: NDArray[np.bool_]


def load_embedder(settings: EmbedderSettings) -> "Embedder":
    """Find and load the model; raises `UserError` if it is not to be found here, or is another one by now."""
    files = locate_model(settings.handle, settings.digest)
    if identify_model(files) != settings.digest:
        raise UserError(
            f"--model {settings.handle}: {files.folder} holds another model than when the job began; "
            "start the job again, or give all workers the same model"
        )
    return Embedder(load_network(files), settings)


class Embedder:
    """One network for any number of threads: it takes one batch at a time, with all cores."""

    def __init__(self, network: Network, settings: EmbedderSettings) -> None:
        self._network = network
        self._top_k = min(settings.top_k, network.info.class_count)
        self._keep_logits = settings.keep_logits
        self._sizes = _batch_sizes(settings.batch_size)
        self._lock = Lock()
        # One trace for all batch sizes: a trace each would cost seconds and memory for each.
        images = tf.TensorSpec((None, network.info.height, network.info.width, 3), tf.uint8)
        self._graph = tf.function(self._trace, input_signature=[images])

    def embed(self, images: Sequence[Image]) -> BatchOutcome:
        """Vectors and labels of (height, width, 3) images.

        Raises tf.errors.OpError where the fault is no image's, `UserError` if not one fits into memory.
        """
        with self._lock:
            outcome = _join([self._nothing(), *self._outcomes(images, first=0)])
            if outcome.rejected and not outcome.kept:
                self._check_network()
        return outcome

    def _trace(self, images: tf.Tensor) -> _Results:
        outputs = self._network.forward(tf.cast(images, tf.float32) / 255.0)
        probabilities, classes = tf.math.top_k(tf.nn.softmax(outputs.logits), self._top_k)
        finite = [tf.reduce_all(tf.math.is_finite(tensor), axis=1) for tensor in outputs]
        return _Results(
            vectors=outputs.features,
            top_classes=classes,
            top_probabilities=probabilities,
            logits=outputs.logits if self._keep_logits else None,
            finite=tf.logical_and(*finite),
        )

    def _outcomes(self, images: Sequence[Image], first: int) -> Iterator[BatchOutcome]:
        """Outcomes of pass after pass; `first` is the position of the first of the images."""
        while images:
            count, rows = self._next_pass(len(images))
            try:
                results = self._run(images[:count], rows)
            except tf.errors.ResourceExhaustedError as error:
                self._shrink(rows, error)
                continue
            except tf.errors.OpError as error:
                yield from self._halves(images[:count], first, error)
            else:
                yield _outcome(results, first)
            images, first = images[count:], first + count

    def _next_pass(self, waiting: int) -> tuple[int, int]:
        """How many images go next, in a batch of how many rows: padded by a quarter at most."""
        above = next((size for size in self._sizes if size >= waiting), self._sizes[-1])
        if above <= waiting + waiting // 4:
            return min(waiting, above), above
        below = max(size for size in self._sizes if size <= waiting)
        return below, below

    def _run(self, images: Sequence[Image], rows: int) -> _Results:
        info = self._network.info
        batch = np.zeros((rows, info.height, info.width, 3), np.uint8)
        np.stack(images, out=batch[: len(images)])
        columns: list[Any] = [
            None if tensor is None else tensor.numpy()[: len(images)]
            for tensor in self._graph(tf.constant(batch))
        ]
        return _Results(*columns)

    def _shrink(self, rows: int, error: tf.errors.OpError) -> None:
        """Never again a batch of so many rows."""
        if rows == 1:
            raise UserError("there is not enough memory to embed even one image at a time") from error
        self._sizes = tuple(size for size in self._sizes if size < rows)
        _log.warning("out of memory with %d images a pass; going on with %d", rows, self._sizes[-1])

    def _halves(
        self, images: Sequence[Image], first: int, error: tf.errors.OpError
    ) -> Iterator[BatchOutcome]:
        """Outcomes of a batch that failed, each half by itself down to the image at fault."""
        if len(images) == 1:
            rejection = ModelRejected(_reason(error))
            yield BatchOutcome(self._nothing().batch, (), ((first, rejection),))
            return
        half = len(images) // 2
        yield from self._outcomes(images[:half], first)
        yield from self._outcomes(images[half:], first + half)

    def _check_network(self) -> None:
        """Raise if a plain grey image fails too: then network or machine is broken, not every image."""
        info = self._network.info
        self._run([np.full((info.height, info.width, 3), 128, np.uint8)], rows=1)

    def _nothing(self) -> BatchOutcome:
        info = self._network.info
        return BatchOutcome(
            EmbeddedBatch(
                vectors=np.empty((0, info.feature_width), np.float32),
                top_classes=np.empty((0, self._top_k), np.int32),
                top_probabilities=np.empty((0, self._top_k), np.float32),
                logits=np.empty((0, info.class_count), np.float32) if self._keep_logits else None,
            ),
            kept=(),
            rejected=(),
        )


def _reason(error: tf.errors.OpError) -> str:
    """What an operation said, from between the traceback of its making and the name of its node."""
    return str(error).partition("\n\t [[")[0].rstrip().splitlines()[-1]


def _batch_sizes(largest: int) -> tuple[int, ...]:
    """The largest and its halves, ascending. Few, since GPU libraries tune themselves to each anew."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(reversed(sizes))


def _outcome(results: _Results, first: int) -> BatchOutcome:
    """Rows that are finite; the others are rejected."""
    finite = results.finite
    columns: tuple[Any, ...] = results[:-1]
    if not finite.all():
        columns = tuple(None if column is None else column[finite] for column in columns)
    return BatchOutcome(
        EmbeddedBatch(*columns),
        kept=tuple(int(row) + first for row in np.flatnonzero(finite)),
        rejected=tuple(
            (int(row) + first, NonFiniteVector("the model gave NaN or infinity"))
            for row in np.flatnonzero(~finite)
        ),
    )


def _join(outcomes: Sequence[BatchOutcome]) -> BatchOutcome:
    """One outcome of several, in their order."""
    batches = [outcome.batch for outcome in outcomes if outcome.kept]
    if len(batches) != 1:
        batches = [_concatenate([outcome.batch for outcome in outcomes])]
    return BatchOutcome(
        batches[0],
        kept=[position for outcome in outcomes for position in outcome.kept],
        rejected=[rejection for outcome in outcomes for rejection in outcome.rejected],
    )


def _concatenate(batches: Sequence[EmbeddedBatch]) -> EmbeddedBatch:
    logits = [batch.logits for batch in batches if batch.logits is not None]
    return EmbeddedBatch(
        vectors=np.concatenate([batch.vectors for batch in batches]),
        top_classes=np.concatenate([batch.top_classes for batch in batches]),
        top_probabilities=np.concatenate([batch.top_probabilities for batch in batches]),
        logits=np.concatenate(logits) if logits else None,
    )
