"""What a run will take, as a person reads it."""

import io

import pytest
from rich.console import Console

from pipeline.cost import MACHINE_RATES, duration, here, show
from transforms.model.calibration import Trial
from transforms.model.embedder import EmbedderSettings

TRIAL = Trial("native", "bfloat16", 16, compiled=False, images_per_s=6.25)


@pytest.mark.parametrize(
    ("images", "rate", "said"),
    [(100, 10, "10 s"), (1_000, 10, "2 min"), (50_000, 10, "83 min"), (1_000_000, 10, "27.8 h")],
)
def test_durations_are_in_units_that_people_use(images: int, rate: float, said: str) -> None:
    assert duration(images, rate) == said


def test_the_way_that_was_chosen_is_one_line() -> None:
    assert here(TRIAL, "a CPU, 2 cores") == (
        "our network in bfloat16, 16 images a pass, on a CPU, 2 cores: 6.2 images/s, 44.4 h for a million"
    )
    compiled = Trial("hub", "float32", 64, compiled=True, images_per_s=100)
    assert "its module's graph in float32, 64 images a pass, compiled, on 4 x a GPU" in here(
        compiled, "a GPU", 4
    )


def said(dataflow: bool, trial: Trial | None) -> str:
    text = io.StringIO()
    show(Console(file=text, width=200), trial, EmbedderSettings("m", "d", device="cpu"), dataflow=dataflow)
    return text.getvalue()


def test_dataflows_machines_are_named_with_where_their_figures_are_from() -> None:
    table = said(dataflow=True, trial=None)
    for row in MACHINE_RATES:
        assert row.machine in table
        assert row.accelerator in table
        assert row.source[-4:].isdigit(), "a source has its year"
    assert said(dataflow=False, trial=None) == ""
    assert said(dataflow=False, trial=TRIAL).startswith("Model:  our network")
