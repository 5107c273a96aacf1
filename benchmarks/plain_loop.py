"""What one would write without this package: decode, model(batch), Parquet, in a loop over files.

`python -m benchmarks.plain_loop FOLDER MODEL OUTPUT`
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from transforms.model.hub import load_module
from transforms.model.source import locate_model

BATCH = 32


def main(folder: str, handle: str, output: str) -> None:
    network = load_module(locate_model(handle))
    size = network.info.height, network.info.width
    model = tf.function(network.forward, reduce_retracing=True)
    paths = sorted(Path(folder).iterdir())
    rows = []
    for start in range(0, len(paths), BATCH):
        batch = [decode(path, size) for path in paths[start : start + BATCH]]
        outputs = model(tf.stack(batch))
        top = tf.math.top_k(tf.nn.softmax(outputs.logits), 5)
        rows.append((outputs.features.numpy(), top.indices.numpy(), top.values.numpy()))
    vectors, indices, values = (np.concatenate(column) for column in zip(*rows, strict=True))
    table = {
        "uri": [str(path) for path in paths],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        "indices": list(indices),
        "values": list(values),
    }
    pq.write_table(pa.table(table), output)


def decode(path: Path, size: tuple[int, int]) -> tf.Tensor:
    image = tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3, dct_method="INTEGER_FAST")
    image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
    return tf.compat.v1.image.resize_bilinear(image[None], size, align_corners=False)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
