"""uint8 images to vectors and labels: scaling, the network, softmax and top-k as one graph.

Batches come in few sizes, shrink when memory runs out, and are halved down to the image that the
network rejects. Each GPU has a copy of the network, and is handed a batch while it computes another.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from transforms.errors import EmbedFailure, ModelRejected, NonFiniteVector, UserError
from transforms.model.devices import Device, find_devices
from transforms.model.engine import load_network
from transforms.model.network import Network
from transforms.model.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_PRECISION,
    DeviceKind,
    Engine,
    Precision,
)
from transforms.model.source import ModelFiles, identify_model, locate_model

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

# While a GPU computes one batch, the next is stacked and sent to it.
BATCHES_A_GPU = 2


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """Which model, by handle and `identify_model`, so that each worker finds the same; what it gives.

    And how it runs: `compiled` is by XLA, which wants batches of one size.
    """

    handle: str
    digest: str
    batch_size: int = DEFAULT_BATCH_SIZE
    top_k: int = 5
    keep_logits: bool = False
    engine: Engine = "auto"
    precision: Precision = DEFAULT_PRECISION
    device: DeviceKind = "auto"
    compiled: bool = False

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
    """Row i of `batch` is of the image at `kept[i]`; every other image is in `rejected`, with its reason.

    `seconds` is how long the model took.
    """

    batch: EmbeddedBatch
    kept: Sequence[int]
    rejected: Sequence[tuple[int, EmbedFailure]]
    seconds: float = 0.0


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
    devices = find_devices(settings.device)
    networks = _place(files, settings, devices)
    return Embedder(networks, settings)


def capacity(devices: Sequence[Device]) -> int:
    """How many batches are in the model at once."""
    return sum(BATCHES_A_GPU if device.is_gpu else 1 for device in devices)


def _place(files: ModelFiles, settings: EmbedderSettings, devices: Sequence[Device]) -> "list[Placed]":
    """A network on each device; the graph of a module, which is not ours to copy, on the first alone."""
    placed = [_load_on(files, settings, devices[0])]
    if placed[0].network.engine == "native":
        checked = replace(settings, engine="native")
        placed += [_load_on(files, checked, device) for device in devices[1:]]
    elif len(devices) > 1:
        _log.warning("%s runs on one of %d GPUs: only a PNASNet-5 is copied", files.handle, len(devices))
    return placed


def _load_on(files: ModelFiles, settings: EmbedderSettings, device: Device) -> "Placed":
    with tf.device(device.name):
        return Placed(load_network(files, settings.engine, settings.precision), device)


class Placed(NamedTuple):
    """A network, and the device that its weights lie on."""

    network: Network
    device: Device


Graph = Callable[[NDArray[np.uint8]], Any]


class Embedder:
    """Copies of one network, for any number of threads: each takes a batch at a time."""

    def __init__(self, placed: Sequence[Placed], settings: EmbedderSettings) -> None:
        self.network = placed[0].network
        info = self.network.info
        self._top_k = min(settings.top_k, info.class_count)
        self._keep_logits = settings.keep_logits
        self._compiled = settings.compiled
        self._sizes = (settings.batch_size,) if self._compiled else _batch_sizes(settings.batch_size)
        self._free: SimpleQueue[Graph] = SimpleQueue()
        graphs = [self._graph(one) for one in placed]
        for one, graph in zip(placed, graphs, strict=True):
            for _ in range(capacity([one.device])):
                self._free.put(graph)
        self.capacity = self._free.qsize()
        self._pool = ThreadPoolExecutor(self.capacity, thread_name_prefix="embed")

    def submit(self, images: Sequence[Image]) -> "Future[BatchOutcome]":
        """`embed`, begun on a thread of its own; `capacity` batches are in the model at once."""
        return self._pool.submit(self.embed, images)

    def embed(self, images: Sequence[Image]) -> BatchOutcome:
        """Vectors and labels of (height, width, 3) images.

        Raises tf.errors.OpError where the fault is no image's, `UserError` if not one fits into memory.
        """
        graph = self._free.get()
        start = time.perf_counter()
        try:
            outcome = _join([self._nothing(), *self._outcomes(graph, images, first=0)])
            if outcome.rejected and not outcome.kept:
                self._check_network(graph)
        finally:
            self._free.put(graph)
        return replace(outcome, seconds=time.perf_counter() - start)

    def _graph(self, placed: Placed) -> Graph:
        """One trace for all batch sizes: a trace each would cost seconds and memory for each."""
        info, device = placed.network.info, placed.device.name
        images = tf.TensorSpec((None, info.height, info.width, 3), tf.uint8)

        def trace(batch: tf.Tensor) -> _Results:
            with tf.device(device):
                return self._trace(placed.network, batch)

        traced = tf.function(trace, input_signature=[images], jit_compile=self._compiled or None)

        def run(batch: NDArray[np.uint8]) -> Any:
            with tf.device(device):  # where the pixels go: else they come by way of the first GPU
                return traced(tf.constant(batch))

        return run

    def _trace(self, network: Network, images: tf.Tensor) -> _Results:
        outputs = network.forward(tf.cast(images, tf.float32) / 255.0)
        probabilities, classes = tf.math.top_k(tf.nn.softmax(outputs.logits), self._top_k)
        finite = [tf.reduce_all(tf.math.is_finite(tensor), axis=1) for tensor in outputs]
        return _Results(
            vectors=outputs.features,
            top_classes=classes,
            top_probabilities=probabilities,
            logits=outputs.logits if self._keep_logits else None,
            finite=tf.logical_and(*finite),
        )

    def _outcomes(self, graph: Graph, images: Sequence[Image], first: int) -> Iterator[BatchOutcome]:
        """Outcomes of pass after pass; `first` is the position of the first of the images."""
        while images:
            count, rows = self._next_pass(len(images))
            try:
                results = self._run(graph, images[:count], rows)
            except tf.errors.ResourceExhaustedError as error:
                self._shrink(rows, error)
                continue
            except tf.errors.OpError as error:
                yield from self._halves(graph, images[:count], first, error)
            else:
                yield _outcome(results, first)
            images, first = images[count:], first + count

    def _next_pass(self, waiting: int) -> tuple[int, int]:
        """How many images go next, in a batch of how many rows: padded by a quarter at most."""
        above = next((size for size in self._sizes if size >= waiting), self._sizes[-1])
        if above <= waiting + waiting // 4:
            return min(waiting, above), above
        below = max((size for size in self._sizes if size <= waiting), default=None)
        return (below, below) if below else (waiting, above)

    def _run(self, graph: Graph, images: Sequence[Image], rows: int) -> _Results:
        info = self.network.info
        batch = np.zeros((rows, info.height, info.width, 3), np.uint8)
        np.stack(images, out=batch[: len(images)])
        columns: list[Any] = [
            None if tensor is None else tensor.numpy()[: len(images)] for tensor in graph(tf.constant(batch))
        ]
        return _Results(*columns)

    def _shrink(self, rows: int, error: tf.errors.OpError) -> None:
        """Never again a batch of so many rows."""
        if rows == 1:
            raise UserError("there is not enough memory to embed even one image at a time") from error
        if rows not in self._sizes:  # another thread was as unlucky
            return
        smaller = tuple(size for size in _batch_sizes(rows) if size < rows)
        self._sizes = smaller[-1:] if self._compiled else smaller
        _log.warning("out of memory with %d images a pass; going on with %d", rows, self._sizes[-1])

    def _halves(
        self, graph: Graph, images: Sequence[Image], first: int, error: tf.errors.OpError
    ) -> Iterator[BatchOutcome]:
        """Outcomes of a batch that failed, each half by itself down to the image at fault."""
        if len(images) == 1:
            rejection = ModelRejected(_reason(error))
            yield BatchOutcome(self._nothing().batch, (), ((first, rejection),))
            return
        half = len(images) // 2
        yield from self._outcomes(graph, images[:half], first)
        yield from self._outcomes(graph, images[half:], first + half)

    def _check_network(self, graph: Graph) -> None:
        """Raise if a plain grey image fails too: then network or machine is broken, not every image."""
        info = self.network.info
        self._run(graph, [np.full((info.height, info.width, 3), 128, np.uint8)], rows=1)

    def _nothing(self) -> BatchOutcome:
        info = self.network.info
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
