"""Batches through RunInference: how they are cut, what passes through, what becomes of rejected images."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.combiners import ToList
from numpy.typing import NDArray

from tests.rows import failed, shard
from transforms.embed import Embedded, EmbedImages, Flight, embed_batch
from transforms.errors import ModelRejected, NonFiniteVector, UserError
from transforms.model.embedder import (
    BatchOutcome,
    EmbeddedBatch,
    Embedder,
    EmbedderSettings,
    load_embedder,
)
from transforms.model.source import identify_model, locate_model
from transforms.records import DecodedImage, EmbeddedImage, Failure, ImageFacts, Shard, ShardEnd

SIZE = 96


def decoded(images: Shard, index: int) -> DecodedImage:
    pixels = np.full((SIZE, SIZE, 3), index % 256, np.uint8)
    return DecodedImage(images.images()[index], ImageFacts(1, 1, "png", bytes(32)), pixels)


@dataclass
class Rejecting:
    """Rejects the second image of each batch; the third gets NaN."""

    batches: list[int] = field(default_factory=list)

    capacity: int = 0

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "Future[BatchOutcome]":
        future: Future[BatchOutcome] = Future()
        future.set_result(self.embed(images))
        return future

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> BatchOutcome:
        self.batches.append(len(images))
        kept = [0, *range(3, len(images))]
        vectors = np.array([[images[i][0, 0, 0]] for i in kept], np.float32)
        top = np.zeros((len(kept), 1), np.int32)
        batch = EmbeddedBatch(vectors, top, top.astype(np.float32), None)
        return BatchOutcome(batch, kept, [(1, ModelRejected("no")), (2, NonFiniteVector("NaN"))])


def rows_of(images: list[DecodedImage], embedder: Embedder) -> list[Embedded]:
    """What comes out once the shard has ended, which waits for all that is in the model."""
    end = ShardEnd(images[0].ref.shard, 0, 0)
    return [row for row in embed_batch([*images, end], embedder, Flight()) if row is not end]


class OnDemand:
    """A model that is done with a batch when the test says so."""

    capacity = 1

    def __init__(self) -> None:
        self.waiting: list[Future[BatchOutcome]] = []

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "Future[BatchOutcome]":
        self.waiting.append(Future())
        return self.waiting[-1]

    def finish(self) -> None:
        one = np.zeros((1, 1), np.float32)
        batch = EmbeddedBatch(one, one.astype(np.int32), one, None)
        self.waiting.pop(0).set_result(BatchOutcome(batch, [0], [], seconds=3.0))


def test_the_next_batch_is_gathered_while_one_is_in_the_model() -> None:
    images, model, flight = shard("a", "b"), OnDemand(), Flight()
    assert embed_batch([decoded(images, 0)], model, flight) == []  # type: ignore[arg-type]
    model.finish()
    [row] = embed_batch([decoded(images, 1)], model, flight)  # type: ignore[arg-type]
    assert isinstance(row, EmbeddedImage)
    assert (row.ref.uri, row.embed_s) == ("a", 3.0)
    model.finish()
    end = ShardEnd(images, 0, 0)
    passed, last = embed_batch([end], model, flight)  # type: ignore[arg-type]
    assert passed is end
    assert isinstance(last, EmbeddedImage)
    assert last.ref.uri == "b"


def test_an_error_of_the_model_comes_out_with_the_batch() -> None:
    images, model, flight = shard("a"), OnDemand(), Flight()
    embed_batch([decoded(images, 0)], model, flight)  # type: ignore[arg-type]
    model.waiting[0].set_exception(UserError("not enough memory"))
    with pytest.raises(UserError, match="not enough memory"):
        embed_batch([ShardEnd(images, 0, 0)], model, flight)  # type: ignore[arg-type]


def test_rejected_images_fail_alone() -> None:
    images = shard("a", "b", "c", "d", "e")
    rows = embed_batch([decoded(images, i) for i in range(5)], Rejecting(), Flight())  # type: ignore[arg-type]
    assert {row.ref.uri: float(row.vector[0]) for row in rows if isinstance(row, EmbeddedImage)} == {
        "a": 0.0,
        "d": 3.0,
        "e": 4.0,
    }
    assert {row.ref.uri: row.error for row in rows if isinstance(row, Failure)} == {
        "b": "ModelRejected",
        "c": "NonFiniteVector",
    }


def test_what_is_no_image_passes_without_the_model() -> None:
    images = shard("a")
    items = [failed(images, 0), ShardEnd(images, 1, 2)]
    model = Rejecting()
    assert embed_batch(items, model, Flight()) == items  # type: ignore[arg-type]
    assert model.batches == []


def test_a_shards_last_partial_batch_runs_at_the_end_of_the_shard() -> None:
    """In the stream after it, not at the end of the bundle: the writer sees shard by shard."""
    settings = EmbedderSettings("small", identify_model(locate_model("small")), batch_size=4)
    shards = [shard(*(f"{name}{i}" for i in range(count))) for name, count in (("a", 6), ("b", 1), ("c", 9))]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        stream = pipeline | beam.Create([shards]) | beam.FlatMap(_stream)
        names = stream | EmbedImages(settings) | beam.Map(_shard_name) | ToList()
        expected = ["a"] * 7 + ["b"] * 2 + ["c"] * 10
        assert_that(names | beam.Map(tuple), equal_to([tuple(expected)]))


def _stream(shards: list[Shard]) -> Iterator[DecodedImage | ShardEnd]:
    for images in shards:
        yield from (decoded(images, index) for index in range(len(images)))
        yield ShardEnd(images, 0, 0)


def _shard_name(item: EmbeddedImage | Failure | ShardEnd) -> str:
    return (item.shard if isinstance(item, ShardEnd) else item.ref.shard).uris[0][0]


def test_vectors_do_not_depend_on_the_batch() -> None:
    digest = identify_model(locate_model("small"))
    images = shard(*(f"{i}" for i in range(9)))
    embedder = load_embedder(EmbedderSettings("small", digest, batch_size=8))
    together = rows_of([decoded(images, i * 20 % 9) for i in range(9)], embedder)
    for row in together:
        assert isinstance(row, EmbeddedImage)
        [alone] = rows_of([decoded(images, row.ref.index)], embedder)
        assert isinstance(alone, EmbeddedImage)
        assert np.allclose(row.vector, alone.vector, atol=1e-4)
        assert row.top_classes[0] == alone.top_classes[0]
