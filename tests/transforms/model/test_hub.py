"""Modules of every make are described, loaded, and run once for features and logits."""

import gc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from transforms.errors import UserError
from transforms.model.hub import describe_module, load_module
from transforms.model.network import Network, NetworkInfo
from transforms.model.source import ModelFiles

IMAGES = np.random.default_rng(4).uniform(0, 1, (3, 8, 8, 3)).astype(np.float32)
SPEC = tf.TensorSpec((None, 8, 8, 3), tf.float32)
INFO = NetworkInfo(8, 8, class_count=4, feature_width=6)
v1 = tf.compat.v1

Call = Callable[[Any], Mapping[str, Any]]


def files_at(folder: Path) -> ModelFiles:
    return ModelFiles(str(folder), str(folder))


class Toy(tf.Module):
    """Features are a product of the mean colour, logits one of the features."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(6)
        self.widen = tf.Variable(rng.normal(size=(3, 6)), dtype=tf.float32)
        self.classify = tf.Variable(rng.normal(size=(6, 4)), dtype=tf.float32)

    def features(self, images: Any) -> Any:
        return tf.reduce_mean(images, (1, 2)) @ self.widen

    def logits(self, images: Any) -> Any:
        return self.features(images) @ self.classify


class ToyWithEndpoints(Toy):
    """Called as the TF2 modules of google/imagenet are."""

    @tf.function
    def __call__(self, images: Any, training: bool = False, return_endpoints: bool = False) -> Any:
        pooled = tf.reduce_mean(images, (1, 2), keepdims=True) @ self.widen
        logits = self.logits(images)
        if not return_endpoints:
            return logits
        return {"default": logits, "Toy/global_pool": pooled, "Toy/Cell": images}


def save(toy: Toy, folder: Path, **signatures: Call) -> ModelFiles:
    traced = {
        name: tf.function(call).get_concrete_function(tf.TensorSpec(SPEC.shape, tf.float32, "images"))
        for name, call in signatures.items()
    }
    tf.saved_model.save(toy, str(folder), signatures=traced or None)
    return files_at(folder)


def save_tf1(folder: Path, tags: list[str], *signatures: str) -> ModelFiles:
    """A graph of TensorFlow 1 with variables of its kind and an input for each signature."""
    with v1.Graph().as_default(), v1.Session() as session:
        toy = Toy()
        widen = v1.get_variable("widen", initializer=toy.widen.initial_value, use_resource=False)
        classify = v1.get_variable("classify", initializer=toy.classify.initial_value, use_resource=False)
        definitions = {}
        for name in signatures:
            images = v1.placeholder(tf.float32, SPEC.shape)
            features = tf.reduce_mean(images, (1, 2)) @ widen
            output = features if name == "image_feature_vector" else features @ classify
            definitions[name] = v1.saved_model.predict_signature_def({"images": images}, {"default": output})
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, tags, definitions)
        builder.save()
    return files_at(folder)


def check(network: Network) -> None:
    """It computes what the toy does, also when traced and when nobody else holds the module."""
    gc.collect()
    toy = Toy()
    for forward in (network.forward, tf.function(network.forward)):
        outputs = forward(tf.constant(IMAGES))
        np.testing.assert_allclose(outputs.features, toy.features(IMAGES), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs.logits, toy.logits(IMAGES), rtol=1e-5, atol=1e-6)


def operations(forward: Callable[[Any], Any], kind: str, images: tf.TensorSpec) -> int:
    """How many operations of a kind run in one call, those of called functions included."""
    graph = tf.function(forward).get_concrete_function(images).graph.as_graph_def()
    bodies = {function.signature.name: function.node_def for function in graph.library.function}

    def count(nodes: Any) -> int:
        called = [value.func.name for node in nodes for value in node.attr.values() if value.func.name]
        return sum(node.op == kind for node in nodes) + sum(count(bodies[name]) for name in called)

    return count(graph.node)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="transforms.model.hub")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "transforms.model.hub"]


def test_our_module_computes_what_our_network_does(tiny_module: Path, tiny_network: keras.Model) -> None:
    images = np.random.default_rng(3).uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
    network = load_module(files_at(tiny_module))
    assert network.info == describe_module(files_at(tiny_module))
    assert network.info.labels is not None
    expected = tiny_network(images * 2 - 1, training=False)
    outputs = network.forward(tf.constant(images))
    np.testing.assert_allclose(outputs.features, expected["features"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs.logits, expected["logits"], rtol=1e-5, atol=1e-5)


def test_our_module_runs_its_body_once(tiny_module: Path, tiny_network: keras.Model) -> None:
    forward = load_module(files_at(tiny_module)).forward
    images = tf.TensorSpec((None, 32, 32, 3), tf.float32)
    once = operations(lambda images: tiny_network(images, training=False), "Conv2D", images)
    assert operations(forward, "Conv2D", images) == once
    signatures = tf.saved_model.load(str(tiny_module), tags=[]).signatures
    both = [signatures[name] for name in ("image_classification", "image_feature_vector")]
    assert operations(lambda images: [run(images=images) for run in both], "Conv2D", images) == 2 * once


@pytest.mark.parametrize("folder", ["hub_pnasnet_mobile", "slim_pnasnet_mobile"])
def test_reference_models_give_slims_outputs(slim: Any, folder: str) -> None:
    files = files_at(slim.folder / folder)
    network = load_module(files)
    assert network.info == describe_module(files) == NetworkInfo(224, 224, 1001, 1080)
    _, images = slim.draw("mobile", 224)
    slim.check("mobile", network.forward(tf.constant((images + 1) / 2))._asdict())


@pytest.mark.parametrize("tags", [[], ["serve"]])
def test_tf1_signatures_with_inputs_of_their_own(tmp_path: Path, tags: list[str]) -> None:
    files = save_tf1(tmp_path / "module", tags, "image_classification", "image_feature_vector")
    assert describe_module(files) == INFO
    check(load_module(files))


def test_a_tf2_signature_with_both_runs_once(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    toy = Toy()

    def both(images: Any) -> dict[str, Any]:
        features = toy.features(images)
        return {"features": features, "logits": features @ toy.classify}

    files = save(toy, tmp_path / "module", serving_default=both)
    load_module.cache_clear()
    assert describe_module(files) == INFO
    assert load_module.cache_info().currsize == 0, "describing it loaded it"
    network = load_module(files)
    check(network)
    assert operations(network.forward, "MatMul", SPEC) == 2
    assert warned() == []


@pytest.mark.parametrize("served", [True, False], ids=["version 5", "version 4"])
def test_a_tf2_hub_module_is_asked_for_its_endpoints(
    tmp_path: Path, warned: Callable[[], list[str]], served: bool
) -> None:
    toy = ToyWithEndpoints()
    for endpoints in (False, True):
        toy.__call__.get_concrete_function(SPEC, training=False, return_endpoints=endpoints)
    signatures = {"serving_default": lambda images: {"logits": toy.logits(images)}} if served else {}
    files = save(toy, tmp_path / "module", **signatures)
    load_module.cache_clear()
    assert describe_module(files) == INFO
    check(load_module(files))
    assert load_module.cache_info().misses == 1, "it was loaded twice"
    assert warned() == []


def test_two_tf2_signatures_are_two_passes_and_a_warning(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    toy = Toy()
    files = save(
        toy,
        tmp_path / "module",
        classify=lambda images: {"logits": toy.logits(images)},
        embed=lambda images: {"feature_vector": toy.features(images)},
    )
    assert describe_module(files) == INFO
    check(load_module(files))
    assert [text for text in warned() if "two passes" in text] == warned()
    assert len(warned()) == 1


def test_sizes_that_are_not_declared_are_measured(tmp_path: Path) -> None:
    toy = Toy()

    def vague(images: Any) -> dict[str, Any]:
        outputs = {"features": toy.features(images), "logits": toy.logits(images)}
        return {key: tf.reshape(value, (tf.shape(images)[0], -1)) for key, value in outputs.items()}

    files = save(toy, tmp_path / "module", serving_default=vague)
    assert describe_module(files) == INFO
    check(load_module(files))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"logits": "logits"}, r"gives no feature vectors: it has serving_default \(logits\)"),
        ({"feature_vector": "features"}, r"gives no logits: it has serving_default \(feature_vector\)"),
        ({"output_0": "logits", "output_1": "features"}, r"gives no logits: .*\(output_0, output_1\)"),
    ],
)
def test_a_tf2_module_without_both_says_what_it_has(
    tmp_path: Path, outputs: dict[str, str], reason: str
) -> None:
    toy = Toy()
    files = save(
        toy,
        tmp_path / "module",
        serving_default=lambda images: {key: getattr(toy, name)(images) for key, name in outputs.items()},
    )
    with pytest.raises(UserError, match=f"--model {tmp_path}/module: {reason}"):
        describe_module(files)


@pytest.mark.parametrize(
    ("signature", "missing"),
    [("image_feature_vector", "logits"), ("image_classification", "feature vectors")],
)
def test_a_tf1_module_without_both_says_what_it_has(tmp_path: Path, signature: str, missing: str) -> None:
    files = save_tf1(tmp_path / "module", [], signature)
    with pytest.raises(UserError, match=rf"gives no {missing}: it has {signature} \(default\)"):
        describe_module(files)


def test_a_module_for_encoded_images_is_refused(tmp_path: Path) -> None:
    toy = Toy()

    def decode(data: Any) -> dict[str, Any]:
        images = tf.reshape(tf.io.decode_raw(data, tf.float32), (-1, 8, 8, 3))
        return {"logits": toy.logits(images), "features": toy.features(images)}

    traced = tf.function(decode).get_concrete_function(tf.TensorSpec((None,), tf.string, "data"))
    tf.saved_model.save(toy, str(tmp_path / "module"), signatures={"serving_default": traced})
    with pytest.raises(UserError, match="no signature for float images"):
        describe_module(files_at(tmp_path / "module"))


def test_a_module_for_images_of_any_size_is_refused(tmp_path: Path) -> None:
    toy = Toy()
    traced = tf.function(
        lambda images: {"logits": toy.logits(images), "features": toy.features(images)}
    ).get_concrete_function(tf.TensorSpec((None, None, None, 3), tf.float32, "images"))
    tf.saved_model.save(toy, str(tmp_path / "module"), signatures={"serving_default": traced})
    with pytest.raises(UserError, match="does not say which size of image it takes"):
        describe_module(files_at(tmp_path / "module"))


def test_damaged_weights_are_a_users_error(tmp_path: Path) -> None:
    files = save_tf1(tmp_path / "module", [], "image_classification", "image_feature_vector")
    (tmp_path / "module" / "variables" / "variables.index").write_bytes(b"not an index")
    with pytest.raises(UserError, match=f"--model {tmp_path}/module: cannot be loaded"):
        load_module(files)


def test_errors_about_a_checkpoint_name_the_handle(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").write_bytes(b"not an index")
    with pytest.raises(UserError, match=r"--model gs://bucket/model: .*no readable checkpoint"):
        describe_module(ModelFiles("gs://bucket/model", str(tmp_path)))
