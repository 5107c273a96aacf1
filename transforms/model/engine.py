"""What runs a model: the graph of its module, or our network with its weights, once both agree.

Ours is folded, computes in the precision that is asked for, and is what a bare checkpoint runs on. A
module of another family runs on its own graph, in float32.
"""

import logging
import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.model.checkpoint import SlimVariables, UnknownNetwork, find_checkpoint
from transforms.model.hub import describe_module, load_module
from transforms.model.network import Network, NetworkInfo, Outputs
from transforms.model.options import Engine, Precision
from transforms.model.source import ModelFiles, named

_log = logging.getLogger(__name__)

# Ours and the module's graph differ by rounding alone: 6e-6 of the standard deviation was measured for large.
MAX_DIFFERENCE = 1e-3
# Of features in half precision to those in float32; docs/benchmarks.md has what was measured.
MIN_COSINE = 0.9995
_PROBES, _PATCHES = 4, 8


class PrecisionUnavailable(UserError):
    """The model cannot run in this precision, or does not give its features in it any more."""


class Probed(NamedTuple):
    """What a graph gives for the probe images: `features` (4, D), `logits` (4, C) float32."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


def describe_network(files: ModelFiles) -> NetworkInfo:
    """The sizes of a model from what its files declare; raises `UserError` for files that are no model."""
    if files.is_saved_model:
        return describe_module(files)
    with named(files):
        return _info(_variables(files))


def load_network(files: ModelFiles, engine: Engine = "auto", precision: Precision = "float32") -> Network:
    """The model ready to run, on the device in whose scope it is loaded.

    `auto` takes our network if the model is a PNASNet-5 and both agree on a probe, else the module's
    graph, and says so. Raises `UserError` for files that cannot be used or an engine that is not to be
    had, `PrecisionUnavailable` for a precision that is not.
    """
    with named(files):
        if engine == "hub":
            return _graph(files, precision)
        try:
            variables = _variables(files)
        except UnknownNetwork as error:
            _log.info("%s: %s; its own graph runs", files.handle, error)
            return _graph(files, precision)
        network = _native(variables, describe_network(files), precision)
        if engine == "native" or (precision == "float32" and not files.is_saved_model):
            return network
        return _checked(files, network)


def _checked(files: ModelFiles, network: Network) -> Network:
    """Our network if it gives what the model gives, else the module's graph."""
    difference = _difference(_reference(files), _probe(network), network.precision)
    if difference is None:
        load_module.cache_clear()  # its weights are in our network now
        return network
    if network.precision != "float32":
        raise PrecisionUnavailable(f"--precision {network.precision} is not for this model: {difference}")
    _log.warning("%s: its own graph runs, since our network differs: %s", files.handle, difference)
    return _graph(files, "float32")


def _graph(files: ModelFiles, precision: Precision) -> Network:
    if not files.is_saved_model:
        raise UserError("is a checkpoint without a graph; leave out --engine hub")
    if precision != "float32":
        raise PrecisionUnavailable(f"its own graph computes in float32; leave out --precision {precision}")
    return load_module(files)


def _variables(files: ModelFiles) -> SlimVariables:
    if files.is_saved_model:
        return SlimVariables(os.path.join(files.folder, "variables", "variables"))
    prefix = find_checkpoint(files.folder)
    if prefix is None:
        raise UserError("holds neither a module nor a checkpoint")
    return SlimVariables(prefix)


def _info(variables: SlimVariables) -> NetworkInfo:
    arch = variables.architecture
    return NetworkInfo(arch.image_size, arch.image_size, variables.class_count, arch.feature_width)


def _native(variables: SlimVariables, info: NetworkInfo, precision: Precision) -> Network:
    network = variables.load(precision)

    def forward(images: Any) -> Outputs:
        return Outputs(**network(images * 2 - 1, training=False))

    return Network(info, forward, "native", precision)


@lru_cache(maxsize=1)  # several precisions are held against the same
def _reference(files: ModelFiles) -> Probed:
    """What the model gives in float32: by its own graph where it has one."""
    if files.is_saved_model:
        return _probe(load_module(files))
    variables = _variables(files)
    return _probe(_native(variables, _info(variables), "float32"))


def _probe(network: Network) -> Probed:
    outputs = tf.function(network.forward)(_probe_images(network.info))
    return Probed(*(tensor.numpy() for tensor in outputs))


def _probe_images(info: NetworkInfo) -> NDArray[np.float32]:
    """(4, height, width, 3) in [0, 1]: patches of colour under noise, the same every time."""
    rng = np.random.default_rng(0)
    patches = rng.random((_PROBES, _PATCHES, _PATCHES, 3), np.float32)
    rows, columns = (np.arange(size) * _PATCHES // size for size in (info.height, info.width))
    noise = rng.random((_PROBES, info.height, info.width, 3), np.float32)
    return 0.7 * patches[:, rows][:, :, columns] + 0.3 * noise


def _difference(expected: Probed, found: Probed, precision: str) -> str | None:
    """Why what was found is not what was expected, if it is not; NaN never is."""
    if precision != "float32":
        cosine = float(_cosines(expected.features, found.features).min())
        return None if cosine >= MIN_COSINE else f"the cosine of its features is {cosine:.4f}"
    for name, one, other in zip(Probed._fields, expected, found, strict=True):
        worst, deviation = float(np.abs(one - other).max()), float(one.std())
        if not worst <= MAX_DIFFERENCE * deviation:
            return f"{name} by {worst:.1e}, where their standard deviation is {deviation:.1e}"
    return None


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.nan_to_num((a * b).sum(axis=1) / norms)  # type: ignore[no-any-return]
