"""How far a run is, read from its folder alone; works while it runs, after a kill, on any storage."""

from collections import Counter
from dataclasses import dataclass, replace

from pipeline.manifest import COMPLETE, Manifest, load_manifest, load_plan
from pipeline.run_folder import RunFolder, is_locked
from transforms.errors import UserError
from transforms.schema import count_rows, read_columns
from transforms.tally import Tally


@dataclass(frozen=True, slots=True)
class Status:
    """`state` is complete, running or interrupted; `tally` has what is on disk."""

    manifest: Manifest
    state: str
    tally: Tally


def status_of(run: RunFolder) -> Status:
    """Raises `UserError` where no run ever began, or where its files are damaged."""
    manifest = load_manifest(run)
    if manifest is None:
        raise UserError(f"{run.uri} is no run folder: it has no manifest.json")
    if manifest.state == COMPLETE and manifest.tally is not None:
        return Status(manifest, COMPLETE, manifest.tally)
    state = "running" if is_locked(run) else "interrupted"
    return Status(manifest, state, _on_disk(run, load_plan(run)))


def _on_disk(run: RunFolder, promised: Tally) -> Tally:
    """The promise, with the rows that are there by now."""
    embedded = sum(count_rows(part) for part in run.parts(run.outputs.embeddings))
    failed = Counter[str]()
    for part in run.parts(run.outputs.failures):
        failed.update(read_columns(part, ["error"])["error"].to_pylist())
    left = promised.given - promised.duplicate - embedded - failed.total()
    return replace(promised, embedded=embedded, failed=failed, pending=max(0, left))
