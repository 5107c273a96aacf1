"""Logits and features: one pass through the pruned graph beside the two signatures in turn.

`python -m benchmarks.one_pass [MODULE]`: a TF1 Hub module; the default is the embedded one.
"""

import sys
import time
from collections.abc import Callable

import tensorflow as tf

from transforms.model.hub import load_module
from transforms.model.source import locate_model

BATCH, ROUNDS = 32, 8


def main(handle: str = "small") -> None:
    files = locate_model(handle)
    network = load_module(files)
    signatures = tf.saved_model.load(files.folder, tags=[]).signatures
    images = tf.random.uniform((BATCH, network.info.height, network.info.width, 3))
    one = tf.function(network.forward)
    ways: dict[str, Callable[[], object]] = {
        "one pass": lambda: one(images),
        "two passes": lambda: [
            signatures[name](images=images) for name in ("image_classification", "image_feature_vector")
        ],
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(
            f"{name:12} {BATCH / seconds:8.1f} images/s, {seconds / best['one pass']:.2f} of one pass's time"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
