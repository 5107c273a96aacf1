"""Images/s of `pnasvec embed` beside a plain loop on the same files, whole processes and per further image.

`python -m benchmarks.embed [MODULE [FOLDER]]`: a TF1 Hub module (default: the embedded one) and JPEG files.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Cost, embed, images_of, many, run

FEW, MANY = 400, 1600
ROUNDS = 2


def main(module: str | None = None, folder: str | None = None) -> None:
    module = module or "small"
    with tempfile.TemporaryDirectory() as scratch:
        files = images_of(folder, Path(scratch))
        sizes = {count: many(files, count, Path(scratch) / str(count)) for count in (FEW, MANY)}
        ours: dict[int, list[Cost]] = {FEW: [], MANY: []}
        loop: dict[int, list[Cost]] = {FEW: [], MANY: []}
        for number in range(ROUNDS):
            for count, images in sizes.items():
                output = Path(scratch) / f"out-{number}-{count}"
                ours[count].append(embed(images, module, output))
                loop[count].append(
                    run(["-m", "benchmarks.plain_loop", str(images), module, f"{output}.parquet"])
                )
    print(f"{FEW:,} and {MANY:,} images, best of {ROUNDS} rounds, each a fresh process")
    _report("whole process", MANY, min(c.wall_s for c in ours[MANY]), min(c.wall_s for c in loop[MANY]))
    further = (_best(ours[MANY]) - _best(ours[FEW]), _best(loop[MANY]) - _best(loop[FEW]))
    _report("per further image", MANY - FEW, *further)
    print(f"peak memory: pnasvec {_peak(ours):,.0f} MB, plain loop {_peak(loop):,.0f} MB")


def _best(costs: list[Cost]) -> float:
    return min(cost.wall_s for cost in costs)


def _peak(costs: dict[int, list[Cost]]) -> float:
    return max(cost.peak_mb for cost in costs[MANY])


def _report(what: str, count: int, ours_s: float, loop_s: float) -> None:
    print(f"{what:18} pnasvec {count / ours_s:6.1f} images/s, plain loop {count / loop_s:6.1f}, ", end="")
    print(f"ratio {loop_s / ours_s:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
