"""How far features and labels in half precision are from those in float32, over a folder of images.

`python -m benchmarks.precision [MODULE [FOLDER]]`: a PNASNet-5 module, the embedded one by default; without
FOLDER, 400 samples are rendered.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import images_of
from transforms.errors import ImageFailure
from transforms.image import Preprocessing, decode_image
from transforms.model.embedder import EmbeddedBatch, EmbedderSettings, load_embedder
from transforms.model.engine import describe_network
from transforms.model.options import Precision
from transforms.model.source import identify_model, locate_model

HALF: tuple[Precision, ...] = ("bfloat16", "float16")


def main(handle: str = "small", folder: str | None = None) -> None:
    files = locate_model(handle)
    network = describe_network(files)
    with tempfile.TemporaryDirectory() as scratch:
        images = _decoded(images_of(folder, Path(scratch)), Preprocessing(network.height, network.width))
    print(f"{len(images)} images, {handle}")

    def embedded(precision: Precision) -> EmbeddedBatch:
        settings = EmbedderSettings(
            files.handle, identify_model(files), batch_size=8, engine="native", precision=precision
        )
        return load_embedder(settings).embed(images).batch

    exact = embedded("float32")
    for precision in HALF:
        _report(precision, exact, embedded(precision))


def _decoded(paths: Sequence[Path], preprocessing: Preprocessing) -> list[NDArray[np.uint8]]:
    found = []
    for path in paths:
        try:
            found.append(decode_image(path.read_bytes(), preprocessing).pixels)
        except ImageFailure:
            continue
    return found


def _report(precision: Precision, exact: EmbeddedBatch, found: EmbeddedBatch) -> None:
    a, b = exact.vectors.astype(np.float64), found.vectors.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    same = (exact.top_classes[:, 0] == found.top_classes[:, 0]).mean()
    print(
        f"{precision:9} cosine of features: least {cosine.min():.6f}, median {np.median(cosine):.6f};"
        f" same top-1 {same:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
