"""The image size in a module's attachment."""

from hypothesis import given
from hypothesis import strategies as st

from transforms.model.attachment import decode_image_size, encode_image_size

# The attachment of a module in TF1 Hub format that takes 224 x 224 pixels, byte for byte.
MOBILE = b"\n\x11image_module_info\x12\x08\n\x06\x08\xe0\x01\x10\xe0\x01"


def test_bytes_are_those_of_a_module() -> None:
    assert encode_image_size(224, 224) == MOBILE
    assert decode_image_size(MOBILE) == (224, 224)


@given(st.integers(1, 1 << 31), st.integers(1, 1 << 31))
def test_any_size_reads_back(height: int, width: int) -> None:
    assert decode_image_size(encode_image_size(height, width)) == (height, width)


def test_other_attachments_say_no_size() -> None:
    assert decode_image_size(MOBILE.replace(b"image", b"sound")) is None
    assert decode_image_size(b"\n\x11image_module_info") is None


@given(st.binary() | st.binary().map(lambda tail: MOBILE[:20] + tail))
def test_damaged_attachments_do_no_harm(data: bytes) -> None:
    size = decode_image_size(data)
    assert size is None or all(side >= 0 for side in size)
