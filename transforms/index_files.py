"""The files of an index and how they are opened: what is damaged stops here, with one clear line.

RUN/index/  index.json                  names all others; replacing it is what publishes an index
            segment-….arrow .uris .rows side table, lookup of URIs and stored vectors of a run of rows
            trained-….faiss             codes as they were trained, without a row
            codes-….faiss               codes of all rows; several where they are more than memory holds
            ranges-….bin                how stored vectors are encoded
            queries-….bin truth-….bin   queries held out of training, and their exact neighbours
            left-out-….bin              ids of rows that are in no result
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from transforms import storage
from transforms.errors import UserError
from transforms.faiss_index import load_index
from transforms.sealed import MappedFile, SealedFile, check_digest, check_size
from transforms.side_table import LOOKUP_BYTES, SideFiles, SideTable
from transforms.vector_index import Ids, VectorIndex
from transforms.vector_store import PRECISIONS, Codec, Precision, VectorStore, plain_codec
from transforms.vectors import Metric, Part


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows: of which parts, and the files with what is known of them."""

    parts: tuple[Part, ...]
    side: SealedFile
    lookup: SealedFile
    store: SealedFile | None

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def files(self) -> tuple[SealedFile, ...]:
        return tuple(file for file in (self.side, self.lookup, self.store) if file)

    def to_json(self) -> dict[str, Any]:
        return {
            "parts": {part.name: part.rows for part in self.parts},
            "side": self.side.to_json(),
            "lookup": self.lookup.to_json(),
            "store": self.store and self.store.to_json(),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Segment":
        parts = tuple(Part(str(name), int(rows)) for name, rows in values["parts"].items())
        side, lookup = (SealedFile.from_json(values[name]) for name in ("side", "lookup"))
        segment = Segment(parts, side, lookup, _sealed(values["store"]))
        if any(part.rows < 1 for part in parts) or lookup.size != segment.rows * LOOKUP_BYTES:
            raise ValueError(f"a segment has not {segment.rows:,} rows")
        return segment


@dataclass(frozen=True, slots=True)
class IndexFiles:
    """Everything that an index is made of; row ids go through the segments in order."""

    segments: tuple[Segment, ...]
    precision: Precision | None = None
    ranges: SealedFile | None = None
    trained: SealedFile | None = None
    codes: tuple[SealedFile, ...] = ()
    coded: int = 0
    left_out: SealedFile | None = None
    queries: SealedFile | None = None
    truth: SealedFile | None = None

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def others(self) -> dict[str, SealedFile | None]:
        """The files that belong to no segment, by what they are."""
        return {name: getattr(self, name) for name in _OTHERS}

    @property
    def names(self) -> set[str]:
        files = [file for segment in self.segments for file in segment.files]
        return {file.name for file in (*files, *self.codes, *self.others.values()) if file}

    def to_json(self) -> dict[str, Any]:
        return {
            "segments": [segment.to_json() for segment in self.segments],
            "precision": self.precision,
            "codes": [file.to_json() for file in self.codes],
            "coded": self.coded,
            **{name: file and file.to_json() for name, file in self.others.items()},
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "IndexFiles":
        if values["precision"] not in (None, *PRECISIONS):
            raise ValueError(f"unknown precision {values['precision']!r}")
        return IndexFiles(
            segments=tuple(Segment.from_json(segment) for segment in values["segments"]),
            precision=values["precision"],
            codes=tuple(SealedFile.from_json(file) for file in values["codes"]),
            coded=int(values["coded"]),
            **{name: _sealed(values[name]) for name in _OTHERS},
        )


_OTHERS = ("ranges", "trained", "left_out", "queries", "truth")


def _sealed(values: dict[str, Any] | None) -> SealedFile | None:
    return None if values is None else SealedFile.from_json(values)


@dataclass(frozen=True, slots=True)
class IndexFolder:
    """RUN/index, anywhere. Remote files are copied once to a folder below `$XDG_CACHE_HOME/pnasvec`."""

    uri: str

    def file(self, name: str) -> str:
        return storage.join(self.uri, name)

    def open(self, file: SealedFile) -> str:
        """A local path with that file, of the size it should have; raises `UserError`."""
        if storage.is_local(self.uri):
            return check_size(storage.local_path(self.file(file.name)), file)
        path = os.path.join(self._cache, file.name)
        if not os.path.exists(path) or os.path.getsize(path) != file.size:
            try:
                storage.get_file(self.file(file.name), path)
            except storage.STORAGE_ERRORS as error:
                raise UserError(f"{self.file(file.name)}: {storage.first_line(error)}") from error
        return check_size(path, file)

    def open_checked(self, file: SealedFile) -> str:
        """The same for a file whose digest is to be checked now."""
        path = self.open(file)
        check_digest(path, file)
        return path

    def sweep_cache(self, names: set[str]) -> None:
        """Remove copies of files that have no longer one of these names."""
        if storage.is_local(self.uri) or not os.path.isdir(self._cache):
            return
        for name in os.listdir(self._cache):
            if name not in names and not name.startswith("."):
                storage.delete(os.path.join(self._cache, name))

    @property
    def _cache(self) -> str:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return os.path.join(base, "pnasvec", blake2b(self.uri.encode(), digest_size=10).hexdigest())

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A local folder for files on their way; beside the index, so that they need only be moved."""
        if not storage.is_local(self.uri):
            with TemporaryDirectory() as folder:
                yield folder
            return
        home = storage.local_path(self.uri)
        os.makedirs(home, exist_ok=True)
        with TemporaryDirectory(dir=home, prefix=".", suffix=".tmp") as folder:
            yield folder


def open_side_table(folder: IndexFolder, files: IndexFiles) -> SideTable:
    """Raises `UserError` for files that are missing or cut off."""
    return SideTable(
        [
            SideFiles(
                MappedFile(folder.open(segment.side), segment.side),
                MappedFile(folder.open(segment.lookup), segment.lookup),
                segment.rows,
            )
            for segment in files.segments
        ]
    )


def open_vectors(folder: IndexFolder, files: IndexFiles, metric: Metric, width: int) -> VectorIndex:
    """Raises `UserError` for files that are missing, damaged or of another index."""
    codes = None
    if files.codes:
        codes = load_index([folder.open_checked(file) for file in files.codes], width, files.coded)
    store = _open_store(folder, files, width)
    if codes is None and store is None:
        raise UserError(f"{folder.uri} has neither codes nor vectors; build the index again with --rebuild")
    usable = np.ones(files.rows, np.bool_)
    usable[read_left_out(folder, files)] = False
    return VectorIndex(codes, store, metric, usable)


def read_left_out(folder: IndexFolder, files: IndexFiles) -> Ids:
    """Ids of rows that are in no result: they were removed, or can't be compared."""
    if files.left_out is None:
        return np.empty(0, np.int64)
    path = folder.open_checked(files.left_out)
    ids = np.fromfile(path, np.int64)
    if 8 * len(ids) != files.left_out.size or (len(ids) and not 0 <= ids.min() <= ids.max() < files.rows):
        raise UserError(f"{path} is damaged; build the index again with --rebuild")
    return ids


def read_codec(folder: IndexFolder, files: IndexFiles, width: int) -> Codec:
    """How stored vectors are encoded; raises `UserError` if for another width."""
    assert files.precision is not None
    if files.ranges is None:
        return plain_codec(files.precision, width)
    path = folder.open_checked(files.ranges)
    if files.ranges.size != 2 * width * 4:
        raise UserError(f"{path} is for vectors of another width than {width:,}")
    low, step = np.fromfile(path, np.float32).reshape(2, width)
    return Codec(files.precision, low, step)


def _open_store(folder: IndexFolder, files: IndexFiles, width: int) -> VectorStore | None:
    if files.precision is None:
        return None
    stored = [segment.store for segment in files.segments if segment.store]
    row_bytes = width * np.dtype(files.precision).itemsize
    if [file.size for file in stored] != [segment.rows * row_bytes for segment in files.segments]:
        raise UserError(
            f"{folder.uri}: stored vectors are not {width:,} wide; build the index again with --rebuild"
        )
    codec = read_codec(folder, files, width)
    paths = [folder.open(file) for file in stored]
    try:
        return VectorStore(paths, [segment.rows for segment in files.segments], codec)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.uri}: stored vectors are damaged ({error})") from error
