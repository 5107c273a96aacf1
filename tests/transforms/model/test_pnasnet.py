"""Our network against TF-Slim's own graph: variables, sizes, and outputs for the same weights."""

from typing import Any

import keras
import numpy as np
import pytest

from transforms.model.checkpoint import slim_variables
from transforms.model.pnasnet import ARCHITECTURES, Architecture, architecture, build_network


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
def test_outputs_are_those_of_slim(request: pytest.FixtureRequest, slim: Any, name: str) -> None:
    network = request.getfixturevalue(name)
    weights, images = slim.draw(name, network.input_shape[1])
    for key, variable in slim_variables(network).items():
        variable.assign(weights[key])
    slim.check(name, network(images, training=False))


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: arch.name)
def test_sizes_are_as_the_architecture_says(request: pytest.FixtureRequest, arch: Architecture) -> None:
    network = request.getfixturevalue(arch.name)
    assert network.input_shape == (None, arch.image_size, arch.image_size, 3)
    assert {key: output.shape for key, output in network.output.items()} == {
        "features": (None, arch.feature_width),
        "logits": (None, 1001),
    }
