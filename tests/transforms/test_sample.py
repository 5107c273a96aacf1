"""The sample images: sizes, repeatability, variety, and files that `pnasvec embed` can read."""

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.read import inspect_source, kept_schema, read_refs
from transforms.sample import CLASSES, render_image, write_samples

SIZES = [(96, 96), (120, 160), (160, 120), (361, 480), (64, 65)]


def render(label: int, seed: int = 0, size: tuple[int, int] = (96, 96)) -> NDArray[np.uint8]:
    return render_image(np.random.default_rng([seed, label]), label, size)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path))
    assert image is not None, f"{path.name} does not decode"
    return np.asarray(image, np.uint8)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classes_are_many_and_distinct() -> None:
    assert len(CLASSES) >= 12
    assert len(set(CLASSES)) == len(CLASSES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_every_class_renders_at_every_size_with_figure_and_ground(label: int, size: tuple[int, int]) -> None:
    image = render(label, size=size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).std() > 10


def test_the_same_generator_state_gives_the_same_image() -> None:
    assert all(np.array_equal(render(label, 7), render(label, 7)) for label in range(len(CLASSES)))


def test_classes_differ_even_from_the_same_random_numbers() -> None:
    images = {
        render_image(np.random.default_rng(3), label, (96, 96)).tobytes() for label in range(len(CLASSES))
    }
    assert len(images) == len(CLASSES)


def test_colours_of_a_class_are_spread_over_the_cube() -> None:
    for label in range(len(CLASSES)):
        means = np.stack([render(label, seed).mean(axis=(0, 1)) for seed in range(30)])
        assert means.std(axis=0).min() > 20


def test_a_class_is_as_often_lighter_than_its_ground_as_darker() -> None:
    """Otherwise brightness in the middle of the image would give the label away."""
    greys = [cv2.cvtColor(render(CLASSES.index("disc"), seed), cv2.COLOR_RGB2GRAY) for seed in range(100)]
    lighter = sum(grey[32:64, 32:64].mean() > grey[:8].mean() for grey in greys)
    assert 30 <= lighter <= 70


@pytest.mark.parametrize("size", [(96, 128), (320, 240)])
@pytest.mark.parametrize("name", CLASSES[:8])
def test_a_shape_lies_inside_the_central_crop(name: str, size: tuple[int, int]) -> None:
    """The border that preprocessing crops away shows the ground only, so its colours vary little."""
    margins = [int(length * 0.0625) - 2 for length in size]
    for seed in range(20):
        grey = cv2.cvtColor(render(CLASSES.index(name), seed, size), cv2.COLOR_RGB2GRAY).astype(float)
        inner = np.zeros(size, bool)
        inner[margins[0] : -margins[0], margins[1] : -margins[1]] = True
        assert grey[~inner].std() < 0.6 * np.ptp(cv2.GaussianBlur(grey, (0, 0), 3))


def test_files_and_list_name_each_other_in_order(tmp_path: Path) -> None:
    write_samples(str(tmp_path / "new" / "folder"), 20, 1)
    listed = rows(tmp_path / "new" / "folder")
    assert [row["label"] for row in listed] == [CLASSES[i % len(CLASSES)] for i in range(20)]
    assert [row["path"] for row in listed] == [f"{i:05d}-{row['label']}.jpg" for i, row in enumerate(listed)]
    assert {*contents(tmp_path / "new" / "folder")} == {"labels.csv", *(row["path"] for row in listed)}


def test_files_are_jpeg_of_varied_size_within_the_promised_bounds(tmp_path: Path) -> None:
    write_samples(str(tmp_path), 48, 2)
    shapes = [decoded(tmp_path / row["path"]).shape for row in rows(tmp_path)]
    assert all(path.read_bytes()[:3] == b"\xff\xd8\xff" for path in tmp_path.glob("*.jpg"))
    assert all(min(shape[:2]) >= 120 and max(shape[:2]) <= 480 for shape in shapes)
    assert all(3 / 4 <= height / width <= 4 / 3 for height, width, _ in shapes)
    assert len(set(shapes)) > 40
    assert {height > width for height, width, _ in shapes} == {True, False}


def test_classes_are_balanced(tmp_path: Path) -> None:
    write_samples(str(tmp_path), 3 * len(CLASSES) + 5, 0)
    counts = Counter(row["label"] for row in rows(tmp_path))
    assert {*counts} == {*CLASSES}
    assert max(counts.values()) - min(counts.values()) == 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        write_samples(str(tmp_path / name), 6, seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert {name for name in first if first[name] == other[name]} == {"labels.csv"}


def test_an_image_does_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    write_samples(str(tmp_path / "few"), 3, 0)
    write_samples(str(tmp_path / "more"), 9, 0)
    few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
    del few["labels.csv"]
    assert few.items() <= more.items()


def test_the_list_is_an_input_of_embed_with_labels_to_keep(tmp_path: Path) -> None:
    write_samples(str(tmp_path), 5, 0)
    source = inspect_source(str(tmp_path / "labels.csv"), None)
    [table] = read_refs(source, kept_schema([source], ["label"]))
    assert table["label"].to_pylist() == list(CLASSES[:5])
    assert all(Path(uri.removeprefix("file://")).is_file() for uri in table["uri"].to_pylist())


@pytest.mark.parametrize(
    ("count", "seed", "flag"), [(0, 0, "--count"), (-3, 0, "--count"), (1, -1, "--seed")]
)
def test_impossible_numbers_are_user_errors_that_name_the_flag(
    tmp_path: Path, count: int, seed: int, flag: str
) -> None:
    with pytest.raises(UserError, match=flag):
        write_samples(str(tmp_path / "folder"), count, seed)
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_samples(str(tmp_path / "file" / "folder"), 1, 0)
