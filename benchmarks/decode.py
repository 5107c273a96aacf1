"""JPEG to the model's pixels, images/s on one thread: ours beside TensorFlow's own ways.

`python -m benchmarks.decode [FOLDER]`: FOLDER holds JPEG files; without it, 200 samples are rendered.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import tensorflow as tf

from transforms.image import Preprocessing, decode_image
from transforms.sample import render_sample

SIZE = 331
ROUNDS = 3


def main() -> None:
    images = _images(sys.argv[1:])
    ways = {
        "pnasvec": lambda data: decode_image(data, Preprocessing(SIZE, SIZE)),
        "TensorFlow, decode_and_crop_jpeg": tf.function(
            _tf_crop_first, input_signature=[tf.TensorSpec((), tf.string)]
        ),
        "TensorFlow, as TF-Slim evaluates": tf.function(
            _tf_slim, input_signature=[tf.TensorSpec((), tf.string)]
        ),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = max(best[name], _rate(way, images))
    print(f"{len(images)} JPEG files, one thread, best of {ROUNDS} rounds")
    for name, rate in best.items():
        print(f"{name:36} {rate:7.0f} images/s   pnasvec is {best['pnasvec'] / rate:.2f}x")


def _images(arguments: list[str]) -> list[bytes]:
    if not arguments:
        return [render_sample(0, index) for index in range(200)]
    found = sorted(path for path in Path(arguments[0]).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in found]


def _rate(way: Callable[[bytes], object], images: list[bytes]) -> float:
    start = time.perf_counter()
    for data in images:
        way(data)
    return len(images) / (time.perf_counter() - start)


def _tf_slim(data: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_FAST")
    image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
    return tf.compat.v1.image.resize_bilinear(image[None], [SIZE, SIZE], align_corners=False)


def _tf_crop_first(data: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(data)
    start = tf.cast((tf.cast(shape[:2], tf.float64) * 0.125) / 2, tf.int32)
    window = tf.concat([start, shape[:2] - 2 * start], 0)
    image = tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_FAST")
    return tf.compat.v1.image.resize_bilinear(image[None], [SIZE, SIZE], align_corners=False)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
