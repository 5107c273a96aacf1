"""Decoded images to vectors and labels: Beam's RunInference around one model a process.

Failures and shard ends pass through, so that one stream reaches the writer. They weigh nothing
in a batch, but what follows a shard's end overfills it: the last, partial batch of a shard runs at once.

A batch's rows come out when a later batch has gone in, so that the model never waits for the next one
to be gathered; a shard's end waits for all.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from transforms.attempt import failure
from transforms.model.embedder import BatchOutcome, Embedder, EmbedderSettings, load_embedder
from transforms.records import DecodedImage, EmbeddedImage, Failure, ShardEnd


@dataclass(frozen=True, slots=True)
class Flush:
    """Follows a shard's end: BatchElements lets a batch go only when more comes than it holds."""


Loaded = DecodedImage | Failure | ShardEnd | Flush
Embedded = EmbeddedImage | Failure | ShardEnd


class EmbedImages(beam.PTransform):  # type: ignore[misc]
    """PCollection[DecodedImage | Failure | ShardEnd] -> PCollection[EmbeddedImage | Failure | ShardEnd]."""

    def __init__(self, settings: EmbedderSettings) -> None:
        super().__init__()
        self._settings = settings

    def expand(self, images: beam.PCollection) -> beam.PCollection:
        return images | "MarkEnds" >> beam.FlatMap(mark_ends) | RunInference(EmbedderHandler(self._settings))


class EmbedderHandler(ModelHandler):  # type: ignore[misc]
    """Loads one `Embedder` a process and gives it whole batches of a fixed size."""

    def __init__(self, settings: EmbedderSettings) -> None:
        super().__init__()
        self._settings = settings
        self._flight = Flight()

    def load_model(self) -> Embedder:
        return load_embedder(self._settings)

    def run_inference(
        self, batch: Sequence[Loaded], model: Embedder, inference_args: dict[str, Any] | None = None
    ) -> list[Embedded]:
        return embed_batch(batch, model, self._flight)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        size = self._settings.batch_size
        return {"min_batch_size": size, "max_batch_size": size, "element_size_fn": self._weight}

    def get_num_bytes(self, batch: Sequence[Loaded]) -> int:
        return sum(item.pixels.nbytes for item in batch if isinstance(item, DecodedImage))

    def get_metrics_namespace(self) -> str:
        return "pnasvec"

    def _weight(self, item: Loaded) -> int:
        if isinstance(item, Flush):
            return self._settings.batch_size + 1
        return int(isinstance(item, DecodedImage))


def mark_ends(item: DecodedImage | Failure | ShardEnd) -> Iterator[Loaded]:
    """The item, and what pushes its batch into the model if it ends a shard."""
    yield item
    if isinstance(item, ShardEnd):
        yield Flush()


class Flight:
    """The batches of one stream that are in the model, in the order they went in."""

    def __init__(self) -> None:
        self._begun: deque[tuple[Sequence[DecodedImage], Future[BatchOutcome]]] = deque()

    def begin(self, images: Sequence[DecodedImage], embedder: Embedder) -> None:
        self._begun.append((images, embedder.submit([image.pixels for image in images])))

    def land(self, at_most: int) -> Iterator[Embedded]:
        """The rows of the oldest batches, until no more than so many are in the model."""
        while len(self._begun) > at_most:
            images, outcome = self._begun.popleft()
            yield from _rows(images, outcome.result())


def embed_batch(batch: Sequence[Loaded], embedder: Embedder, flight: Flight) -> list[Embedded]:
    """The batch's images into the model, rows that are ready out of it; everything else as it came, first."""
    images = [item for item in batch if isinstance(item, DecodedImage)]
    passed: list[Embedded] = [item for item in batch if not isinstance(item, DecodedImage | Flush)]
    if images:
        flight.begin(images, embedder)
    ended = any(isinstance(item, ShardEnd) for item in passed)
    return [*passed, *flight.land(0 if ended else embedder.capacity)]


def _rows(images: Sequence[DecodedImage], outcome: BatchOutcome) -> Iterator[Embedded]:
    batch = outcome.batch
    for row, position in enumerate(outcome.kept):
        image = images[position]
        yield EmbeddedImage(
            ref=image.ref,
            facts=image.facts,
            vector=batch.vectors[row],
            top_classes=batch.top_classes[row],
            top_probabilities=batch.top_probabilities[row],
            logits=None if batch.logits is None else batch.logits[row],
            embed_s=outcome.seconds / len(images),
        )
    for position, error in outcome.rejected:
        yield failure(images[position].ref, error)
