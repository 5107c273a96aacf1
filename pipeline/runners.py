"""Which engine runs the pipeline, and the options it takes.

The local default is Beam's FnApiRunner in memory, by name: `DirectRunner` may fetch and start
another engine (docs/decisions/local-runner.md), so from a user it means this one too.
"""

import argparse
from typing import Any

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from transforms.errors import UserError

_LOCAL = ("", "directrunner", "fnapirunner")


def add_beam_flags(parser: argparse.ArgumentParser) -> None:
    """All of Beam's own flags, unlisted in the help."""
    module = pipeline_options.__name__
    for group in PipelineOptions.__subclasses__():
        if group.__module__ == module and "_add_argparse_args" in vars(group):
            group._add_argparse_args(parser)


def beam_options(values: dict[str, Any]) -> PipelineOptions:
    """Options from parsed flags; raises `UserError` for what the local runner can't do."""
    options = PipelineOptions.from_dictionary(values)
    options.view_as(SetupOptions).save_main_session = False
    if is_local(options) and any(name.startswith("direct_") for name in values):
        raise UserError("the local runner is one process: leave out the --direct_* flags")
    return options


def is_local(options: PipelineOptions) -> bool:
    return (options.view_as(StandardOptions).runner or "").lower() in _LOCAL


def is_dataflow(options: PipelineOptions) -> bool:
    return (options.view_as(StandardOptions).runner or "").lower() == "dataflowrunner"


def new_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline on the engine that the options name; raises `UserError` if they are incomplete."""
    try:
        return beam.Pipeline(runner=FnApiRunner() if is_local(options) else None, options=options)
    except ValueError as error:
        raise UserError(str(error)) from error
