"""Rendered images with known labels: what the small model is trained on and `make demo` embeds.

A picture is two painted layers and a mask that chooses between them; the mask is the class. Colours,
light, blur and grain say nothing about it. Lengths are shares of the image's shorter side, so that a
class looks the same at every size.
"""

import colorsys
import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from transforms.errors import UserError

# Planes are float32 in fact: twice as fast here as float64.
Plane = NDArray[np.floating[Any]]
Outline = NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])
_SUBPIXEL_BITS = 4

# The model's preprocessing keeps the central 87.5 % of both sides: a shape lies inside that.
_VISIBLE = 0.875


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A coordinate system laid over an image: `x`, `y` are (height, width), `pixel` is a pixel's side."""

    x: Plane
    y: Plane
    pixel: float


def render_image(rng: np.random.Generator, label: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image of class `CLASSES[label]`, RGB of shape (height, width, 3); `size` is (height, width).

    Every size works, but below 64 pixels a class may not be recognizable.
    """
    mask = _blur(rng, _MASKS[CLASSES[label]](rng, size))
    ground_colour, figure_colour = _draw_colours(rng)
    ground = _paint_layer(rng, size, ground_colour)
    figure = _paint_layer(rng, size, figure_colour)
    planes = (figure - ground) * mask
    planes += ground
    planes += _grain(rng, size)
    levels = (np.clip(planes, 0, 1, out=planes) * 255).astype(np.uint8)
    return np.asarray(cv2.merge(list(levels)))


def write_samples(folder: str, count: int, seed: int) -> None:
    """Write `count` JPEG files and `labels.csv` (columns `path`, `label`), which is written last.

    Classes take turns. Image i depends on `seed` and i alone, not on `count`. Raises `UserError` if
    `count` is below 1, `seed` is negative or the folder cannot be written to.
    """
    if count < 1:
        raise UserError(f"--count must be at least 1, not {count}")
    if seed < 0:
        raise UserError(f"--seed must not be negative, not {seed}")
    try:
        os.makedirs(folder, exist_ok=True)
        rows = [_write_image(folder, index, seed) for index in range(count)]
        with open(os.path.join(folder, "labels.csv"), "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error


def render_sample(seed: int, index: int) -> bytes:
    """Image `index` of `seed` as JPEG, of varied size and quality; its class is `index` mod the classes."""
    rng = np.random.default_rng([seed, index])
    image = render_image(rng, index % len(CLASSES), _draw_size(rng))
    quality = int(rng.integers(60, 96))
    return simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")  # type: ignore[no-any-return]


def _write_image(folder: str, index: int, seed: int) -> tuple[str, str]:
    label = CLASSES[index % len(CLASSES)]
    name = f"{index:05d}-{label}.jpg"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(render_sample(seed, index))
    return name, label


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """(height, width): both in 120..480 pixels, their ratio between 3:4 and 4:3."""
    longer = int(rng.integers(160, 481))
    shorter = math.ceil(longer * rng.uniform(0.75, 1.0))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


# Colour and light.


def _draw_colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Two RGB colours of unrelated hue whose luma differs by 0.38 or more, either one the lighter."""
    dark = rng.uniform(0.08, 0.5)
    light = rng.uniform(dark + 0.38, 0.95)
    first, second = (dark, light) if rng.random() < 0.5 else (light, dark)
    return _draw_tone(rng, first), _draw_tone(rng, second)


def _draw_tone(rng: np.random.Generator, luma: float) -> Plane:
    """A colour of exactly this luma: a random hue, shaded with black or tinted with white."""
    pure = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.85), 1.0))
    own = float(pure @ _LUMA)
    tone = pure * (luma / own) if luma < own else pure + (1 - pure) * ((luma - own) / (1 - own))
    return tone.astype(np.float32)


def _paint_layer(rng: np.random.Generator, size: tuple[int, int], colour: Plane) -> Plane:
    """Flat, graded from side to side, or cloudy: (3, height, width), or (3, 1, 1) where it is flat."""
    kind = rng.integers(3)
    if kind == 0:
        return colour[:, None, None]
    relief = _ramp(rng, size) if kind == 1 else 0.5 * _noise(rng, size, 0.3)
    return colour[:, None, None] + rng.uniform(0.04, 0.12) * relief


def _ramp(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    """From about -1 on one side to 1 on the other."""
    return 1.5 * _lay_canvas(size, (0.5, 0.5), rng.uniform(0, 2 * math.pi)).x


def _blur(rng: np.random.Generator, mask: Plane) -> Plane:
    """Half of the images are out of focus. The layers are smooth: blurring their border is enough."""
    if rng.random() < 0.5:
        return mask
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.002, 0.008) * min(mask.shape)))


def _grain(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    return rng.standard_normal(size, np.float32) * rng.uniform(0, 0.03)


# Coordinates, noise and edges.


def _lay_canvas(size: tuple[int, int], origin: tuple[float, float], angle: float) -> _Canvas:
    """Turned by `angle` around `origin`, a point given in shares of (height, width)."""
    height, width = size
    side = min(size)
    y = (np.arange(height, dtype=np.float32)[:, None] - origin[0] * height) / side
    x = (np.arange(width, dtype=np.float32)[None, :] - origin[1] * width) / side
    cos, sin = math.cos(angle), math.sin(angle)
    return _Canvas(cos * x - sin * y, sin * x + cos * y, 1 / side)


def _draw_canvas(rng: np.random.Generator, size: tuple[int, int]) -> _Canvas:
    """Any angle, the origin in the middle ninth of the image."""
    origin = (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))
    return _lay_canvas(size, origin, rng.uniform(0, 2 * math.pi))


def _noise(rng: np.random.Generator, size: tuple[int, int], scale: float) -> Plane:
    """(height, width), about standard normal, smooth over `scale` of the shorter side."""
    height, width = (math.ceil(length / min(size) / scale) + 3 for length in size)
    knots = rng.standard_normal((height, width), np.float32)
    return np.asarray(cv2.resize(knots, size[::-1], interpolation=cv2.INTER_CUBIC))


def _inside(distance: Plane, pixel: float) -> Plane:
    """0 to 1: how much of a pixel lies where `distance` is positive, in units of which it is `pixel` wide."""
    share: Plane = np.clip(distance / pixel + 0.5, 0, 1)
    return share


def _bands(position: Plane, share: float, pixel: float) -> Plane:
    """Bands around the whole numbers, covering `share` of the unit."""
    return _inside(share / 2 - np.abs(position - np.rint(position)), pixel)


# Textures, which cover the image.


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, period = _draw_canvas(rng, size), rng.uniform(0.12, 0.26)
    return _bands(canvas.x / period, rng.uniform(0.35, 0.65), canvas.pixel / period)


def _waves(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, period, length = _draw_canvas(rng, size), rng.uniform(0.14, 0.24), rng.uniform(0.35, 0.5)
    swing = rng.uniform(0.16, 0.24) * length * np.sin(canvas.y * (2 * math.pi / length))
    return _bands((canvas.x + swing) / period, rng.uniform(0.4, 0.6), canvas.pixel / period)


def _checkers(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, side = _draw_canvas(rng, size), rng.uniform(0.1, 0.2)
    column, row = (_bands(axis / (2 * side), 0.5, canvas.pixel / side / 2) for axis in (canvas.x, canvas.y))
    return column + row - 2 * column * row


def _dots(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, period = _draw_canvas(rng, size), rng.uniform(0.16, 0.26)
    x, y = canvas.x / period, canvas.y / period
    distance = np.hypot(x - np.rint(x), y - np.rint(y))
    return _inside(rng.uniform(0.27, 0.38) - distance, canvas.pixel / period)


def _bricks(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, course = _draw_canvas(rng, size), rng.uniform(0.13, 0.2)
    aspect, joint = rng.uniform(1.8, 2.4), rng.uniform(0.2, 0.28)
    row = canvas.y / course
    column = canvas.x / (course * aspect) + 0.5 * np.floor(row)
    bed = _bands(row, joint, canvas.pixel / course)
    return 1 - np.maximum(bed, _bands(column, joint / aspect, canvas.pixel / (course * aspect)))


def _marble(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    """Veins where noise crosses zero."""
    noise = _noise(rng, size, rng.uniform(0.2, 0.3)) + 0.4 * _noise(rng, size, 0.1)
    return np.clip(1.4 - np.abs(noise) * rng.uniform(2, 3.2), 0, 1)


def _spiral(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, period = _draw_canvas(rng, size), rng.uniform(0.16, 0.26)
    radius, angle = cv2.cartToPolar(canvas.x, canvas.y)
    turns = angle * (math.copysign(1, rng.uniform(-1, 1)) / (2 * math.pi))
    return _bands(radius / period + turns, rng.uniform(0.4, 0.6), canvas.pixel / period)


def _rays(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    canvas, count = _draw_canvas(rng, size), int(rng.integers(7, 13))
    radius, angle = cv2.cartToPolar(canvas.x, canvas.y)
    position = angle * (count / (2 * math.pi))
    gap = rng.uniform(0.4, 0.6) / 2 - np.abs(position - np.rint(position))
    return _inside(gap * radius * (2 * math.pi / count), canvas.pixel)


# Shapes: outlines within the unit circle; where two overlap there is a hole.


def _disc(rng: np.random.Generator) -> Sequence[Outline]:
    return [_arc(0, 2 * math.pi)]


def _ring(rng: np.random.Generator) -> Sequence[Outline]:
    return [_arc(0, 2 * math.pi), rng.uniform(0.5, 0.7) * _arc(0, 2 * math.pi)]


def _square(rng: np.random.Generator) -> Sequence[Outline]:
    return [_corners(4)]


def _triangle(rng: np.random.Generator) -> Sequence[Outline]:
    return [_corners(3)]


def _star(rng: np.random.Generator) -> Sequence[Outline]:
    radii = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    return [_corners(10) * radii[:, None]]


def _cross(rng: np.random.Generator) -> Sequence[Outline]:
    arm = rng.uniform(0.22, 0.34)
    corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    return [np.concatenate([corner @ _turn(quarter * math.pi / 2) for quarter in range(4)])]


def _crescent(rng: np.random.Generator) -> Sequence[Outline]:
    """The outer circle from horn to horn, and back along a second circle whose centre is shifted."""
    horn, shift = rng.uniform(0.7, 0.95), rng.uniform(0.35, 0.5)
    x, y = math.cos(horn), math.sin(horn)
    bite = math.atan2(y, x - shift)
    inner = np.array([shift, 0]) + math.hypot(x - shift, y) * _arc(2 * math.pi - bite, bite)
    return [np.concatenate([_arc(horn, 2 * math.pi - horn), inner])]


def _heart(rng: np.random.Generator) -> Sequence[Outline]:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17]


def _arc(start: float, stop: float) -> Outline:
    angles = np.linspace(start, stop, 64)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _corners(count: int) -> Outline:
    angles = np.arange(count) * (2 * math.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _turn(angle: float) -> Outline:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([(cos, sin), (-sin, cos)])


def _shape(
    draw_outlines: Callable[[np.random.Generator], Sequence[Outline]],
    rng: np.random.Generator,
    size: tuple[int, int],
) -> Plane:
    """The outlines filled: at any angle, 0.27 to 0.4 in radius, wholly inside the visible part."""
    radius = rng.uniform(0.27, 0.4) * min(size)
    sides = np.array(size[::-1])
    centre = sides / 2 + (_VISIBLE / 2 * sides - radius) * rng.uniform(-1, 1, 2)
    turn = radius * _turn(rng.uniform(0, 2 * math.pi))
    points = [(outline @ turn + centre) * 2**_SUBPIXEL_BITS for outline in draw_outlines(rng)]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.rint(p).astype(np.int32) for p in points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255


_MASKS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Plane]] = {
    "disc": partial(_shape, _disc),
    "ring": partial(_shape, _ring),
    "square": partial(_shape, _square),
    "triangle": partial(_shape, _triangle),
    "star": partial(_shape, _star),
    "cross": partial(_shape, _cross),
    "crescent": partial(_shape, _crescent),
    "heart": partial(_shape, _heart),
    "stripes": _stripes,
    "waves": _waves,
    "checkers": _checkers,
    "dots": _dots,
    "bricks": _bricks,
    "marble": _marble,
    "spiral": _spiral,
    "rays": _rays,
}
CLASSES: tuple[str, ...] = tuple(_MASKS)
