"""Where the model's pixels lie in an image: crops, orientation, and the one sampling step.

Every mode samples on the grid of TF1's `resize_bilinear(align_corners=False)`, with which TF-Slim
evaluates this network (inception_preprocessing.py): output pixel i reads source position
i * source / target, without half-pixel centres and without antialiasing.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
ResizeMode = Literal["crop", "squash", "pad", "fit-crop"]

# TF-Slim, inception_preprocessing.preprocess_for_eval: central_fraction.
_CENTRAL_FRACTION = 0.875

# EXIF orientation to (transposed, x reversed, y reversed): how a stored pixel is found from an upright one.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


def is_transposed(orientation: int) -> bool:
    """Whether the upright image is as wide as the stored one is high."""
    return _ORIENTATIONS[orientation][0]


def upright_size(stored: Pixels, orientation: int) -> tuple[int, int]:
    """(height, width) of the stored pixels once they are turned."""
    height, width = stored.shape[:2]
    return (width, height) if is_transposed(orientation) else (height, width)


def resize(stored: Pixels, orientation: int, mode: ResizeMode, size: tuple[int, int]) -> Pixels:
    """The upright (height, width, 3) uint8 image of `size` from the stored pixels, read once.

    `orientation` is EXIF's, 1 to 8. `crop` keeps the central 87.5 % of both sides, `squash` all of
    them; `fit-crop` the largest centred box of the target's shape; `pad` all, with black around.
    """
    upright = upright_size(stored, orientation)
    if mode == "pad":
        return _pad(stored, orientation, upright, size)
    return _sample(stored, orientation, _source_box(mode, upright, size), size)


def _source_box(mode: ResizeMode, upright: tuple[int, int], size: tuple[int, int]) -> Box:
    height, width = upright
    if mode == "squash":
        return Box(0, 0, width, height)
    if mode == "crop":  # tf.image.central_crop: the same rounding
        top, left = (int((side - side * _CENTRAL_FRACTION) / 2) for side in upright)
        return Box(left, top, width - 2 * left, height - 2 * top)
    scale = min(height / size[0], width / size[1])
    inner = [max(1, round(scale * target)) for target in size]
    return Box((width - inner[1]) // 2, (height - inner[0]) // 2, inner[1], inner[0])


def _pad(stored: Pixels, orientation: int, upright: tuple[int, int], size: tuple[int, int]) -> Pixels:
    scale = min(size[0] / upright[0], size[1] / upright[1])
    height, width = (max(1, round(side * scale)) for side in upright)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padded = np.zeros((*size, 3), np.uint8)
    box = Box(0, 0, upright[1], upright[0])
    padded[top : top + height, left : left + width] = _sample(stored, orientation, box, (height, width))
    return padded


def _sample(stored: Pixels, orientation: int, box: Box, size: tuple[int, int]) -> Pixels:
    """Resize a box of the upright image; turning is part of the same affine map."""
    transposed, reverse_x, reverse_y = _ORIENTATIONS[orientation]
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    if transposed:
        rows, columns = columns, rows
    view = stored[_mirrored(rows, stored.shape[0], reverse_y), _mirrored(columns, stored.shape[1], reverse_x)]
    height, width = view.shape[:2]
    along = np.diag([box.width / size[1], box.height / size[0]])
    linear = along[::-1] if transposed else along
    signs = np.array([-1.0 if reverse_x else 1.0, -1.0 if reverse_y else 1.0])
    origin = np.array([width - 1.0 if reverse_x else 0.0, height - 1.0 if reverse_y else 0.0])
    matrix = np.column_stack([signs[:, None] * linear, origin])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    target = size[::-1]
    return np.asarray(cv2.warpAffine(view, matrix, target, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _mirrored(span: slice, side: int, reverse: bool) -> slice:
    return slice(side - span.stop, side - span.start) if reverse else span
