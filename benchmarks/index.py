"""`pnasvec index` by recipe: seconds, peak memory, bytes an image, recall@10 and queries/s of the default.

`python -m benchmarks.index [FOLDER ROWS WIDTH [RECIPE ...]]`: 100,000 feature-like vectors of 4,320 for
the recipes below, in a folder that is kept, or in a temporary one. "" is what is chosen without --recipe.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import run as run_command
from benchmarks.runs import add_rows

RECIPES = ("", "exact", "ivf-sq8", "ivf-pq", "hnsw", "PCAR256,IVF1024,PQ32")


def main(folder: str, rows: int, width: int, recipes: tuple[str, ...]) -> None:
    run = Path(folder) / f"{rows}x{width}"
    add_rows(run, rows, width)
    print(
        "| recipe | build, s | peak MB | bytes an image, memory / disk"
        " | effort, candidates | recall@10 | queries/s, one thread |"
    )
    for recipe in recipes:
        print(row(run, recipe), flush=True)


def row(run: Path, recipe: str) -> str:
    """A row of the table."""
    chosen = ["--recipe", recipe] if recipe else []
    cost = run_command(["-m", "jobs", "index", str(run), "--rebuild", "--memory", "8GB", *chosen])
    said = json.loads((run / "index" / "index.json").read_text())
    best = next(one for one in said["measurements"] if _setting(one) == _setting(said["search"]))
    codes = sum(file["size"] for file in said["files"]["codes"])
    stored = sum(part["store"]["size"] for part in said["files"]["segments"] if part["store"])
    return (
        f"| {said['recipe']} | {cost.wall_s:.0f} | {cost.peak_mb:,.0f}"
        f" | {codes / said['rows']:,.0f} / {stored / said['rows']:,.0f}"
        f" | {best['effort']}, {best['candidates']} | {best['recall@10']:.3f}"
        f" | {best['qps_one_thread']:,.0f} |"
    )


def _setting(values: dict[str, int]) -> tuple[int, int]:
    return values["effort"], values["candidates"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = [*sys.argv[1:], *(scratch, "100000", "4320")[len(sys.argv) - 1 :]]
        main(os.path.abspath(given[0]), int(given[1]), int(given[2]), tuple(given[3:]) or RECIPES)
