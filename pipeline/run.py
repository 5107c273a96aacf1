"""From a config to a finished run: resolve and check everything, then hand the pipeline to its engine."""

import json
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipeline import cost
from pipeline.config import DecodeConfig, EmbedConfig, ModelConfig
from pipeline.embedding import EmbedPlan, build_pipeline
from pipeline.execution import JobFailed, execute
from pipeline.manifest import Manifest, check_same, load_manifest, save_manifest
from pipeline.progress import shown
from pipeline.run_folder import RunFolder, locked
from pipeline.runners import is_dataflow, is_local, new_pipeline
from transforms import storage
from transforms.image import Preprocessing
from transforms.load import LoadSettings
from transforms.model.calibration import Trial, calibrate
from transforms.model.devices import find_devices
from transforms.model.embedder import BATCHES_A_GPU, EmbedderSettings, capacity
from transforms.model.engine import describe_network
from transforms.model.network import NetworkInfo, labels_for
from transforms.model.options import DEFAULT_BATCH_SIZE, DEFAULT_PRECISION, Auto, Precision
from transforms.model.source import ModelFiles, identify_model, locate_model
from transforms.plan import PlanSettings
from transforms.read import inspect_source, kept_schema
from transforms.schema import RowFormat


def embed(config: EmbedConfig, options: PipelineOptions, console: Console) -> Manifest:
    """Embed what is still to do; raises `UserError` before any work starts, `JobFailed` after."""
    pipeline = new_pipeline(options)
    plan = prepare(config, here=is_local(options))
    with locked(plan.run):
        before = load_manifest(plan.run)
        if before is not None:
            check_same(plan.run, before.identity, plan.manifest.identity)
        cost.show(console, plan.trial, plan.embedder, dataflow=is_dataflow(options))
        plan.run.sweep()
        save_manifest(plan.run, plan.manifest)
        build_pipeline(pipeline, plan)
        rate = plan.trial.images_per_s if plan.trial else None
        execute(pipeline, options, partial(shown, console, expected_rate=rate))
    finished = load_manifest(plan.run)
    if finished is None or finished.tally is None:
        raise JobFailed(f"the engine ended without completing {plan.run.manifest}")
    return finished


def prepare(config: EmbedConfig, *, here: bool = True) -> EmbedPlan:
    """Look up and check everything that a person can get wrong; raises `UserError`. Writes nothing there.

    `here`: on this machine, so that trying the model out says how it runs best.
    """
    run = RunFolder(storage.resolve(config.run, "."))
    sources = [inspect_source(text, config.input.uri_column) for text in config.input.inputs]
    kept = kept_schema(sources, config.input.keep_columns)
    files = locate_model(config.model.handle)
    network = describe_network(files)
    preprocessing = _preprocessing(config.decode, network)
    row_format = _row_format(config, network, kept)
    embedder, trial = _choose(_embedder(config, files, network), config.model, run, here)
    identity = _identity(embedder, preprocessing, row_format)
    return EmbedPlan(
        run=run,
        manifest=Manifest.begin(identity, tuple(source.uri for source in sources)),
        sources=tuple(replace(source, skip=run.uri) for source in sources),
        plan=PlanSettings(
            run.outputs.embeddings, run.outputs.failures, config.output.shard_size, config.retry_failures
        ),
        load=LoadSettings(
            config.fetch, preprocessing, config.threads, ahead=_batches(embedder, here) + config.threads
        ),
        embedder=embedder,
        row_format=replace(row_format, metadata=json.dumps(identity)),
        trial=trial,
    )


def _embedder(config: EmbedConfig, files: ModelFiles, network: NetworkInfo) -> EmbedderSettings:
    return EmbedderSettings(
        handle=files.handle,
        digest=identify_model(files),
        top_k=min(config.output.top_k, network.class_count),
        keep_logits=config.output.logits,
        engine=config.model.engine,
        device=config.model.device,
    )


def _choose(
    settings: EmbedderSettings, model: ModelConfig, run: RunFolder, here: bool
) -> tuple[EmbedderSettings, Trial | None]:
    """Precision and batch size: as they were given, as the run was begun, or as a trial finds them best."""
    precision = _recorded_precision(run) if model.precision == "auto" else model.precision
    if here:
        return calibrate(settings, precision, model.batch_size)
    return replace(
        settings,
        precision=DEFAULT_PRECISION if precision == "auto" else precision,
        batch_size=DEFAULT_BATCH_SIZE if model.batch_size == "auto" else model.batch_size,
    ), None


def _recorded_precision(run: RunFolder) -> Precision | Auto:
    """That of the rows which are there already: a run that goes on must give more of the same."""
    manifest = load_manifest(run)
    recorded = manifest.identity["model"].get("precision") if manifest else None
    return next((known for known in get_args(Precision) if known == recorded), "auto")


def _batches(embedder: EmbedderSettings, here: bool) -> int:
    """Images of the batches in the model and of the one that is being gathered; elsewhere, of one GPU."""
    passes = capacity(find_devices(embedder.device)) if here else BATCHES_A_GPU
    return (passes + 1) * embedder.batch_size


def _preprocessing(decode: DecodeConfig, network: NetworkInfo) -> Preprocessing:
    return Preprocessing(
        network.height, network.width, decode.resize, decode.max_pixels, decode.allow_truncated
    )


def _row_format(config: EmbedConfig, network: NetworkInfo, kept: pa.Schema) -> RowFormat:
    return RowFormat(
        feature_width=network.feature_width,
        class_count=network.class_count,
        labels=labels_for(network, config.model.labels),
        kept=kept,
        float16=config.output.float16,
        logits=config.output.logits,
    )


def _identity(
    embedder: EmbedderSettings, preprocessing: Preprocessing, row_format: RowFormat
) -> dict[str, Any]:
    """What must not change within a run folder, or its rows could not be compared."""
    return {
        "model": {
            "handle": embedder.handle,
            "digest": embedder.digest,
            "labels": row_format.labels.digest,
            "precision": embedder.precision,
        },
        "preprocessing": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "resize": preprocessing.resize,
            "allow_truncated": preprocessing.allow_truncated,
        },
        "rows": {field.name: str(field.type) for field in row_format.embeddings},
        "top_k": embedder.top_k,
    }
