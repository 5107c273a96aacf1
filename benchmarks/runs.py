"""Run folders of feature-like vectors, written as the embed job writes them, without images or a model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.vectors import feature_like
from transforms import storage
from transforms.schema import encode_parquet

_IDENTITY = {
    "model": {"handle": "small", "digest": "of no model", "labels": "none", "precision": "float32"},
    "preprocessing": {"height": 331, "width": 331, "resize": "crop", "allow_truncated": False},
    "rows": {},
    "top_k": 0,
}


def uri(seed: int, number: int) -> str:
    return f"gs://bucket/photographs/{seed}/{number:08d}.jpg"


def add_rows(run: Path, rows: int, width: int, seed: int = 0) -> None:
    """`rows` more images; nothing if this seed's are there."""
    first = run / "embeddings" / f"part-{seed}-{0:08d}.parquet"
    if first.exists():
        return
    (run / "embeddings").mkdir(parents=True, exist_ok=True)
    done = 0
    for vectors in feature_like(rows, width, seed):
        file = run / "embeddings" / f"part-{seed}-{done:08d}.parquet"
        storage.write_whole(str(file), encode_parquet(_table(vectors, seed, done)))
        done += len(vectors)
    times = {"started": "2026-01-02T03:04:05.678+00:00", "finished": "2026-01-02T03:04:05.678+00:00"}
    manifest = {"schema_version": 1, "state": "complete", "identity": _IDENTITY, "inputs": [], **times}
    (run / "manifest.json").write_text(json.dumps(manifest))


def _table(vectors: np.ndarray, seed: int, first: int) -> pa.Table:
    count = len(vectors)
    numbers = pa.array(vectors.reshape(-1))
    return pa.table(
        {
            "uri": [uri(seed, number) for number in range(first, first + count)],
            "width": pa.array(np.full(count, 640, np.int32)),
            "height": pa.array(np.full(count, 480, np.int32)),
            "format": ["jpeg"] * count,
            "embedding": pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1]),
        }
    )
