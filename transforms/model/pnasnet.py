"""PNASNet-5 (Liu et al., 2018, https://arxiv.org/abs/1712.00559) as Keras layers, from one cell table.

Layers carry the scopes of TF-Slim's nets/nasnet/pnasnet.py, with "." for "/", so that its
checkpoints fit by name. Inference graph only: drop-path and the auxiliary head train the original.
It stands here once, with batch normalisations to train it and read its checkpoints, or folded to run it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import layers

# TF-Slim, nasnet_utils.py: batch_norm_decay and batch_norm_epsilon of nasnet_large_arg_scope.
_BN_MOMENTUM = 0.9997
BN_EPSILON = 0.001


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
    return _network(arch, class_count, _Body(arch, bn_momentum, "float32"))


def build_folded(arch: Architecture, class_count: int, dtype: str = "float32") -> keras.Model:
    """The same function without batch normalisations, for the weights of `transforms.model.folding`.

    Convolutions have biases and compute in `dtype`; mean, features and logits are float32 always.
    """
    return _network(arch, class_count, _Body(arch, None, dtype))


def _network(arch: Architecture, class_count: int, body: "_Body") -> keras.Model:
    images = keras.Input((arch.image_size, arch.image_size, 3), name="images")
    features = body.features(images)
    logits = layers.Dense(class_count, dtype="float32", name="final_layer.FC")(features)
    return keras.Model(images, {"features": features, "logits": logits}, name=f"pnasnet_{arch.name}")


class _Body:
    """Builds the layers; `scope` is where in TF-Slim's graph each one stands."""

    def __init__(self, arch: Architecture, bn_momentum: float | None, dtype: str) -> None:
        """`bn_momentum` None: without batch normalisations, which the convolutions hold."""
        self._arch = arch
        self._momentum = bn_momentum
        self._dtype = dtype
        self._rectified: dict[int, tuple[Any, Any]] = {}

    def features(self, images: Any) -> Any:
        arch = self._arch
        stem = self._convolution(images, arch.stem_filters, 3, 2, "conv0")
        outputs = [None, self._norm(stem, "conv0_bn")]
        filters = arch.filters // 4, arch.filters // 2
        for number in range(2):
            outputs.append(self._cell(outputs[-1], outputs[-2], filters[number], 2, f"cell_stem_{number}"))
        width = arch.filters
        for number in range(arch.cells):
            stride = 2 if number in arch.reductions else 1
            width *= stride
            outputs.append(self._cell(outputs[-1], outputs[-2], width, stride, f"cell_{number}"))
        return layers.GlobalAveragePooling2D(dtype="float32", name="final_layer")(self._relu(outputs[-1]))

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
            states.append(layers.Add(dtype=self._dtype)(sides))
        return layers.Concatenate(dtype=self._dtype)(states[2:])

    def _adjusted(self, before: Any, net: Any, filters: int, scope: str) -> Any:
        """The state before the input, brought to the input's size and to `filters` channels."""
        if before is None:
            return net
        if before.shape[1] != net.shape[1]:
            return self._factorized_reduction(self._relu(before), filters, scope)
        if before.shape[-1] == filters:
            return before
        return self._project(before, filters, 1, f"{scope}.prev_1x1", f"{scope}.prev_bn")

    def _factorized_reduction(self, net: Any, filters: int, scope: str) -> Any:
        """Halve the size: even pixels through one 1x1 convolution, odd ones through another."""
        half, odd_size = filters // 2, net.shape[1] % 2
        shifted = layers.Cropping2D(((1, 0), (1, 0)), dtype=self._dtype)(net)
        if odd_size:  # there is one odd pixel less than even ones
            shifted = layers.ZeroPadding2D(((0, 1), (0, 1)), dtype=self._dtype)(shifted)
        paths = [
            self._convolution(net, half, 1, 2, f"{scope}.path1_conv"),
            self._convolution(shifted, filters - half, 1, 2, f"{scope}.path2_conv"),
        ]
        return self._norm(layers.Concatenate(dtype=self._dtype)(paths), f"{scope}.final_path_bn")

    def _branch(self, states: Sequence[Any], branch: Branch, filters: int, stride: int, scope: str) -> Any:
        net = states[branch.state]
        if branch.state > 1:
            stride = 1  # a combination is reduced already
        if branch.operation == "max_pool_3x3":
            return self._max_pool(net, filters, stride, scope)
        if branch.operation == "identity":
            return self._identity(net, filters, stride, scope)
        # The ReLU of a sum that others read too is written another way: TensorFlow 2.21 fuses sum and ReLU
        # into the convolution before them, does not find the sum any more, and then fuses nothing at all.
        rectified = self._relu(net) if branch.state < 2 else keras.ops.maximum(net, 0.0)
        kernel = int(branch.operation[-1])
        once = self._separable(rectified, filters, kernel, stride, f"{scope}.{{}}_{kernel}x{kernel}_1")
        return self._separable(self._relu(once), filters, kernel, 1, f"{scope}.{{}}_{kernel}x{kernel}_2")

    def _separable(self, rectified: Any, filters: int, kernel: int, stride: int, scope: str) -> Any:
        """`scope` has a place for the kind of layer."""
        convolution = layers.SeparableConv2D(
            filters,
            kernel,
            strides=stride,
            padding="same",
            use_bias=self._folded,
            dtype=self._dtype,
            name=scope.format("separable"),
        )
        return self._norm(convolution(rectified), scope.format("bn_sep"))

    def _max_pool(self, net: Any, filters: int, stride: int, scope: str) -> Any:
        net = layers.MaxPooling2D(3, strides=stride, padding="same", dtype=self._dtype)(net)
        if net.shape[-1] == filters:
            return net
        net = self._convolution(net, filters, 1, 1, f"{scope}.1x1")
        return self._norm(net, f"{scope}.bn_1")

    def _identity(self, net: Any, filters: int, stride: int, scope: str) -> Any:
        if stride == 1 and net.shape[-1] == filters:
            return net
        return self._project(net, filters, stride, f"{scope}.1x1", f"{scope}.bn_1")

    def _project(self, net: Any, filters: int, stride: int, scope: str, norm_scope: str) -> Any:
        return self._norm(self._convolution(self._relu(net), filters, 1, stride, scope), norm_scope)

    def _convolution(self, net: Any, filters: int, kernel: int, stride: int, scope: str) -> Any:
        convolution = layers.Conv2D(
            filters, kernel, strides=stride, use_bias=self._folded, dtype=self._dtype, name=scope
        )
        return convolution(net)

    def _norm(self, net: Any, scope: str) -> Any:
        if self._folded:
            return net
        return layers.BatchNormalization(momentum=self._momentum, epsilon=BN_EPSILON, name=scope)(net)

    def _relu(self, net: Any) -> Any:
        """One for all who ask: four branches and two cells read the same tensor."""
        if id(net) not in self._rectified:  # the tensor is kept too, so that no other gets its id
            self._rectified[id(net)] = net, layers.ReLU(dtype=self._dtype)(net)
        return self._rectified[id(net)][1]

    @property
    def _folded(self) -> bool:
        return self._momentum is None
