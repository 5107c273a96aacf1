"""Files of an index, with the size and the digest that they had when they were written.

A size is checked before a file is opened, so what is cut off never reaches native code. The digest of
a file of at most 256 MiB is checked before it is first read, which takes 0.2 s at most; larger ones are
memory-mapped and would have to be read in for it. This guards against damage, not against somebody
who can write index.json too.
"""

import mmap
import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from transforms import storage
from transforms.errors import UserError

_DIGESTED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class SealedFile:
    """`name` is that in the folder of the index; `sha256` is hex, or "" where it isn't checked."""

    name: str
    size: int
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "sha256": self.sha256}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "SealedFile":
        name, size, digest = str(values["name"]), int(values["size"]), str(values["sha256"])
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no name of a file")
        return SealedFile(name, size, digest)


def seal(path: str, name: str, *, digest: bool) -> SealedFile:
    """What to remember of a local file that is about to be stored under this name.

    Without `digest` it holds plain numbers, any of which is a valid one.
    """
    size = os.path.getsize(path)
    return SealedFile(name, size, _digest(path) if digest and size <= _DIGESTED_BYTES else "")


def check_size(path: str, file: SealedFile) -> str:
    """The local path of a file, as it is; raises `UserError` unless it has its size."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {storage.first_line(error)}") from error
    if size != file.size:
        raise UserError(
            f"{path} is damaged (it has {size:,} bytes, not {file.size:,});"
            " build the index again with --rebuild"
        )
    return path


def check_digest(path: str, file: SealedFile) -> None:
    """Raises `UserError` if the content is not what was written."""
    if file.sha256 and _digest(path) != file.sha256:
        raise _another(path)


class MappedFile:
    """A sealed file, memory-mapped as long as this lives, even if it is removed meanwhile."""

    def __init__(self, path: str, file: SealedFile) -> None:
        """Raises `UserError` unless it has its size."""
        self.path = check_size(path, file)
        self._file = file
        with open(path, "rb") as opened:
            self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if file.size else b""

    def checked(self) -> mmap.mmap | bytes:
        """The content, after its digest was checked; raises `UserError`."""
        if self._file.sha256 and sha256(self._data).hexdigest() != self._file.sha256:
            raise _another(self.path)
        return self._data


def _another(path: str) -> UserError:
    return UserError(f"{path} is damaged (its digest is another); build the index again with --rebuild")


def _digest(path: str) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
