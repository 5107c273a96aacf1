"""Bytes to the model's pixels: formats, limits, orientation. No Beam, no TensorFlow.

The content decides the format, never a name. Limits are checked on the header, before anything is
allocated; decoding then takes at most nine bytes a pixel. ICC profiles are left alone, as in the
network's own evaluation. JPEG goes through libjpeg-turbo with TensorFlow's choice of DCT; the rest,
and the JPEGs that it does not know, through Pillow.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from transforms.errors import (
    CorruptImage,
    DecodeFailure,
    EmptyFile,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
    UserError,
)
from transforms.metadata import check_structure, exif_orientation
from transforms.resize import Pixels, ResizeMode, resize, upright_size

_EOI, _SOS = b"\xff\xd9", b"\xff\xda"

# Cost of decoding, in bytes a pixel: RGB and a progressive JPEG's coefficients, or Pillow's own copy.
_DECODING_BYTES = 9

# A progressive JPEG has about ten scans, and each one goes over all its pixels. At 2 G pixels in all
# (15 s here) more scans than that are an attack on the worker's time.
_USUAL_SCANS = 64
_MAX_SCANNED_PIXELS = 2_000_000_000

# Pixels that are converted to RGB at once, so that Pillow's copies stay small beside the image.
_BAND_PIXELS = 1 << 22

# What Pillow's decoders raise on hostile bytes; anything else is a bug of ours.
_DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Bytes to the model's input of (height, width): how, and within which limits."""

    height: int
    width: int
    resize: ResizeMode = "crop"
    max_pixels: int = 178_000_000
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels must be at least 1, not {self.max_pixels}")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes say: `width` and `height` as stored, `orientation` as in EXIF, 1 to 8."""

    format: str
    width: int
    height: int
    orientation: int

    @property
    def decoding_bytes(self) -> int:
        """The most memory that decoding takes."""
        return _DECODING_BYTES * self.width * self.height


@dataclass(frozen=True, slots=True)
class UprightImage:
    """`pixels` is (H, W, 3) uint8 RGB of the model's size; `width` and `height` the original's, upright."""

    pixels: Pixels
    width: int
    height: int
    format: str


def decode_image(data: bytes, preprocessing: Preprocessing) -> UprightImage:
    """The model's input from the bytes of an image file; raises a `DecodeFailure`."""
    return decode_pixels(data, read_header(data, preprocessing), preprocessing)


def read_header(data: bytes, preprocessing: Preprocessing) -> ImageHeader:
    """Format and size, with the limits checked; nothing is decoded yet. Raises a `DecodeFailure`."""
    if not data:
        raise EmptyFile("the file is empty")
    kind = image_format(data)
    with _named_errors():
        check_structure(data, kind, preprocessing.max_pixels)
        width, height = _stored_size(data, kind)
        _check_size(width, height, preprocessing.max_pixels)
        if kind == "jpeg":
            _check_scans(data.count(_SOS), width * height)
        return ImageHeader(kind, width, height, _orientation(data, kind))


def decode_pixels(data: bytes, header: ImageHeader, preprocessing: Preprocessing) -> UprightImage:
    """The second half of `decode_image`, whose cost `header.decoding_bytes` tells beforehand."""
    with _named_errors():
        if header.format == "jpeg":
            stored = _decode_jpeg(data, preprocessing.allow_truncated)
        else:
            stored = _decode_with_pillow(data, header.format)
    size = preprocessing.height, preprocessing.width
    pixels = resize(stored, header.orientation, preprocessing.resize, size)
    height, width = upright_size(stored, header.orientation)
    return UprightImage(pixels, width, height, header.format)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise CorruptImage(f"its header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(f"{width} x {height} pixels; the limit is {max_pixels:,} (--max-pixels)")


def _check_scans(scans: int, pixels: int) -> None:
    if scans > _USUAL_SCANS and scans * pixels > _MAX_SCANNED_PIXELS:
        raise TooManyPixels(f"{scans} scans of {pixels:,} pixels each")


# Formats.

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)

# Not decoded, but named: the reader of failures/ learns what the file is.
_KNOWN_OTHERS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
)
_TEXT_KINDS = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def image_format(data: bytes) -> str:
    """The format by its first bytes; raises `UnsupportedFormat` that says what it is instead."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and _is_avif(data):
        return "avif"
    raise UnsupportedFormat(f"not an image that is decoded here: {_describe(data)}")


def _is_avif(data: bytes) -> bool:
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 128)]
    return any(brands[i : i + 4] in _AVIF_BRANDS for i in range(0, len(brands), 4))


def _describe(data: bytes) -> str:
    for magic, name in _KNOWN_OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "HEIF" if data[8:12] in _HEIF_BRANDS else "an MP4-like container"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for opening, name in _TEXT_KINDS:
        if start.startswith(opening):
            return "SVG" if b"<svg" in start else name
    return f"it begins with {data[:8].hex(' ')}"


# Headers.


def _stored_size(data: bytes, kind: str) -> tuple[int, int]:
    """(width, height) by the header, without the allocations that some decoders begin with."""
    if kind == "webp":
        return _webp_size(data)
    if kind == "jpeg":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            return width, height
        except (ValueError, KeyError):  # a subsampling that only Pillow knows
            pass
    with _open(data, kind) as image:
        return image.size


def _webp_size(data: bytes) -> tuple[int, int]:
    """https://developers.google.com/speed/webp/docs/riff_container: the canvas of each kind of file."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation(data: bytes, kind: str) -> int:
    """EXIF's orientation, 1 to 8. TIFF is not asked: Pillow turns its pixels while it decodes them."""
    if kind == "jpeg":
        return exif_orientation(_jpeg_exif(data))
    if kind in ("png", "webp", "avif"):
        with _open(data, kind) as image:
            return exif_orientation(image.info.get("exif", b""))
    return 1


def _jpeg_exif(data: bytes) -> bytes:
    """The first EXIF segment, or nothing."""
    position = 2
    while data[position : position + 1] == b"\xff" and len(data) > position + 4:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            break
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return data[position + 4 : position + 2 + length]
        position += 1 if marker == 0xFF else 2 + length
    return b""


# Pixels.


def _decode_jpeg(data: bytes, allow_truncated: bool) -> Pixels:
    """As TensorFlow decodes: fast integer DCT, fancy upsampling; (H, W, 3) uint8 RGB as stored."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=True)  # type: ignore[no-any-return]
    except ValueError as error:
        return _decode_damaged_jpeg(data, str(error), allow_truncated)


def _decode_damaged_jpeg(data: bytes, complaint: str, allow_truncated: bool) -> Pixels:
    """Overlooks what libjpeg only warns of and browsers show, but neither a cut nor broken Huffman codes."""
    if "premature end" in complaint.lower() or data.rfind(_EOI) < data.rfind(_SOS):
        if not allow_truncated:
            raise TruncatedImage(f"{complaint} (--allow-truncated embeds what is there)")
    elif "Huffman" in complaint:
        raise CorruptImage(complaint)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=True, strict=False)  # type: ignore[no-any-return]
    except ValueError:  # CMYK, YCCK and rare subsamplings
        return _decode_with_pillow(data, "jpeg")


def _decode_with_pillow(data: bytes, kind: str) -> Pixels:
    """The first frame as (H, W, 3) uint8 RGB, on white where it is transparent."""
    with _open(data, kind) as image:
        image.load()
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _BAND_PIXELS // image.width)
        for top in range(0, image.height, rows):
            pixels[top : top + rows] = _rgb(image.crop((0, top, image.width, min(top + rows, image.height))))
    return pixels


def _rgb(band: Image.Image) -> Pixels:
    if band.mode in ("I", "F"):
        raise UnsupportedFormat(f"32-bit pixels (mode {band.mode}) have no known range of grey")
    if band.mode.startswith("I;16"):
        grey = np.asarray(band).astype(np.uint32)
        levels = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=2)
    if not band.has_transparency_data:
        return np.asarray(band.convert("RGB"))
    transparent = band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(transparent, mask=transparent.getchannel("A"))
    return np.asarray(white)


def _open(data: bytes, kind: str) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # our own limit stands in its place, for it can be set
    return Image.open(io.BytesIO(data), formats=[kind.upper()])


@contextmanager
def _named_errors() -> Iterator[None]:
    """A decoder's complaint as a `DecodeFailure`."""
    try:
        yield
    except DecodeFailure:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImage("its header cannot be read") from error
    except _DECODER_ERRORS as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, EOFError) or "truncated" in text.lower():
            raise TruncatedImage(text) from error
        raise CorruptImage(text) from error
