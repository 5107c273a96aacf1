"""Queries: cold start of the command, bulk search, and adding to an index.

`python -m benchmarks.search [FOLDER ROWS WIDTH]`: on an index of so many feature-like vectors, 100,000 of
4,320 unless said otherwise, built where it is missing: `pnasvec search --uri` in a new process, and a list
of a tenth as many indexed queries. Then as many rows again are added; with a FOLDER, they stay there.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Cost
from benchmarks.processes import run as run_command
from benchmarks.runs import add_rows, uri

_STARTS = 7


def main(folder: str, rows: int, width: int) -> None:
    run = Path(folder) / f"{rows}x{width}"
    add_rows(run, rows, width)
    if not (run / "index" / "index.json").exists():
        index(run)
    starts = [search(run, "--uri", uri(0, 77), "--json").wall_s for _ in range(_STARTS)]
    print(f"search --uri, a new process: median {statistics.median(starts):.2f} s, worst {max(starts):.2f} s")
    queries = run / "queries.txt"
    queries.write_text("\n".join(uri(0, number) for number in range(0, rows, 10)))
    bulk = search(run, "--queries", str(queries), "--output", str(run / "hits.parquet"))
    print(f"search --queries: {rows // 10:,} in {_told(bulk)}, {rows / 10 / bulk.wall_s:,.0f}/s")
    add_rows(run, rows, width, seed=1)
    added = index(run)
    said = json.loads((run / "index" / "index.json").read_text())
    print(f"index, {rows:,} rows more: {_told(added)}; now {said['rows']:,}")


def _told(cost: Cost) -> str:
    return f"{cost.wall_s:.1f} s, peak {cost.peak_mb:,.0f} MB"


def index(run: Path) -> Cost:
    return run_command(["-m", "jobs", "index", str(run)])


def search(run: Path, *arguments: str) -> Cost:
    return run_command(["-m", "jobs", "search", str(run), *arguments], quiet=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = [*sys.argv[1:], *(scratch, "100000", "4320")[len(sys.argv) - 1 :]]
        main(os.path.abspath(given[0]), int(given[1]), int(given[2]))
