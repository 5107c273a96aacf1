from pathlib import Path

import numpy as np
import pytest

from transforms.vector_store import Codec, Precision, VectorStore, plain_codec, range_codec


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)


def codec_for(precision: Precision, vectors: np.ndarray) -> Codec:
    if precision == "uint8":
        return range_codec(precision, vectors.min(axis=0), vectors.max(axis=0))
    return plain_codec(precision, vectors.shape[1])


@pytest.mark.parametrize(("precision", "error"), [("float32", 0), ("float16", 2e-3), ("uint8", 2e-2)])
def test_rows_come_back_from_several_files(
    tmp_path: Path, vectors: np.ndarray, precision: Precision, error: float
) -> None:
    codec = codec_for(precision, vectors)
    sizes = [20, 0, 30]
    for number, (start, size) in enumerate(zip((0, 20, 20), sizes, strict=True)):
        codec.encode(vectors[start : start + size]).tofile(tmp_path / str(number))
    store = VectorStore([str(tmp_path / str(number)) for number in range(3)], sizes, codec)
    ids = np.array([49, 0, 19, 20, 20])
    assert len(store) == 50
    assert np.allclose(store.take(ids), vectors[ids], atol=error)
    blocks = list(store.blocks(16))
    assert [first for first, _ in blocks] == [0, 16, 20, 36]
    assert np.allclose(np.concatenate([block for _, block in blocks]), vectors, atol=error)


def test_what_lies_outside_of_the_ranges_is_cut_to_them(vectors: np.ndarray) -> None:
    codec = codec_for("uint8", vectors)
    assert np.allclose(codec.decode(codec.encode(vectors * 100)).max(axis=0), vectors.max(axis=0), atol=1e-2)


def test_a_dimension_without_a_range_stays_what_it_is() -> None:
    same = np.full((3, 2), 7, np.float32)
    codec = codec_for("uint8", same)
    assert np.array_equal(codec.decode(codec.encode(same)), same)


def test_a_file_with_fewer_rows_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    vectors.tofile(tmp_path / "rows")
    with pytest.raises(ValueError, match="mmap length"):
        VectorStore([str(tmp_path / "rows")], [51], plain_codec("float32", 12))
