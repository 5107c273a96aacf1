"""Files by URI: local paths, file://, gs://, s3:// and hdfs://, through pyarrow.fs.

Everything that touches a file system goes through here, so that a run folder, a list and an
image may each lie anywhere. http(s) is not storage: see `transforms.web`.

Credentials, regions and endpoints come from the environment, as the vendors' own tools read them
(`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, …), never from a URI: all after the host is
the name of the object, whatever its characters. gs://anonymous@bucket reads a public bucket.
"""

import errno
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import IO
from urllib.parse import quote_from_bytes, unquote_to_bytes
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from transforms.errors import UserError

REMOTE_SCHEMES = ("gs", "s3", "hdfs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WILDCARD = re.compile(r"[*?\[]")
_ANONYMOUS = "anonymous@"
# What Python's surrogateescape makes of bytes that are not UTF-8.
_NO_UTF8 = re.compile("[\udc80-\udcff]")

# Google's client tries for 15 minutes unless told otherwise; S3's gives up after some 6 s.
_GCS_RETRY = timedelta(seconds=40)

_COPY_BYTES = 1 << 23

# What pyarrow raises when storage says no; OSError covers FileNotFoundError and PermissionError.
STORAGE_ERRORS = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file that a listing found."""

    uri: str


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
    host, slash, path = uri[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UserError(f"{uri}: file:// must name a local path, as in file:///photos/1.jpg")
    return os.fsdecode(unquote_to_bytes(slash + path))


def local_uri(path: str) -> str:
    """The path itself, or a file:// URI where the path is not valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def resolve(text: str, base: str) -> str:
    """The absolute URI for `text`, which may be relative to the folder `base`; `..` goes up in the text."""
    if scheme_of(text):
        return _escape_bytes(text)
    if is_local(base):
        return local_uri(os.path.normpath(os.path.join(os.path.abspath(local_path(base)), text)))
    if text.startswith("/"):
        return local_uri(os.path.normpath(text))
    scheme, host, folder = _split(base)
    return f"{scheme}://{host}" + posixpath.normpath(posixpath.join("/", folder, _escape_bytes(text)))


def _escape_bytes(uri: str) -> str:
    """Bytes that are not UTF-8 as percent escapes."""
    return _NO_UTF8.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", uri)


def join(folder: str, *names: str) -> str:
    return "/".join((folder.rstrip("/"), *names))


def parent(uri: str) -> str:
    if is_local(uri):
        return os.path.dirname(os.path.abspath(local_path(uri)))
    return uri.rstrip("/").rsplit("/", 1)[0]


def is_below(uri: str, folder: str) -> bool:
    """Whether a file lies anywhere below a folder, by their names."""
    if is_local(uri) and is_local(folder):
        uri, folder = local_path(uri), local_path(folder)
    return uri.startswith(join(folder, ""))


def exists(uri: str) -> bool:
    if is_local(uri):
        return os.path.exists(local_path(uri))
    return bool(_info(uri).type != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    return bool(_info(uri).type == fs.FileType.Directory)


def is_pattern(uri: str) -> bool:
    """True for a glob; a path that exists as it stands is never one, whatever its characters."""
    return bool(_WILDCARD.search(uri)) and not exists(uri)


def open_input(uri: str) -> IO[bytes]:
    """A seekable binary file; raises OSError as pyarrow does. Never opens a FIFO or a device."""
    if not is_local(uri):
        filesystem, path = _locate(uri)
        if "/" not in path:
            raise IsADirectoryError(errno.EISDIR, "a bucket, not a file in it", uri)
        return filesystem.open_input_file(path)  # type: ignore[no-any-return]
    path = local_path(uri)
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says best why it can't be read
        raise IsADirectoryError(errno.EISDIR, "a device, a FIFO or a socket", path)
    return open(path, "rb")


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes; never more than the size it says it has (/proc says 0)."""
    with open_input(uri) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        left = size if limit is None else min(size, limit)
        parts = []
        while left and (part := file.read(left)):  # a remote stream may give less than was asked for
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def read_text(uri: str) -> str:
    return read_bytes(uri).decode()


def write_whole(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file that appears whole or not at all, and replaces one of that name.

    Locally: a temporary name beside it, fsync, rename, fsync of the folder. On HDFS: a temporary
    name and a rename. On object stores an upload shows only when it is complete.
    """
    if is_local(uri):
        _write_local(os.path.abspath(local_path(uri)), data)
        return
    filesystem, path = _locate(uri)
    shows_at_once = scheme_of(uri) == "hdfs"
    target = f"{posixpath.dirname(path)}/{_temporary_name()}" if shows_at_once else path
    with filesystem.open_output_stream(target, compression=None) as stream:  # not by the suffix
        stream.write(data)
    if shows_at_once:
        filesystem.move(target, path)


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, _temporary_name())
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


def _temporary_name() -> str:
    """Hidden, and of a length that any file system takes, however long the final name is."""
    return f".{uuid4().hex}.tmp"


def put_file(path: str, uri: str) -> None:
    """Move a local file to where it appears whole or not at all, as `write_whole` does, in pieces."""
    if is_local(uri):
        target = os.path.abspath(local_path(uri))
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, target)
        _sync_folder(os.path.dirname(target))
        return
    with pa.memory_map(path) as file:
        write_whole(uri, file.read_buffer())
    os.remove(path)


def get_file(uri: str, path: str) -> None:
    """Copy a file to a local path, where it appears whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), _temporary_name())
    try:
        with open_input(uri) as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        os.replace(temporary, path)
    except BaseException:
        _remove_quietly(temporary)
        raise


def delete(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    if is_local(uri):
        _remove_quietly(local_path(uri))
    elif exists(uri):
        filesystem, path = _locate(uri)
        filesystem.delete_file(path)


def sweep_temporary(folder: str) -> None:
    """Remove what a killed process left half-written in a folder; only local storage can have any."""
    path = local_path(folder) if is_local(folder) else ""
    for name in os.listdir(path) if os.path.isdir(path) else ():
        if name.startswith(".") and name.endswith(".tmp"):
            left = os.path.join(path, name)
            shutil.rmtree(left) if os.path.isdir(left) else os.remove(left)


def list_files(folder: str, *, recursive: bool = True) -> Iterator[FileInfo]:
    """Files below a folder that are not hidden, in order of name; a missing folder has none.

    Links to files are followed, links to folders are not, so that no loop can be walked. A folder
    below it that can't be read is listed itself: to fetch it then fails, and says why.
    """
    for path in _list(folder, recursive):
        yield FileInfo(_uri_of(folder, path))


def match_files(pattern: str) -> Iterator[FileInfo]:
    """Files that match a glob: `*`, `?` and `[…]` within a name, `**` for any number of folders."""
    folder, names = _split_pattern(local_path(pattern) if is_local(pattern) else pattern)
    root = folder if is_local(folder) else _locate(folder)[1]
    for path in _list(folder, recursive=len(names) > 1 or "**" in names):
        if _matches(path[len(root) :].strip("/").split("/"), names):
            yield FileInfo(_uri_of(folder, path))


def _split_pattern(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first wildcard, and the names below it."""
    fixed, slash, _ = _WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")
    return fixed or slash or ".", pattern[len(fixed + slash) :].split("/")


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _list(folder: str, recursive: bool) -> Iterator[str]:
    """Paths of the files below a folder."""
    if is_local(folder):
        yield from _walk(local_path(folder), recursive)
        return
    filesystem, root = _locate(folder)
    selector = fs.FileSelector(root, allow_not_found=True, recursive=recursive)
    for info in sorted(filesystem.get_file_info(selector), key=lambda info: info.path):
        hidden = any(name.startswith(".") for name in info.path[len(root) :].split("/"))
        if info.type == fs.FileType.File and not hidden:
            yield info.path


def _walk(folder: str, recursive: bool) -> Iterator[str]:
    """With a stack of its own: folders can be nested deeper than Python's calls."""
    try:
        waiting = _visible_entries(folder)
    except FileNotFoundError:
        return
    while waiting:
        entry = waiting.pop()
        if not entry.is_dir(follow_symlinks=False):
            if not (entry.is_symlink() and os.path.isdir(entry.path)):
                yield entry.path
        elif recursive:
            try:
                waiting += _visible_entries(entry.path)
            except OSError:
                yield entry.path


def _visible_entries(folder: str) -> "list[os.DirEntry[str]]":
    """The last name first."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name, reverse=True)


def _uri_of(folder: str, path: str) -> str:
    """The URI of a path that was found below a folder."""
    if is_local(folder):
        return local_uri(path)
    scheme, host, _ = _split(folder)
    if scheme == "hdfs":
        return f"hdfs://{host}{path}"
    return f"{scheme}://{_ANONYMOUS if host.startswith(_ANONYMOUS) else ''}{path}"


def _info(uri: str) -> fs.FileInfo:
    filesystem, path = _locate(uri)
    return filesystem.get_file_info(path)


def _locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a remote URI, and the path that it has there."""
    scheme, host, key = _split(uri)
    filesystem = _filesystem(scheme, host)
    if scheme == "hdfs":
        return filesystem, f"/{key}"
    return filesystem, f"{host.removeprefix(_ANONYMOUS)}/{key}".rstrip("/")


def _split(uri: str) -> tuple[str, str, str]:
    """Scheme, host and the name below it, without its first slash."""
    scheme = scheme_of(uri)
    host, _, key = uri[len(scheme) + len("://") :].partition("/")
    return scheme, host, key


@lru_cache(maxsize=64)
def _filesystem(scheme: str, host: str) -> fs.FileSystem:
    if scheme not in REMOTE_SCHEMES:
        raise UserError(f"cannot read {scheme}://; known are local paths, file, gs, s3, hdfs")
    if scheme == "hdfs":
        return fs.HadoopFileSystem.from_uri(f"hdfs://{host}/")
    user, _, bucket = host.rpartition("@")
    if not bucket:
        raise UserError(f"{scheme}://{host}/ names no bucket")
    if scheme == "gs" and user in ("", "anonymous"):
        return fs.GcsFileSystem(anonymous=bool(user), retry_time_limit=_GCS_RETRY)
    if user:
        raise UserError(f"{scheme}://…@{bucket}: credentials come from the environment, not from a URI")
    return fs.S3FileSystem.from_uri(f"s3://{bucket}")[0]  # with the bucket's own region


def first_line(error: BaseException) -> str:
    """What went wrong, without the number of the error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


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
