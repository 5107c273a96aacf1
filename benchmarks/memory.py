"""Peak memory of `pnasvec embed --model small` on 2,000 and on 20,000 images; it must not grow by 300 MB.

`python -m benchmarks.memory [FEW MANY]`
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.processes import embed, images_of, many


def main(few: int = 2_000, count: int = 20_000) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        files = images_of(None, Path(scratch))
        costs = {
            number: embed(
                many(files, number, Path(scratch) / str(number)), "small", Path(scratch) / f"out-{number}"
            )
            for number in (few, count)
        }
    for number, cost in costs.items():
        print(f"{number:7,} images: {cost.wall_s:6.1f} s, peak {cost.peak_mb:,.0f} MB")
    print(f"difference: {costs[count].peak_mb - costs[few].peak_mb:,.0f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
