"""Orientation tags read in place, and files whose structure is the attack."""

import io
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transforms.errors import CorruptImage, DecodeFailure, TooManyPixels, UnsupportedFormat
from transforms.image import Preprocessing, decode_image
from transforms.metadata import exif_orientation

PREPROCESSING = Preprocessing(8, 8)


def directory(*entries: bytes, order: str = "<") -> bytes:
    """A TIFF header and its first directory."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4)


def entry(number: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HHI", number, kind, count) + value.ljust(4, b"\0")


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


IHDR = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
IDAT = (b"IDAT", zlib.compress(bytes(4)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_in_both_byte_orders(order: str, value: int) -> None:
    tag = entry(0x112, 3, 1, struct.pack(order + "H", value), order)
    assert exif_orientation(b"Exif\0\0" + directory(tag, order=order)) == value


def test_orientation_stored_as_a_byte() -> None:
    assert exif_orientation(directory(entry(0x112, 1, 1, b"\x06"))) == 6


@pytest.mark.parametrize(
    "tag", [entry(0x112, 3, 1, b"\0\0"), entry(0x112, 3, 1, b"\x09\0"), entry(0x112, 3, 2, b"\x06\0\x06\0")]
)
def test_an_orientation_that_is_none(tag: bytes) -> None:
    assert exif_orientation(directory(tag)) == 1


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"]),
)
def test_any_bytes_have_some_orientation(body: bytes, head: bytes) -> None:
    assert 1 <= exif_orientation(head + body) <= 8


@given(st.binary(max_size=200), st.sampled_from([b"II*\0\x08\0\0\0", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM"]))
def test_any_structure_ends_as_a_named_failure(body: bytes, head: bytes) -> None:
    with pytest.raises(DecodeFailure):
        decode_image(head + body, PREPROCESSING)


def test_exif_whose_tags_share_a_megabyte_costs_nothing() -> None:
    tags = [entry(40_000 + i, 7, 1_000_000, struct.pack("<I", 60_000)) for i in range(3000)]
    exif = directory(*tags) + bytes(1_100_000)
    start = time.perf_counter()
    assert decode_image(png(IHDR, (b"eXIf", exif), IDAT, (b"IEND", b"")), PREPROCESSING).width == 1
    assert time.perf_counter() - start < 1


def test_a_tiff_whose_tags_share_a_megabyte_is_refused() -> None:
    tags = [entry(40_000 + i, 7, 1_000_000, struct.pack("<I", 60_000)) for i in range(3000)]
    with pytest.raises(CorruptImage, match="tags claim more"):
        decode_image(directory(*tags) + bytes(1_100_000), PREPROCESSING)


def test_a_tile_larger_than_the_limit_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "TIFF")
    tile = [entry(number, 4, 1, struct.pack("<I", 24_000)) for number in (322, 323)]
    with pytest.raises(TooManyPixels, match="a tile of 24000 x 24000"):
        decode_image(directory(*tile) + buffer.getvalue(), PREPROCESSING)


def test_megabytes_of_gif_comments_are_refused_at_once() -> None:
    comments = b"\x21\xfe" + (b"\xff" + bytes(255)) * 30_000 + b"\0"
    start = time.perf_counter()
    with pytest.raises(CorruptImage, match="comments"):
        decode_image(b"GIF89a\x01\0\x01\0\0\0\0" + comments + b"\x3b", PREPROCESSING)
    assert time.perf_counter() - start < 1


def test_a_million_png_chunks_are_refused_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(CorruptImage, match="100,000 chunks"):
        decode_image(png(IHDR) + png((b"prVt", b""))[8:] * 1_000_000, PREPROCESSING)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("width", [20_000_000, 40_000])
def test_a_run_length_bmp_that_unpacks_to_gigabytes_is_refused(width: int) -> None:
    header = struct.pack("<IHHIIiiHHIIiiII", 1082, 0, 0, 1078, 40, width, 1, 1, 8, 1, 0, 0, 0, 0, 0)
    with pytest.raises(UnsupportedFormat, match="run-length"):
        decode_image(b"BM" + header + bytes(1024) + b"\0\x02\xff\xff", PREPROCESSING)
