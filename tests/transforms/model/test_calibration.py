"""What a trial chooses, and what it remembers."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from transforms.errors import UserError
from transforms.model.calibration import calibrate
from transforms.model.embedder import EmbedderSettings
from transforms.model.engine import PrecisionUnavailable
from transforms.model.source import ModelFiles, identify_model, locate_model


@pytest.fixture
def settings() -> EmbedderSettings:
    files = locate_model("small")
    return EmbedderSettings("small", identify_model(files), device="cpu")


def calibrations(caches: Path) -> list[Path]:
    return sorted((caches.parent / "calibrations").glob("*.json"))


def test_nothing_is_tried_where_all_is_said(settings: EmbedderSettings, caches: Path) -> None:
    chosen, trial = calibrate(settings, "bfloat16", 5)
    assert trial is None
    assert (chosen.precision, chosen.batch_size, chosen.engine) == ("bfloat16", 5, "auto")
    assert calibrations(caches) == []


def test_a_trial_finds_how_the_model_runs_and_is_remembered(settings: EmbedderSettings, caches: Path) -> None:
    chosen, trial = calibrate(settings, "float32", "auto")
    assert trial is not None
    assert trial.images_per_s > 1
    assert (chosen.engine, chosen.precision, chosen.compiled) == ("native", "float32", False)
    assert chosen.batch_size in (8, 16, 32)
    [path] = calibrations(caches)
    path.write_text(json.dumps({**asdict(trial), "batch_size": 3, "images_per_s": 1e6}))
    again, recalled = calibrate(settings, "float32", "auto")
    assert again.batch_size == 3
    assert recalled is not None
    assert recalled.images_per_s == 1e6


def test_what_was_asked_for_is_kept(settings: EmbedderSettings) -> None:
    chosen, trial = calibrate(settings, "auto", 4)
    assert chosen.batch_size == 4
    assert trial is not None
    assert trial.precision == chosen.precision


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"engine": 1, "colour": 2}', "\x00"])
def test_a_damaged_memory_is_as_good_as_none(settings: EmbedderSettings, caches: Path, damage: str) -> None:
    calibrate(settings, "float32", "auto")
    [path] = calibrations(caches)
    path.write_text(damage)
    _, trial = calibrate(settings, "float32", "auto")
    assert trial is not None
    assert json.loads(path.read_text())["images_per_s"] == trial.images_per_s
    assert os.listdir(path.parent) == [path.name], "temporary files stay behind"


def test_a_network_that_is_not_ours_is_tried_in_float32_alone(tiny_module: Path) -> None:
    files = ModelFiles(str(tiny_module), str(tiny_module))
    settings = EmbedderSettings(files.handle, identify_model(files), device="cpu")
    chosen, _ = calibrate(settings, "auto", 2)
    assert (chosen.engine, chosen.precision) == ("hub", "float32")
    with pytest.raises(PrecisionUnavailable, match="leave out --precision bfloat16"):
        calibrate(settings, "bfloat16", "auto")


def test_a_gpu_that_is_not_there_is_an_error(settings: EmbedderSettings) -> None:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="--device gpu: TensorFlow finds no GPU here"):
        calibrate(EmbedderSettings("small", settings.digest, device="gpu"), "auto", "auto")
