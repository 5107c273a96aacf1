"""What a module declares is read without its weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from transforms.errors import UserError
from transforms.model.network import NetworkInfo
from transforms.model.signatures import Module, OutputKeys, pick_outputs, read_module
from transforms.model.source import ModelFiles

WIDE, NARROW = tf.TensorShape((None, 1001)), tf.TensorShape((None, 160))


@pytest.fixture
def module(tiny_module: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_module, tmp_path / "module"))


def read(folder: Path) -> Module:
    return read_module(ModelFiles(str(folder), str(folder)))


def rewrite(folder: Path, change: Any) -> None:
    """Let `change` edit the SavedModel message in place."""
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved)
    path.write_bytes(saved.SerializeToString())


def test_sizes_and_labels_need_no_weights(module: Path) -> None:
    (module / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    info = read(module).declared()
    assert info is not None
    assert info == NetworkInfo(32, 32, 7, 160, info.labels)
    assert info.labels is not None
    assert info.labels.names[6] == "class 6"


def test_the_reference_module_declares_its_sizes(slim: Any) -> None:
    assert read(slim.folder / "hub_pnasnet_mobile").declared() == NetworkInfo(224, 224, 1001, 1080)


def test_without_attachment_the_size_is_that_of_the_input(module: Path) -> None:
    rewrite(module, lambda saved: saved.meta_graphs[0].ClearField("collection_def"))
    assert read(module).image_size() == (32, 32)


def test_the_attachment_counts_where_the_input_takes_any_size(module: Path) -> None:
    def loosen(saved: Any) -> None:
        for signature in saved.meta_graphs[0].signature_def.values():
            signature.inputs["images"].tensor_shape.dim[1].size = -1
            signature.inputs["images"].tensor_shape.dim[2].size = -1

    rewrite(module, loosen)
    assert read(module).image_size() == (32, 32)


def test_the_contract_of_tf1_hub_names_the_sources(module: Path) -> None:
    sources = read(module).sources()
    assert sources is not None
    assert [source.name for source in sources] == ["image_classification", "image_feature_vector"]


def test_a_graph_for_training_is_passed_over(module: Path) -> None:
    def add_training(saved: Any) -> None:
        saved.meta_graphs.add().CopyFrom(saved.meta_graphs[0])
        saved.meta_graphs[0].meta_info_def.tags.append("train")

    rewrite(module, add_training)
    assert read(module).tags == []
    rewrite(module, lambda saved: saved.meta_graphs.pop())
    with pytest.raises(UserError, match=r"no graph for inference .*: train"):
        read(module)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 64])
def test_a_file_that_is_no_saved_model_is_refused(module: Path, content: bytes) -> None:
    (module / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match=r"saved_model\.pb is damaged"):
        read(module)


def test_an_empty_file_is_refused(module: Path) -> None:
    (module / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="no graph for inference"):
        read(module)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_missing_weights_are_told_before_work_starts(module: Path, name: str) -> None:
    (module / "variables" / name).unlink()
    with pytest.raises(UserError, match=r"is incomplete: it needs variables/variables\.index"):
        read(module)


def test_labels_of_another_number_of_classes_are_refused(module: Path) -> None:
    (module / "assets" / "labels.tsv").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"assets/labels\.tsv names 2 classes, but the model has 7"):
        read(module).declared()


def test_labels_txt_will_do(module: Path) -> None:
    (module / "assets" / "labels.tsv").unlink()
    (module / "assets" / "labels.txt").write_text("\n".join("abcdefg"))
    info = read(module).declared()
    assert info is not None
    assert info.labels is not None
    assert info.labels.names == tuple("abcdefg")


@pytest.mark.parametrize(
    ("shapes", "signature", "expected"),
    [
        ({"default": WIDE}, "image_classification", OutputKeys("default", None)),
        ({"default": NARROW}, "image_feature_vector", OutputKeys(None, "default")),
        ({"default": WIDE}, "", OutputKeys(None, None)),
        ({"logits": WIDE, "features": NARROW}, "", OutputKeys("logits", "features")),
        (
            {"PNASNet/Logits": WIDE, "PNASNet/global_pool": NARROW},
            "",
            OutputKeys("PNASNet/Logits", "PNASNet/global_pool"),
        ),
        ({"default": WIDE, "A/global_pool": NARROW}, "", OutputKeys("default", "A/global_pool")),
        ({"default": NARROW, "A/global_pool": NARROW}, "", OutputKeys(None, "A/global_pool")),
        ({"global_pool": tf.TensorShape((None, 1, 1, 160))}, "", OutputKeys(None, "global_pool")),
        ({"global_pool": tf.TensorShape((None, 7, 7, 160))}, "", OutputKeys(None, None)),
        ({"logits": tf.TensorShape(None)}, "", OutputKeys("logits", None)),
        ({"AuxLogits": WIDE, "Predictions": WIDE}, "", OutputKeys(None, None)),
    ],
)
def test_outputs_are_picked_by_contract_or_name(
    shapes: dict[str, tf.TensorShape], signature: str, expected: OutputKeys
) -> None:
    assert pick_outputs(shapes, signature) == expected
