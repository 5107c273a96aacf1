"""The image size that a TF1 Hub module declares: its attachment `image_module_info`, written and read.

tensorflow_hub dropped these messages with version 0.16, so here they are by their field numbers:
ModuleAttachment{1: key, 2: value}, ImageModuleInfo{1: default_image_size{1: height, 2: width}}.
"""

from collections.abc import Iterator

COLLECTION = "hub_module_attachments"
_KEY = b"image_module_info"
_VARINT, _BYTES = 0, 2


def encode_image_size(height: int, width: int) -> bytes:
    """The attachment of an image module that takes height x width pixels."""
    size = _number(1, height) + _number(2, width)
    return _bytes(1, _KEY) + _bytes(2, _bytes(1, size))


def decode_image_size(attachment: bytes) -> tuple[int, int] | None:
    """(height, width) from one attachment; None if it is another one or does not say."""
    message = dict(_fields(attachment))
    if message.get(1) != _KEY:
        return None
    size = _inner(_inner(message, 2), 1)
    height, width = size.get(1), size.get(2)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _inner(message: dict[int, int | bytes], field: int) -> dict[int, int | bytes]:
    value = message.get(field)
    return dict(_fields(value)) if isinstance(value, bytes) else {}


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message up to the first of a kind that these messages do not have."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 not in (_VARINT, _BYTES):
            return
        value, position = _read_varint(data, position)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        else:
            yield tag >> 3, data[position : position + value]
            position += value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[position:]:
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, position


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """A number as protocol buffers write it: seven bits a byte, the low ones first."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
