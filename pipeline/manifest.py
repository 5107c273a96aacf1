"""What a run promised and what came of it: `manifest.json`, and the check that resuming is allowed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from pipeline.run_folder import RunFolder, read_json, write_json
from transforms.errors import UserError
from transforms.schema import SCHEMA_VERSION
from transforms.tally import Tally

RUNNING, COMPLETE = "running", "complete"
_PACKAGES = (
    "pnasvec",
    "apache-beam",
    "tensorflow",
    "pyarrow",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """`identity` decides what a vector means: model, preprocessing and columns. It never changes."""

    identity: Mapping[str, Any]
    inputs: tuple[str, ...]
    started: str
    state: str = RUNNING
    finished: str | None = None
    tally: Tally | None = None
    embedded_now: int = 0

    @staticmethod
    def begin(identity: Mapping[str, Any], inputs: tuple[str, ...]) -> "Manifest":
        return Manifest(identity, inputs, started=_now())

    def finish(self, tally: Tally, embedded_now: int) -> "Manifest":
        """Raises `RuntimeError` if the counts do not prove that every input became one row."""
        if tally.pending or not tally.adds_up():
            raise RuntimeError(f"the counts do not add up: {tally.to_json()}")
        return replace(self, state=COMPLETE, finished=_now(), tally=tally, embedded_now=embedded_now)

    @property
    def elapsed_s(self) -> float:
        end = datetime.fromisoformat(self.finished) if self.finished else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "state": self.state,
            "identity": self.identity,
            "inputs": list(self.inputs),
            "started": self.started,
            "finished": self.finished,
            "software": {"python": python_version(), **dict(_versions())},
        }
        if self.tally is not None:
            counts = self.tally.to_json()
            values["counts"] = {key: counts[key] for key in counts if key != "seconds"}
            values["last_run"] = {
                "embedded": self.embedded_now,
                "elapsed_s": round(self.elapsed_s, 3),
                "images_per_s": round(self.embedded_now / max(self.elapsed_s, 1e-3), 3),
                "thread_seconds": counts["seconds"],
            }
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Manifest":
        tally, last = None, values.get("last_run", {})
        if "counts" in values:
            tally = Tally.from_json({**values["counts"], "seconds": last["thread_seconds"]})
        datetime.fromisoformat(values["started"])
        return Manifest(
            identity={**values["identity"], "model": {**values["identity"]["model"]}},
            inputs=tuple(values["inputs"]),
            started=values["started"],
            state=values["state"],
            finished=values["finished"],
            tally=tally,
            embedded_now=last.get("embedded", 0),
        )


def load_manifest(run: RunFolder) -> Manifest | None:
    """The run's manifest, or None if nothing was ever promised there; raises `UserError`."""
    values = read_json(run.manifest)
    if values is None:
        return None
    if values.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{run.manifest} has schema version {values.get('schema_version')};"
            f" this pnasvec writes {SCHEMA_VERSION}"
        )
    with _damage_named(run.manifest):
        return Manifest.from_json(values)


def load_plan(run: RunFolder) -> Tally:
    """What the plan promised, or nothing where a run did not come that far; raises `UserError`."""
    values = read_json(run.plan)
    if values is None:
        return Tally()
    with _damage_named(run.plan):
        return Tally.from_json(values)


@contextmanager
def _damage_named(uri: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{uri} is damaged ({type(error).__name__}: {error})") from error


def save_manifest(run: RunFolder, manifest: Manifest) -> None:
    write_json(run.manifest, manifest.to_json())


def check_same(run: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UserError` that shows each difference, if vectors of both would not be comparable."""
    differences = list(_differences(before, now))
    if differences:
        raise UserError(
            f"{run.uri} was begun differently; name another --output, or repeat its settings:\n  "
            + "\n  ".join(differences)
        )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif before != now:
        yield f"{path}: {before} there, {now} now"


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:  # e.g. tensorflow-cpu in its place
            continue


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
