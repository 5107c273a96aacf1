"""How far a run is, read from its folder alone; works while it runs, after a kill, on any storage."""

from collections import Counter
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from pipeline.manifest import COMPLETE, Manifest, load_manifest
from pipeline.run_folder import RunFolder, is_locked, read_json
from transforms import storage
from transforms.errors import UserError
from transforms.tally import Tally


@dataclass(frozen=True, slots=True)
class Status:
    """`state` is complete, running or interrupted; `tally` has what is on disk."""

    manifest: Manifest
    state: str
    tally: Tally


def status_of(run: RunFolder) -> Status:
    """Raises `UserError` where no run ever began."""
    manifest = load_manifest(run)
    if manifest is None:
        raise UserError(f"{run.uri} is no run folder: it has no manifest.json")
    if manifest.state == COMPLETE and manifest.tally is not None:
        return Status(manifest, COMPLETE, manifest.tally)
    state = "running" if is_locked(run) else "interrupted"
    promised = read_json(run.plan)
    return Status(manifest, state, _on_disk(run, Tally.from_json(promised) if promised else Tally()))


def _on_disk(run: RunFolder, promised: Tally) -> Tally:
    """The promise, with the rows that are there by now."""
    embedded = sum(_row_count(part) for part in run.parts(run.outputs.embeddings))
    failed = sum((_errors(part) for part in run.parts(run.outputs.failures)), Counter[str]())
    left = promised.given - promised.duplicate - embedded - failed.total()
    return replace(promised, embedded=embedded, failed=failed, pending=max(0, left))


def _row_count(part: str) -> int:
    with storage.open_input(part) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _errors(part: str) -> Counter[str]:
    with storage.open_input(part) as file:
        return Counter(pq.read_table(file, columns=["error"])["error"].to_pylist())
