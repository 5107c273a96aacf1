"""Shards, rows and formats for tests, built as the pipeline builds them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.model.labels import Labels
from transforms.records import EmbeddedImage, Failure, ImageFacts, ImageRef, Shard
from transforms.schema import RowFormat

URI_ONLY = pa.schema([pa.field("uri", pa.string(), nullable=False)])


def shard(*uris: str, **kept: Any) -> Shard:
    return Shard(pa.table({"uri": pa.array(uris, pa.string()), **kept}))


def row_format(**changes: Any) -> RowFormat:
    """Vectors of 4, two classes."""
    labels = Labels(("n0", "n1"), ("zero", "one"))
    values = {"feature_width": 4, "class_count": 2, "labels": labels, "kept": URI_ONLY}
    return RowFormat(**{**values, "metadata": '{"model": "test"}', **changes})


def embedded(
    shard: Shard, index: int, vector: Sequence[float], logits: Sequence[float] | None = None
) -> EmbeddedImage:
    return EmbeddedImage(
        ref=ImageRef(shard, index, shard.uris[index]),
        facts=ImageFacts(12, 34, "jpeg", bytes(32)),
        vector=np.array(vector, np.float32),
        top_classes=np.array([1, 0], np.int32),
        top_probabilities=np.array([0.75, 0.25], np.float32),
        logits=None if logits is None else np.array(logits, np.float32),
        embed_s=0.5,
    )


def failed(shard: Shard, index: int, error: str = "NotFound") -> Failure:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return Failure(ImageRef(shard, index, shard.uris[index]), "fetch", error, "gone", 1, now)
