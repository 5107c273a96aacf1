"""From a config to a finished run: resolve and check everything, then hand the pipeline to its engine."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState
from rich.console import Console

from pipeline.config import DecodeConfig, EmbedConfig
from pipeline.embedding import EmbedPlan, build_pipeline
from pipeline.manifest import Manifest, check_same, load_manifest, save_manifest
from pipeline.progress import shown, since_now
from pipeline.run_folder import RunFolder, locked
from pipeline.runners import is_local, new_pipeline
from transforms import storage
from transforms.count import NAMESPACE, live_counts
from transforms.errors import UserError
from transforms.image import Preprocessing
from transforms.load import LoadSettings
from transforms.model.embedder import EmbedderSettings
from transforms.model.hub import describe_network
from transforms.model.network import NetworkInfo, labels_for
from transforms.model.source import identify_model, locate_model
from transforms.plan import PlanSettings
from transforms.read import inspect_source, kept_schema
from transforms.schema import RowFormat


class JobFailed(Exception):
    """The engine gave up; the message is its reason."""


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
        _execute(pipeline, options, console)
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


def _execute(pipeline: beam.Pipeline, options: PipelineOptions, console: Console) -> None:
    try:
        if is_local(options):
            with shown(console, since_now(live_counts)):
                _wait(pipeline.run())
        else:
            result = pipeline.run()
            with shown(console, lambda: _remote_counts(result)):
                _wait(result)
    except JobFailed:
        raise
    except UserError as error:
        raise UserError(str(error).partition(" [while running")[0]) from error
    except Exception as error:  # the in-memory runner passes on whatever a stage raised
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        raise JobFailed(_reason(error)) from error


def _wait(result: PipelineResult) -> None:
    state = result.wait_until_finish()
    if state != PipelineState.DONE:
        raise JobFailed(f"the job ended in state {state}")


def _remote_counts(result: PipelineResult) -> Mapping[str, int]:
    """The counters of a job that runs elsewhere."""
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    return {metric.key.metric.name: metric.attempted or 0 for metric in found["counters"]}


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: runners wrap that too."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or str(error).startswith("KeyboardInterrupt"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    """The last line of a worker's traceback is what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


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
