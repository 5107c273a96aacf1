import numpy as np
import pytest

from transforms.projection import fit_projection


@pytest.fixture
def sample() -> np.ndarray:
    rng = np.random.default_rng(3)
    spread = np.arange(1, 41, dtype=np.float32) ** -1.0
    turned = np.linalg.qr(rng.standard_normal((40, 40)))[0].astype(np.float32)
    return rng.standard_normal((2000, 40), np.float32) * spread @ turned + np.float32(3)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_it_keeps_as_much_variance_as_the_eigenvectors_do(sample: np.ndarray, width: int) -> None:
    projection = fit_projection(sample, width, centred=True)
    moved = sample @ projection.matrix.T + projection.offset
    best = np.linalg.eigvalsh(np.cov(sample.T))[::-1][:width].sum()
    assert np.allclose(projection.matrix @ projection.matrix.T, np.eye(width), atol=1e-4)
    assert np.allclose(moved.mean(axis=0), 0, atol=1e-3)
    assert moved.var(axis=0).sum() == pytest.approx(best, rel=0.01)


def test_without_centring_inner_products_are_kept(sample: np.ndarray) -> None:
    projection = fit_projection(sample, 30, centred=False)
    moved = sample[:50] @ projection.matrix.T + projection.offset
    assert np.allclose(moved @ moved.T, sample[:50] @ sample[:50].T, rtol=1e-2)


def test_every_dimension_says_about_as_much(sample: np.ndarray) -> None:
    projection = fit_projection(sample, 16, centred=True)
    moved = sample @ projection.matrix.T + projection.offset
    assert moved.var(axis=0).max() < 6 * np.median(moved.var(axis=0))
