"""PNASNet-5 (Liu et al., 2018, https://arxiv.org/abs/1712.00559) as Keras layers, from one cell table.

Layers carry the scopes of TF-Slim's nets/nasnet/pnasnet.py, with "." for "/", so that its
checkpoints fit by name. Inference graph only: drop-path and the auxiliary head train the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import layers

# TF-Slim, nasnet_utils.py: batch_norm_decay and batch_norm_epsilon of nasnet_large_arg_scope.
_BN_MOMENTUM = 0.9997
_BN_EPSILON = 0.001


@dataclass(frozen=True, slots=True)
class Architecture:
    """`filters` is the width F of the first cell; each of two reductions doubles it."""

    name: str
    image_size: int
    stem_filters: int
    filters: int
    cells: int

    @property
    def feature_width(self) -> int:
        return 20 * self.filters  # five combinations of 4 F channels each

    @property
    def reductions(self) -> tuple[int, int]:
        """The cells with stride 2; TF-Slim's calc_reduction_layers for two of them."""
        return self.cells // 3, 2 * self.cells // 3


ARCHITECTURES = (
    Architecture("large", image_size=331, stem_filters=96, filters=216, cells=12),
    Architecture("mobile", image_size=224, stem_filters=32, filters=54, cells=9),
    Architecture("small", image_size=96, stem_filters=16, filters=32, cells=3),
)


class Branch(NamedTuple):
    """An operation on one of the cell's states."""

    operation: str
    state: int


# States 0 and 1 are the cell's input and the input before it; combination i becomes state i + 2.
CELL = (
    (Branch("separable_5x5", 1), Branch("max_pool_3x3", 1)),
    (Branch("separable_7x7", 0), Branch("max_pool_3x3", 0)),
    (Branch("separable_5x5", 0), Branch("separable_3x3", 0)),
    (Branch("separable_3x3", 4), Branch("max_pool_3x3", 0)),
    (Branch("separable_3x3", 1), Branch("identity", 0)),
)


def architecture(name: str) -> Architecture:
    """One of `ARCHITECTURES`, by name; raises KeyError."""
    return {known.name: known for known in ARCHITECTURES}[name]


def build_network(arch: Architecture, class_count: int, bn_momentum: float = _BN_MOMENTUM) -> keras.Model:
    """The network of (N, size, size, 3) float32 in [-1, 1] to `{"features": (N, D), "logits": (N, C)}`."""
    images = keras.Input((arch.image_size, arch.image_size, 3), name="images")
    features = _Body(arch, bn_momentum).features(images)
    logits = layers.Dense(class_count, name="final_layer.FC")(features)
    return keras.Model(images, {"features": features, "logits": logits}, name=f"pnasnet_{arch.name}")


class _Body:
    """Builds the layers; `scope` is where in TF-Slim's graph each one stands."""

    def __init__(self, arch: Architecture, bn_momentum: float) -> None:
        self._arch = arch
        self._momentum = bn_momentum

    def features(self, images: Any) -> Any:
        arch = self._arch
        stem = layers.Conv2D(arch.stem_filters, 3, strides=2, use_bias=False, name="conv0")(images)
        outputs = [None, self._norm(stem, "conv0_bn")]
        filters = arch.filters // 4, arch.filters // 2
        for number in range(2):
            outputs.append(self._cell(outputs[-1], outputs[-2], filters[number], 2, f"cell_stem_{number}"))
        width = arch.filters
        for number in range(arch.cells):
            stride = 2 if number in arch.reductions else 1
            width *= stride
            outputs.append(self._cell(outputs[-1], outputs[-2], width, stride, f"cell_{number}"))
        return layers.GlobalAveragePooling2D(name="final_layer")(layers.ReLU()(outputs[-1]))

    def _cell(self, net: Any, before: Any, filters: int, stride: int, scope: str) -> Any:
        states = [
            self._project(net, filters, 1, f"{scope}.1x1", f"{scope}.beginning_bn"),
            self._adjusted(before, net, filters, scope),
        ]
        for number, branches in enumerate(CELL):
            sides = [
                self._branch(states, branch, filters, stride, f"{scope}.comb_iter_{number}.{side}")
                for branch, side in zip(branches, ("left", "right"), strict=True)
            ]
            states.append(layers.Add()(sides))
        return layers.Concatenate()(states[2:])

    def _adjusted(self, before: Any, net: Any, filters: int, scope: str) -> Any:
        """The state before the input, brought to the input's size and to `filters` channels."""
        if before is None:
            return net
        if before.shape[1] != net.shape[1]:
            return self._factorized_reduction(layers.ReLU()(before), filters, scope)
        if before.shape[-1] == filters:
            return before
        return self._project(before, filters, 1, f"{scope}.prev_1x1", f"{scope}.prev_bn")

    def _factorized_reduction(self, net: Any, filters: int, scope: str) -> Any:
        """Halve the size: even pixels through one 1x1 convolution, odd ones through another."""
        half = filters // 2
        shifted = layers.ZeroPadding2D(((0, 1), (0, 1)))(net)
        shifted = layers.Cropping2D(((1, 0), (1, 0)))(shifted)
        paths = [
            layers.Conv2D(half, 1, strides=2, use_bias=False, name=f"{scope}.path1_conv")(net),
            layers.Conv2D(filters - half, 1, strides=2, use_bias=False, name=f"{scope}.path2_conv")(shifted),
        ]
        return self._norm(layers.Concatenate()(paths), f"{scope}.final_path_bn")

    def _branch(self, states: Sequence[Any], branch: Branch, filters: int, stride: int, scope: str) -> Any:
        net = states[branch.state]
        if branch.state > 1:
            stride = 1  # a combination is reduced already
        if branch.operation == "max_pool_3x3":
            return self._max_pool(net, filters, stride, scope)
        if branch.operation == "identity":
            return self._identity(net, filters, stride, scope)
        return self._separable_twice(net, filters, int(branch.operation[-1]), stride, scope)

    def _separable_twice(self, net: Any, filters: int, kernel: int, stride: int, scope: str) -> Any:
        for number in (1, 2):
            name = f"{kernel}x{kernel}_{number}"
            convolution = layers.SeparableConv2D(
                filters,
                kernel,
                strides=stride if number == 1 else 1,
                padding="same",
                use_bias=False,
                name=f"{scope}.separable_{name}",
            )
            net = self._norm(convolution(layers.ReLU()(net)), f"{scope}.bn_sep_{name}")
        return net

    def _max_pool(self, net: Any, filters: int, stride: int, scope: str) -> Any:
        net = layers.MaxPooling2D(3, strides=stride, padding="same")(net)
        if net.shape[-1] == filters:
            return net
        net = layers.Conv2D(filters, 1, use_bias=False, name=f"{scope}.1x1")(net)
        return self._norm(net, f"{scope}.bn_1")

    def _identity(self, net: Any, filters: int, stride: int, scope: str) -> Any:
        if stride == 1 and net.shape[-1] == filters:
            return net
        return self._project(net, filters, stride, f"{scope}.1x1", f"{scope}.bn_1")

    def _project(self, net: Any, filters: int, stride: int, scope: str, norm_scope: str) -> Any:
        convolution = layers.Conv2D(filters, 1, strides=stride, use_bias=False, name=scope)
        return self._norm(convolution(layers.ReLU()(net)), norm_scope)

    def _norm(self, net: Any, scope: str) -> Any:
        return layers.BatchNormalization(momentum=self._momentum, epsilon=_BN_EPSILON, name=scope)(net)
