"""Our network against TF-Slim's own graph: variables, sizes, and outputs for the same weights."""

import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest

from transforms.model.checkpoint import slim_variables
from transforms.model.folding import assign_folded, slim_shapes
from transforms.model.pnasnet import ARCHITECTURES, Architecture, architecture, build_folded, build_network


@pytest.fixture(scope="module")
def large() -> keras.Model:
    return build_network(architecture("large"), 1001)


@pytest.fixture(scope="module")
def mobile() -> keras.Model:
    return build_network(architecture("mobile"), 1001)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return build_network(architecture("small"), 1001)


def trainable(network: keras.Model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


def test_parameters_are_as_many_as_published(large: keras.Model, mobile: keras.Model) -> None:
    assert trainable(large) == 86_061_989
    assert trainable(mobile) == 5_065_568


@pytest.mark.parametrize("name", ["large", "mobile"])
def test_variables_are_those_of_slim(request: pytest.FixtureRequest, slim: Any, name: str) -> None:
    network = request.getfixturevalue(name)
    ours = {key: tuple(variable.shape) for key, variable in slim_variables(network).items()}
    assert ours == slim.shapes(name)


@pytest.mark.parametrize("name", ["large", "mobile"])
def test_the_folded_network_gives_what_slim_gives(slim: Any, name: str) -> None:
    arch = architecture(name)
    network = build_folded(arch, 1001)
    assert slim_shapes(network) == slim.shapes(name)
    weights, images = slim.draw(name, arch.image_size)
    assign_folded(network, weights.__getitem__)
    slim.check(name, network(images, training=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_in_half_precision_point_the_same_way(slim: Any, dtype: str) -> None:
    arch = architecture("mobile")
    network = build_folded(arch, 1001, dtype)
    weights, images = slim.draw("mobile", arch.image_size)
    assign_folded(network, weights.__getitem__)
    found = np.asarray(network(images, training=False)["features"], np.float64)
    expected = slim.outputs("mobile")["features"].astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / norms).min() > 0.9995


@pytest.mark.parametrize("name", ["large", "mobile"])
def test_outputs_are_those_of_slim(request: pytest.FixtureRequest, slim: Any, name: str) -> None:
    network = request.getfixturevalue(name)
    weights, images = slim.draw(name, network.input_shape[1])
    for key, variable in slim_variables(network).items():
        variable.assign(weights[key])
    slim.check(name, network(images, training=False))


def test_tensorflow_fuses_biases_and_relus_into_the_convolutions() -> None:
    """In a process of its own, for its log: a remapper that fails leaves the whole graph as it was."""
    program = """
import tensorflow as tf
from transforms.model.pnasnet import architecture, build_folded
network = build_folded(architecture("small"), 16)
tf.function(lambda images: network(images, training=False))(tf.zeros((2, 96, 96, 3)))
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "remapper failed" not in done.stderr
    assert "oneDNN" in done.stderr  # the log is there to be read


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: arch.name)
def test_sizes_are_as_the_architecture_says(request: pytest.FixtureRequest, arch: Architecture) -> None:
    network = request.getfixturevalue(arch.name)
    assert network.input_shape == (None, arch.image_size, arch.image_size, 3)
    assert {key: output.shape for key, output in network.output.items()} == {
        "features": (None, arch.feature_width),
        "logits": (None, 1001),
    }
