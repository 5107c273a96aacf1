"""Files by URI: local paths, file://, gs://, s3:// and hdfs://, through pyarrow.fs.

Everything that touches a file system goes through here, so that a run folder, a list and an
image may each lie anywhere. http(s) is not storage: see `transforms.web`.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from transforms.errors import UserError

REMOTE_SCHEMES = ("gs", "s3", "hdfs", "abfs", "abfss")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_WILDCARD = re.compile(r"[*?\[]")

# What pyarrow raises when storage says no; OSError covers FileNotFoundError and PermissionError.
STORAGE_ERRORS = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class FileInfo:
    uri: str
    size: int


def scheme_of(uri: str) -> str:
    """The scheme in lower case; "" for a plain local path."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else ""


def is_local(uri: str) -> bool:
    return scheme_of(uri) in ("", "file")


def local_path(uri: str) -> str:
    """The path of a local URI; percent escapes of file:// are bytes, so any file name can be said."""
    if scheme_of(uri) != "file":
        return uri
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{uri}: file:// must name a local path, as in file:///photos/1.jpg")
    return os.fsdecode(unquote_to_bytes(parts.path))


def local_uri(path: str) -> str:
    """The path itself, or a file:// URI where the path is not valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def resolve(text: str, base: str) -> str:
    """The absolute URI for `text`, which may be relative to the folder `base`."""
    if scheme_of(text):
        return text
    if not is_local(base):
        return text if text.startswith("/") else join(base, text)
    return local_uri(os.path.normpath(os.path.join(os.path.abspath(local_path(base)), text)))


def join(folder: str, *names: str) -> str:
    return "/".join((folder.rstrip("/") or "", *names))


def parent(uri: str) -> str:
    if is_local(uri):
        return os.path.dirname(os.path.abspath(local_path(uri)))
    return uri.rstrip("/").rsplit("/", 1)[0]


def exists(uri: str) -> bool:
    return _info(uri).type != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    return bool(_info(uri).type == fs.FileType.Directory)


def is_pattern(uri: str) -> bool:
    """True for a glob; a path that exists as it stands is never one, whatever its characters."""
    return bool(_WILDCARD.search(uri)) and not (is_local(uri) and os.path.lexists(local_path(uri)))


def open_input(uri: str) -> IO[bytes]:
    """A seekable binary file; raises OSError as pyarrow does. Never follows a FIFO or a device."""
    if is_local(uri):
        path = local_path(uri)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError(f"{path} is not a regular file")
        return open(path, "rb")
    filesystem, path = _locate(uri)
    return filesystem.open_input_file(path)  # type: ignore[no-any-return]


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes."""
    with open_input(uri) as file:
        return file.read(-1 if limit is None else limit)


def write_whole(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file that appears whole or not at all, and replaces one of that name.

    Locally: a temporary name beside it, fsync, rename, fsync of the folder. On object stores an
    upload shows only when it is complete.
    """
    if not is_local(uri):
        filesystem, path = _locate(uri)
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    path = local_path(uri)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(memoryview(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove_quietly(temporary)
        raise
    _sync_folder(folder)


def delete(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    if is_local(uri):
        _remove_quietly(local_path(uri))
    elif exists(uri):
        filesystem, path = _locate(uri)
        filesystem.delete_file(path)


def list_files(folder: str, *, recursive: bool = True) -> Iterator[FileInfo]:
    """Regular files below a folder that are not hidden, in order of name; a missing folder has none.

    Links to files are followed, links to folders are not, so that no loop can be walked.
    """
    if is_local(folder):
        yield from _walk(local_path(folder), recursive)
        return
    filesystem, path = _locate(folder)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    scheme = scheme_of(folder)
    for info in sorted(filesystem.get_file_info(selector), key=lambda info: info.path):
        relative = info.path[len(path) :]
        if info.type == fs.FileType.File and not _is_hidden(relative):
            yield FileInfo(_uri(scheme, folder, info.path), info.size)


def match_files(pattern: str) -> Iterator[FileInfo]:
    """Files that match a glob: `*`, `?` and `[…]` within a name, `**` across folders."""
    fixed = pattern[: _WILDCARD.search(pattern).start()]  # type: ignore[union-attr]
    folder = fixed.rsplit("/", 1)[0] if "/" in fixed else "."
    expression = _translate(pattern if "/" in pattern else f"./{pattern}")
    recursive = "**" in pattern or "/" in pattern[len(folder) + 1 :]
    for info in list_files(folder or "/", recursive=recursive):
        if expression.fullmatch(info.uri):
            yield info


def _translate(pattern: str) -> "re.Pattern[str]":
    parts = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def piece(token: str) -> str:
        if token in parts:
            return parts[token]
        if len(token) > 2 and token[0] == "[":
            inner = token[1:-1].replace("\\", "\\\\")
            return f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"
        return re.escape(token)

    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]|.", pattern, re.DOTALL)
    return re.compile("".join(piece(token) for token in tokens), re.DOTALL)


def _walk(folder: str, recursive: bool) -> Iterator[FileInfo]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if recursive:
                yield from _walk(entry.path, recursive)
        elif not entry.is_dir():
            yield FileInfo(local_uri(entry.path), _size(entry))


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: it is listed, and fails when it is fetched
        return 0


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/") if part)


def _uri(scheme: str, folder: str, path: str) -> str:
    if scheme == "hdfs":
        return f"hdfs://{urlsplit(folder).netloc}{path}"
    return f"{scheme}://{path}"


def _info(uri: str) -> fs.FileInfo:
    filesystem, path = _locate(uri)
    return filesystem.get_file_info(path)


def _locate(uri: str) -> tuple[fs.FileSystem, str]:
    scheme = scheme_of(uri)
    if scheme in ("", "file"):
        return fs.LocalFileSystem(), os.path.abspath(local_path(uri))
    host, _, key = uri[len(scheme) + 3 :].partition("/")
    if scheme == "hdfs":
        return _filesystem(f"hdfs://{host}"), "/" + key
    return _filesystem(f"{scheme}://{host}"), f"{host}/{key}".rstrip("/")


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    if scheme_of(root) not in REMOTE_SCHEMES:
        raise UserError(
            f"{root}…: cannot read {scheme_of(root)}://; known are local paths, file, gs, s3, hdfs"
        )
    try:
        return fs.FileSystem.from_uri(root)[0]
    except STORAGE_ERRORS as error:
        raise UserError(f"cannot open {root}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remove_quietly(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        return


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(uri: str) -> str:
    return read_bytes(uri).decode()
