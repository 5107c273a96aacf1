from dataclasses import replace

import pytest

from jobs.index_report import advices
from pipeline.index_manifest import IndexManifest
from tests.vectors import build, make_run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> IndexManifest:
    run = tmp_path_factory.mktemp("report") / "run"
    make_run(run, 100)
    return build(run).manifest


def test_a_new_index_needs_no_advice(manifest: IndexManifest) -> None:
    assert advices(manifest) == []


def test_drift_growth_and_garbage_are_told_with_what_to_do(manifest: IndexManifest) -> None:
    old = replace(manifest, last_build=replace(manifest.last_build, drift=1.8), trained_rows=20, removed=30)
    drift, growth, garbage = advices(old)
    assert "1.80 times as far" in drift
    assert "made for 20 images" in growth
    assert "30 removed images" in garbage
    assert all("--rebuild" in advice for advice in (drift, growth, garbage))
