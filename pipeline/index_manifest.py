"""What a published index is: RUN/index/index.json, which names every other file of it.

Replacing it is what publishes an index: a reader has the old one or the new one. Files never change
once they have a name, so what a reader has open stays as it was.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.run_folder import RunFolder, read_json, write_json
from transforms import storage
from transforms.errors import UserError
from transforms.index_files import IndexFiles, IndexFolder
from transforms.recall import Measurement
from transforms.vector_index import SearchSetting
from transforms.vectors import METRICS, Metric

FORMAT = 1
_NAME = "index.json"


@dataclass(frozen=True, slots=True)
class LastBuild:
    """What the last build did; `drift` is how much farther from its lists the added rows lie."""

    added: int
    seconds: float
    peak_mb: float
    drift: float | None = None


@dataclass(frozen=True)
class IndexManifest:
    """`recipe` in FAISS's notation; `identity` is that of the run whose vectors are in it.

    `ceilings` is the recall@10 that vectors of more precision could reach, where it was looked for.
    """

    identity: Mapping[str, Any]
    metric: Metric
    width: int
    recipe: str
    files: IndexFiles
    setting: SearchSetting
    measurements: tuple[Measurement, ...]
    ceilings: Mapping[str, float]
    removed: int
    unusable: int
    trained_rows: int
    list_distance: float
    built: str
    last_build: LastBuild

    @property
    def rows(self) -> int:
        """Images that can be found."""
        return self.files.rows - self.removed - self.unusable

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "built": self.built,
            "rows": self.rows,
            "removed": self.removed,
            "unusable": self.unusable,
            "metric": self.metric,
            "width": self.width,
            "recipe": self.recipe,
            "search": {"effort": self.setting.effort, "candidates": self.setting.candidates},
            "measurements": [one.to_json() for one in self.measurements],
            "ceilings": self.ceilings,
            "trained_rows": self.trained_rows,
            "list_distance": self.list_distance,
            "last_build": asdict(self.last_build),
            "identity": self.identity,
            "files": self.files.to_json(),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "IndexManifest":
        if values["metric"] not in METRICS:
            raise ValueError(f"unknown metric {values['metric']!r}")
        setting = SearchSetting(int(values["search"]["effort"]), int(values["search"]["candidates"]))
        if min(setting.effort, setting.candidates) < 1:
            raise ValueError("search settings must be positive")
        return IndexManifest(
            identity={**values["identity"], "model": {**values["identity"]["model"]}},
            metric=values["metric"],
            width=int(values["width"]),
            recipe=str(values["recipe"]),
            files=IndexFiles.from_json(values["files"]),
            setting=setting,
            measurements=tuple(Measurement.from_json(one) for one in values["measurements"]),
            ceilings={str(name): float(recall) for name, recall in values["ceilings"].items()},
            removed=int(values["removed"]),
            unusable=int(values["unusable"]),
            trained_rows=int(values["trained_rows"]),
            list_distance=float(values["list_distance"]),
            built=str(values["built"]),
            last_build=LastBuild(**values["last_build"]),
        )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def index_folder(run: RunFolder) -> IndexFolder:
    return IndexFolder(storage.join(run.uri, "index"))


def load_index_manifest(run: RunFolder) -> IndexManifest | None:
    """What is published, or None where nothing is; raises `UserError`."""
    uri = index_folder(run).file(_NAME)
    values = read_json(uri)
    if values is None:
        return None
    if values.get("format") != FORMAT:
        raise UserError(f"{uri} has format {values.get('format')!r}; this pnasvec reads {FORMAT}")
    try:
        return IndexManifest.from_json(values)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{uri} is damaged ({type(error).__name__}: {error}); build it again with --rebuild"
        ) from error


def publish(run: RunFolder, manifest: IndexManifest) -> None:
    """Make this the index of the run; raises `UserError`."""
    write_json(index_folder(run).file(_NAME), manifest.to_json())


def sweep(run: RunFolder, keep: set[str], key: str) -> None:
    """Remove files that belong neither to an index with the files `keep` nor to the build `key`."""
    folder = index_folder(run)
    for info in storage.list_files(folder.uri, recursive=False):
        name = info.uri.rsplit("/", 1)[-1]
        if name != _NAME and name not in keep and not (key and key in name):
            storage.delete(info.uri)
    storage.sweep_temporary(folder.uri)
