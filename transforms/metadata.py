"""Image metadata that is not left to a decoder: orientation, and structures that attacks are made of.

Pillow copies every tag, comment and chunk; a megabyte of tags that point at the same bytes becomes
gigabytes. What is read here is read in place, and refused before Pillow sees it.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from transforms.errors import CorruptImage, TooManyPixels, UnsupportedFormat

_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 0x112, 0x142, 0x143

# TIFF 6.0, section 2, and BigTIFF: bytes of a value of each type.
_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

# Tags may overlap a little; photographs have some thirty, of some kilobytes.
_FREE_TAG_BYTES = 1 << 20
# Pillow joins a GIF's comments block by block, in quadratic time.
_MAX_GIF_EXTENSION_BYTES = 1 << 20
# An IDAT chunk usually holds 8 KB or more: 64 MiB are 8,192 chunks. Each costs Pillow 15 us.
_MAX_PNG_CHUNKS = 100_000
# Pillow unpacks run lengths in Python (0.2 us a pixel), and one code can skip 255 lines.
_MAX_RLE_PIXELS, _MAX_RLE_WIDTH = 1 << 24, 1 << 15


class Tag(NamedTuple):
    """An entry of a TIFF directory; `value` where it is one integer that stands in the entry."""

    number: int
    size: int
    value: int | None


def exif_orientation(segment: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block; 1 if it says none, or is damaged."""
    body = segment.removeprefix(b"Exif\0\0")
    value = next((tag.value for tag in _tags(body) if tag.number == _ORIENTATION), None)
    return value if value is not None and 1 <= value <= 8 else 1


def check_structure(data: bytes, kind: str, max_pixels: int) -> None:
    """Raises a `DecodeFailure` for files whose parts, not their pixels, are made to cost time or memory."""
    if kind == "tiff":
        _check_tags(data, max_pixels)
    elif kind == "gif":
        _check_extensions(data)
    elif kind == "png":
        _check_chunks(data)
    elif kind == "bmp":
        _check_run_lengths(data)


def _tags(data: bytes) -> Iterator[Tag]:
    """The entries of the first directory of a TIFF, BigTIFF or EXIF block, as far as they are there."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    head, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    head_bytes, entry_bytes = struct.calcsize("<" + head), struct.calcsize("<" + entry) + inline
    if offset + head_bytes > len(data):
        return
    count = struct.unpack_from(order + head, data, offset)[0]
    first = offset + head_bytes
    for start in range(first, min(first + count * entry_bytes, len(data) - entry_bytes + 1), entry_bytes):
        number, kind, values = struct.unpack_from(order + entry, data, start)
        size = _TYPE_BYTES.get(kind, 1) * values
        single = values == 1 and kind in _INTEGERS and size <= inline
        place = start + entry_bytes - inline
        yield Tag(
            number, size, struct.unpack_from(order + _INTEGERS[kind], data, place)[0] if single else None
        )


def _check_tags(data: bytes, max_pixels: int) -> None:
    tags = list(_tags(data))
    if sum(min(tag.size, len(data)) for tag in tags) > len(data) + _FREE_TAG_BYTES:
        raise CorruptImage("its tags claim more bytes than the file has")
    sides = {tag.number: tag.value or 0 for tag in tags}
    if sides.get(_TILE_WIDTH, 0) * sides.get(_TILE_LENGTH, 0) > max_pixels:
        raise TooManyPixels(f"a tile of {sides[_TILE_WIDTH]} x {sides[_TILE_LENGTH]} pixels (--max-pixels)")


def _check_extensions(data: bytes) -> None:
    """GIF89a, section 15: blocks up to the first image, each in sub-blocks of at most 255 bytes."""
    flags = data[10] if len(data) > 10 else 0
    position = start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[position : position + 1] == b"\x21":
        position += 2
        while position < len(data) and data[position]:
            position += data[position] + 1
        position += 1
        if position - start > _MAX_GIF_EXTENSION_BYTES:
            raise CorruptImage("more than a megabyte of comments comes before its first frame")


def _check_chunks(data: bytes) -> None:
    position, count = 8, 0
    while position + 8 <= len(data):
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        count += 1
        if count > _MAX_PNG_CHUNKS:
            raise CorruptImage(f"more than {_MAX_PNG_CHUNKS:,} chunks")


def _check_run_lengths(data: bytes) -> None:
    """BITMAPINFOHEADER: compression 1 and 2 are run lengths."""
    if len(data) < 34:
        return
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    pixels = abs(width) * abs(height)
    if compression in (1, 2) and (pixels > _MAX_RLE_PIXELS or abs(width) > _MAX_RLE_WIDTH):
        raise UnsupportedFormat(f"a run-length BMP of {abs(width)} x {abs(height)} pixels takes too long")
