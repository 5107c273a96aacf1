"""`pnasvec index`: flags to a config, the config to an index, and what the person is told of it."""

from collections.abc import Sequence

from jobs.arguments import Parser, byte_size, parse_with_beam
from jobs.quiet import quiet_libraries

LESS_RECALL = 3

_PROG = "pnasvec index"


def main(arguments: Sequence[str]) -> int:
    """Build or extend the index, say what it is; returns the exit code."""
    if "--verbose" not in arguments:
        quiet_libraries()
    flags, beam_flags = parse_with_beam(arguments, _PROG, add_flags)
    from jobs import index_report, report  # Beam takes seconds to import: not for --help or a typo
    from pipeline.config import IndexConfig
    from pipeline.execution import JobFailed
    from pipeline.indexing import DEFAULT_MIN_RECALL, index
    from pipeline.runners import beam_options

    console = report.console()
    config = IndexConfig(
        run=flags.run,
        metric=flags.metric,
        recipe=flags.recipe,
        memory=flags.memory,
        min_recall=flags.min_recall,
        rebuild=flags.rebuild,
        remove=flags.remove,
    )
    try:
        outcome = index(config, beam_options(beam_flags), console)
    except JobFailed as error:
        advice = "The index that was there still works; the same command goes on with the new one."
        return report.job_failed(console, error, advice, trace=flags.verbose)
    index_report.show_outcome(console, outcome, flags.memory)
    wanted = flags.min_recall or DEFAULT_MIN_RECALL
    if max(one.recall[1] for one in outcome.manifest.measurements) >= wanted:
        console.print(f"Next:   pnasvec search {flags.run} IMAGE")
        return 0
    index_report.show_shortfall(console, outcome.manifest, wanted)
    return LESS_RECALL if flags.min_recall else 0


def add_flags(parser: Parser) -> Parser:
    """The flags of `index`."""
    parser.description = "Build an index of a run folder's vectors, or add to it what was embedded since."
    parser.epilog = "Any Apache Beam option may follow. docs/index-and-search.md explains every flag."
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument(
        "--memory", type=byte_size, default="4GB", metavar="SIZE", help="for building, and for serving"
    )
    parser.add_argument("--min-recall", type=float, metavar="R", help="recall@10 to reach; default: 0.95")
    parser.add_argument(
        "--recipe",
        metavar="TEXT",
        help="exact, ivf-rabitq, ivf-rabitq-128, ivf-pq, ivf-sq8, ivf-fp16, hnsw, or FAISS's notation",
    )
    parser.add_argument("--metric", choices=["cosine", "ip", "l2"], help="default: cosine")
    parser.add_argument("--remove", metavar="LIST", help="leave the images of this list out of all results")
    parser.add_argument("--rebuild", action="store_true", help="train anew, do not add to what is there")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks, and what libraries log")
    return parser
