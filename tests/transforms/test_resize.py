"""The sampling grid, crops and turns, against arithmetic done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from transforms.resize import Pixels, ResizeMode, is_transposed, resize

MODES: tuple[ResizeMode, ...] = ("crop", "squash", "pad", "fit-crop")


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def legacy_bilinear(image: Pixels, height: int, width: int) -> np.ndarray:
    """TF1's resize_bilinear(align_corners=False), written out."""
    y, x = np.arange(height) * image.shape[0] / height, np.arange(width) * image.shape[1] / width
    y0, x0 = y.astype(int), x.astype(int)
    y1, x1 = np.minimum(y0 + 1, image.shape[0] - 1), np.minimum(x0 + 1, image.shape[1] - 1)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    bottom = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


def upright(stored: Pixels, orientation: int) -> Pixels:
    """What Pillow makes of the tag."""
    image = Image.fromarray(stored)
    image.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (31, 900), (1, 1), (40, 40_000)])
def test_squash_is_legacy_bilinear_over_the_whole_image(height: int, width: int) -> None:
    image = noise(height, width)
    difference = resize(image, 1, "squash", (96, 80)) - legacy_bilinear(image, 96, 80)
    assert np.abs(difference).max() <= 5  # warpAffine's positions have 5 fractional bits: 255 / 64
    assert np.abs(difference).mean() <= 1.2


def test_crop_keeps_the_central_seven_eighths_of_both_sides() -> None:
    image = noise(375, 500)
    top, left = int((375 - 375 * 0.875) / 2), int((500 - 500 * 0.875) / 2)
    inner = np.ascontiguousarray(image[top : 375 - top, left : 500 - left])
    assert np.array_equal(resize(image, 1, "crop", (331, 331)), resize(inner, 1, "squash", (331, 331)))


def test_fit_crop_keeps_the_middle_of_the_longer_side() -> None:
    image = noise(100, 300)
    middle = np.ascontiguousarray(image[:, 100:200])
    assert np.array_equal(resize(image, 1, "fit-crop", (50, 50)), resize(middle, 1, "squash", (50, 50)))


def test_pad_keeps_the_aspect_and_adds_black() -> None:
    padded = resize(np.full((100, 200, 3), 255, np.uint8), 1, "pad", (64, 64))
    assert (padded[16:48] == 255).all()
    assert (padded[:16] == 0).all()
    assert (padded[48:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_while_sampling_equals_turning_first(mode: ResizeMode, orientation: int) -> None:
    stored = noise(83, 131)
    turned = np.ascontiguousarray(upright(stored, orientation))
    assert is_transposed(orientation) == (turned.shape[0] == 131)
    direct = resize(stored, orientation, mode, (48, 60)).astype(int)
    assert np.abs(direct - resize(turned, 1, mode, (48, 60))).max() <= 9  # rounding of positions to 1/32


@given(
    st.integers(1, 200), st.integers(1, 200), st.sampled_from(MODES), st.integers(1, 8), st.integers(0, 255)
)
def test_a_plain_colour_stays_itself_at_any_shape(
    height: int, width: int, mode: ResizeMode, orientation: int, level: int
) -> None:
    image = np.full((height, width, 3), level, np.uint8)
    resized = resize(image, orientation, mode, (40, 24))
    assert resized.shape == (40, 24, 3)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= ({level, 0} if mode == "pad" else {level})
