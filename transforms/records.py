"""What travels between the steps of the way of an image: frozen, slotted, small.

Only `Shard` and `Forgotten` ever cross a stage boundary. The others live inside one fused stage and
point at their shard by reference, so none of them may be shuffled.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shard:
    """About two thousand images that are embedded, written and resumed together.

    `refs` is a table of `uri: string` and the kept columns, one row an image. The name
    depends on the URIs alone, so a shard that is run twice overwrites its own files.
    """

    refs: pa.Table

    def __reduce__(self) -> tuple[type["Shard"], tuple[pa.Table]]:
        return Shard, (self.refs,)  # without what is cached from it

    @cached_property
    def name(self) -> str:
        digest = blake2b(digest_size=10)
        for uri in self.uris:
            digest.update(uri.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    @cached_property
    def uris(self) -> list[str]:
        return self.refs["uri"].to_pylist()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return int(self.refs.num_rows)

    def images(self) -> "list[ImageRef]":
        return [ImageRef(self, index, uri) for index, uri in enumerate(self.uris)]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Row `index` of its shard."""

    shard: Shard
    index: int
    uri: str


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes as they were stored, and how many tries they took."""

    data: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the output says of the original: upright size in pixels, format, sha256 of the bytes."""

    width: int
    height: int
    format: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`pixels` is (height, width, 3) uint8 RGB at the model's input size."""

    ref: ImageRef
    facts: ImageFacts
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """`vector` is (D,) float32; `top_classes` (k,) int32 and `top_probabilities` (k,) float32, best first.

    `logits` is (C,) float32 where they were asked for; `embed_s` the image's share of its batch's seconds.
    """

    ref: ImageRef
    facts: ImageFacts
    vector: NDArray[np.float32]
    top_classes: NDArray[np.int32]
    top_probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    embed_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no vector: never the payload, only its reference and the reason."""

    ref: ImageRef
    stage: str
    error: str
    message: str
    attempts: int
    when: datetime


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """Follows a shard's last image, so that a partial last batch is run at once.

    `fetch_s` and `decode_s` are thread seconds that the shard's images took.
    """

    shard: Shard
    fetch_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Failure rows that must go because their images are tried again, or were embedded after all."""

    file: str
    uris: tuple[str, ...]
