"""Training, at a scale that only shows that it works: a module comes out that the product can use."""

from pathlib import Path

import pytest

from jobs.__main__ import main
from tests.runs import run_embed
from transforms.errors import UserError
from transforms.model.engine import describe_network
from transforms.model.source import locate_model
from transforms.sample import CLASSES


def test_a_trained_module_embeds_images(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "module")
    assert main(["train", folder, "--images", "128", "--epochs", "1"]) == 0
    assert "of 1000 held out" in capsys.readouterr().err
    info = describe_network(locate_model(folder))
    assert (info.class_count, info.feature_width) == (len(CLASSES), 640)
    assert info.labels is not None
    assert info.labels.names == CLASSES
    from pipeline.config import ModelConfig

    outcome = run_embed(tmp_path / "run", photos, model=ModelConfig(folder))
    assert outcome.manifest.embedded_now == 48


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    from jobs.train import main as train

    with pytest.raises(UserError, match="exists already"):
        train([str(tmp_path)])
