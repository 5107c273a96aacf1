"""`pnasvec status`: what a run promised, how far it is, failures by reason. Changes nothing there."""

from collections.abc import Sequence

from jobs.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Show a run folder, as a table or as JSON."""
    parser = Parser(prog="pnasvec status", description="What a run promised and how far it is.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(arguments)
    from jobs import report
    from pipeline.run_folder import RunFolder
    from pipeline.status import status_of
    from transforms import storage

    run = RunFolder(storage.resolve(flags.run, "."))
    status = status_of(run)
    console = report.console(stderr=False)
    if flags.json:
        console.print_json(
            data={**status.manifest.to_json(), "state": status.state, "counts": status.tally.to_json()}
        )
        return 0
    console.print(f"{run.uri}: {status.state}, begun {status.manifest.started}", markup=False)
    console.print(f"model {status.manifest.identity['model']['handle']}", markup=False)
    report.show_counts(console, status.tally)
    report.show_failures(console, run, status.tally)
    return 0
