"""Rows/s to Parquet: a shard's rows as the pipeline writes them, beside a bare pyarrow writer.

`python -m benchmarks.write`: 2,000 rows of 4,320 feature-like floats, into memory.
"""

import json
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.model.labels import imagenet_labels
from transforms.records import EmbeddedImage, ImageFacts, ImageRef, Shard
from transforms.schema import RowFormat, embeddings_table, encode_parquet

ROWS, WIDTH, TOP = 2000, 4320, 5
ROUNDS = 5


def main() -> None:
    rng = np.random.default_rng(0)
    vectors = np.maximum(rng.standard_normal((ROWS, WIDTH), np.float32), 0)
    rows = _rows(vectors, rng)
    row_format = RowFormat(WIDTH, 1001, imagenet_labels(), _schema(), json.dumps({}))
    ways: dict[str, Callable[[], pa.Buffer]] = {
        "pnasvec": lambda: encode_parquet(embeddings_table(rows[0].ref.shard, rows, row_format)),
        "pyarrow, the vectors alone, its defaults": lambda: _raw(vectors),
        "pyarrow, the vectors alone, our encodings": lambda: _raw(
            vectors,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            use_byte_stream_split=["embedding.list.element"],
        ),
    }
    print(f"{ROWS:,} rows of {WIDTH:,} floats, best of {ROUNDS} rounds")
    ours = 0.0
    for name, way in ways.items():
        rate, size = _measure(way)
        ours = ours or rate
        print(f"{name:44} {rate:8,.0f} rows/s  {size / 1e6:6.1f} MB   pnasvec is {ours / rate:.2f}x")


def _rows(vectors: np.ndarray, rng: np.random.Generator) -> list[EmbeddedImage]:
    shard = Shard(pa.table({"uri": [f"gs://bucket/photographs/{i:08d}.jpg" for i in range(ROWS)]}))
    classes = rng.integers(0, 1001, (ROWS, TOP), np.int32)
    probabilities = rng.random((ROWS, TOP), np.float32)
    return [
        EmbeddedImage(
            ImageRef(shard, i, uri),
            ImageFacts(640, 480, "jpeg", rng.bytes(32)),
            vectors[i],
            classes[i],
            probabilities[i],
            None,
            0.0,
        )
        for i, uri in enumerate(shard.uris)
    ]


def _schema() -> pa.Schema:
    return pa.schema([pa.field("uri", pa.string(), nullable=False)])


def _raw(vectors: np.ndarray, **options: object) -> pa.Buffer:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"embedding": column}), sink, row_group_size=1024, **options)
    return sink.getvalue()


def _measure(way: Callable[[], pa.Buffer]) -> tuple[float, int]:
    best, size = 0.0, 0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        size = way().size
        best = max(best, ROWS / (time.perf_counter() - start))
    return best, size


if __name__ == "__main__":
    main()
