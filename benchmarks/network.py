"""Images/s of PNASNet-5: our network in each precision, Keras without folding, the Hub module's own graph.

`python -m benchmarks.network [--models large,mobile] [--batches 1,8,32] [--rounds N]`: weights are random,
and the module with them is written to a temporary folder first. Each way is a process of its own, set up
as it would be on its own, and they take turns.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from transforms.model.checkpoint import SlimVariables, slim_variables
from transforms.model.export import export_hub_module
from transforms.model.hub import load_module
from transforms.model.pnasnet import architecture, build_network
from transforms.model.source import ModelFiles

Way = Callable[[str], Callable[[tf.Tensor], object]]


def hub(folder: str) -> Callable[[tf.Tensor], object]:
    """The module's graph as loaded, cut down to one pass."""
    return load_module(ModelFiles(folder, folder)).forward


def unfolded(folder: str) -> Callable[[tf.Tensor], object]:
    """Keras layers with batch normalisations."""
    variables = SlimVariables(_variables(folder))
    network = build_network(variables.architecture, variables.class_count)
    for name, variable in slim_variables(network).items():
        variable.assign(variables.read(name))
    return lambda images: network(images * 2 - 1, training=False)


def folded(precision: str) -> Way:
    def load(folder: str) -> Callable[[tf.Tensor], object]:
        tf.config.threading.set_inter_op_parallelism_threads(1)
        network = SlimVariables(_variables(folder)).load(precision)
        return lambda images: network(images * 2 - 1, training=False)

    return load


WAYS: dict[str, Way] = {
    "hub": hub,
    "unfolded": unfolded,
    "float32": folded("float32"),
    "bfloat16": folded("bfloat16"),
}


def work(way: str, folder: str, size: int, batch: int) -> None:
    """One pass of the way for each line on standard input; its seconds on standard output."""
    forward = tf.function(WAYS[way](folder))
    images = tf.constant(np.random.default_rng(1).random((batch, size, size, 3), np.float32))
    for _ in range(2):
        _fetch(forward(images))
    print(f"{_peak_mb():.0f}", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        _fetch(forward(images))
        print(time.perf_counter() - start, flush=True)


@dataclass
class Worker:
    way: str
    process: "subprocess.Popen[str]"
    peak_mb: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def ready(self) -> None:
        self.peak_mb = float(self._line())

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self._line()))

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def compare(folder: str, size: int, batch: int, rounds: int) -> None:
    workers = [Worker(way, _start(way, folder, size, batch)) for way in WAYS]
    for worker in workers:
        worker.ready()
    for _ in range(rounds):
        for worker in workers:
            worker.turn()
    base = np.array(workers[0].seconds)
    for worker in workers:
        seconds = np.array(worker.seconds)
        print(
            f"  batch {batch:3} {worker.way:9} {batch / np.median(seconds):8.2f} images/s"
            f"  {np.median(base / seconds):5.2f}x of the Hub graph, peak {worker.peak_mb:,.0f} MB",
            flush=True,
        )
        worker.process.communicate()


def export(name: str, folder: str) -> None:
    """A module with random weights, and statistics unlike those of a fresh layer."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(1)
    network = build_network(architecture(name), 1001)
    for key, variable in slim_variables(network).items():
        if key.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    export_hub_module(network, folder)


def _start(way: str, folder: str, size: int, batch: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.network", "--work", way, folder, str(size), str(batch)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _fetch(outputs: object) -> None:
    for tensor in tf.nest.flatten(outputs):
        tensor.numpy()


def _variables(folder: str) -> str:
    return os.path.join(folder, "variables", "variables")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="large,mobile")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    for name in flags.models.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = os.path.join(scratch, "module")
            export(name, folder)
            print(name, flush=True)
            for batch in map(int, flags.batches.split(",")):
                compare(folder, architecture(name).image_size, batch, flags.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
