from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.vectors import make_run, write_part, write_run
from transforms.vectors import Part, prepare, read_rows, read_vectors, sample_vectors

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=ANY))
def test_what_is_usable_has_unit_length_and_the_rest_is_zero(vectors: np.ndarray) -> None:
    prepared = prepare(vectors, "cosine")
    lengths = np.linalg.norm(prepared.vectors, axis=1)
    assert np.isfinite(prepared.vectors).all()
    assert not lengths[~prepared.usable].any()
    assert np.allclose(lengths[prepared.usable], 1, atol=1e-3)
    assert not prepared.usable[~np.isfinite(vectors).all(axis=1)].any()


def test_other_metrics_leave_lengths_alone() -> None:
    vectors = np.array([[3, 4], [np.nan, 1], [0, 0]], np.float32)
    for metric in ("ip", "l2"):
        assert prepare(vectors, metric).vectors.tolist() == [[3, 4], [0, 0], [0, 0]]  # type: ignore[arg-type]


def test_blocks_are_the_rows_of_the_file_in_order(tmp_path: Path) -> None:
    vectors = make_run(tmp_path, 1500, 8)
    blocks = list(read_vectors(str(tmp_path / "embeddings" / "part-00000000.parquet")))
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate(blocks), vectors)


def test_float16_becomes_float32(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_part(tmp_path, "0", np.array([[1, 0.5]], np.float16), [0])
    [block] = read_vectors(str(tmp_path / "embeddings" / "part-0.parquet"))
    assert block.dtype == np.float32
    assert block.tolist() == [[1, 0.5]]


def test_rows_come_in_the_order_they_are_asked_for(tmp_path: Path) -> None:
    vectors = make_run(tmp_path, 1500, 8)
    wanted = [1400, 3, 3, 1023, 1024]
    assert np.array_equal(
        read_rows(str(tmp_path / "embeddings" / "part-00000000.parquet"), wanted), vectors[wanted]
    )


@pytest.mark.parametrize("rows", [1, 100, 2500, 4000])
def test_a_sample_is_of_about_so_many_different_rows_and_knows_their_ids(tmp_path: Path, rows: int) -> None:
    vectors = make_run(tmp_path, 4000, 8)
    parts = [Part(f"part-{start:08d}.parquet", min(1500, 4000 - start)) for start in (0, 1500, 3000)]
    samples = list(sample_vectors(str(tmp_path / "embeddings"), parts, rows, np.random.default_rng(1)))
    ids = np.concatenate([sample.ids for sample in samples])
    assert len(set(ids.tolist())) == len(ids)
    assert rows <= len(ids) <= rows + len(samples)
    assert np.array_equal(np.concatenate([sample.vectors for sample in samples]), vectors[ids])
