"""TF-Slim's checkpoints: found in a folder, recognised by their shapes, read by name."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.model.checkpoint import SlimVariables, find_checkpoint, slim_variables
from transforms.model.export import export_hub_module
from transforms.model.folding import slim_shapes
from transforms.model.pnasnet import architecture, build_network

Weights = dict[str, NDArray[np.float32]]
AVERAGE = "/ExponentialMovingAverage"
BIASES = "final_layer/FC/biases"


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    return build_network(architecture("small"), 9)


@pytest.fixture
def weights(network: keras.Model) -> Weights:
    return {name: variable.numpy() for name, variable in slim_variables(network).items()}


def save(prefix: Path, tensors: Weights) -> str:
    """A checkpoint with these very keys, as TF-Slim writes it."""
    values = [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=list(tensors), shape_and_slices=[""] * len(values), tensors=values
    )
    return str(prefix)


def test_outputs_from_slims_checkpoint_are_slims(slim: Any) -> None:
    prefix = find_checkpoint(str(slim.folder / "slim_pnasnet_mobile"))
    assert prefix is not None
    variables = SlimVariables(prefix)
    assert (variables.architecture.name, variables.class_count) == ("mobile", 1001)
    _, images = slim.draw("mobile", variables.architecture.image_size)
    slim.check("mobile", variables.load()(images, training=False))


def check_same(found: keras.Model, expected: keras.Model) -> None:
    """Folded and unfolded give the same but for rounding."""
    images = np.random.default_rng(1).uniform(-1, 1, (2, 96, 96, 3)).astype(np.float32)
    for key, output in found(images, training=False).items():
        reference = np.asarray(expected(images, training=False)[key])
        np.testing.assert_allclose(output, reference, atol=1e-4 * reference.std())


def test_network_reads_back_beside_what_training_left(
    tmp_path: Path, network: keras.Model, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    left_over = {"global_step": np.zeros(1, np.float32), "aux_7/aux_logits/FC/biases": np.ones(9, np.float32)}
    prefix = save(tmp_path / "model.ckpt", weights | left_over)
    with caplog.at_level(logging.INFO, logger="transforms.model.checkpoint"):
        check_same(SlimVariables(prefix).load(), network)
    assert "left out aux_7/aux_logits/FC/biases, global_step" in caplog.text


def test_moving_averages_win_over_the_last_step(tmp_path: Path, weights: Weights) -> None:
    averages = {name + AVERAGE: value + 1 for name, value in weights.items() if "moving" not in name}
    variables = SlimVariables(save(tmp_path / "both", weights | averages))
    np.testing.assert_array_equal(variables.read("conv0/weights"), weights["conv0/weights"] + 1)
    statistics = "conv0_bn/moving_variance"
    np.testing.assert_array_equal(variables.read(statistics), weights[statistics])
    assert variables.left_out(slim_shapes(variables.load())) == sorted(
        name for name in weights if "moving" not in name
    )


def test_moving_averages_alone_are_enough(tmp_path: Path, weights: Weights) -> None:
    variables = SlimVariables(
        save(tmp_path / "averages", {name + AVERAGE: value for name, value in weights.items()})
    )
    assert (variables.architecture, variables.class_count) == (architecture("small"), 9)
    np.testing.assert_array_equal(variables.read(BIASES), weights[BIASES])


def test_names_under_one_scope_are_found(tmp_path: Path, network: keras.Model, weights: Weights) -> None:
    prefix = save(tmp_path / "scoped", {f"module/{name}": value for name, value in weights.items()})
    check_same(SlimVariables(prefix).load(), network)


def test_variables_of_a_tf1_hub_module_are_found(
    tmp_path: Path, network: keras.Model, weights: Weights
) -> None:
    export_hub_module(network, str(tmp_path / "module"))
    check_same(SlimVariables(str(tmp_path / "module" / "variables" / "variables")).load(), network)


def test_variables_of_a_tf2_saved_model_are_found_by_their_names(
    tmp_path: Path, network: keras.Model, weights: Weights
) -> None:
    module = tf.Module()
    module.weights = [tf.Variable(value, name=name) for name, value in weights.items()]
    tf.saved_model.save(module, str(tmp_path / "module"))
    check_same(SlimVariables(str(tmp_path / "module" / "variables" / "variables")).load(), network)


def test_missing_and_misshapen_variables_are_named(tmp_path: Path, weights: Weights) -> None:
    del weights["cell_1/prev_bn/gamma"]
    weights["conv0_bn/beta"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match=r"conv0_bn/beta \(5,\), not \(16,\).*cell_1/prev_bn/gamma missing"):
        SlimVariables(save(tmp_path / "model.ckpt", weights)).load()


def test_a_long_list_of_what_is_wrong_is_cut(tmp_path: Path, weights: Weights) -> None:
    kept = {name: value for name, value in weights.items() if "separable" not in name}
    with pytest.raises(UserError, match=r"; .*; .*; .*; .* and \d+ more$"):
        SlimVariables(save(tmp_path / "model.ckpt", kept)).load()


def test_features_without_classes_are_refused(tmp_path: Path, weights: Weights) -> None:
    del weights[BIASES]
    with pytest.raises(UserError, match="cannot name classes"):
        SlimVariables(save(tmp_path / "model.ckpt", weights))


def test_other_networks_are_refused(tmp_path: Path) -> None:
    prefix = save(tmp_path / "model.ckpt", {"resnet/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)})
    with pytest.raises(UserError, match=r"no PNASNet-5 that we know \(large, mobile, small\)"):
        SlimVariables(prefix)


def test_damaged_checkpoints_are_refused(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "text.index").write_text("version https://git-lfs.github.com/spec/v1\n" * 10)
    with pytest.raises(UserError, match="no readable checkpoint"):
        SlimVariables(str(tmp_path / "text"))
    prefix = save(tmp_path / "model.ckpt", weights)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read"):
        SlimVariables(prefix).load()


def test_the_only_checkpoint_of_a_folder_is_found(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path)) is None
    (tmp_path / "model.ckpt.index").touch()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt-2.index").touch()
    assert find_checkpoint(str(tmp_path)) is None


def test_of_several_checkpoints_the_latest_is_found_wherever_it_was_trained(tmp_path: Path) -> None:
    for name in ("model.ckpt-1.index", "model.ckpt-2.index"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/trained/elsewhere/model.ckpt-1"\n')
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-1")
