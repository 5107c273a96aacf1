"""`pnasvec search`: a query of any kind to results of any kind, or a list of queries to a file of hits."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.arguments import Parser, parse_with_beam
from jobs.quiet import import_tensorflow, quiet_libraries
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipeline.search import Match, SimilarityIndex
    from transforms.vectors import Vectors


_PROG = "pnasvec search"


def main(arguments: Sequence[str]) -> int:
    """Answer, as the flags say; returns the exit code."""
    if "--verbose" not in arguments:
        quiet_libraries()
    flags, beam_flags = parse_with_beam(arguments, _PROG, add_flags)
    _check(flags, bool(beam_flags))
    if flags.queries:
        from jobs.bulk_search import run_bulk  # Beam and TensorFlow, only for this

        return run_bulk(flags, beam_flags)
    from pipeline.search import SimilarityIndex

    index = SimilarityIndex.open(flags.run)
    query, matches = _answer(index, flags)
    _show(flags, query, matches)
    return 0


def add_flags(parser: Parser) -> Parser:
    """The flags of `search`."""
    parser.description = "Find the images most like an image, an indexed URI or a vector."
    parser.epilog = "docs/index-and-search.md explains every flag."
    parser.add_argument("run", metavar="RUN", help="the run folder, with an index")
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="path or URI; a new one goes through the model"
    )
    parser.add_argument("--uri", help="an indexed image; no model is loaded")
    parser.add_argument("--vector", metavar="FILE", help="a vector, as .npy or as a JSON list")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="results")
    parser.add_argument(
        "--where", metavar="SQL", help="a condition, such as \"label = 'tabby' and width > 512\""
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write a contact sheet with thumbnails")
    parser.add_argument("--open", action="store_true", help="open a contact sheet in the browser")
    parser.add_argument(
        "--queries", metavar="LIST", help="a list, folder or glob of query images; a Beam job"
    )
    parser.add_argument("--output", metavar="FILE", help="write query_uri, rank, uri, score as Parquet")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks, and what libraries log")
    return parser


def _check(flags: argparse.Namespace, has_beam_flags: bool) -> None:
    given = [name for name in ("image", "uri", "vector", "queries") if getattr(flags, name) is not None]
    if len(given) != 1:
        raise UserError("search for one thing: IMAGE, --uri, --vector or --queries")
    if flags.queries and not flags.output:
        raise UserError("--queries needs --output FILE for the hits")
    if flags.queries and (flags.json or flags.html or flags.open):
        raise UserError("--queries writes Parquet only: leave --json, --html and --open out")
    if has_beam_flags and not flags.queries:
        raise UserError("Beam options are for --queries")


def _answer(index: "SimilarityIndex", flags: argparse.Namespace) -> tuple[str, "list[Match]"]:
    """What was searched for, and what was found."""
    if flags.vector:
        return flags.vector, index.similar_by_vector(_read_vector(flags.vector), flags.k, flags.where)
    if flags.uri:
        return flags.uri, index.similar_by_uri(flags.uri, flags.k, flags.where)
    from transforms import storage

    uri = storage.resolve(flags.image, ".")
    if index.find([uri])[0] >= 0:
        return uri, index.similar_by_uri(uri, flags.k, flags.where)
    if not flags.verbose and storage.exists(uri):  # or it is a mistake that is told at once
        import_tensorflow()
    return uri, index.similar(uri, flags.k, flags.where)


def _read_vector(file: str) -> "Vectors":
    """Raises `UserError` for what holds no vector."""
    import numpy as np

    try:
        if file.endswith(".npy"):
            values: Any = np.load(file, allow_pickle=False)
        else:
            with open(file, encoding="utf-8") as text:
                values = json.load(text)
        return np.asarray(values, np.float32).reshape(-1)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"--vector {file}: no .npy file or JSON list of numbers ({error})") from error


def _show(flags: argparse.Namespace, query: str, matches: "list[Match]") -> None:
    if flags.output:
        from jobs.results import write_parquet

        write_parquet(flags.output, query, matches)
    if flags.html or flags.open:
        from jobs.contact_sheet import open_sheet, write_sheet

        sheet = write_sheet(flags.html, query, matches)
        if flags.open:
            open_sheet(sheet)
    if flags.json:
        print(json.dumps([asdict(match) for match in matches], indent=2, default=str))  # noqa: T201
    elif not (flags.output or flags.html or flags.open):
        from jobs.results import show_table

        show_table(matches)
