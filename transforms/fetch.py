"""The bytes of one image by its URI, or the named reason why not.

No Beam in here: the query side fetches images too, and in the pipeline `transforms.load` calls
this from its threads.
"""

import errno
from dataclasses import dataclass, field

from transforms import storage, web
from transforms.errors import (
    ConnectionFailed,
    FetchFailure,
    InvalidURI,
    NotFound,
    PermissionDenied,
    TooManyBytes,
    UserError,
)
from transforms.records import EncodedImage
from transforms.web import WebLimits

_LONGEST_URI = 8192
_NOT_THERE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`max_bytes` of one encoded image, checked before the bytes are held in memory."""

    max_bytes: int = 64 << 20
    web: WebLimits = field(default_factory=WebLimits)

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"--max-bytes must be at least 1, not {self.max_bytes}")


def fetch_image(uri: str, limits: FetchLimits) -> EncodedImage:
    """Read at most `limits.max_bytes` bytes from any kind of URI; raises a `FetchFailure`."""
    if not uri or len(uri) > _LONGEST_URI or "\0" in uri:
        raise InvalidURI(f"a URI must have 1 to {_LONGEST_URI} characters and no NUL")
    if storage.scheme_of(uri) in ("http", "https"):
        return web.get(uri, limits.web, limits.max_bytes)
    return EncodedImage(_read(uri, limits.max_bytes), attempts=1)


def _read(uri: str, max_bytes: int) -> bytes:
    try:
        data = storage.read_bytes(uri, max_bytes + 1)
    except UserError as error:
        raise InvalidURI(str(error)) from error
    except (*storage.STORAGE_ERRORS, ValueError) as error:
        raise _named(error) from error
    if len(data) > max_bytes:
        raise TooManyBytes(f"more than {max_bytes:,} bytes (--max-bytes)")
    return data


def _named(error: Exception) -> FetchFailure:
    """Our failure for an error of the storage; S3 says some of them in words alone."""
    text = storage.first_line(error)
    if isinstance(error, ValueError):  # text that no file system takes as a name
        return InvalidURI(text)
    if isinstance(error, PermissionError) or "ACCESS_DENIED" in text:
        return PermissionDenied(text)
    if getattr(error, "errno", None) in _NOT_THERE or "Not a regular file" in text:
        return NotFound(text)
    return ConnectionFailed(text)
