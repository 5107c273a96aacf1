"""What is known of a network, and the network itself: made by loading, used by embedding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from transforms import storage
from transforms.errors import UserError
from transforms.model.labels import Labels, imagenet_labels, read_labels
from transforms.model.options import Engine, Precision


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """Sizes of images (pixels), logits and features; `labels` are those that the module brings along."""

    height: int
    width: int
    class_count: int
    feature_width: int
    labels: Labels | None = None


class Outputs(NamedTuple):
    """Tensors of one pass: `features` (N, feature_width) and `logits` (N, class_count)."""

    features: Any
    logits: Any


@dataclass(frozen=True, slots=True)
class Network:
    """`forward` takes a (N, height, width, 3) float32 tensor in [0, 1]; it may be traced."""

    info: NetworkInfo
    forward: Callable[[Any], Outputs]
    engine: Engine = "hub"
    precision: Precision = "float32"


def labels_for(network: NetworkInfo, given: str | None) -> Labels:
    """The labels in the file at the URI `given`, else the module's own, else ImageNet's by their number.

    Raises `UserError` for a file that cannot be used or has another number of classes.
    """
    if given is not None:
        return _from_file(given, network.class_count)
    if network.labels is not None:
        return network.labels
    imagenet = imagenet_labels()
    if network.class_count == len(imagenet):
        return imagenet
    if network.class_count == len(imagenet) - 1:
        return Labels(imagenet.wnids[1:], imagenet.names[1:])  # trained without "background"
    raise UserError(
        f"the model has {network.class_count} classes and no names for them: "
        "pass --labels FILE with one name a line, in the order of its classes"
    )


def checked_labels(origin: str, data: bytes, class_count: int) -> Labels:
    """The labels that a file holds; raises `UserError` that starts with `origin`."""
    try:
        labels = read_labels(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is not UTF-8 text") from error
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    if len(labels) != class_count:
        raise UserError(f"{origin} names {len(labels)} classes, but the model has {class_count}")
    return labels


def _from_file(uri: str, class_count: int) -> Labels:
    try:
        data = storage.read_bytes(uri)
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"--labels {uri}: {storage.first_line(error)}") from error
    return checked_labels(f"--labels {uri}", data, class_count)
