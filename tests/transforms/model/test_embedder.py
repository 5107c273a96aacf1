"""Images to vectors and labels: exact, in few batch sizes, and despite images or memory that fail."""

import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from transforms.errors import ModelRejected, NonFiniteVector, UserError
from transforms.model.devices import Device
from transforms.model.embedder import BatchOutcome, Embedder, EmbedderSettings, Placed, load_embedder
from transforms.model.network import Network, NetworkInfo, Outputs
from transforms.model.source import ModelFiles, identify_model

Image = NDArray[np.uint8]
SIZE, CLASSES, WIDTH = 4, 6, 3 * 16
HUGE = 1 << 46  # floats, which no machine has


class Passes:
    """A network whose features are its input; it counts its traces, and `run` sees each batch's pixels."""

    def __init__(self, run: Callable[[Any], Any] = lambda pixels: pixels) -> None:
        self.traces = 0
        self.rows = tf.Variable(tf.zeros((0,), tf.int32), shape=(None,))
        self._run = run

    def forward(self, images: Any) -> Outputs:
        self.traces += 1
        self.rows.assign(tf.concat([self.rows, [tf.shape(images)[0]]], 0))
        features = self._run(tf.reshape(images, (-1, WIDTH)))
        return Outputs(features, features[:, :CLASSES])

    def embedder(self, batch_size: int = 8, top_k: int = 2, keep_logits: bool = False) -> Embedder:
        network = Network(NetworkInfo(SIZE, SIZE, CLASSES, WIDTH), self.forward)
        settings = EmbedderSettings("any", "any", batch_size, top_k, keep_logits)
        return Embedder([Placed(network, Device("/CPU:0", "any"))], settings)


def images(count: int, seed: int = 0) -> list[Image]:
    """Random images whose pixels are never 0 or 255."""
    pixels = np.random.default_rng(seed).integers(1, 255, (count, SIZE, SIZE, 3), np.uint8)
    return list(pixels)


def bright() -> Image:
    return np.full((SIZE, SIZE, 3), 255, np.uint8)


def expected(pictures: Sequence[Image]) -> NDArray[np.float64]:
    return np.stack(pictures).reshape(-1, WIDTH) / 255


def refuse_bright(pixels: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_less(pixels, 1.0, "too bright")]):
        return tf.identity(pixels)


def refuse_all(pixels: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_greater(pixels, 2.0, "broken")]):
        return tf.identity(pixels)


def need_memory_for(rows: int) -> Callable[[Any], Any]:
    """A computation that TensorFlow can find no memory for, from so many rows on."""

    def run(pixels: Any) -> Any:
        many = tf.cast(tf.shape(pixels)[0] >= rows, tf.int64)
        return pixels + tf.reduce_max(tf.zeros(tf.stack([many * HUGE + 1])))

    return run


def check_kept(outcome: BatchOutcome, pictures: Sequence[Image]) -> None:
    assert len(outcome.batch.vectors) == len(outcome.kept)
    np.testing.assert_allclose(
        outcome.batch.vectors, expected([pictures[position] for position in outcome.kept]), atol=1e-6
    )


def test_pixels_are_scaled_to_one_and_rows_say_what_they_hold() -> None:
    pictures = images(5)
    batch = Passes().embedder(top_k=3, keep_logits=True).embed(pictures).batch
    np.testing.assert_allclose(batch.vectors, expected(pictures), rtol=1e-6)
    logits = expected(pictures)[:, :CLASSES]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(batch.top_classes, order)
    np.testing.assert_allclose(
        batch.top_probabilities, np.take_along_axis(probabilities, order, 1), rtol=1e-5
    )
    assert batch.logits is not None
    np.testing.assert_allclose(batch.logits, logits, rtol=1e-6)
    assert [column.dtype for column in (batch.vectors, batch.top_classes, batch.top_probabilities)] == [
        np.float32,
        np.int32,
        np.float32,
    ]


def test_every_byte_value_is_its_255th() -> None:
    pixels = np.resize(np.arange(256, dtype=np.uint8), (6, SIZE, SIZE, 3))
    vectors = Passes().embedder().embed(list(pixels)).batch.vectors
    np.testing.assert_allclose(vectors.reshape(-1)[:256], np.arange(256) / 255, rtol=2e-7)


@pytest.mark.parametrize(("asked", "given_back"), [(0, 0), (1, 1), (CLASSES, CLASSES), (100, CLASSES)])
def test_labels_are_at_most_all_classes(asked: int, given_back: int) -> None:
    batch = Passes().embedder(top_k=asked).embed(images(3)).batch
    assert batch.top_classes.shape == batch.top_probabilities.shape == (3, given_back)
    assert batch.logits is None


def test_no_images_are_no_rows() -> None:
    outcome = Passes().embedder(keep_logits=True).embed([])
    assert (outcome.batch.vectors.shape, list(outcome.kept), list(outcome.rejected)) == ((0, WIDTH), [], [])
    assert outcome.batch.logits is not None
    assert outcome.batch.logits.shape == (0, CLASSES)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 40), batch_size=st.integers(1, 12))
def test_any_number_of_images_gives_a_row_each(count: int, batch_size: int) -> None:
    pictures = images(count, seed=count)
    outcome = Passes().embedder(batch_size).embed(pictures)
    assert list(outcome.kept) == list(range(count))
    assert not outcome.rejected
    if count:
        check_kept(outcome, pictures)


def test_all_batch_sizes_share_one_trace_and_few_shapes() -> None:
    passes = Passes()
    embedder = passes.embedder(batch_size=32)
    for count in range(1, 33):
        embedder.embed(images(count))
    assert passes.traces == 1
    assert set(passes.rows.numpy()) == {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize(
    ("count", "rows"),
    [(32, [32]), (31, [32]), (26, [32]), (25, [16, 8, 1]), (17, [16, 1]), (5, [4, 1]), (70, [32, 32, 4, 2])],
)
def test_small_batches_cost_little_more_than_their_images(count: int, rows: list[int]) -> None:
    passes = Passes()
    passes.embedder(batch_size=32).embed(images(count))
    assert passes.rows.numpy().tolist() == rows


def test_an_image_that_the_network_rejects_takes_no_other_with_it() -> None:
    pictures = images(13)
    pictures[4] = pictures[11] = bright()
    outcome = Passes(refuse_bright).embedder().embed(pictures)
    assert list(outcome.kept) == [n for n in range(13) if n not in (4, 11)]
    assert [position for position, _ in outcome.rejected] == [4, 11]
    assert all(isinstance(error, ModelRejected) for _, error in outcome.rejected)
    assert "too bright" in str(outcome.rejected[0][1])
    assert "Graph execution" not in str(outcome.rejected[0][1])
    check_kept(outcome, pictures)


def test_a_batch_of_rejected_images_is_no_rows() -> None:
    outcome = Passes(refuse_bright).embedder(keep_logits=True).embed([bright(), bright()])
    assert outcome.batch.vectors.shape == (0, WIDTH)
    assert [position for position, _ in outcome.rejected] == [0, 1]


def test_a_network_that_rejects_everything_is_broken_and_says_so() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="broken"):
        Passes(refuse_all).embedder().embed(images(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_rejected_alone(value: float) -> None:
    pictures = images(9)
    pictures[2] = pictures[8] = bright()
    passes = Passes(lambda pixels: tf.where(pixels == 1.0, tf.constant(value, tf.float32), pixels))
    outcome = passes.embedder(keep_logits=True).embed(pictures)
    assert [position for position, _ in outcome.rejected] == [2, 8]
    assert all(isinstance(error, NonFiniteVector) for _, error in outcome.rejected)
    assert outcome.batch.logits is not None
    assert np.isfinite(outcome.batch.logits).all()
    check_kept(outcome, pictures)


def test_out_of_memory_halves_the_batch_once_and_for_all(caplog: pytest.LogCaptureFixture) -> None:
    passes = Passes(need_memory_for(rows=3))
    embedder = passes.embedder(batch_size=8)
    pictures = images(8)
    with caplog.at_level(logging.WARNING, logger="transforms.model.embedder"):
        outcome = embedder.embed(pictures)
        tried = len(passes.rows.numpy())
        embedder.embed(pictures)
    assert list(outcome.kept) == list(range(8))
    check_kept(outcome, pictures)
    assert passes.rows.numpy()[tried:].tolist() == [2, 2, 2, 2]
    assert [
        record.getMessage() for record in caplog.records if record.name == "transforms.model.embedder"
    ] == [
        "out of memory with 8 images a pass; going on with 4",
        "out of memory with 4 images a pass; going on with 2",
    ]


def test_no_memory_for_one_image_is_a_users_error() -> None:
    with pytest.raises(UserError, match="not enough memory"):
        Passes(need_memory_for(rows=1)).embedder().embed(images(2))


def test_threads_share_an_embedder() -> None:
    embedder = Passes().embedder(batch_size=4)
    outcomes: dict[int, BatchOutcome] = {}

    def embed(seed: int) -> None:
        outcomes[seed] = embedder.embed(images(7, seed))

    threads = [threading.Thread(target=embed, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    for seed, outcome in outcomes.items():
        check_kept(outcome, images(7, seed))


def test_settings_travel_and_are_checked() -> None:
    settings = EmbedderSettings("small", "digest", batch_size=4)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - made here
    with pytest.raises(UserError, match="--batch-size must be at least 1, not 0"):
        EmbedderSettings("small", "digest", batch_size=0)
    with pytest.raises(UserError, match="--top-k must not be negative, not -1"):
        EmbedderSettings("small", "digest", top_k=-1)


@pytest.fixture(scope="module")
def tiny(tiny_module: Path) -> Embedder:
    files = ModelFiles(str(tiny_module), str(tiny_module))
    return load_embedder(
        EmbedderSettings(files.handle, identify_model(files), batch_size=8, keep_logits=True)
    )


def test_a_module_gives_what_its_network_does(tiny: Embedder, tiny_network: keras.Model) -> None:
    pictures = np.random.default_rng(8).integers(0, 256, (3, 32, 32, 3), np.uint8)
    batch = tiny.embed(list(pictures)).batch
    outputs = tiny_network(pictures.astype(np.float32) / 127.5 - 1, training=False)
    np.testing.assert_allclose(batch.vectors, outputs["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.logits, outputs["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.top_classes[:, 0], np.argmax(outputs["logits"], axis=1))


def test_neither_padding_nor_neighbours_change_a_vector(tiny: Embedder) -> None:
    pictures = list(np.random.default_rng(9).integers(0, 256, (8, 32, 32, 3), np.uint8))
    alone = tiny.embed(pictures[:1]).batch.vectors[0]
    for count in range(1, 9):
        for turn in range(count):
            order = [*pictures[1 : turn + 1], pictures[0], *pictures[turn + 1 : count]]
            np.testing.assert_allclose(tiny.embed(order).batch.vectors[turn], alone, rtol=1e-5, atol=1e-5)


def test_a_worker_with_another_model_at_that_place_refuses(tiny_module: Path) -> None:
    with pytest.raises(UserError, match=f"{tiny_module}: .* another model than when the job began"):
        load_embedder(EmbedderSettings(str(tiny_module), "0" * 64))
