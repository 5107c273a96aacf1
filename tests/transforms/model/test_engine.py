"""Which graph runs a model: ours where it gives what the module gives, the module's own otherwise."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from transforms.errors import UserError
from transforms.model.checkpoint import slim_variables
from transforms.model.engine import PrecisionUnavailable, describe_network, load_network
from transforms.model.export import export_hub_module
from transforms.model.hub import load_module
from transforms.model.pnasnet import architecture, build_network
from transforms.model.source import ModelFiles, locate_model


def files_at(folder: Path) -> ModelFiles:
    return ModelFiles(str(folder), str(folder))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A PNASNet-5 of the small size, with statistics unlike those of a fresh layer."""
    keras.utils.set_random_seed(3)
    network = build_network(architecture("small"), 9)
    rng = np.random.default_rng(3)
    for name, variable in slim_variables(network).items():
        if name.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


@pytest.fixture
def module(network: keras.Model, tmp_path: Path) -> Path:
    export_hub_module(network, str(tmp_path / "module"))
    return tmp_path / "module"


@pytest.fixture
def checkpoint(network: keras.Model, tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    variables = slim_variables(network)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "checkpoint" / "model.ckpt"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tf.constant(variable.numpy()) for variable in variables.values()],
    )
    return tmp_path / "checkpoint"


def outputs(files: ModelFiles, **how: Any) -> dict[str, Any]:
    images = tf.constant(np.random.default_rng(1).random((3, 96, 96, 3), np.float32))
    return load_network(files, **how).forward(images)._asdict()


def check_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in found.items():
        reference = np.asarray(expected[name])
        np.testing.assert_allclose(tensor, reference, atol=1e-4 * reference.std())


def test_a_modules_weights_move_into_our_network(module: Path) -> None:
    network = load_network(files_at(module))
    assert (network.engine, network.precision) == ("native", "float32")
    assert network.info == describe_network(files_at(module))
    assert load_module.cache_info().currsize == 0, "the module's graph is kept beside ours"
    check_close(outputs(files_at(module)), outputs(files_at(module), engine="hub"))


@pytest.mark.parametrize("folder", ["hub_pnasnet_mobile", "slim_pnasnet_mobile"])
def test_reference_models_give_slims_outputs_on_our_network(slim: Any, folder: str) -> None:
    network = load_network(files_at(slim.folder / folder))
    assert (network.engine, network.info.feature_width) == ("native", 1080)
    _, images = slim.draw("mobile", 224)
    slim.check("mobile", network.forward(tf.constant((images + 1) / 2))._asdict())


def test_errors_about_a_checkpoint_name_the_handle(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").write_bytes(b"not an index")
    with pytest.raises(UserError, match=r"--model gs://bucket/model: .*no readable checkpoint"):
        describe_network(ModelFiles("gs://bucket/model", str(tmp_path)))


def test_a_module_without_variables_runs_on_its_own_graph(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, 8, 8, 3))
        features = tf.reduce_mean(images, [1, 2])
        signatures = {
            name: v1.saved_model.predict_signature_def({"images": images}, {"default": tensor})
            for name, tensor in (("image_classification", 2 * features), ("image_feature_vector", features))
        }
        builder = v1.saved_model.Builder(str(tmp_path / "module"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    assert not (tmp_path / "module" / "variables" / "variables.index").exists()
    assert load_network(files_at(tmp_path / "module")).engine == "hub"


def test_the_shipped_module_runs_on_our_network() -> None:
    assert load_network(locate_model("small")).engine == "native"


def test_a_module_with_a_variable_of_another_shape_keeps_its_graph_and_says_so(
    module: Path, network: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {name: variable.numpy() for name, variable in slim_variables(network).items()}
    weights["cell_1/prev_bn/beta"] = np.zeros(3, np.float32)
    tf.raw_ops.SaveV2(
        prefix=str(module / "variables" / "variables"),
        tensor_names=list(weights),
        shape_and_slices=[""] * len(weights),
        tensors=list(weights.values()),
    )
    with caplog.at_level(logging.WARNING, logger="transforms.model.engine"):
        assert load_network(files_at(module)).engine == "hub"
    assert "its own graph runs, since" in caplog.text
    assert "cell_1/prev_bn/beta (3,), not (64,)" in caplog.text


def test_a_checkpoint_of_another_network_is_refused(checkpoint: Path) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(checkpoint / "model.ckpt"),
        tensor_names=["resnet/conv1/weights"],
        shape_and_slices=[""],
        tensors=[tf.zeros((7, 7, 3, 64))],
    )
    for use in (describe_network, load_network):
        with pytest.raises(UserError, match=f"--model {checkpoint}: .*no PNASNet-5 that we know"):
            use(files_at(checkpoint))


def test_the_modules_own_graph_can_be_had(module: Path) -> None:
    network = load_network(files_at(module), "hub")
    assert (network.engine, network.precision) == ("hub", "float32")
    with pytest.raises(PrecisionUnavailable, match="computes in float32; leave out --precision bfloat16"):
        load_network(files_at(module), "hub", "bfloat16")


def test_a_bare_checkpoint_runs(checkpoint: Path, module: Path) -> None:
    assert describe_network(files_at(checkpoint)) == describe_network(files_at(module))
    assert load_network(files_at(checkpoint)).engine == "native"
    check_close(outputs(files_at(checkpoint)), outputs(files_at(module), engine="hub"))
    with pytest.raises(UserError, match="is a checkpoint without a graph; leave out --engine hub"):
        load_network(files_at(checkpoint), "hub")


def test_a_network_that_we_do_not_know_runs_on_its_own_graph(tiny_module: Path) -> None:
    assert load_network(files_at(tiny_module)).engine == "hub"
    with pytest.raises(PrecisionUnavailable, match=f"--model {tiny_module}: .*float32"):
        load_network(files_at(tiny_module), precision="bfloat16")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same(module: Path, precision: Any) -> None:
    network = load_network(files_at(module), precision=precision)
    assert (network.engine, network.precision) == ("native", precision)
    found = outputs(files_at(module), precision=precision)
    exact = outputs(files_at(module))
    assert found["features"].dtype == found["logits"].dtype == tf.float32
    assert not np.array_equal(found["features"], exact["features"])
    np.testing.assert_array_equal(np.argmax(found["logits"], 1), np.argmax(exact["logits"], 1))


@pytest.fixture
def disagreeing(module: Path) -> Path:
    """A module that scales its images differently: the 2 of images * 2 - 1 is a 3 in its graph."""
    saved = saved_model_pb2.SavedModel.FromString((module / "saved_model.pb").read_bytes())
    nodes = {node.name: node for node in saved.meta_graphs[0].graph_def.node}
    [factor] = [
        nodes[node.input[1]] for node in nodes.values() if node.op == "Mul" and "images" in node.input[0]
    ]
    assert tf.make_ndarray(factor.attr["value"].tensor) == 2
    factor.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.float32(3)))
    (module / "saved_model.pb").write_bytes(saved.SerializeToString())
    return module


def test_a_module_that_computes_something_else_keeps_its_graph_and_says_so(
    disagreeing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="transforms.model.engine"):
        network = load_network(files_at(disagreeing))
    assert network.engine == "hub"
    [record] = [record for record in caplog.records if record.name == "transforms.model.engine"]
    assert "its own graph runs, since our network differs: features by" in record.getMessage()
    with pytest.raises(PrecisionUnavailable, match="is not for this model: the cosine of its features is 0"):
        load_network(files_at(disagreeing), precision="bfloat16")


def test_weights_too_large_for_float16_are_not_run_in_it(checkpoint: Path, network: keras.Model) -> None:
    scaled = {name: variable.numpy() for name, variable in slim_variables(network).items()}
    scaled["conv0_bn/gamma"] = scaled["conv0_bn/gamma"] * 1e6
    tf.raw_ops.SaveV2(
        prefix=str(checkpoint / "model.ckpt"),
        tensor_names=list(scaled),
        shape_and_slices=[""] * len(scaled),
        tensors=[tf.constant(value) for value in scaled.values()],
    )
    with pytest.raises(PrecisionUnavailable, match="--precision float16 is not for this model"):
        load_network(files_at(checkpoint), precision="float16")
