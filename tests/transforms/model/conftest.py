"""What the tests of models share: a tiny PNASNet, the module it makes, and TF-Slim's reference data."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from transforms.model.export import export_hub_module
from transforms.model.pnasnet import Architecture, build_network

Array = NDArray[np.float32]

TINY = Architecture("tiny", image_size=32, stem_filters=8, filters=8, cells=2)
TINY_CLASSES = 7


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models that are fetched go where the test can see them, and nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    return tmp_path / "cache" / "pnasvec" / "models"


@pytest.fixture(scope="session")
def tiny_network() -> keras.Model:
    """Random weights, and moving statistics that are not those of a fresh layer."""
    rng = np.random.default_rng(5)
    keras.utils.set_random_seed(5)
    network = build_network(TINY, TINY_CLASSES)
    for variable in network.non_trainable_variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


@pytest.fixture(scope="session")
def tiny_module(tiny_network: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "module"
    labels = folder.parent / "labels.tsv"
    labels.write_text("".join(f"{index}\tn{index:08}\tclass {index}\n" for index in range(TINY_CLASSES)))
    export_hub_module(tiny_network, str(folder), str(labels))
    return folder


class SlimReference:
    """What TF-Slim's graphs gave for weights and images that anyone can draw again; see its README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Of every variable of "large" or "mobile", in the order of the graph."""
        with open(self.folder / f"slim_variables_{name}.tsv", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            return {row["name"]: tuple(int(side) for side in row["shape"].split("x")) for row in rows}

    def outputs(self, name: str) -> dict[str, Array]:
        """`features` (2, D), `logits` (2, C) and the corner of the images."""
        found = np.load(self.folder / f"slim_reference_{name}.npz")
        features = found["global_pool"].reshape(2, -1)
        return {"features": features, "logits": found["logits"], "image_corner": found["image_corner"]}

    def draw(self, name: str, image_size: int) -> tuple[dict[str, Array], Array]:
        """The weights, and (2, size, size, 3) images in [-1, 1]."""
        rng = np.random.RandomState(1)
        weights = {key: _draw(rng, key, shape) for key, shape in self.shapes(name).items()}
        images = rng.uniform(-1, 1, (2, image_size, image_size, 3)).astype(np.float32)
        np.testing.assert_array_equal(images[:, :4, :4], self.outputs(name)["image_corner"])
        return weights, images

    def check(self, name: str, outputs: Mapping[str, Any]) -> None:
        """Both outputs equal TF-Slim's to 1e-4 of their standard deviation."""
        for key, expected in self.outputs(name).items():
            if key != "image_corner":
                assert np.abs(np.asarray(outputs[key]) - expected).max() < 1e-4 * expected.std(), key


def _draw(rng: np.random.RandomState, name: str, shape: tuple[int, ...]) -> Array:
    if name.endswith("moving_variance"):
        values = rng.uniform(0.5, 2, shape)
    elif name.endswith("gamma"):
        values = rng.uniform(0.7, 1.3, shape)
    elif name.endswith(("beta", "moving_mean", "biases")):
        values = rng.normal(0, 0.1, shape)
    elif name.endswith("depthwise_weights"):
        values = rng.normal(0, 1 / shape[0], shape)
    else:
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def slim() -> SlimReference:
    folder = Path(__file__).parents[4] / "shared" / "pnasnet"
    if not folder.is_dir():
        pytest.skip("the reference data of TF-Slim is not beside this checkout")
    return SlimReference(folder)
