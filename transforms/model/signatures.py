"""What a saved_model.pb declares, TF1 Hub module or TF2: signatures, sizes, labels. Nothing is loaded."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from transforms.errors import UserError
from transforms.model.attachment import COLLECTION, decode_image_size
from transforms.model.labels import Labels
from transforms.model.network import NetworkInfo, checked_labels
from transforms.model.source import SAVED_MODEL, ModelFiles

# The common signatures of TF1 Hub for images say what their output "default" is.
_CLASSIFICATION, _FEATURE_VECTOR, _DEFAULT = "image_classification", "image_feature_vector", "default"
# Under which last part of their name modules give them otherwise, the likeliest first.
_LOGITS = ("logits",)
_FEATURES = ("global_pool", "feature_vector", "features", "embedding")

_VARIABLE_OPS = frozenset(("VarHandleOp", "VariableV2", "Variable"))
_INFERENCE_TAGS: tuple[frozenset[str], ...] = (frozenset(), frozenset(["serve"]))
_LABEL_FILES = ("labels.tsv", "labels.txt")


class OutputKeys(NamedTuple):
    """Under which keys outputs are the logits and the features, where they are among them."""

    logits: str | None
    features: str | None


@dataclass(frozen=True, slots=True)
class Signature:
    """A SignatureDef with one input, which takes float images."""

    name: str
    definition: Any
    keys: OutputKeys

    @property
    def image_key(self) -> str:
        return str(*self.definition.inputs)

    @property
    def image_tensor(self) -> str:
        return str(self.definition.inputs[self.image_key].name)

    def shape(self, key: str | None) -> tf.TensorShape:
        return tf.TensorShape(self.definition.outputs[key].tensor_shape)

    def tensor(self, key: str | None) -> str:
        return str(self.definition.outputs[key].name)


@dataclass(frozen=True, slots=True)
class Module:
    """The graph of a SavedModel that is for inference, with the signatures that fit images."""

    files: ModelFiles
    graph: Any
    signatures: tuple[Signature, ...]

    @property
    def tags(self) -> list[str]:
        return list(self.graph.meta_info_def.tags)

    @property
    def is_tf2(self) -> bool:
        return bool(self.graph.HasField("object_graph_def"))

    def sources(self) -> tuple[Signature, Signature] | None:
        """The signatures that give logits and features: in TF2 one that gives both, if there is one."""
        both = [signature for signature in self.signatures if all(signature.keys)]
        if both and self.is_tf2:
            return both[0], both[0]
        logits = self._preferred("logits", _CLASSIFICATION)
        features = self._preferred("features", _FEATURE_VECTOR)
        return (logits, features) if logits and features else None

    def _preferred(self, output: str, name: str) -> Signature | None:
        giving = [signature for signature in self.signatures if getattr(signature.keys, output)]
        return min(giving, key=lambda signature: signature.name != name, default=None)

    def image_size(self) -> tuple[int, int] | None:
        """(height, width) as attached, else as the shape of an input says."""
        attachments = self.graph.collection_def[COLLECTION].bytes_list.value
        shapes = [signature.definition.inputs[signature.image_key] for signature in self.signatures]
        declared = [decode_image_size(attachment) for attachment in attachments]
        declared += [spatial_size(tf.TensorShape(info.tensor_shape)) for info in shapes]
        return next((size for size in declared if size), None)

    def declared(self) -> NetworkInfo | None:
        """All sizes, if the signatures say them."""
        size, sources = self.image_size(), self.sources()
        if not size or not sources:
            return None
        logits, features = sources
        class_count = last_dimension(logits.shape(logits.keys.logits))
        feature_width = last_dimension(features.shape(features.keys.features))
        if class_count is None or feature_width is None:
            return None
        return NetworkInfo(*size, class_count, feature_width, self.labels(class_count))

    def labels(self, class_count: int) -> Labels | None:
        """The module's own, from assets/labels.tsv or .txt; raises `UserError` if they do not fit."""
        for name in _LABEL_FILES:
            path = os.path.join(self.files.folder, "assets", name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    return checked_labels(f"its assets/{name}", file.read(), class_count)
        return None

    def missing_outputs(self) -> UserError:
        """The error for a module that gives not both."""
        found = [f"{each.name} ({', '.join(sorted(each.definition.outputs))})" for each in self.signatures]
        return UserError(
            f"gives no {'feature vectors' if self._preferred('logits', '') else 'logits'}: "
            f"it has {'; '.join(found) or 'no signature for float images'}. "
            "Pass a classification module that also gives its feature vectors"
        )


def read_module(files: ModelFiles) -> Module:
    """Parse saved_model.pb; raises `UserError` if it is damaged or has no graph for inference."""
    saved = saved_model_pb2.SavedModel()
    try:
        with open(os.path.join(files.folder, SAVED_MODEL), "rb") as file:
            saved.ParseFromString(file.read())
    except DecodeError as error:
        raise UserError(f"{SAVED_MODEL} is damaged, or no SavedModel") from error
    graph = _inference_graph(saved.meta_graphs)
    _check_variables(files, graph)
    return Module(files, graph, tuple(_signatures(graph)))


def pick_outputs(shapes: Mapping[str, tf.TensorShape], signature: str = "") -> OutputKeys:
    """Which of these outputs are logits and features, by the contract of the signature or by name."""
    logits = _DEFAULT if signature == _CLASSIFICATION else _named(shapes, _LOGITS)
    features = _DEFAULT if signature == _FEATURE_VECTOR else _named(shapes, _FEATURES)
    if logits is None and features is not None and _DEFAULT in shapes:
        # The default of a classifier is its logits; that of a feature module repeats the features.
        distinct = last_dimension(shapes[_DEFAULT]) != last_dimension(shapes[features])
        logits = _DEFAULT if distinct else None
    return OutputKeys(logits, features)


def last_dimension(shape: tf.TensorShape) -> int | None:
    return shape[-1] if shape.rank else None


def spatial_size(shape: tf.TensorShape) -> tuple[int, int] | None:
    """(height, width) of a batch of images, if both are known."""
    return (shape[1], shape[2]) if shape.rank == 4 and shape[1] and shape[2] else None


def _named(shapes: Mapping[str, tf.TensorShape], names: Iterable[str]) -> str | None:
    found = {key.rsplit("/", 1)[-1].lower(): key for key in sorted(shapes) if _is_vector(shapes[key])}
    return next((found[name] for name in names if name in found), None)


def _is_vector(shape: tf.TensorShape) -> bool:
    """(N, D), or (N, 1, 1, D) as slim pools it."""
    return shape.rank is None or shape.rank == 2 or (shape.rank == 4 and shape[1] == shape[2] == 1)


def _inference_graph(graphs: Iterable[Any]) -> Any:
    by_tags = {frozenset(graph.meta_info_def.tags): graph for graph in graphs}
    for tags in _INFERENCE_TAGS:
        if tags in by_tags:
            return by_tags[tags]
    known = "; ".join(" ".join(sorted(tags)) for tags in by_tags)
    raise UserError(
        f"{SAVED_MODEL} has no graph for inference (untagged, or tagged serve): {known or 'empty'}"
    )


def _check_variables(files: ModelFiles, graph: Any) -> None:
    if not any(node.op in _VARIABLE_OPS for node in graph.graph_def.node):
        return
    pattern = os.path.join(files.folder, "variables", "variables.*")
    suffixes = {os.path.basename(path).split(".")[1][:5] for path in tf.io.gfile.glob(pattern)}
    if not suffixes >= {"index", "data-"}:
        raise UserError("is incomplete: it needs variables/variables.index and variables.data-*")


def _signatures(graph: Any) -> Iterable[Signature]:
    for name in sorted(graph.signature_def):
        definition = graph.signature_def[name]
        if _takes_images(definition):
            shapes = {key: tf.TensorShape(info.tensor_shape) for key, info in definition.outputs.items()}
            yield Signature(name, definition, pick_outputs(shapes, name))


def _takes_images(definition: Any) -> bool:
    """One float32 input of rank 4; others take encoded bytes, or settings besides the images."""
    if len(definition.inputs) != 1:
        return False
    (info,) = definition.inputs.values()
    return info.dtype == tf.float32.as_datatype_enum and tf.TensorShape(info.tensor_shape).rank in (4, None)
