"""What a person reads at the end of a run, and of `status`: counts, reasons, where to go next."""

from itertools import islice

from rich.console import Console
from rich.table import Column, Table

from pipeline.manifest import Manifest
from pipeline.run_folder import RunFolder
from transforms.schema import read_columns
from transforms.tally import Tally

JOB_FAILED = 1

# Failure files read for examples: enough for one of each common reason, quick on any storage.
_EXAMPLE_FILES = 200


def console(*, stderr: bool = True) -> Console:
    """Progress and summaries go to standard error, so that standard output stays free for results."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)  # URIs may hold [brackets]


def job_failed(console: Console, error: Exception, advice: str = "", *, trace: bool) -> int:
    """Say why an engine gave up and what to do, with the traceback of the error at hand if `trace`."""
    console.print(f"pnasvec: the job failed: {error}", markup=False)
    if advice:
        console.print(advice)
    if trace:
        console.print_exception()
    return JOB_FAILED


def summary(console: Console, run: RunFolder, manifest: Manifest) -> None:
    """The end of an `embed`."""
    if manifest.tally is None:
        return
    show_counts(console, manifest.tally)
    show_failures(console, run, manifest.tally)
    rate = manifest.embedded_now / max(manifest.elapsed_s, 1e-3)
    console.print(
        f"{manifest.embedded_now:,} images embedded now in {manifest.elapsed_s:,.1f} s"
        f" ({rate:,.1f} images/s, start-up included)"
    )
    console.print(f"Output: {run.uri}")
    console.print(f"Next:   pnasvec status {run.uri}")


def show_counts(console: Console, tally: Tally) -> None:
    """The accounting law, as a table."""
    table = Table("given", "duplicate", "embedded", "failed", "to do")
    counts = (tally.given, tally.duplicate, tally.embedded, tally.failed.total(), tally.pending)
    table.add_row(*(f"{count:,}" for count in counts))
    console.print(table)


def show_failures(console: Console, run: RunFolder, tally: Tally) -> None:
    """Failures by reason, the most frequent first, each with an example."""
    if not tally.failed:
        return
    found = examples(run)
    table = Table("failed", "error", Column("example", overflow="fold"))
    for error, count in tally.failed.most_common():
        table.add_row(f"{count:,}", error, found.get(error, ""))
    console.print(table)


def examples(run: RunFolder) -> dict[str, str]:
    """URI and message of one failure of each error."""
    found: dict[str, str] = {}
    for part in islice(run.parts(run.outputs.failures), _EXAMPLE_FILES):
        table = read_columns(part, ["uri", "error", "message"])
        for row in table.to_pylist():
            found.setdefault(row["error"], f"{row['uri']}: {row['message']}")
    return found
