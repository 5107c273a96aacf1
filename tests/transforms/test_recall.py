from pathlib import Path

import numpy as np
import pytest

from tests.vectors import clustered
from transforms.errors import UserError
from transforms.recall import Measurement, ceilings, choose, load_arrays, merge_truths, save_arrays
from transforms.vector_index import Hits, SearchSetting
from transforms.vectors import prepare


def measured(effort: int, recall: float, qps: float) -> Measurement:
    return Measurement(SearchSetting(effort, 5), (recall, recall, recall), qps)


def test_the_fastest_that_reaches_the_recall_is_chosen_or_the_nearest() -> None:
    slow, fast, weak = measured(64, 0.99, 100), measured(32, 0.96, 500), measured(4, 0.8, 900)
    assert choose([weak, fast, slow], 0.95) == fast
    assert choose([weak, fast, slow], 0.97) == slow
    assert choose([weak, fast], 0.99) == fast


@pytest.mark.parametrize(("metric", "ids"), [("cosine", [[7, 1, 2]]), ("l2", [[9, 8, 2]])])
def test_truths_of_segments_become_one(metric: str, ids: list[list[int]]) -> None:
    first = Hits(np.array([[0.9, 0.5, 0.1]], np.float32), np.array([[7, 2, 8]]))
    second = Hits(np.array([[0.8, 0.05]], np.float32), np.array([[1, 9]]))
    assert merge_truths([first, second], metric).ids.tolist() == ids  # type: ignore[arg-type]


def test_more_precision_never_bounds_recall_lower() -> None:
    vectors = prepare(clustered(2000, 48), "cosine").vectors
    found = ceilings(vectors[100:], vectors[:100], "cosine")
    assert found["float32"] == 1
    assert found["float32"] >= found["float16"] >= found["uint8"] > 0.95


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_arrays_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ids = np.arange(np.prod(shape)).reshape(shape)
    numbers = np.random.default_rng(0).random((4, 5), np.float32)
    path = str(tmp_path / "arrays.bin")
    save_arrays(path, ids, numbers)
    again, floats = load_arrays(path)
    assert np.array_equal(again, ids)
    assert np.array_equal(floats, numbers)
    for damage in (b"", b"\0" * 32, Path(path).read_bytes()[:-1], b"\xff" * 64):
        Path(path).write_bytes(damage)
        with pytest.raises(UserError, match="is damaged"):
            load_arrays(path)
