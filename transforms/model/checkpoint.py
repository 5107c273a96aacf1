"""Weights by TF-Slim's variable names: which variable of our network each one is, and reading them."""

import os
from collections.abc import Mapping

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
_LARGEST_LISTED = 5


def slim_variables(network: keras.Model) -> dict[str, keras.Variable]:
    """Every variable of a network of `build_network`, by the name that TF-Slim gives it."""
    return {
        f"{layer.name.replace('.', '/')}/{name}": variable
        for layer in network.layers
        for name, variable in zip(_NAMES.get(type(layer).__name__, ()), layer.weights, strict=True)
    }


def find_checkpoint(folder: str) -> str | None:
    """The prefix of the one checkpoint that lies in a local folder, if there is one."""
    found = tf.train.latest_checkpoint(folder)
    if found:
        return str(found)
    indices = [name for name in sorted(os.listdir(folder)) if name.endswith(".index")]
    return os.path.join(folder, indices[0].removesuffix(".index")) if len(indices) == 1 else None


def load_checkpoint(prefix: str) -> keras.Model:
    """Our network with the weights of a TF-Slim checkpoint; its architecture follows from their shapes.

    Moving averages are taken where the checkpoint has them. Raises `UserError` that names what is
    missing or of another shape.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{prefix}: not a readable checkpoint: {error}") from error
    shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    network = build_network(recognise(prefix, shapes), shapes["final_layer/FC/biases"][0])
    variables = slim_variables(network)
    sources = {name: name + _AVERAGED if name + _AVERAGED in shapes else name for name in variables}
    wrong = [
        f"{name} {shapes.get(source, 'missing')}, not {tuple(variables[name].shape)}"
        for name, source in sources.items()
        if shapes.get(source) != tuple(variables[name].shape)
    ]
    if wrong:
        more = f" and {len(wrong) - _LARGEST_LISTED} more" if len(wrong) > _LARGEST_LISTED else ""
        raise UserError(f"{prefix} does not fit PNASNet-5: {'; '.join(wrong[:_LARGEST_LISTED])}{more}")
    for name, variable in variables.items():
        variable.assign(reader.get_tensor(sources[name]))
    return network


def recognise(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Which PNASNet-5 has variables of these shapes; raises `UserError` if none has."""
    cells = sum(name.startswith("cell_") and name.endswith("/beginning_bn/gamma") for name in shapes) - 2
    stem = shapes.get("conv0/weights", (0,))[-1]
    filters = shapes.get("cell_0/1x1/weights", (0,))[-1]
    for known in ARCHITECTURES:
        if (known.stem_filters, known.filters, known.cells) == (stem, filters, cells):
            if "final_layer/FC/biases" in shapes:
                return known
            raise UserError(f"{prefix} has no final_layer/FC/biases: it can't say labels")
    raise UserError(
        f"{prefix} is no PNASNet-5 checkpoint that we know: {stem} stem filters, {filters} filters, {cells} cells"
    )
