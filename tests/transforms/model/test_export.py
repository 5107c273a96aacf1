"""The module that we write: its files and signatures, and that it computes what our network does."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from transforms.model.checkpoint import slim_variables
from transforms.model.export import export_hub_module

IMAGES = np.random.default_rng(2).uniform(0, 1, (3, 32, 32, 3)).astype(np.float32)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_are_those_of_a_hub_module(tiny_module: Path) -> None:
    assert files_of(tiny_module) == {
        "saved_model.pb",
        "tfhub_module.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets/labels.tsv",
    }


def test_signatures_compute_what_the_network_does(tiny_module: Path, tiny_network: keras.Model) -> None:
    signatures = tf.saved_model.load(str(tiny_module), tags=[]).signatures
    outputs = {name: run(images=tf.constant(IMAGES)) for name, run in signatures.items()}
    expected = tiny_network(IMAGES * 2 - 1, training=False)
    for name, key, ours in (
        ("default", "default", "logits"),
        ("image_classification", "default", "logits"),
        ("image_feature_vector", "default", "features"),
        ("image_classification", "global_pool", "features"),
        ("image_feature_vector", "Logits", "logits"),
    ):
        np.testing.assert_allclose(outputs[name][key], expected[ours], rtol=1e-5, atol=1e-5)


def test_variables_have_slims_names_and_our_values(tiny_module: Path, tiny_network: keras.Model) -> None:
    reader = tf.train.load_checkpoint(str(tiny_module / "variables" / "variables"))
    ours = slim_variables(tiny_network)
    assert set(reader.get_variable_to_shape_map()) == set(ours)
    for name in ("conv0/weights", "conv0_bn/moving_mean", "final_layer/FC/biases"):
        np.testing.assert_array_equal(reader.get_tensor(name), ours[name].numpy())


def test_a_module_is_never_written_over(tiny_module: Path, tiny_network: keras.Model) -> None:
    with pytest.raises(FileExistsError):
        export_hub_module(tiny_network, str(tiny_module))
