"""THE picture: from inputs to a complete run folder, on one screen.

    sources ─ read ─ plan ─┬─ tally ───────────────── plan.json ────┐
                           ├─ forgotten ─ ForgetFailures ───────────┤ (both before the first image)
                           └─ shards ─ Reshuffle ─ [ load ─ embed ─ write ] ─ tallies ─ manifest.json

What stands in brackets is one fused stage: pixels and vectors never leave it.
"""

from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipeline.manifest import Manifest, save_manifest
from pipeline.run_folder import RunFolder, write_json
from transforms.embed import EmbedImages
from transforms.load import LoadImages, LoadSettings
from transforms.model.calibration import Trial
from transforms.model.embedder import EmbedderSettings
from transforms.plan import PlanSettings, PlanShards
from transforms.read import ReadRefs, Source
from transforms.records import Shard
from transforms.schema import OutputFolders, RowFormat
from transforms.tally import Tally, total
from transforms.write import ForgetFailures, WriteShards


@dataclass(frozen=True)
class EmbedPlan:
    """Everything the pipeline needs, resolved and checked: no flag, no handle is looked up after this.

    `trial` is how quick the model was here, where it was tried.
    """

    run: RunFolder
    manifest: Manifest
    sources: tuple[Source, ...]
    plan: PlanSettings
    load: LoadSettings
    embedder: EmbedderSettings
    row_format: RowFormat
    trial: Trial | None


class EmbedShards(beam.PTransform):  # type: ignore[misc]
    """PCollection[Shard] -> PCollection[Tally]: the fused stage. Accelerator hints belong on it, whole."""

    def __init__(
        self, load: LoadSettings, embedder: EmbedderSettings, outputs: OutputFolders, row_format: RowFormat
    ) -> None:
        super().__init__()
        self._load = load
        self._embedder = embedder
        self._outputs = outputs
        self._row_format = row_format

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return (
            shards
            | LoadImages(self._load)
            | EmbedImages(self._embedder)
            | WriteShards(self._outputs, self._row_format)
        )


def build_pipeline(root: beam.Pipeline, job: EmbedPlan) -> None:
    """Add the whole embed job to `root`."""
    refs = (
        root
        | "Sources" >> beam.Create(job.sources)
        | "SpreadSources" >> beam.Reshuffle()
        | ReadRefs(job.row_format.kept)
    )
    planned = refs | PlanShards(job.plan)
    promised = planned.tally | "WritePlan" >> beam.Map(write_plan, job.run)
    forgotten = planned.forgotten | ForgetFailures()
    done = (
        planned.shards
        | "AfterPlan" >> beam.Map(_after, beam.pvalue.AsList(promised), beam.pvalue.AsList(forgotten))
        | "SpreadShards" >> beam.Reshuffle()
        | EmbedShards(job.load, job.embedder, job.run.outputs, job.row_format)
        | "Done" >> beam.CombineGlobally(total)
    )
    (planned.tally | "Finish" >> beam.Map(finish, beam.pvalue.AsSingleton(done), job.run, job.manifest))


def write_plan(tally: Tally, run: RunFolder) -> None:
    """Put the promise on record: how many were given, and how many are still to do."""
    write_json(run.plan, tally.to_json())


def finish(planned: Tally, done: Tally, run: RunFolder, manifest: Manifest) -> None:
    """Prove the counts and complete the manifest."""
    save_manifest(run, manifest.finish(planned + done, done.embedded))


def _after(shard: Shard, *_barriers: Any) -> Shard:
    return shard
