"""Images/s of PNASNet-5-large in bfloat16 on one GPU: our network under JAX beside timm's under PyTorch.

`python -m benchmarks.gpu_network [--batches 32,64,128,256] [--rounds N] [--seconds S] [--device gpu|cpu]
[--tflops T] [--terabytes-per-s B] [--architecture large|mobile|small]`, from the repository's root. It needs
keras, jax (for the GPU: `jax[cuda12]`), torch and timm, and neither TensorFlow nor the rest of the project.

Weights are random. All ways do the same work: uint8 pixels that lie on the device already, scaled to [-1, 1],
to float32 features and the five best of the softmax. Each is a process of its own, started anew for each
batch; they are made ready one by one, then take turns. A way that ends early is reported with its error.
timm has the large network alone: of another architecture only ours is measured.

A roofline is the sum over the layers of the longer of two times: the layer's multiply-adds at `--tflops`
(two operations each), its bytes at `--terabytes-per-s`; the defaults are an H100 SXM's, an H200 has 4.8.
A layer's bytes are its inputs and weights read once and its outputs written once, in bfloat16, and no cache
keeps any from one layer to the next. A separable convolution is one layer: what its two halves hand on is not
counted. "Unfused" counts every layer; "fused" takes those without weights or pooling (ReLU, sum, crop, pad,
concatenation) as free: no way reaches it, while one whose compiler fuses well may pass the unfused one.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or it takes the memory of the others

import numpy as np

WARM_UPS = 3  # the first passes compile, choose kernels and record CUDA graphs
PIXEL_SCALE = 127.5
TOP = 5
BYTES = 2  # of a bfloat16
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt)\w*\b.*")


@dataclass(frozen=True)
class Job:
    """What a worker is to run; it travels as JSON."""

    way: str
    device: str
    architecture: str
    size: int
    batch: int
    seconds: float


@dataclass(frozen=True)
class Pass:
    """`forward` starts a pass, `fetch` waits for its features, probabilities and classes.

    Passes that were started one after another end in that order on a GPU: the last one stands for all.
    """

    device: str
    forward: Callable[[], Any]
    fetch: Callable[[Any], list[np.ndarray]]


def ours(job: Job) -> Pass:
    os.environ["JAX_PLATFORMS"] = "cpu" if job.device == "cpu" else "cuda,cpu"
    import jax
    import jax.numpy as jnp

    device = jax.devices(job.device)[0]  # raises where there is no GPU; left alone, JAX takes the CPU
    network = _network(job.architecture)
    parameters = jax.device_put(
        ([v.value for v in network.trainable_variables], [v.value for v in network.non_trainable_variables]),
        device,
    )
    images = jax.device_put(_images(job), device)

    @jax.jit
    def forward(parameters: Any, images: Any) -> Any:
        scaled = images.astype(jnp.float32) / PIXEL_SCALE - 1
        outputs, _ = network.stateless_call(*parameters, scaled, training=False)
        return outputs["features"], *jax.lax.top_k(jax.nn.softmax(outputs["logits"]), TOP)

    def fetch(outputs: Any) -> list[np.ndarray]:
        return [np.asarray(output) for output in outputs]

    return Pass(device.device_kind, lambda: forward(parameters, images), fetch)


def timm(mode: str | None) -> Callable[[Job], Pass]:
    """timm's network as it is, or under `torch.compile` in one of its modes."""

    def load(job: Job) -> Pass:
        import torch
        from timm import create_model

        torch.backends.cudnn.benchmark = True
        device = torch.device("cpu" if job.device == "cpu" else "cuda")
        # The pnasnet5large of timm pads as TensorFlow does ("same") by itself.
        network = create_model("pnasnet5large", pretrained=False).eval()
        network = network.to(device, torch.bfloat16, memory_format=torch.channels_last)
        images = torch.from_numpy(_images(job)).to(device).permute(0, 3, 1, 2)  # NHWC in memory

        def forward(images: Any) -> Any:
            scaled = (images.float() / PIXEL_SCALE - 1).to(torch.bfloat16)
            features = network.forward_head(network.forward_features(scaled), pre_logits=True)
            logits = network.last_linear(features)
            return features.float(), *logits.float().softmax(-1).topk(TOP)

        compiled = forward if mode is None else torch.compile(forward, mode=mode, dynamic=False)

        def infer() -> Any:
            with torch.inference_mode():
                return compiled(images)

        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        return Pass(name, infer, lambda outputs: [output.cpu().numpy() for output in outputs])

    return load


OURS = "ours"
WAYS: dict[str, Callable[[Job], Pass]] = {
    OURS: ours,
    "timm eager": timm(None),
    "timm compile": timm("default"),
    "timm max-autotune": timm("max-autotune"),
}


def work(job: Job) -> None:
    """A JSON line when ready; then, for each line on standard input, one with the images/s of a round."""
    start = time.perf_counter()
    way = WAYS[job.way](job)
    for _ in range(WARM_UPS):
        outputs = way.fetch(way.forward())
    assert all(np.isfinite(output).all() for output in outputs), "outputs that are not finite"
    _say(device=way.device, setup_s=time.perf_counter() - start)
    passes = max(1, round(job.seconds / _seconds(way, 1)))
    for _ in sys.stdin:
        _say(images_per_s=job.batch * passes / _seconds(way, passes))


def _seconds(way: Pass, passes: int) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        outputs = way.forward()
    way.fetch(outputs)
    return time.perf_counter() - start


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _images(job: Job) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (job.batch, job.size, job.size, 3), np.uint8)


def _network(name: str) -> Any:
    from transforms.model.pnasnet import architecture, build_folded

    return build_folded(architecture(name), 1001, dtype="bfloat16")


@dataclass(frozen=True)
class Layer:
    """What a layer costs: operations and bytes of activations an image, bytes of weights a batch."""

    flops: int
    activations: int
    weights: int
    fusible: bool

    def seconds(self, batch: int, tflops: float, terabytes_per_s: float) -> float:
        moved = self.activations * batch + self.weights
        return max(self.flops * batch / tflops, moved / terabytes_per_s) / 1e12


@dataclass(frozen=True)
class Roofline:
    layers: tuple[Layer, ...]
    tflops: float
    terabytes_per_s: float

    def images_per_s(self, batch: int, fused: bool) -> float:
        counted = [layer for layer in self.layers if not (fused and layer.fusible)]
        return batch / sum(layer.seconds(batch, self.tflops, self.terabytes_per_s) for layer in counted)

    def __str__(self) -> str:
        flops, moved, weights = (
            sum(getattr(layer, name) for layer in self.layers) for name in ("flops", "activations", "weights")
        )
        return (
            f"{flops / 1e9:.2f} GFLOP and {moved / 1e6:,.0f} MB an image, {weights / 1e6:,.0f} MB of weights"
            f" a batch; ceilings {self.tflops:g} TFLOP/s, {self.terabytes_per_s:g} TB/s"
        )


def layers_of(name: str) -> Iterator[Layer]:
    """The layers of our network of that architecture, from the shapes that Keras knows."""
    import keras

    pools = keras.layers.MaxPooling2D, keras.layers.GlobalAveragePooling2D
    for operation in _network(name).operations:
        if not isinstance(operation, keras.layers.InputLayer):
            inputs, outputs = (keras.tree.flatten(side) for side in (operation.input, operation.output))
            weights = [variable.shape for variable in getattr(operation, "weights", ())]
            kernels = sum(math.prod(shape) for shape in weights if len(shape) > 1)
            yield Layer(
                flops=2 * kernels * math.prod(outputs[0].shape[1:-1]),  # each kernel once at each position
                activations=BYTES * sum(math.prod(tensor.shape[1:]) for tensor in inputs + outputs),
                weights=BYTES * sum(map(math.prod, weights)),
                fusible=not weights and not isinstance(operation, pools),
            )


class EndedError(Exception):
    """A worker ended before it answered; the text is its error's."""


@dataclass(frozen=True)
class Worker:
    process: "subprocess.Popen[str]"
    log: IO[str]

    def turn(self) -> float:
        """Images/s of one round; raises EndedError."""
        assert self.process.stdin is not None
        try:
            os.write(self.process.stdin.fileno(), b"\n")
        except BrokenPipeError as error:
            raise self._ended() from error
        return float(self.answer()["images_per_s"])

    def answer(self) -> Mapping[str, Any]:
        """The next JSON line; compilers may print others. Raises EndedError."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise self._ended()

    def _ended(self) -> EndedError:
        code = self.process.wait()
        self.log.seek(0)
        text = self.log.read()
        sys.stderr.write(text)
        errors = [line for line in text.splitlines() if ERROR_LINE.match(line)]
        return EndedError(errors[-1][:200] if errors else f"exit code {code}")


def compare(jobs: list[Job], rounds: int, roofline: Roofline) -> None:
    """Make every way ready, let them take turns, and print what each did."""
    workers: dict[str, Worker] = {}
    rates: dict[str, list[float]] = {job.way: [] for job in jobs}
    with ExitStack() as stack:
        for job in jobs:
            workers[job.way] = stack.enter_context(_started(job))
            with _reported(job.way, workers):
                ready = workers[job.way].answer()
                print(f"  {job.way:16} ready in {ready['setup_s']:.0f} s on {ready['device']}", flush=True)
        for _ in range(rounds):
            for way, worker in list(workers.items()):
                with _reported(way, workers):
                    rates[way].append(worker.turn())
    _report(jobs[0].batch, {way: statistics.median(rates[way]) for way in workers}, roofline)


@contextmanager
def _started(job: Job) -> Iterator[Worker]:
    """A worker that ends with the context, which closes its standard input."""
    command = [sys.executable, "-m", "benchmarks.gpu_network", "--work", json.dumps(asdict(job))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, errors="replace"
        ) as process,
    ):
        yield Worker(process, log)


@contextmanager
def _reported(way: str, workers: dict[str, Worker]) -> Iterator[None]:
    """Print that the way failed, and why, and go on without it."""
    try:
        yield
    except EndedError as error:
        print(f"  {way:16} failed: {error}", flush=True)
        del workers[way]


def _report(batch: int, rates: Mapping[str, float], roofline: Roofline) -> None:
    unfused, fused = (roofline.images_per_s(batch, fused) for fused in (False, True))
    for way, rate in rates.items():
        print(
            f"  {way:16} {rate:10,.2f} images/s, {rate / unfused:6.1%} of the unfused roofline"
            f" ({unfused:,.0f}), {rate / fused:6.1%} of the fused one ({fused:,.0f})",
            flush=True,
        )
    theirs = {way: rate for way, rate in rates.items() if way != OURS}
    if OURS in rates and theirs:
        best = max(theirs, key=theirs.__getitem__)
        print(f"  ours is {rates[OURS] / theirs[best]:.2f}x of timm's best ({best})", flush=True)


def main() -> None:
    flags = _flags()
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process stays off the GPU
    from transforms.model.pnasnet import architecture

    size = architecture(flags.architecture).image_size
    roofline = Roofline(tuple(layers_of(flags.architecture)), flags.tflops, flags.terabytes_per_s)
    print(f"{flags.architecture}, {size}x{size}, bfloat16: {roofline}", flush=True)
    ways = list(WAYS) if flags.architecture == "large" else [OURS]
    for batch in map(int, flags.batches.split(",")):
        print(f"batch {batch}, median of {flags.rounds} rounds", flush=True)
        jobs = [Job(way, flags.device, flags.architecture, size, batch, flags.seconds) for way in ways]
        compare(jobs, flags.rounds, roofline)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", default="32,64,128,256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one way's turn in a round")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tflops", type=float, default=990.0, help="dense bfloat16")
    parser.add_argument("--terabytes-per-s", type=float, default=3.35)
    parser.add_argument("--architecture", choices=("large", "mobile", "small"), default="large")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Job(**json.loads(sys.argv[2])))
    else:
        main()
