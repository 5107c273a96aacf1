"""Weights by TF-Slim's variable names: found in a checkpoint or a SavedModel, checked, and read.

A TF-Slim checkpoint and the variables of a TF1 Hub module are keyed by name. Those of a TF2 SavedModel are
keyed by object, and the names stand in its graph of objects.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorflow.core.protobuf import trackable_object_graph_pb2

from transforms.errors import UserError
from transforms.model.folding import KERNEL_NAMES, NORM_NAMES, assign_folded, scope_of, slim_shapes
from transforms.model.pnasnet import ARCHITECTURES, Architecture, build_folded

_log = logging.getLogger(__name__)

_NAMES = {**KERNEL_NAMES, "BatchNormalization": NORM_NAMES}
_AVERAGED = "/ExponentialMovingAverage"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_FIRST, _BIASES = "conv0/weights", "final_layer/FC/biases"
_MOST_LISTED = 5

Shapes = Mapping[str, tuple[int, ...]]


def slim_variables(network: keras.Model) -> dict[str, keras.Variable]:
    """Every variable of a network of `build_network`, by the name that TF-Slim gives it."""
    return {
        f"{scope_of(layer)}/{name}": variable
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


class UnknownNetwork(UserError):
    """The variables are not those of a PNASNet-5 that we know."""


class UnfitVariables(UnknownNetwork):
    """They are, but some are missing or of another shape."""


class SlimVariables:
    """The variables of a PNASNet-5 by TF-Slim's names, wherever they stand at `prefix`.

    Moving averages are taken where there are any. Raises `UserError` for files that cannot be
    read, `UnknownNetwork` for those of another network.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._reader = _open(prefix)
        self._keys = _by_name(self._reader)
        found = self._reader.get_variable_to_shape_map()
        self.shapes: Shapes = {name: tuple(found[key]) for name, key in self._keys.items()}
        self.architecture = _recognise(prefix, self.shapes)
        self.class_count = self.shapes[_BIASES][0]

    def read(self, name: str) -> NDArray[np.float32]:
        """Raises `UserError` where the file is damaged."""
        try:
            return self._reader.get_tensor(self._keys[name])  # type: ignore[no-any-return]
        except (tf.errors.OpError, IndexError) as error:  # IndexError where the file is cut off
            raise UserError(f"{self._prefix}: cannot read {self._keys[name]}: {error}") from error

    def load(self, dtype: str = "float32") -> keras.Model:
        """Our folded network with these weights; raises `UserError` that names what does not fit."""
        network = build_folded(self.architecture, self.class_count, dtype)
        needed = slim_shapes(network)
        self._check(needed)
        left_out = self.left_out(needed)
        if left_out:
            _log.info("%s: left out %s", self._prefix, ", ".join(left_out))
        assign_folded(network, self.read)
        return network

    def left_out(self, needed: Shapes) -> list[str]:
        """The keys of the file that are not read: counters, auxiliary heads, weights before averaging."""
        used = {self._keys[name] for name in needed}
        return sorted({*self._reader.get_variable_to_shape_map()} - used - {_OBJECTS})

    def _check(self, needed: Shapes) -> None:
        wrong = [
            f"{name} {self.shapes.get(name, 'missing')}, not {shape}"
            for name, shape in needed.items()
            if self.shapes.get(name) != shape
        ]
        if wrong:
            more = f" and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
            raise UnfitVariables(
                f"{self._prefix} does not fit PNASNet-5: {'; '.join(wrong[:_MOST_LISTED])}{more}"
            )


def _recognise(prefix: str, shapes: Shapes) -> Architecture:
    """Which PNASNet-5 has variables of these shapes; raises `UnknownNetwork` if none has."""
    cells = sum(name.endswith("/beginning_bn/gamma") for name in shapes) - 2  # but those of the stem
    widths = shapes.get(_FIRST, ())[-1:] + shapes.get("cell_0/1x1/weights", ())[-1:]
    for known in ARCHITECTURES:
        if (known.stem_filters, known.filters) == widths and known.cells == cells:
            if len(shapes.get(_BIASES, ())) == 1:
                return known
            raise UnfitVariables(f"{prefix} has no {_BIASES}, so it cannot name classes")
    names = ", ".join(known.name for known in ARCHITECTURES)
    raise UnknownNetwork(f"{prefix} has the variables of no PNASNet-5 that we know ({names})")


def _open(prefix: str) -> Any:
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{prefix} is no readable checkpoint: {error}") from error


def _by_name(reader: Any) -> dict[str, str]:
    """TF-Slim's name of each variable to its key in the file, the moving average's where there is one."""
    keys = _named_keys(reader)
    root = next((name.removesuffix(_FIRST) for name in _plain(keys) if name.endswith(_FIRST)), "")
    inside = {name.removeprefix(root): key for name, key in keys.items() if name.startswith(root)}
    return {name: inside.get(name + _AVERAGED, inside.get(name, "")) for name in _plain(inside)}


def _plain(names: Mapping[str, str]) -> list[str]:
    return sorted({name.removesuffix(_AVERAGED) for name in names})


def _named_keys(reader: Any) -> dict[str, str]:
    keys = reader.get_variable_to_shape_map()
    if _OBJECTS not in keys:
        return {key: key for key in keys}
    try:
        objects = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(_OBJECTS))
    except (DecodeError, tf.errors.OpError, IndexError) as error:
        raise UserError(f"the names of its variables cannot be read: {error}") from error
    saved = [attribute for node in objects.nodes for attribute in node.attributes]
    return {one.full_name: one.checkpoint_key for one in saved if one.checkpoint_key in keys}
