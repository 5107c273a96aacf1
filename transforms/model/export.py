"""Our network as a module in TF1 Hub format: one untagged graph with the signatures for images.

The format: https://www.tensorflow.org/hub/tf1_hub_module and its common signatures for images.
"""

import os
import shutil
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from transforms.model.attachment import COLLECTION, encode_image_size
from transforms.model.checkpoint import slim_variables

# ModuleDef{format: FORMAT_V3} of tensorflow_hub/module_def.proto.
_MODULE_DEF = b"\x08\x03"
_LABELS = "labels.tsv"

v1 = tf.compat.v1


def export_hub_module(network: keras.Model, folder: str, labels: str | None = None) -> None:
    """Write the network, which takes [-1, 1], as a module that takes [0, 1]; `labels` is a TSV file.

    `folder` must not exist. Its files are those of a module of google/imagenet: saved_model.pb,
    tfhub_module.pb, variables/ and, with `labels`, assets/labels.tsv.
    """
    weights = {name: variable.numpy() for name, variable in slim_variables(network).items()}
    os.makedirs(os.path.join(folder, "variables"))
    with v1.Graph().as_default(), v1.Session() as session:
        images, outputs = _import_network(network)
        variables = v1.global_variables()
        feeds = {variable.initializer.inputs[1]: weights[variable.op.name] for variable in variables}
        session.run([variable.initializer for variable in variables], feeds)
        v1.train.Saver(variables, write_version=v1.train.SaverDef.V2).save(
            session, os.path.join(folder, "variables", "variables"), write_meta_graph=False, write_state=False
        )
        saved = _saved_model(images, outputs)
    _write(os.path.join(folder, "saved_model.pb"), saved.SerializeToString(deterministic=True))
    _write(os.path.join(folder, "tfhub_module.pb"), _MODULE_DEF)
    if labels is not None:
        os.makedirs(os.path.join(folder, "assets"))
        shutil.copyfile(labels, os.path.join(folder, "assets", _LABELS))


def _import_network(network: keras.Model) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The network's operations in the present graph, on variables of TF-Slim's names."""
    spec = tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)
    traced = tf.function(lambda images: network(images * 2 - 1, training=False)).get_concrete_function(spec)
    images = v1.placeholder(tf.float32, spec.shape, "hub_input/images")
    names = {id(variable.value.handle): name for name, variable in slim_variables(network).items()}
    inputs: dict[str, Any] = {traced.inputs[0].name: images}
    for handle, placeholder in zip(traced.captured_inputs, traced.graph.internal_captures, strict=True):
        shape = next(v.shape for v in network.variables if v.value.handle is handle)
        variable = v1.get_variable(
            names[id(handle)], shape, initializer=v1.zeros_initializer(), use_resource=True
        )
        inputs[placeholder.name] = variable.handle
    fetched = {name: tensor.name for name, tensor in traced.structured_outputs.items()}
    tensors = tf.graph_util.import_graph_def(
        traced.graph.as_graph_def(), input_map=inputs, return_elements=list(fetched.values()), name="pnasnet"
    )
    return images, dict(zip(fetched, tensors, strict=True))


def _saved_model(images: tf.Tensor, outputs: dict[str, tf.Tensor]) -> saved_model_pb2.SavedModel:
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = v1.train.export_meta_graph(clear_devices=True)
    graph.meta_info_def.ClearField("tags")
    graph.ClearField("saver_def")
    endpoints = {"global_pool": outputs["features"], "Logits": outputs["logits"]}
    signatures = {
        "default": {"default": outputs["logits"]},
        "image_classification": {"default": outputs["logits"], **endpoints},
        "image_feature_vector": {"default": outputs["features"], **endpoints},
    }
    for name, tensors in signatures.items():
        signature = v1.saved_model.build_signature_def(
            {"images": _tensor_info(images)},
            {key: _tensor_info(tensor) for key, tensor in tensors.items()},
            name,
        )
        graph.signature_def[name].CopyFrom(signature)
    size = images.shape[1], images.shape[2]
    graph.collection_def[COLLECTION].bytes_list.value.append(encode_image_size(*size))
    saved.meta_graphs.append(graph)
    return saved


def _tensor_info(tensor: tf.Tensor) -> meta_graph_pb2.TensorInfo:
    return meta_graph_pb2.TensorInfo(
        name=tensor.name, dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
    )


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
