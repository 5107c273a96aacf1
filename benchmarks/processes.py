"""Whole commands, timed: wall seconds and peak memory of a process, and folders of many images."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transforms.sample import write_samples


@dataclass(frozen=True)
class Cost:
    wall_s: float
    peak_mb: float


def run(arguments: Sequence[str], *, quiet: bool = False) -> Cost:
    """`python ARGUMENTS` to its end, without its output if `quiet`; raises RuntimeError unless it gives 0."""
    start = time.perf_counter()
    stdout = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited with {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_maxrss / 1024)


def embed(images: Path, model: str, output: Path) -> Cost:
    return run(["-m", "jobs", "embed", str(images), "--model", model, "--output", str(output)])


def many(images: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder of `count` links to the images, each of another name."""
    folder.mkdir(parents=True)
    for index in range(count):
        source = images[index % len(images)]
        (folder / f"{index:07d}{source.suffix}").symlink_to(source.resolve())
    return folder


def images_of(folder: str | None, scratch: Path) -> list[Path]:
    """JPEG files of a folder, or 200 rendered ones."""
    if folder is None:
        folder = str(scratch / "samples")
        write_samples(folder, 200, 0)
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
