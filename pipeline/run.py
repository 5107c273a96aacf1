"""From a config to a finished run: resolve and check everything, then hand the pipeline to its engine."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipeline.config import DecodeConfig, EmbedConfig
from pipeline.embedding import EmbedPlan, build_pipeline
from pipeline.engine import JobFailed, execute
from pipeline.manifest import Manifest, check_same, load_manifest, save_manifest
from pipeline.progress import shown
from pipeline.run_folder import RunFolder, locked
from pipeline.runners import new_pipeline
from transforms import storage
from transforms.image import Preprocessing
from transforms.load import LoadSettings
from transforms.model.embedder import EmbedderSettings
from transforms.model.hub import describe_network
from transforms.model.network import NetworkInfo, labels_for
from transforms.model.source import identify_model, locate_model
from transforms.plan import PlanSettings
from transforms.read import inspect_source, kept_schema
from transforms.schema import RowFormat


def embed(config: EmbedConfig, options: PipelineOptions, console: Console) -> Manifest:
    """Embed what is still to do; raises `UserError` before any work starts, `JobFailed` after."""
    plan = prepare(config)
    pipeline = new_pipeline(options)
    with locked(plan.run):
        before = load_manifest(plan.run)
        if before is not None:
            check_same(plan.run, before.identity, plan.manifest.identity)
        plan.run.sweep()
        save_manifest(plan.run, plan.manifest)
        build_pipeline(pipeline, plan)
        execute(pipeline, options, partial(shown, console))
    finished = load_manifest(plan.run)
    if finished is None or finished.tally is None:
        raise JobFailed(f"the engine ended without completing {plan.run.manifest}")
    return finished


def prepare(config: EmbedConfig) -> EmbedPlan:
    """Look up and check everything that a person can get wrong; raises `UserError`. Writes nothing."""
    run = RunFolder(storage.resolve(config.run, "."))
    sources = [inspect_source(text, config.input.uri_column) for text in config.input.inputs]
    kept = kept_schema(sources, config.input.keep_columns)
    embedder, network = _choose_model(config)
    preprocessing = _preprocessing(config.decode, network)
    row_format = _row_format(config, network, kept)
    identity = _identity(embedder, preprocessing, row_format)
    return EmbedPlan(
        run=run,
        manifest=Manifest.begin(identity, tuple(source.uri for source in sources)),
        sources=tuple(replace(source, skip=run.uri) for source in sources),
        plan=PlanSettings(
            run.outputs.embeddings, run.outputs.failures, config.output.shard_size, config.retry_failures
        ),
        load=LoadSettings(
            config.fetch, preprocessing, config.threads, ahead=2 * embedder.batch_size + config.threads
        ),
        embedder=embedder,
        row_format=replace(row_format, metadata=json.dumps(identity)),
    )


def _choose_model(config: EmbedConfig) -> tuple[EmbedderSettings, NetworkInfo]:
    files = locate_model(config.model.handle)
    network = describe_network(files)
    settings = EmbedderSettings(
        files.handle,
        identify_model(files),
        config.model.batch_size,
        min(config.output.top_k, network.class_count),
        config.output.logits,
    )
    return settings, network


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
        "model": {"handle": embedder.handle, "digest": embedder.digest, "labels": row_format.labels.digest},
        "preprocessing": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "resize": preprocessing.resize,
            "allow_truncated": preprocessing.allow_truncated,
        },
        "rows": {field.name: str(field.type) for field in row_format.embeddings},
        "top_k": embedder.top_k,
    }
