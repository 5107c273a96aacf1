"""`pnasvec embed`: flags to a config, the config to a run, and what the person is told of it."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from jobs.arguments import Parser, auto_or_int, byte_size, parse_with_beam
from jobs.quiet import explain, import_tensorflow, quiet_libraries
from transforms.model.options import DeviceKind, Precision

if TYPE_CHECKING:
    from pipeline.config import EmbedConfig

IMAGES_FAILED = 3

DEFAULT_MODEL = "https://tfhub.dev/google/imagenet/pnasnet_large/classification/1"
_PROG = "pnasvec embed"
_DESCRIPTION = "Embed images: a Parquet row of vector and labels for each, or a row that says why not."
_EPILOG = "Any Apache Beam option may follow, such as --runner. docs/embed.md explains every flag."


def main(arguments: Sequence[str]) -> int:
    """Embed, show progress and a summary; returns the exit code."""
    verbose = "--verbose" in arguments
    if verbose:
        explain()
    else:
        quiet_libraries()
    flags, beam_flags = parse(arguments)
    if not verbose:
        import_tensorflow()
    from jobs import report  # Beam and TensorFlow take seconds to import: not for --help or a typo
    from pipeline.execution import JobFailed
    from pipeline.run import embed
    from pipeline.run_folder import RunFolder
    from pipeline.runners import beam_options
    from transforms import storage

    console = report.console()
    config = config_of(flags)
    try:
        manifest = embed(config, beam_options(beam_flags), console)
    except JobFailed as error:
        advice = "What was written stays; the same command goes on from there."
        return report.job_failed(console, error, advice, trace=flags.verbose)
    report.summary(console, RunFolder(storage.resolve(config.run, ".")), manifest)
    failed = manifest.tally is not None and manifest.tally.failed.total()
    return IMAGES_FAILED if failed and flags.strict else 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Our flags, and those of Beam that were given, by name."""
    return parse_with_beam(arguments, _PROG, add_flags)


def add_flags(parser: Parser) -> Parser:
    """The flags of `embed`, by what they are about."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("inputs", nargs="+", help="lists (.txt .csv .tsv .jsonl .parquet), folders, globs")
    parser.add_argument("--output", required=True, metavar="RUN", help="the run folder, new or to go on with")
    parser.add_argument(
        "--uri-column", metavar="NAME", help="column with the URIs; default: uri, url, path or image"
    )
    parser.add_argument("--keep-columns", default="", metavar="A,B", help="columns to carry to the output")
    _add_model_flags(parser.add_argument_group("model"))
    _add_image_flags(parser.add_argument_group("images"))
    _add_row_flags(parser.add_argument_group("rows"))
    parser.add_argument("--retry-failures", action="store_true", help="try failed images again")
    parser.add_argument("--strict", action="store_true", help="exit with 3 if any image failed")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks, and what libraries log")
    return parser


def _add_model_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", default=DEFAULT_MODEL, help="Hub handle, folder, .tar.gz, or: small")
    group.add_argument("--labels", metavar="FILE", help="class names, one a line, instead of the model's")
    group.add_argument(
        "--engine",
        choices=["auto", "hub"],
        default="auto",
        help="hub: the module's own graph, whatever it is",
    )
    group.add_argument(
        "--precision",
        choices=["auto", *get_args(Precision)],
        default="auto",
        help="auto: the quickest here that gives the model's vectors",
    )
    group.add_argument(
        "--batch-size", type=auto_or_int, default="auto", metavar="N", help="images a pass of the model"
    )
    group.add_argument(
        "--device", choices=get_args(DeviceKind), default="auto", help="auto: every GPU, or the CPU if none"
    )


def _add_image_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--resize", choices=["crop", "squash", "pad", "fit-crop"], default="crop", help="to the model's size"
    )
    group.add_argument(
        "--max-bytes", type=byte_size, default="64MiB", metavar="SIZE", help="of an encoded image"
    )
    group.add_argument(
        "--max-pixels", type=int, default=178_000_000, metavar="N", help="of an image, by its header"
    )
    group.add_argument("--allow-truncated", action="store_true", help="embed what decodes of a cut-off JPEG")
    group.add_argument("--threads", type=int, default=_threads(), metavar="N", help="that fetch and decode")
    group.add_argument(
        "--timeout", type=float, default=20.0, metavar="S", help="seconds for each http(s) connect and read"
    )
    group.add_argument(
        "--retries", type=int, default=4, metavar="N", help="after 429, 5xx and connection errors"
    )
    group.add_argument("--allow-private-addresses", action="store_true", help="let http(s) URIs reach them")


def _add_row_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--top-k", type=int, default=5, metavar="N", help="labels a row")
    group.add_argument("--logits", action="store_true", help="write all logits too")
    group.add_argument("--float16", action="store_true", help="write vectors as float16")
    group.add_argument("--shard-size", type=int, default=2000, metavar="N", help="images a file")


def config_of(flags: argparse.Namespace) -> "EmbedConfig":
    """The config that the flags stand for; raises `UserError`."""
    from pipeline.config import DecodeConfig, EmbedConfig, InputConfig, ModelConfig, OutputConfig
    from transforms.fetch import FetchLimits
    from transforms.web import WebLimits

    keep = tuple(name for name in flags.keep_columns.split(",") if name)
    web = WebLimits(flags.timeout, flags.retries, allow_private=flags.allow_private_addresses)
    return EmbedConfig(
        input=InputConfig(tuple(flags.inputs), flags.uri_column, keep),
        run=flags.output,
        model=ModelConfig(
            flags.model, flags.labels, flags.batch_size, flags.engine, flags.precision, flags.device
        ),
        threads=flags.threads,
        fetch=FetchLimits(flags.max_bytes, web),
        decode=DecodeConfig(flags.resize, flags.max_pixels, flags.allow_truncated),
        output=OutputConfig(flags.top_k, flags.logits, flags.float16, flags.shard_size),
        retry_failures=flags.retry_failures,
    )


def _threads() -> int:
    return min(32, 4 * (os.cpu_count() or 1))
