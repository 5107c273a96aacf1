"""Trains the small network on rendered images: data, schedule, evaluation. Needs no files.

The same path as an image in production: rendered, JPEG-encoded, decoded and cropped, scaled.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from transforms.image import Preprocessing, decode_image
from transforms.model.pnasnet import architecture, build_network
from transforms.sample import CLASSES, render_sample

_BATCH = 64
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-3
_LABEL_SMOOTHING = 0.05
# TF-Slim's 0.9997 is for a million steps; here are about two thousand.
_BN_MOMENTUM = 0.98


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """`images` are rendered once, and seen `epochs` times, flipped and turned at random."""

    images: int = 32_000
    epochs: int = 4
    seed: int = 1


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """`pixels` is (N, H, W, 3) uint8, `classes` (N,) int32."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int32]


def train_small(settings: TrainSettings) -> Iterator[tuple[int, keras.Model]]:
    """After each epoch its number and the network, whose weights go on changing until the last one."""
    keras.utils.set_random_seed(settings.seed)
    network = build_network(architecture("small"), len(CLASSES), _BN_MOMENTUM)
    images = render_labelled(settings.images, settings.seed, network.input_shape[1:3])
    steps = settings.epochs * (settings.images // _BATCH)
    optimizer = keras.optimizers.AdamW(_schedule(steps), weight_decay=_WEIGHT_DECAY, clipnorm=1.0)
    step = _training_step(network, optimizer)
    rng = np.random.default_rng(settings.seed)
    for epoch in range(1, settings.epochs + 1):
        for batch in _batches(images, rng):
            step(batch.pixels, batch.classes)
        yield epoch, network


def top1(network: keras.Model, images: LabelledImages) -> float:
    """The share of images whose highest logit is their class."""
    predict = tf.function(lambda pixels: network(_scaled(pixels), training=False)["logits"])
    parts = np.array_split(np.arange(len(images.classes)), max(1, len(images.classes) // _BATCH))
    found = [predict(tf.constant(images.pixels[part])).numpy().argmax(axis=1) for part in parts]
    return float((np.concatenate(found) == images.classes).mean())


def render_labelled(count: int, seed: int, size: tuple[int, int]) -> LabelledImages:
    """Samples 0 to `count` of `seed`, decoded to `size` as the pipeline would."""
    preprocessing = Preprocessing(*size)
    with ThreadPoolExecutor() as pool:
        render = partial(_render, seed=seed, preprocessing=preprocessing)
        pixels = np.stack(list(pool.map(render, range(count), chunksize=100)))
    return LabelledImages(pixels, (np.arange(count) % len(CLASSES)).astype(np.int32))


def _render(index: int, seed: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    return decode_image(render_sample(seed, index), preprocessing).pixels


def _schedule(steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = steps // 20
    return keras.optimizers.schedules.CosineDecay(
        _LEARNING_RATE / 100, steps - warmup, warmup_target=_LEARNING_RATE, warmup_steps=warmup
    )


def _training_step(
    network: keras.Model, optimizer: keras.optimizers.Optimizer
) -> tf.types.experimental.GenericFunction:
    count = len(CLASSES)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(pixels: tf.Tensor, classes: tf.Tensor) -> None:
        targets = tf.one_hot(classes, count) * (1 - _LABEL_SMOOTHING) + _LABEL_SMOOTHING / count
        with tf.GradientTape() as tape:
            logits = network(_scaled(pixels), training=True)["logits"]
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    return step


def _scaled(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(pixels, tf.float32) / 127.5 - 1


def _batches(images: LabelledImages, rng: np.random.Generator) -> Iterator[LabelledImages]:
    """One epoch in random order; each batch in one of the eight ways to lay a square."""
    order = rng.permutation(len(images.classes))
    for start in range(0, len(order) - _BATCH + 1, _BATCH):
        chosen = order[start : start + _BATCH]
        pixels = np.rot90(images.pixels[chosen], int(rng.integers(4)), axes=(1, 2))
        if rng.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        yield LabelledImages(np.ascontiguousarray(pixels), images.classes[chosen])
