"""Batch normalisation folded into the convolution before it: TF-Slim's variables as those of `build_folded`.

gamma (W x - mean) / sqrt(variance + epsilon) + beta (Ioffe and Szegedy, 2015, algorithm 1) is W' x + b
with W' = s W, b = beta - s mean, s = gamma / sqrt(variance + epsilon): one convolution with a bias.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from transforms.model.pnasnet import BN_EPSILON

Array = NDArray[np.float32]
Read = Callable[[str], Array]

# Which of TF-Slim's scopes normalises the convolution of that name.
_NORMS = {
    "conv0": "conv0_bn",
    "1x1": "beginning_bn",
    "prev_1x1": "prev_bn",
    "path1_conv": "final_path_bn",
    "path2_conv": "final_path_bn",
}
# What TF-Slim calls the variables of a layer, in the order of our layer's `weights`.
KERNEL_NAMES = {
    "Conv2D": ("weights",),
    "SeparableConv2D": ("depthwise_weights", "pointwise_weights"),
    "Dense": ("weights", "biases"),
}
NORM_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")


def slim_shapes(network: keras.Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every variable that TF-Slim has for a network of `build_folded`."""
    shapes, widths = {}, Counter[str]()
    for layer, scope in _weighted(network):
        for name, variable in zip(_kernels(layer), layer.weights, strict=False):  # biases are of the norm
            shapes[f"{scope}/{name}"] = tuple(variable.shape)
        if not _is_dense(layer):
            widths[_norm_of(scope)] += layer.filters
    for norm, width in widths.items():
        shapes |= {f"{norm}/{name}": (width,) for name in NORM_NAMES}
    return shapes


def assign_folded(network: keras.Model, read: Read) -> None:
    """Give a network of `build_folded` its weights; `read` gives a variable of TF-Slim by name."""
    for layer, scope in _weighted(network):
        kernels: list[NDArray[Any]] = [read(f"{scope}/{name}") for name in _kernels(layer)]
        if not _is_dense(layer):
            scale, bias = _scale_and_bias(scope, layer.filters, read)
            kernels[-1] = kernels[-1] * scale
            kernels.append(bias)
        for variable, value in zip(layer.weights, kernels, strict=True):
            variable.assign(value.astype(np.float32))


def _weighted(network: keras.Model) -> Iterator[tuple[keras.Layer, str]]:
    """Layers that have weights, with their scopes."""
    return ((layer, scope_of(layer)) for layer in network.layers if layer.weights)


def scope_of(layer: keras.Layer) -> str:
    """Where in TF-Slim's graph the layer stands."""
    return str(layer.name.replace(".", "/"))


def _kernels(layer: keras.Layer) -> tuple[str, ...]:
    return KERNEL_NAMES[type(layer).__name__]


def _is_dense(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Dense)


def _scale_and_bias(scope: str, filters: int, read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    norm = _norm_of(scope)
    gamma, beta, mean, variance = (read(f"{norm}/{name}").astype(np.float64) for name in NORM_NAMES)
    scale = gamma / np.sqrt(variance + BN_EPSILON)
    bias = beta - mean * scale
    # Two convolutions share the norm of a factorized reduction: the first halves, and what is left.
    part = slice(len(scale) - filters, None) if scope.endswith("path2_conv") else slice(filters)
    return scale[part], bias[part]


def _norm_of(scope: str) -> str:
    parent, _, name = scope.rpartition("/")
    if name.startswith("separable_"):
        norm = name.replace("separable_", "bn_sep_")
    elif "comb_iter_" in parent:
        norm = "bn_1"
    else:
        norm = _NORMS[name]
    return f"{parent}/{norm}" if parent else norm
