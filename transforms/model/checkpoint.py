"""Weights by TF-Slim's variable names: which variable of our network each one is, and reading them."""

import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from transforms.errors import UserError
from transforms.model.pnasnet import ARCHITECTURES, Architecture, build_network

# What TF-Slim calls the variables of a layer, in the order of our layer's `weights`.
_NAMES = {
    "Conv2D": ("weights",),
    "SeparableConv2D": ("depthwise_weights", "pointwise_weights"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Dense": ("weights", "biases"),
}
_AVERAGED = "/ExponentialMovingAverage"
_MOST_LISTED = 5

Shapes = Mapping[str, tuple[int, ...]]


def slim_variables(network: keras.Model) -> dict[str, keras.Variable]:
    """Every variable of a network of `build_network`, by the name that TF-Slim gives it."""
    return {
        f"{layer.name.replace('.', '/')}/{name}": variable
        for layer in network.layers
        for name, variable in zip(_NAMES.get(type(layer).__name__, ()), layer.weights, strict=True)
    }


def find_checkpoint(folder: str) -> str | None:
    """The prefix of the latest or only checkpoint in a local folder, if there is one."""
    state = tf.train.get_checkpoint_state(folder)
    latest = os.path.basename(state.model_checkpoint_path) if state else ""
    names = [name.removesuffix(".index") for name in os.listdir(folder) if name.endswith(".index")]
    if latest in names:  # the path itself is often that of the machine that trained
        return os.path.join(folder, latest)
    return os.path.join(folder, names[0]) if len(names) == 1 else None


def describe_checkpoint(prefix: str) -> tuple[Architecture, int]:
    """The architecture and the number of classes that a checkpoint's shapes stand for; raises `UserError`."""
    shapes = _shapes(_open(prefix))
    return recognise(prefix, shapes), shapes["final_layer/FC/biases"][0]


def load_checkpoint(prefix: str) -> keras.Model:
    """Our network with the weights of a TF-Slim checkpoint; its architecture follows from their shapes.

    Moving averages are taken where the checkpoint has them. Raises `UserError` that names what is
    missing or of another shape.
    """
    reader = _open(prefix)
    shapes = _shapes(reader)
    network = build_network(recognise(prefix, shapes), shapes["final_layer/FC/biases"][0])
    variables = slim_variables(network)
    _check_shapes(prefix, shapes, variables)
    for name, variable in variables.items():
        averaged = name + _AVERAGED
        variable.assign(_read(prefix, reader, averaged if reader.has_tensor(averaged) else name))
    return network


def recognise(prefix: str, shapes: Shapes) -> Architecture:
    """Which PNASNet-5 has variables of these shapes; raises `UserError` if none has."""
    cells = sum(name.endswith("/beginning_bn/gamma") for name in shapes) - 2  # but those of the stem
    widths = shapes.get("conv0/weights", ())[-1:] + shapes.get("cell_0/1x1/weights", ())[-1:]
    for known in ARCHITECTURES:
        if (known.stem_filters, known.filters) == widths and known.cells == cells:
            if len(shapes.get("final_layer/FC/biases", ())) == 1:
                return known
            raise UserError(f"{prefix} has no final_layer/FC/biases, so it cannot name classes")
    names = ", ".join(known.name for known in ARCHITECTURES)
    raise UserError(f"{prefix} has the variables of no PNASNet-5 that we know ({names})")


def _open(prefix: str) -> Any:
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{prefix} is no readable checkpoint: {error}") from error


def _read(prefix: str, reader: Any, key: str) -> Any:
    try:
        return reader.get_tensor(key)
    except (tf.errors.OpError, IndexError) as error:  # IndexError where the file is cut off
        raise UserError(f"{prefix}: cannot read {key}: {error}") from error


def _shapes(reader: Any) -> Shapes:
    """By plain name, also of a variable of which only the moving average was kept."""
    found = reader.get_variable_to_shape_map()
    return {name.removesuffix(_AVERAGED): tuple(found[name]) for name in sorted(found)}


def _check_shapes(prefix: str, shapes: Shapes, variables: Mapping[str, keras.Variable]) -> None:
    wrong = [
        f"{name} {shapes.get(name, 'missing')}, not {tuple(variable.shape)}"
        for name, variable in variables.items()
        if shapes.get(name) != tuple(variable.shape)
    ]
    if wrong:
        more = f" and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise UserError(f"{prefix} does not fit PNASNet-5: {'; '.join(wrong[:_MOST_LISTED])}{more}")
