"""Which labels a network gets."""

from pathlib import Path

import pytest

from transforms.errors import UserError
from transforms.model.labels import Labels, imagenet_labels
from transforms.model.network import NetworkInfo, labels_for

OWN = Labels(("", ""), ("cat", "dog"))


def network(class_count: int, labels: Labels | None = None) -> NetworkInfo:
    return NetworkInfo(32, 32, class_count, 160, labels)


def test_a_given_file_comes_before_the_modules_own_labels(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("chat\nchien\n")
    assert labels_for(network(2, OWN), str(path)).names == ("chat", "chien")
    assert labels_for(network(2, OWN), path.as_uri()).names == ("chat", "chien")
    assert labels_for(network(2, OWN), None) is OWN


def test_imagenet_fits_1001_classes_and_1000_without_background() -> None:
    assert labels_for(network(1001), None) == imagenet_labels()
    without = labels_for(network(1000), None)
    assert (len(without), without.wnids[0]) == (1000, "n01440764")


def test_other_numbers_of_classes_need_a_file() -> None:
    with pytest.raises(UserError, match="2 classes and no names for them: pass --labels"):
        labels_for(network(2), None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\ndog\nowl\n", "names 3 classes, but the model has 2"),
        (b"cat\n\ndog", "line 2 has no class name"),
        (b"\xff\xfec\x00", "is not UTF-8 text"),
        (b"", "line 1 has no class name"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        labels_for(network(2), str(path))
    assert str(caught.value).startswith(f"--labels {path}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"--labels {path}: "):
            labels_for(network(2), str(path))
