"""From what a person passes as `--model` to files on this machine, and a digest of what they hold."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from transforms import storage
from transforms.errors import UserError
from transforms.model.checkpoint import find_checkpoint

SMALL = "small"
SAVED_MODEL = "saved_model.pb"

_SMALL_FOLDER = os.path.join(os.path.dirname(__file__), SMALL)
_TARBALLS = (".tar.gz", ".tgz", ".tar")
# What unpacking raises for a file that is no archive, is cut off, or has a member that leads out of it.
_UNPACK_ERRORS = (tarfile.TarError, zlib.error, EOFError)
_SUBFOLDERS = ("variables", "assets")
_BLOCK = 8 << 20  # bytes a read; each may be a request


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`folder` is a local one that holds saved_model.pb or a checkpoint; `handle` finds it from anywhere."""

    handle: str
    folder: str

    @property
    def is_saved_model(self) -> bool:
        """Whether there is a graph; a checkpoint is weights alone."""
        return os.path.isfile(os.path.join(self.folder, SAVED_MODEL))


@contextmanager
def named(files: ModelFiles) -> Iterator[None]:
    """Errors about the files start with the handle that a person gave."""
    subject = f"--model {files.handle}"
    try:
        yield
    except UserError as error:
        if str(error).startswith(subject):
            raise
        raise type(error)(f"{subject}: {error}") from error


def locate_model(handle: str, digest: str | None = None) -> ModelFiles:
    """The files of a model: `small`, a folder or a tarball (local, gs://, s3://, hdfs://), or http(s)://.

    What is not a local folder is fetched into a cache; with its `digest` (of `identify_model`) a
    cached one is found without a look at the original. Raises `UserError` that names the handle.
    """
    if not handle:
        raise UserError("--model is empty: name a Hub handle, a folder, a .tar.gz, or small")
    handle = handle if handle == SMALL else storage.resolve(handle, ".")
    try:
        return ModelFiles(handle, _find(handle, digest))
    except UserError as error:
        raise UserError(f"--model {handle}: {error}") from error


def identify_model(files: ModelFiles) -> str:
    """64 hex digits over the names and contents of the files that make the model, wherever they lie."""
    digest = hashlib.sha256()
    for name in sorted(_model_files(files.folder)):
        with open(os.path.join(files.folder, name), "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{content} {name}\n".encode())
    return digest.hexdigest()


def _find(handle: str, digest: str | None) -> str:
    if handle == SMALL and not _holds_model(_SMALL_FOLDER):
        raise UserError("this installation came without it; install pnasvec again, or name another model")
    if handle == SMALL:
        return _SMALL_FOLDER
    if storage.scheme_of(handle) in ("http", "https"):
        return _model_folder(_resolve_hub(handle))
    if handle.endswith(_TARBALLS):
        return _cached(handle, digest, _unpack)
    if storage.is_local(handle):
        return _model_folder(storage.local_path(handle))
    return _cached(handle, digest, _copy)


def _model_folder(root: str) -> str:
    """The folder itself, or the only folder in it, as tarballs have it; raises `UserError`."""
    if not os.path.isdir(root):
        raise UserError("is a file; pass the folder it lies in" if os.path.exists(root) else "no such folder")
    for folder in (root, *_only_folder(root)):
        if _holds_model(folder):
            return folder
    raise UserError(f"holds neither {SAVED_MODEL} nor a checkpoint (*.index)")


def _only_folder(root: str) -> list[str]:
    folders = [entry.path for entry in os.scandir(root) if entry.is_dir()]
    return folders if len(folders) == 1 else []


def _holds_model(folder: str) -> bool:
    if not os.path.isdir(folder):
        return False
    return os.path.isfile(os.path.join(folder, SAVED_MODEL)) or find_checkpoint(folder) is not None


def _model_files(folder: str) -> list[str]:
    """Names below the folder; assets too, for the labels are among them."""
    if not os.path.isfile(os.path.join(folder, SAVED_MODEL)):
        prefix = os.path.basename(find_checkpoint(folder) or "")
        return [name for name in os.listdir(folder) if _is_part(name, prefix)]
    paths = [
        os.path.relpath(storage.local_path(file.uri), folder)
        for name in _SUBFOLDERS
        for file in storage.list_files(os.path.join(folder, name))
    ]
    return [SAVED_MODEL, *paths]


def _is_part(name: str, prefix: str) -> bool:
    return name == f"{prefix}.index" or name.startswith(f"{prefix}.data-")


def _resolve_hub(handle: str) -> str:
    """Download through tensorflow_hub, which keeps what it has in TFHUB_CACHE_DIR."""
    try:
        import tensorflow_hub
    except ImportError as error:  # tensorflow_hub 0.16.1 imports pkg_resources, gone from setuptools 82
        raise UserError(f"{error}; try: pip install 'setuptools<82'") from error
    try:
        return str(tensorflow_hub.resolve(handle))
    except (OSError, ValueError, tf.errors.OpError, *_UNPACK_ERRORS) as error:  # HTTPError is an OSError
        raise UserError(
            f"{storage.first_line(error)}. If this machine cannot get it, "
            "download the module elsewhere, unpack it and pass its folder"
        ) from error


def _cached(handle: str, digest: str | None, fetch: Callable[[str, str], None]) -> str:
    """The folder of the cache, named by what it holds, that `fetch(handle, folder)` filled."""
    cache = cache_folder("models")
    if digest and os.path.isdir(os.path.join(cache, digest)):
        return os.path.join(cache, digest)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as temporary:
        fetched = os.path.join(temporary, "model")
        os.mkdir(fetched)
        try:
            fetch(handle, fetched)
        except storage.STORAGE_ERRORS as error:
            raise UserError(storage.first_line(error)) from error
        folder = _model_folder(fetched)
        target = os.path.join(cache, identify_model(ModelFiles(handle, folder)))
        _publish(folder, target)
    return target


def _publish(folder: str, target: str) -> None:
    """Rename, which others see at once or not at all; an equal folder may have come first."""
    try:
        os.rename(folder, target)
    except OSError:
        if not os.path.isdir(target):
            raise


def cache_folder(kind: str) -> str:
    """Where this user's `kind` of things is kept; raises `UserError` where that cannot be."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(root, "pnasvec", kind)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot keep {kind} in {folder}: {error}; set XDG_CACHE_HOME") from error
    return folder


def _unpack(handle: str, folder: str) -> None:
    """Unpack a tarball; members that lead out of the folder are refused."""
    try:
        with storage.open_input(handle) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            archive.extractall(folder, filter="data")
    except _UNPACK_ERRORS as error:
        raise UserError(f"cannot be unpacked: {storage.first_line(error)}") from error


def _copy(handle: str, folder: str) -> None:
    """Copy those files of a remote folder that make a model, and no others that may lie beside them."""
    top = _names(handle)
    if SAVED_MODEL in top:
        inner = [f"{name}/{file}" for name in _SUBFOLDERS for file in _names(storage.join(handle, name))]
        _download(handle, [SAVED_MODEL, *inner], folder)
        return
    _download(handle, [name for name in top if name == "checkpoint" or name.endswith(".index")], folder)
    prefix = os.path.basename(find_checkpoint(folder) or "")
    _download(handle, [name for name in top if prefix and name.startswith(f"{prefix}.data-")], folder)


def _names(uri: str) -> list[str]:
    return [file.uri.rsplit("/", 1)[-1] for file in storage.list_files(uri, recursive=False)]


def _download(source: str, names: list[str], folder: str) -> None:
    for name in names:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with storage.open_input(storage.join(source, name)) as file, open(path, "wb") as copy:
            shutil.copyfileobj(file, copy, _BLOCK)
