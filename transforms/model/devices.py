"""The processors that a model runs on: found, prepared, and described."""

import logging
import os
import platform
from dataclasses import dataclass

import tensorflow as tf

from transforms.errors import UserError
from transforms.model.options import DeviceKind, Precision

_log = logging.getLogger(__name__)

# The instructions that multiply in bfloat16, as Linux names them; emulated, it is slower than float32.
_BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
# Tensor cores: float16 since compute capability 7.0 (Volta), bfloat16 since 8.0 (Ampere).
_FLOAT16_CAPABILITY, _BFLOAT16_CAPABILITY = (7, 0), (8, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """`name` is TensorFlow's; `precisions` are those that may be quicker here than float32, and float32."""

    name: str
    description: str
    precisions: tuple[Precision, ...] = ("float32",)

    @property
    def is_gpu(self) -> bool:
        return "GPU" in self.name


def find_devices(wanted: DeviceKind) -> tuple[Device, ...]:
    """Every GPU, or the CPU where there is none or it is wanted.

    TensorFlow is set up for them: GPU memory grows as it is needed, float32 means float32. Raises
    `UserError` for a GPU that is wanted and not there.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "gpu" and not gpus:
        raise UserError("--device gpu: TensorFlow finds no GPU here; leave it out to run on the CPU")
    if wanted == "cpu" or not gpus:
        _prepare([])
        return (_cpu(),)
    _prepare(gpus)
    return tuple(_gpu(index, gpu) for index, gpu in enumerate(gpus))


def _prepare(gpus: "list[tf.config.PhysicalDevice]") -> None:
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:  # raised once TensorFlow has begun to use its devices
        _log.debug("devices stay as they are: %s", error)


def _gpu(index: int, gpu: "tf.config.PhysicalDevice") -> Device:
    details = tf.config.experimental.get_device_details(gpu)
    capability = details.get("compute_capability", (0, 0))
    precisions: list[Precision] = ["float32"]
    if capability >= _FLOAT16_CAPABILITY:
        precisions.append("bfloat16" if capability >= _BFLOAT16_CAPABILITY else "float16")
    return Device(f"/GPU:{index}", details.get("device_name", "GPU"), tuple(precisions))


def _cpu() -> Device:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = _cpuinfo()
    model = facts.get("model name") or platform.processor() or platform.machine()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if flags & _BFLOAT16_FLAGS else ("float32",)
    return Device("/CPU:0", f"{model}, {cores} cores", precisions)


def _cpuinfo() -> dict[str, str]:
    """Linux's facts about the last core, by name; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            pairs = [line.partition(":") for line in file]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in pairs}
