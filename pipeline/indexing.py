"""THE picture of an index: from the files of `embeddings/` to what `index.json` names.

parts ─ train ─ codes without rows, ranges, queries ──┬──────────────┐
tasks ─ Reshuffle ─ fill a segment each, in parallel ─┴─ merge, measure ─ publish
"""

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipeline.config import IndexConfig
from pipeline.execution import JobFailed, execute
from pipeline.index_manifest import (
    FORMAT,
    IndexManifest,
    LastBuild,
    index_folder,
    load_index_manifest,
    now,
    publish,
    sweep,
)
from pipeline.manifest import load_manifest
from pipeline.progress import indexing_shown
from pipeline.run_folder import RunFolder, locked
from pipeline.runners import new_pipeline
from transforms import storage
from transforms.errors import UserError
from transforms.faiss_index import Recipe, choose_recipe, cost, parse_recipe, segment_rows
from transforms.index_files import IndexFiles, open_side_table, read_left_out
from transforms.index_fill import FillSegments, SegmentTask
from transforms.index_job import BuildJob, put_left_out
from transforms.index_merge import Built, MergeIndex
from transforms.index_train import Trained, TrainIndex
from transforms.read import inspect_source, read_refs
from transforms.recall import choose
from transforms.schema import count_rows, vector_width
from transforms.vectors import Metric, Part

DEFAULT_MIN_RECALL = 0.95

# Footers that are read at once; a remote one takes some 50 ms.
_FOOTER_THREADS = 32
_URIS = pa.schema([pa.field("uri", pa.string(), nullable=False)])


@dataclass(frozen=True)
class IndexPlan:
    """Everything a build needs, resolved and checked. `trained` is that of an index that is added to."""

    run: RunFolder
    identity: dict[str, Any]
    job: BuildJob
    parts: tuple[Part, ...]
    tasks: tuple[SegmentTask, ...]
    before: IndexManifest | None
    trained: Trained | None
    started: float


@dataclass(frozen=True)
class IndexOutcome:
    """The index as it is now; `added` rows are new, `removed` went, `unknown` URIs were not in it."""

    manifest: IndexManifest
    added: int
    removed: int = 0
    unknown: int = 0


def index(config: IndexConfig, options: PipelineOptions, console: Console) -> IndexOutcome:
    """Build or extend the index of a run; raises `UserError` before any work starts, `JobFailed` after."""
    run = RunFolder(storage.resolve(config.run, "."))
    gone = _read_uris(config.remove) if config.remove else []
    plan = prepare(run, config)
    pipeline = new_pipeline(options)
    with locked(RunFolder(plan.job.folder.uri)):
        sweep(run, _published_names(run), plan.job.key)
        if plan.tasks:
            build_pipeline(pipeline, plan)
            execute(
                pipeline, options, partial(indexing_shown, console, sum(part.rows for part in plan.parts))
            )
        manifest = load_index_manifest(run)
        if manifest is None:
            raise JobFailed(f"the engine ended without an index in {plan.job.folder.uri}")
        outcome = IndexOutcome(manifest, manifest.last_build.added if plan.tasks else 0)
        return _remove(run, outcome, gone) if gone else outcome


def _published_names(run: RunFolder) -> set[str]:
    """The files of the index that works now; none if it can't be read."""
    try:
        published = load_index_manifest(run)
    except UserError:
        return set()
    return published.files.names if published else set()


def prepare(run: RunFolder, config: IndexConfig) -> IndexPlan:
    """Look up and check everything that a person can get wrong; raises `UserError`. Writes nothing."""
    embedded = load_manifest(run)
    if embedded is None:
        raise UserError(f"{run.uri} is no run folder: it has no manifest.json")
    before = _before(run, config, embedded.identity)
    known = {} if before is None else {part.name: part for part in _parts_of(before)}
    files = {uri.rsplit("/", 1)[-1]: uri for uri in run.parts(run.outputs.embeddings)}
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        new = {name: uri for name, uri in files.items() if name not in known}
        rows = list(pool.map(count_rows, new.values()))
    parts = tuple(Part(name, count) for name, count in zip(new, rows, strict=True) if count)
    if before is None and not parts:
        raise UserError(f"{run.uri} has no embedded images to index")
    return _plan(run, config, dict(embedded.identity), before, parts)


def _before(run: RunFolder, config: IndexConfig, identity: Any) -> IndexManifest | None:
    """The index that is added to, if there is one."""
    if config.rebuild:
        return None
    before = load_index_manifest(run)
    if before is None:
        return None
    if before.identity != identity:
        raise UserError(f"{run.uri}: the index was built from other embeddings; say --rebuild")
    if config.metric not in (None, before.metric):
        raise UserError(
            f"{run.uri} has an index by {before.metric}; say --rebuild to have one by {config.metric}"
        )
    wanted = config.recipe and parse_recipe(config.recipe, before.trained_rows, before.width, before.metric)
    if wanted and wanted.text != before.recipe:
        raise UserError(f"{run.uri} has an index {before.recipe}; say --rebuild to have {wanted.text}")
    return before


def _parts_of(manifest: IndexManifest) -> Iterable[Part]:
    return (part for segment in manifest.files.segments for part in segment.parts)


def _plan(
    run: RunFolder,
    config: IndexConfig,
    identity: dict[str, Any],
    before: IndexManifest | None,
    parts: tuple[Part, ...],
) -> IndexPlan:
    outputs = run.outputs.embeddings
    metric: Metric = config.metric or (before.metric if before else "cosine")
    width = before.width if before else vector_width(storage.join(outputs, parts[0].name))
    recipe = _recipe(config, before, sum(part.rows for part in parts), width, metric)
    removed = _removed_uris(run) if config.rebuild else frozenset[str]()
    job = BuildJob(
        folder=index_folder(run),
        embeddings=outputs,
        key=_key(identity, metric, recipe.text, parts, before.built if before else "", sorted(removed)),
        recipe=recipe,
        metric=metric,
        width=width,
        memory=config.memory,
        min_recall=config.min_recall or DEFAULT_MIN_RECALL,
        previous=before.files if before else IndexFiles(()),
        removed_uris=removed,
    )
    tasks = tuple(cut(parts, job.previous.rows, segment_rows(recipe, width, config.memory)))
    trained = _trained(before) if before else None
    return IndexPlan(run, identity, job, parts, tasks, before, trained, time.time())


def _recipe(
    config: IndexConfig, before: IndexManifest | None, count: int, width: int, metric: Metric
) -> Recipe:
    """Checked against --memory; raises `UserError`."""
    if before is not None:
        recipe = parse_recipe(before.recipe, before.trained_rows, width, metric)
        count += before.files.rows
    elif config.recipe:
        recipe = parse_recipe(config.recipe, count, width, metric)
    else:
        return choose_recipe(count, width, config.memory)
    needed = cost(recipe, count, width).memory
    if needed > config.memory and not recipe.has_lists_on_disk:
        raise UserError(
            f"--memory: {recipe.text} takes {needed / 1e6:,.0f} MB for {count:,} vectors of {width:,};"
            " name another --recipe, or more --memory"
        )
    return recipe


def _trained(before: IndexManifest) -> Trained:
    assert before.files.queries is not None
    return Trained(before.files.trained, before.files.ranges, before.files.queries, before.list_distance)


def _removed_uris(run: RunFolder) -> frozenset[str]:
    """What stays out of an index that is built anew; nothing if the old one can't be read."""
    try:
        before = load_index_manifest(run)
        if before is None:
            return frozenset()
        gone = read_left_out(index_folder(run), before.files)
        if not len(gone):
            return frozenset()
        uris = open_side_table(index_folder(run), before.files).take(gone, ["uri"])["uri"].to_pylist()
    except UserError:
        return frozenset()
    return frozenset(uris)


def _key(*parts: Any) -> str:
    """The name of a build: the same inputs and settings go on with the same files."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=lambda part: [part.name, part.rows])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def cut(parts: Sequence[Part], first: int, rows: int) -> Iterable[SegmentTask]:
    """Tasks of about so many rows; a part is never split."""
    waiting: list[Part] = []
    number = 0
    for part in parts:
        waiting.append(part)
        if sum(one.rows for one in waiting) >= rows or part is parts[-1]:
            yield SegmentTask(number, first, tuple(waiting))
            first += sum(one.rows for one in waiting)
            number, waiting = number + 1, []


def build_pipeline(root: beam.Pipeline, plan: IndexPlan) -> None:
    """Add the whole index job to `root`."""
    if plan.trained is None:
        trained = root | "Parts" >> beam.Create([plan.parts]) | TrainIndex(plan.job)
    else:
        trained = root | "Trained" >> beam.Create([plan.trained])
    (
        root
        | "Tasks" >> beam.Create(plan.tasks)
        | FillSegments(plan.job, trained)
        | MergeIndex(plan.job, trained)
        | "Publish" >> beam.Map(publish_built, plan)
    )


def publish_built(built: Built, plan: IndexPlan) -> None:
    """Replace `index.json`, and only then remove what belongs to no index."""
    before, rows = plan.before, sum(part.rows for part in plan.parts)
    added = sum(segment.rows for segment in built.files.segments[len(plan.job.previous.segments) :])
    unusable = built.unusable + (before.unusable if before else 0)
    left_out = len(read_left_out(plan.job.folder, built.files))
    manifest = IndexManifest(
        identity=plan.identity,
        metric=plan.job.metric,
        width=plan.job.width,
        recipe=plan.job.recipe.text,
        files=built.files,
        setting=choose(built.measurements, plan.job.min_recall).setting,
        measurements=built.measurements,
        ceilings=built.ceilings,
        removed=left_out - unusable,
        unusable=unusable,
        trained_rows=before.trained_rows if before else rows,
        list_distance=built.list_distance,
        built=now(),
        last_build=LastBuild(
            added, round(time.time() - plan.started, 3), round(built.peak_mb, 1), built.drift
        ),
    )
    publish(plan.run, manifest)
    sweep(plan.run, manifest.files.names, "")


def _read_uris(text: str) -> list[str]:
    """The URIs of a list, absolute; raises `UserError`."""
    source = inspect_source(text, None)
    return [uri for table in read_refs(source, _URIS) for uri in table["uri"].to_pylist()]


def _remove(run: RunFolder, outcome: IndexOutcome, uris: Sequence[str]) -> IndexOutcome:
    """Leave these images out of every result from now on."""
    folder, manifest = index_folder(run), outcome.manifest
    ids = open_side_table(folder, manifest.files).find(uris)
    before = read_left_out(folder, manifest.files)
    gone = np.setdiff1d(ids[ids >= 0], before)
    key = _key(manifest.built, gone.tolist())
    with folder.scratch() as scratch:
        left_out = put_left_out(folder, key, np.concatenate([before, gone]), scratch)
    manifest = replace(
        manifest,
        files=replace(manifest.files, left_out=left_out),
        removed=manifest.removed + len(gone),
        built=now(),
    )
    publish(run, manifest)
    sweep(run, manifest.files.names, "")
    return replace(outcome, manifest=manifest, removed=len(gone), unknown=int((ids < 0).sum()))
