"""`pnasvec train`: trains the small model on rendered images and writes it as a Hub module."""

import os
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import Parser
from jobs.quiet import import_tensorflow
from transforms.errors import UserError

if TYPE_CHECKING:
    import keras

# Held-out images come from a seed that no training uses.
_HELD_OUT, _HELD_OUT_SEED = 1000, 1_000_003


def main(arguments: Sequence[str]) -> int:
    """Train, report the accuracy on held-out images after each epoch, export."""
    parser = Parser(prog="pnasvec train", description="Train the small model on rendered images.")
    parser.add_argument("folder", help="where to write the module; must not exist")
    parser.add_argument("--images", type=int, default=32_000, help="rendered for training")
    parser.add_argument("--epochs", type=int, default=4, help="how often each is seen")
    parser.add_argument("--seed", type=int, default=1, help="of images and weights")
    flags = parser.parse_args(arguments)
    if os.path.lexists(flags.folder):
        raise UserError(f"{flags.folder} exists already; name a new folder")

    import_tensorflow()
    from rich.console import Console

    from transforms.model.pnasnet import architecture
    from transforms.model.training import TrainSettings, render_labelled, top1, train_small

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    started = time.monotonic()
    settings = TrainSettings(flags.images, flags.epochs, flags.seed)
    size = architecture("small").image_size
    held_out = render_labelled(_HELD_OUT, _HELD_OUT_SEED, (size, size))
    for epoch, network in train_small(settings):
        minutes = (time.monotonic() - started) / 60
        console.print(
            f"epoch {epoch}: {top1(network, held_out):.1%} of {_HELD_OUT} held out, {minutes:.1f} min"
        )
    _export(network, flags.folder)
    console.print(f"Written: {flags.folder}")
    return 0


def _export(network: "keras.Model", folder: str) -> None:
    from transforms.model.export import export_hub_module
    from transforms.sample import CLASSES

    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as labels:
        labels.write("".join(f"{name}\n" for name in CLASSES))
        labels.flush()
        export_hub_module(network, folder, labels.name)
