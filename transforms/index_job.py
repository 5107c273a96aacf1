"""What the steps of an index build share: the job, and files that are made once.

Every step leaves files whose names depend on the build alone, and a marker when it is done: a build
that was killed goes on from there, and a bundle that is run again finds its work done.
"""

import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from transforms import storage
from transforms.errors import UserError
from transforms.faiss_index import Recipe
from transforms.index_files import IndexFiles, IndexFolder
from transforms.sealed import SealedFile, seal
from transforms.vector_index import Ids
from transforms.vectors import Metric, Vectors, prepare

# Neighbours kept of each query: 100 to compare with, the query itself, and some that may be removed.
NEIGHBOURS = 128


@dataclass(frozen=True)
class BuildJob:
    """What every step of one build knows: `key` names its files, `previous` is what it adds to."""

    folder: IndexFolder
    embeddings: str
    key: str
    recipe: Recipe
    metric: Metric
    width: int
    memory: int
    min_recall: float
    previous: IndexFiles
    removed_uris: frozenset[str] = frozenset()


def prepared(vectors: Vectors, job: BuildJob) -> Vectors:
    """Raises `UserError` for vectors of another width than the run's."""
    if vectors.shape[1] != job.width:
        raise UserError(
            f"{job.embeddings}: a file holds vectors of {vectors.shape[1]:,}, the run's are {job.width:,}"
        )
    return prepare(vectors, job.metric).vectors


def put(folder: IndexFolder, path: str, *, digest: bool = True) -> SealedFile:
    """Seal a local file and move it to where the index lies; raises `UserError`."""
    sealed = seal(path, os.path.basename(path), digest=digest)
    try:
        storage.put_file(path, folder.file(sealed.name))
    except storage.STORAGE_ERRORS as error:
        raise UserError(
            f"{folder.file(sealed.name)}: cannot be written: {storage.first_line(error)}"
        ) from error
    return sealed


def put_left_out(folder: IndexFolder, key: str, ids: Ids, scratch: str) -> SealedFile | None:
    """Record which rows are in no result."""
    if not len(ids):
        return None
    path = os.path.join(scratch, f"left-out-{key}.bin")
    np.unique(ids).tofile(path)
    return put(folder, path)


class Marked(Protocol):
    """The result of a step, as its marker keeps it."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self: ...


Result = TypeVar("Result", bound=Marked)


def once(marker: str, kind: type[Result], work: Callable[[], Result]) -> Result:
    """The result of a step, from its marker if it was done before."""
    if storage.exists(marker):
        return kind.from_json(json.loads(storage.read_text(marker)))
    result = work()
    storage.write_whole(marker, json.dumps(result.to_json()).encode())
    return result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
