"""Decoding: formats, colours, orientation, limits, and bytes made to hurt."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.errors import (
    CorruptImage,
    DecodeFailure,
    EmptyFile,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
    UserError,
)
from transforms.image import Preprocessing, UprightImage, decode_image, image_format, read_header

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus"
SQUASH = Preprocessing(64, 64, "squash")


def picture(width: int = 120, height: int = 90) -> Image.Image:
    """A smooth gradient: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 / max(1, width - 1), y * 255 / max(1, height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def outcome(data: bytes, preprocessing: Preprocessing) -> UprightImage | DecodeFailure:
    try:
        return decode_image(data, preprocessing)
    except DecodeFailure as error:
        return error


def mean_difference(data: bytes, image: Image.Image) -> float:
    expected = decode_image(encoded(image.convert("RGB"), "PNG"), SQUASH).pixels
    return float(np.abs(decode_image(data, SQUASH).pixels.astype(int) - expected).mean())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_every_format_gives_the_picture_its_size_and_its_name(kind: str, options: dict[str, Any]) -> None:
    data = encoded(picture(), kind, **options)
    upright = decode_image(data, SQUASH)
    assert (upright.width, upright.height, upright.format) == (120, 90, kind.lower())
    assert upright.pixels.shape == (64, 64, 3)
    assert mean_difference(data, picture()) < 6


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_palettes_and_grey_become_rgb(mode: str) -> None:
    image = picture().convert(mode)
    for kind in ("PNG", "TIFF", "BMP"):
        assert mean_difference(encoded(image, kind), image) < 1


def test_grey_jpeg_has_three_equal_channels() -> None:
    pixels = decode_image(encoded(picture().convert("L"), "JPEG"), SQUASH).pixels
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg_keeps_its_colours() -> None:
    assert mean_difference(encoded(picture().convert("CMYK"), "JPEG", quality=95), picture()) < 3


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpeg_subsamplings(subsampling: str) -> None:
    data = simplejpeg.encode_jpeg(np.asarray(picture()), 95, colorsubsampling=subsampling)
    expected = picture().convert("L") if subsampling == "Gray" else picture()
    assert mean_difference(data, expected) < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    levels = np.linspace(0, 65535, 64, dtype=np.uint16)
    image = Image.fromarray(np.tile(levels, (64, 1)))
    pixels = decode_image(encoded(image, kind), SQUASH).pixels
    assert np.abs(pixels[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_what_is_transparent_is_white(kind: str) -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 20, 40))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encoded(clear, kind, **options), SQUASH).pixels.astype(int)
    assert np.abs(pixels[:, 40:] - 255).max() <= 4
    assert np.abs(pixels[:, :24] - [0, 0, 255]).max() <= 8


def test_half_transparent_is_halfway_to_white() -> None:
    grey = decode_image(encoded(Image.new("LA", (8, 8), (0, 128)), "PNG"), SQUASH).pixels
    assert set(np.unique(grey)) == {127}


def test_transparent_palette_entries_are_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 8, 16))
    for kind in ("PNG", "GIF"):
        pixels = decode_image(encoded(image, kind, transparency=0), SQUASH).pixels
        assert (pixels[:, :28] == 255).all()
        assert (pixels[:, 40:] == [0, 255, 0]).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(data, SQUASH).pixels.astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_every_format(kind: str, orientation: int) -> None:
    """Saved turned, with the tag that turns it back: always the same picture comes out."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(back[orientation]) if orientation > 1 else picture()
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(stored, kind, exif=exif.tobytes() if kind != "TIFF" else exif, quality=95)
    upright = decode_image(data, SQUASH)
    assert (upright.width, upright.height) == (120, 90)
    assert mean_difference(data, picture()) < 6


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_an_impossible_orientation_is_none(tag: int) -> None:
    exif = Image.Exif()
    exif[274] = tag
    assert read_header(encoded(picture(), "JPEG", exif=exif.tobytes()), SQUASH).orientation == 1


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode_image(data, SQUASH).width == 120


def test_the_content_decides_not_the_name() -> None:
    assert image_format(encoded(picture(), "PNG")) == "png"
    assert image_format(encoded(picture(), "AVIF")) == "avif"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (
            b"\xef\xbb\xbf <?xml version='1.0'?><!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg/>",
            "SVG",
        ),
        (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"hello", "68 65 6c 6c 6f"),
        (b"\0", "00"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, what: str) -> None:
    with pytest.raises(UnsupportedFormat, match=what):
        decode_image(data, SQUASH)


def test_an_empty_file_has_its_own_name() -> None:
    with pytest.raises(EmptyFile):
        decode_image(b"", SQUASH)


def test_float_pixels_are_refused_by_name() -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UnsupportedFormat, match="32-bit"):
        decode_image(data, SQUASH)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_jpeg_fails_unless_allowed(share: float, progressive: bool, mode: str) -> None:
    image = Image.effect_noise((200, 150), 90).convert(mode)
    whole = encoded(image, "JPEG", progressive=progressive)
    cut = whole[: int(len(whole) * (0.3 + 0.7 * share))]
    with pytest.raises(TruncatedImage):
        decode_image(cut, SQUASH)
    if mode != "CMYK":
        allowed = decode_image(cut, Preprocessing(64, 64, "squash", allow_truncated=True))
        assert (allowed.width, allowed.height) == (200, 150)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_a_cut_file_of_any_format_fails_by_name(kind: str) -> None:
    data = encoded(Image.effect_noise((200, 150), 90), kind)
    with pytest.raises((TruncatedImage, CorruptImage)):
        decode_image(data[: len(data) // 2], SQUASH)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = encoded(picture(), "JPEG")
    expected = decode_image(data, SQUASH).pixels
    assert np.array_equal(decode_image(data + b"trailing" * 100, SQUASH).pixels, expected)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + b"VP8 "


@pytest.mark.parametrize(
    "data",
    [
        png_header(60_000, 60_000),
        png_header(2**31 - 1, 2**31 - 1),
        webp_header(16_384, 16_384),
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["png", "png-2e31", "webp", "gif", "bmp"],
)
def test_a_huge_header_is_refused_before_anything_is_allocated(data: bytes) -> None:
    with pytest.raises(TooManyPixels, match="--max-pixels"):
        decode_image(data, SQUASH)


def test_max_pixels_is_the_largest_size_that_passes() -> None:
    data = encoded(picture(30, 20), "PNG")
    assert decode_image(data, Preprocessing(8, 8, max_pixels=600)).width == 30
    with pytest.raises(TooManyPixels, match="30 x 20"):
        decode_image(data, Preprocessing(8, 8, max_pixels=599))
    with pytest.raises(UserError, match="--max-pixels"):
        Preprocessing(8, 8, max_pixels=0)


def test_thousands_of_scans_are_refused() -> None:
    data = bytearray(encoded(picture(2000, 2000), "JPEG", progressive=True))
    start = data.rindex(b"\xff\xda")
    with pytest.raises(TooManyPixels, match="scans"):
        decode_image(bytes(data[:start] + data[start : start + 12] * 1000 + data[start:]), SQUASH)


@given(st.binary(max_size=300))
def test_random_bytes_end_as_a_named_failure(data: bytes) -> None:
    with pytest.raises(DecodeFailure):
        decode_image(data, SQUASH)


SEEDS = {
    kind: encoded(
        picture(40, 30), kind, **({"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"} if kind == "JPEG" else {})
    )
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=12),
    st.booleans(),
)
def test_mutated_files_end_as_an_image_or_a_named_failure(
    kind: str, changes: list[tuple[int, int]], allow_truncated: bool
) -> None:
    data = bytearray(SEEDS[kind])
    for position, value in changes:
        data[position % len(data)] = value
    limits = Preprocessing(16, 16, max_pixels=1_000_000, allow_truncated=allow_truncated)
    result = outcome(bytes(data), limits)
    assert str(result) if isinstance(result, DecodeFailure) else result.pixels.shape == (16, 16, 3)


needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason="the corpus lies beside the project only at times"
)


@needs_corpus
def test_every_odd_file_ends_as_an_image_or_a_named_failure() -> None:
    for path in sorted((CORPUS / "odd").iterdir()):
        result = outcome(path.read_bytes(), Preprocessing(331, 331))
        assert str(result) if isinstance(result, DecodeFailure) else result.pixels.shape == (331, 331, 3), (
            path
        )


@needs_corpus
def test_every_photograph_is_within_0_35_levels_of_tf_slims_preprocessing() -> None:
    import tensorflow as tf

    def reference(data: bytes) -> np.ndarray:
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_FAST")
        image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
        resized = tf.compat.v1.image.resize_bilinear(image[None], [331, 331], align_corners=False)
        return np.asarray(resized[0]) * 255

    paths = [
        path for path in sorted((CORPUS / "real").rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
    ]
    checked = 0
    for path in paths:
        data = path.read_bytes()
        if read_header(data, Preprocessing(331, 331)).orientation == 1:
            difference = decode_image(data, Preprocessing(331, 331)).pixels - reference(data)
            assert np.abs(difference).mean() <= 0.35, path
            checked += 1
    assert checked > 100
