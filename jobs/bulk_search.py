"""`pnasvec search --queries`: flags to a config, and what the person is told at the end."""

import argparse
import time
from typing import Any

from jobs import report


def run_bulk(flags: argparse.Namespace, beam_flags: dict[str, Any]) -> int:
    """Answer a list of queries; returns the exit code."""
    from pipeline.bulk_search import BulkConfig, bulk_search
    from pipeline.execution import JobFailed
    from pipeline.runners import beam_options

    console = report.console()
    start = time.monotonic()
    config = BulkConfig(flags.run, flags.queries, flags.output, flags.k, flags.where)
    try:
        outcome = bulk_search(config, beam_options(beam_flags))
    except JobFailed as error:
        return report.job_failed(console, error, trace=flags.verbose)
    seconds = time.monotonic() - start
    console.print(
        f"{outcome.queries:,} queries in {seconds:,.1f} s ({outcome.queries / seconds:,.0f} queries/s)"
    )
    if outcome.failed:
        console.print(f"{outcome.failed:,} query images failed, such as:")
        for uri, reason in outcome.examples:
            console.print(f"  {uri}: {reason}")
    console.print(f"Output: {flags.output}")
    return 0
