"""Manifests: the proof of the counts, JSON and back, differences by name."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.manifest import Manifest, check_same, load_manifest, save_manifest
from pipeline.run_folder import RunFolder
from transforms.errors import UserError
from transforms.tally import StepSeconds, Tally

IDENTITY = {"model": {"handle": "small", "digest": "abc"}, "top_k": 5}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_it_comes_back_as_it_was(run: RunFolder) -> None:
    begun = Manifest.begin(IDENTITY, ("a.txt",))
    save_manifest(run, begun)
    assert load_manifest(run) == begun
    tally = Tally(10, 2, 7, 0, Counter(NotFound=1), StepSeconds(1, 2, 3, 4))
    finished = begun.finish(tally, 3)
    save_manifest(run, finished)
    assert load_manifest(run) == finished
    assert finished.elapsed_s >= 0


@pytest.mark.parametrize("tally", [Tally(given=1), Tally(given=1, pending=1), Tally(embedded=1)])
def test_counts_that_prove_nothing_cannot_finish_it(tally: Tally) -> None:
    with pytest.raises(RuntimeError, match="do not add up"):
        Manifest.begin(IDENTITY, ()).finish(tally, 0)


def test_no_run_has_no_manifest(run: RunFolder) -> None:
    assert load_manifest(run) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "not readable as JSON"),
        ("[]", "not a JSON object"),
        ("{}", "schema version None"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "is damaged"),
        ('{"schema_version": 1, "identity": {}, "inputs": 3}', "is damaged"),
        (
            '{"schema_version": 1, "identity": {}, "inputs": [], "started": "2026-01-01T00:00:00Z"}',
            "is damaged",
        ),
        ('{"schema_version": 1, "identity": {"model": {}}, "inputs": [], "started": 5}', "is damaged"),
    ],
)
def test_a_damaged_one_is_one_clear_line(run: RunFolder, text: str, complaint: str) -> None:
    Path(run.uri).mkdir()
    Path(run.manifest).write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_manifest(run)


def test_every_difference_is_shown_by_its_path(run: RunFolder) -> None:
    now = {"model": {"handle": "other", "digest": "abc"}, "top_k": 5, "rows": {"logits": "float"}}
    with pytest.raises(UserError) as error:
        check_same(run, IDENTITY, now)
    assert "model.handle: small there, other now" in str(error.value)
    assert "rows: None there, {'logits': 'float'} now" in str(error.value)
    assert "digest" not in str(error.value)
    check_same(run, IDENTITY, dict(IDENTITY))
