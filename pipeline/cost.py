"""What a run will take: images/s here, and by machine type on Dataflow. Nothing is measured here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # TensorFlow takes seconds to import: not for progress, which an index job shows too
    from transforms.model.calibration import Trial
    from transforms.model.embedder import EmbedderSettings

_ENGINES = {"native": "our network", "hub": "its module's graph"}
_MILLION = 1_000_000
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class MachineRate:
    """Images/s of PNASNet-5-large on a machine type of Google Cloud, and where the figure is from."""

    machine: str
    accelerator: str
    images_per_s: float
    source: str


_BY_BANDWIDTH = "estimate: timm's RTX 4090 scaled by memory bandwidth to {} GB/s"

# timm: results/benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv of huggingface/pytorch-image-models has 464
# images/s for pnasnet5large, with 1,008 GB/s. Depthwise convolutions and pooling make the network wait for
# memory, so that bandwidth scales it better than peak arithmetic does.
MACHINE_RATES = (
    MachineRate(
        "c3d-standard-8", "", 13, "estimate: 4 cores of docs/benchmarks.md in bfloat16, November 2026"
    ),
    MachineRate("n1-standard-8", "nvidia-tesla-t4", 87, "TensorRT 7.2 fp16, Ascend ModelZoo, July 2021"),
    MachineRate("g2-standard-8", "nvidia-l4", 138, _BY_BANDWIDTH.format(300) + ", October 2024"),
    MachineRate("a2-highgpu-1g", "nvidia-tesla-a100", 716, _BY_BANDWIDTH.format("1,555") + ", October 2024"),
    MachineRate("a3-highgpu-1g", "nvidia-h100-80gb", 1540, _BY_BANDWIDTH.format("3,350") + ", October 2024"),
)


def show(console: Console, trial: "Trial | None", settings: "EmbedderSettings", *, dataflow: bool) -> None:
    """Before the work starts: how the model runs here, or what it takes on Dataflow's machines."""
    if trial is not None:
        from transforms.model.devices import find_devices

        devices = find_devices(settings.device)
        console.print(f"Model:  {here(trial, devices[0].description, len(devices))}")
    if dataflow:
        console.print(_dataflow())


def here(trial: "Trial", device: str, count: int = 1) -> str:
    """One line on the way that was chosen, with its images/s."""
    compiled = ", compiled" if trial.compiled else ""
    times = f"{count} x " if count > 1 else ""
    return (
        f"{_ENGINES[trial.engine]} in {trial.precision}, {trial.batch_size} images a pass{compiled},"
        f" on {times}{device}: {trial.images_per_s:,.1f} images/s,"
        f" {duration(_MILLION, trial.images_per_s)} for a million"
    )


def _dataflow() -> Table:
    table = Table("machine type of a worker", "images/s", "a million", "source", title="PNASNet-5-large")
    for row in MACHINE_RATES:
        machine = f"{row.machine} {row.accelerator}".strip()
        rate = row.images_per_s
        table.add_row(machine, f"{rate:,.0f}", duration(_MILLION, rate), row.source)
    return table


def duration(images: int, images_per_s: float) -> str:
    """How long so many images take: in seconds, minutes or hours, as a person would say it."""
    seconds = images / images_per_s
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 90 * 60 else f"{seconds / _HOUR_S:,.1f} h"
