"""Run folders with vectors that a test chooses, written as the embed job writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pipeline.config import IndexConfig
from pipeline.indexing import IndexOutcome, index
from pipeline.runners import beam_options
from pipeline.search import SimilarityIndex
from transforms import storage
from transforms.schema import encode_parquet

IDENTITY = {
    "model": {"handle": "small", "digest": "of no model", "labels": "none", "precision": "float32"},
    "preprocessing": {"height": 96, "width": 96, "resize": "crop", "allow_truncated": False},
    "rows": {},
    "top_k": 1,
}
_TOP_K = pa.list_(
    pa.struct(
        [
            ("index", pa.int32()),
            ("wnid", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float32()),
        ]
    )
)


def uri(number: int) -> str:
    return f"gs://bucket/{number:07d}.jpg"


def write_run(run: Path, identity: dict[str, Any] = IDENTITY) -> Path:
    """A complete run without a row."""
    manifest = {
        "schema_version": 1,
        "state": "complete",
        "identity": identity,
        "inputs": [],
        "started": "2026-01-02T03:04:05.678+00:00",
        "finished": "2026-01-02T03:04:06.789+00:00",
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def write_part(run: Path, name: str, vectors: np.ndarray, numbers: Sequence[int]) -> None:
    """Rows with these vectors and `uri(number)`; label, probability, width and `group` come of the number."""
    top = [[(0, "n0", f"label {n % 5}", (n % 10) / 10)] for n in numbers]
    table = pa.table(
        {
            "uri": [uri(number) for number in numbers],
            "width": pa.array([100 + number % 400 for number in numbers], pa.int32()),
            "height": pa.array([300] * len(numbers), pa.int32()),
            "format": ["jpeg"] * len(numbers),
            "sha256": ["0" * 64] * len(numbers),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1]
            ),
            "top_k": pa.array(top, _TOP_K),
            "group": pa.array([number % 3 for number in numbers], pa.int64()),
        }
    )
    storage.write_whole(str(run / "embeddings" / f"part-{name}.parquet"), encode_parquet(table))


def clustered(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """(rows, width) float32: non-negative, in clusters, as features are."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    latent = min(width, 24)
    centres = world.standard_normal((60, latent), np.float32)
    matrix = world.standard_normal((latent, width), np.float32)
    points = centres[rng.integers(60, size=rows)] + 0.6 * rng.standard_normal((rows, latent), np.float32)
    return np.maximum(points @ matrix, 0) + np.float32(0.01)


def make_run(run: Path, rows: int, width: int = 32, seed: int = 0, first: int = 0) -> np.ndarray:
    """Clustered vectors in parts of 1,500 rows; returns them."""
    vectors = clustered(rows, width, seed)
    write_run(run)
    for start in range(0, rows, 1500):
        numbers = range(first + start, first + min(start + 1500, rows))
        write_part(run, f"{first + start:08d}", vectors[start : start + 1500], numbers)
    return vectors


def build(run: Path | str, **settings: Any) -> IndexOutcome:
    """The index job, in this process; keywords are fields of `IndexConfig`."""
    return index(IndexConfig(str(run), **settings), beam_options({}), Console(quiet=True))


def open_index(run: Path) -> SimilarityIndex:
    return SimilarityIndex.open(run)


def exact(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """Rows of the k largest cosines, by plain arithmetic."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.argsort(-(unit @ query), kind="stable")[:k].tolist()
