"""Which precision and batch size are quickest here: a short trial, kept for this model and machine."""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from transforms.model.devices import Device, find_devices
from transforms.model.embedder import Embedder, EmbedderSettings, load_embedder
from transforms.model.engine import PrecisionUnavailable
from transforms.model.options import Auto, Engine, Precision
from transforms.model.source import cache_folder

_log = logging.getLogger(__name__)

# Batch sizes in the order of trial. On a CPU the first keeps the activations in its caches.
_CPU_SIZES, _GPU_SIZES = (8, 16, 32), (32, 64, 128, 256)
# A larger batch that is not quicker by so much costs memory for nothing.
_WORTH = 1.03
_TRIAL_S, _MOST_PASSES = 0.7, 20


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to run the model, and its images/s."""

    engine: Engine
    precision: Precision
    batch_size: int
    compiled: bool
    images_per_s: float

    def apply(self, settings: EmbedderSettings) -> EmbedderSettings:
        """The settings to run it that way; the engine is known to be right, so it is not probed again."""
        values = asdict(self)
        del values["images_per_s"]
        return replace(settings, **values)


def calibrate(
    settings: EmbedderSettings, precision: Precision | Auto, batch_size: int | Auto
) -> tuple[EmbedderSettings, Trial | None]:
    """The settings with the quickest precision and batch size of those allowed, and the trial of them.

    None where there was nothing to choose. Raises `UserError` as `load_embedder` does.
    """
    devices = find_devices(settings.device)
    if precision != "auto" and batch_size != "auto":
        return replace(settings, precision=precision, batch_size=batch_size), None
    path = _cache_path(settings, precision, batch_size, devices)
    best = _recall(path)
    if best is None:
        best = _best(settings, _precisions(precision, devices), _sizes(batch_size, devices), devices)
        _keep(path, best)
    return best.apply(settings), best


def _best(
    settings: EmbedderSettings,
    precisions: Sequence[Precision],
    sizes: Sequence[int],
    devices: Sequence[Device],
) -> Trial:
    """Precision and compilation are chosen on the first size, then larger ones while they are worth it."""
    ways = [
        replace(settings, precision=precision, batch_size=sizes[0], compiled=compiled)
        for precision in precisions
        for compiled in ((False, True) if devices[0].is_gpu else (False,))  # XLA was 9x slower on CPUs
    ]
    best = max(_trials(ways), key=lambda trial: trial.images_per_s)
    for size in sizes[1:]:
        larger = _try(replace(best.apply(settings), batch_size=size))
        if larger.images_per_s < best.images_per_s * _WORTH:
            break
        best = larger
    return best


def _trials(ways: Sequence[EmbedderSettings]) -> list[Trial]:
    """A trial of each way that is to be had; raises the last reason if none is.

    An operation without a kernel for this precision or device is one; so is what XLA can't compile.
    """
    trials, reasons = [], []
    for way in ways:
        try:
            trials.append(_try(way))
        except (PrecisionUnavailable, tf.errors.OpError) as error:
            _log.info("%s", error)
            reasons.append(error)
    if not trials:
        raise reasons[-1]
    return trials


def _try(settings: EmbedderSettings) -> Trial:
    embedder = load_embedder(settings)
    rate = _rate(embedder, settings.batch_size)
    network = embedder.network
    trial = Trial(
        network.engine, network.precision, settings.batch_size, settings.compiled, images_per_s=rate
    )
    _log.info(
        "tried %s in %s, %d images a pass: %.1f images/s",
        *(trial.engine, trial.precision, trial.batch_size, trial.images_per_s),
    )
    return trial


def _rate(embedder: Embedder, batch_size: int) -> float:
    """Images/s with as many batches in flight as the job will have, after one that sets everything up."""
    info = embedder.network.info
    pixels = np.random.default_rng(0).integers(0, 256, (info.height, info.width, 3), np.uint8)
    batch = [pixels] * batch_size
    _pass(embedder, batch)
    start, passes = time.perf_counter(), 0
    while passes < _MOST_PASSES and time.perf_counter() - start < _TRIAL_S:
        passes += _pass(embedder, batch)
    return passes * batch_size / (time.perf_counter() - start)


def _pass(embedder: Embedder, batch: Sequence[Any]) -> int:
    """A batch for every copy of the network."""
    for outcome in [embedder.submit(batch) for _ in range(embedder.capacity)]:
        outcome.result()
    return embedder.capacity


def _precisions(precision: Precision | Auto, devices: Sequence[Device]) -> Sequence[Precision]:
    if precision != "auto":
        return (precision,)
    return tuple(known for known in get_args(Precision) if all(known in one.precisions for one in devices))


def _sizes(batch_size: int | Auto, devices: Sequence[Device]) -> Sequence[int]:
    if batch_size != "auto":
        return (batch_size,)
    return _GPU_SIZES if devices[0].is_gpu else _CPU_SIZES


def _cache_path(
    settings: EmbedderSettings,
    precision: Precision | Auto,
    batch_size: int | Auto,
    devices: Sequence[Device],
) -> str:
    """One file for each question: model, device, what was asked for, and the software that answered."""
    question = (
        settings.digest,
        settings.engine,
        precision,
        batch_size,
        [one.description for one in devices],
        tf.__version__,
        version("pnasvec"),
    )
    name = sha256(repr(question).encode()).hexdigest()[:32]
    return os.path.join(cache_folder("calibrations"), f"{name}.json")


def _recall(path: str) -> Trial | None:
    """A trial of an earlier run; a file that is not one is as good as none."""
    try:
        with open(path, encoding="utf-8") as file:
            return Trial(**json.load(file))
    except (OSError, TypeError, ValueError):
        return None


def _keep(path: str, trial: Trial) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(trial), file)
    os.replace(temporary, path)
