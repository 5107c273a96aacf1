"""What tests share: rendered photographs, made once, and a run of the job on the embedded model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import RunOutcome, run_embed
from transforms.sample import write_samples


@pytest.fixture(scope="session", autouse=True)
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """How a model runs best is tried once for all tests, and not taken from whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 JPEG files, three of each class, and labels.csv, outside of the folder `images`."""
    folder = tmp_path_factory.mktemp("photos") / "images"
    write_samples(str(folder), 48, 7)
    (folder / "labels.csv").rename(folder.parent / "labels.csv")
    return folder


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., RunOutcome]:
    """Embeds inputs into tmp_path/run with the embedded model; keywords are fields of `EmbedConfig`."""

    def embed(*inputs: object, **changes: Any) -> RunOutcome:
        return run_embed(tmp_path / "run", *inputs, **changes)

    return embed
