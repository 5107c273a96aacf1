import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.indexing import cut
from tests.vectors import IDENTITY, build, clustered, exact, make_run, open_index, uri, write_part, write_run
from transforms.errors import UserError
from transforms.vectors import Part

RECIPES = ["exact", "ivf-rabitq", "ivf-rabitq-128", "ivf-sq8", "ivf-fp16", "hnsw", "IVF16,PQ16x4fs"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """6,000 rows of 160 numbers, enough to train every recipe."""
    run = tmp_path_factory.mktemp("big") / "run"
    return run, make_run(run, 6000, 160)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_finds_neighbours_takes_more_and_forgets(
    big: tuple[Path, np.ndarray], tmp_path: Path, recipe: str
) -> None:
    source, vectors = big
    run = write_run(tmp_path / "run")
    (run / "embeddings").mkdir()
    for part in (source / "embeddings").iterdir():
        (run / "embeddings" / part.name).symlink_to(part)
    build(run, recipe=recipe)
    more = make_run(run, 700, 160, seed=5, first=6000)
    outcome = build(run)
    assert outcome.added == 700
    assert outcome.manifest.rows == 6700
    everything = np.concatenate([vectors, more])
    gone = tmp_path / "gone.txt"
    gone.write_text("\n".join([uri(3), uri(6100), "gs://bucket/never-there.jpg"]))
    outcome = build(run, remove=str(gone))
    assert (outcome.removed, outcome.unknown, outcome.manifest.rows) == (2, 1, 6698)

    index = open_index(run)
    shares = []
    for row in range(0, 6700, 97):
        found = [match.uri for match in index.similar_by_vector(everything[row], 10)]
        assert len(found) == 10
        assert uri(3) not in found
        assert uri(6100) not in found
        truth = [number for number in exact(everything, everything[row], 12) if number not in (3, 6100)][:10]
        shares.append(len({*found} & {uri(number) for number in truth}) / 10)
    assert np.mean(shares) > (0.25 if recipe.endswith("fs") else 0.93)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1, max_size=5), st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_indexed_uri_finds_itself_first_after_any_adds_and_removes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], data: st.DataObject
) -> None:
    run = write_run(tmp_path_factory.mktemp("sequence") / "run")
    vectors, alive = np.empty((0, 8), np.float32), set[int]()
    for number, (adds, count) in enumerate([(True, 3), *steps]):
        if adds:
            numbers = list(range(len(vectors), len(vectors) + count))
            more = np.random.default_rng(number).standard_normal((count, 8)).astype(np.float32)
            write_part(run, f"{number:03d}-{count}", more, numbers)
            vectors = np.concatenate([vectors, more])
            alive.update(numbers)
            build(run, recipe="exact" if number == 0 else None)
        else:
            gone = data.draw(st.sets(st.sampled_from(range(len(vectors))), max_size=len(vectors) - 1))
            (run / "gone.txt").write_text("\n".join(["# gone", *map(uri, gone)]))
            build(run, remove=str(run / "gone.txt"))
            alive -= gone
        if data.draw(st.booleans()):
            build(run, rebuild=True)
    index = open_index(run)
    assert len(index) == len(alive)
    for row in range(len(vectors)):
        if row in alive:
            first, *_ = index.similar_by_uri(uri(row), 1)
            assert (first.uri, first.label, first.width) == (uri(row), f"label {row % 5}", 100 + row)
            assert first.score == pytest.approx(1, abs=1e-5)
            assert {match.uri for match in index.similar_by_uri(uri(row), 1000)} == set(map(uri, alive))
        else:
            with pytest.raises(UserError, match="not in the index"):
                index.similar_by_uri(uri(row))


def test_a_build_that_is_stopped_leaves_the_old_index_and_goes_on_from_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 3000)
    build(run, recipe="ivf-sq8")
    before = (run / "index" / "index.json").read_bytes()
    make_run(run, 3000, seed=3, first=3000)
    damaged = run / "embeddings" / "part-00004500.parquet"
    good = damaged.read_bytes()
    footer = good[-200:]
    damaged.write_bytes(b"\0" * (len(good) - 200) + footer)
    with pytest.raises(UserError, match=r"part-00004500\.parquet is damaged"):
        build(run)
    assert (run / "index" / "index.json").read_bytes() == before
    assert open_index(run).similar_by_uri(uri(17), 1)[0].uri == uri(17)
    damaged.write_bytes(good)
    assert build(run).manifest.rows == 6000
    assert open_index(run).similar_by_uri(uri(5999), 1)[0].uri == uri(5999)
    named = {file.name for file in (run / "index").iterdir()} - {"index.json", ".lock"}
    assert named == build(run).manifest.files.names


def test_a_reader_that_has_it_open_keeps_the_old_index(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 2000)
    build(run, recipe="ivf-rabitq")
    index = open_index(run)
    make_run(run, 500, seed=1, first=2000)
    build(run, rebuild=True)
    assert index.similar_by_uri(uri(9), 3)[0].uri == uri(9)
    assert len(index.similar_by_uri(uri(9), 5000)) == 2000
    assert len(open_index(run).similar_by_uri(uri(9), 5000)) == 2500


def test_recall_is_measured_and_the_default_reaches_what_was_asked(big: tuple[Path, np.ndarray]) -> None:
    run, vectors = big
    manifest = build(run, recipe="ivf-rabitq", min_recall=0.97, rebuild=True).manifest
    chosen = next(one for one in manifest.measurements if one.setting == manifest.setting)
    assert chosen.recall[1] >= 0.97
    assert all(one.recall[1] < 0.97 or one is chosen for one in manifest.measurements[:-1])
    index, own = open_index(run), []
    for row in range(0, 6000, 50):
        found = index.similar_by_vector(vectors[row], 10)
        own.append(
            len({match.uri for match in found} & {uri(n) for n in exact(vectors, vectors[row], 10)}) / 10
        )
    assert np.mean(own) == pytest.approx(chosen.recall[1], abs=0.03)


def test_drift_is_seen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 3000)
    build(run, recipe="ivf-sq8")
    make_run(run, 600, seed=1, first=3000)
    assert build(run).manifest.last_build.drift == pytest.approx(1, abs=0.1)
    noise = np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32)
    write_part(run, "9", noise, range(3600, 4200))
    drift = build(run).manifest.last_build.drift
    assert drift is not None
    assert drift > 2


def test_what_cannot_be_compared_is_counted_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    vectors = clustered(50, 16)
    vectors[3], vectors[4, 0], vectors[5, 1] = 0, np.nan, np.inf
    write_part(run, "0", vectors, range(50))
    manifest = build(run).manifest
    assert (manifest.rows, manifest.unusable) == (47, 3)
    assert len(open_index(run).similar_by_vector(vectors[0], 100)) == 47


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_metrics_rank_and_score_as_they_say(tmp_path: Path, metric: str) -> None:
    run = tmp_path / "run"
    vectors = make_run(run, 400, 16) * 1
    build(run, metric=metric)
    query = vectors[7]
    if metric == "l2":
        scores = np.linalg.norm(vectors - query, axis=1)
        best = np.argsort(scores)[:5]
    else:
        length = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query) if metric == "cosine" else 1
        scores = vectors @ query / length
        best = np.argsort(-scores)[:5]
    found = open_index(run).similar_by_vector(query, 5)
    assert [match.uri for match in found] == [uri(row) for row in best]
    assert [match.score for match in found] == pytest.approx(scores[best].tolist(), rel=1e-3, abs=1e-3)


def test_more_codes_than_memory_stay_in_parts_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    vectors = make_run(run, 4500, 64)
    monkeypatch.setattr("pipeline.config.LEAST_INDEX_MEMORY", 100_000)
    manifest = build(run, recipe="IVF16,Flat", memory=900_000, min_recall=0.9).manifest
    assert len(manifest.files.codes) > 1
    found = open_index(run).similar_by_vector(vectors[4321], 10)
    assert found[0].uri == uri(4321)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"recipe": "LSH"}, "known are exact, ivf-rabitq"),
        ({"recipe": "IVF16,PQ7"}, "FAISS can't build it for vectors of 32"),
        ({"memory": 1000}, "--memory must be at least"),
        ({"min_recall": 1.5}, "--min-recall must be above 0"),
        ({"remove": "nowhere.txt"}, "no such file"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, settings: dict[str, object], complaint: str
) -> None:
    run = tmp_path / "run"
    make_run(run, 100)
    with pytest.raises(UserError, match=complaint):
        build(run, **settings)
    assert not (run / "index" / "index.json").exists()


def test_an_index_is_not_changed_into_another_by_the_way(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 100)
    build(run)
    for changed in ({"metric": "l2"}, {"recipe": "IVF16,SQ8"}):
        with pytest.raises(UserError, match="say --rebuild"):
            build(run, **changed)
    assert build(run, metric="l2", rebuild=True).manifest.metric == "l2"


def test_an_index_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 100)
    build(run)
    write_run(run, {**IDENTITY, "top_k": 3})
    for use in (build, open_index):
        with pytest.raises(UserError, match="other embeddings"):
            use(run)


def test_a_run_without_an_image_and_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        build(tmp_path)
    with pytest.raises(UserError, match="no embedded images"):
        build(write_run(tmp_path / "run"))


def test_a_recipe_that_wants_more_images_than_there_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 100)
    with pytest.raises(UserError, match="FAISS can't train it on 90 of 100 vectors"):
        build(run, recipe="IVF512,SQ8")


def test_only_vectors_that_cannot_be_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_part(run, "0", np.zeros((5, 4), np.float32), range(5))
    with pytest.raises(UserError, match="every vector is zero, NaN or infinite"):
        build(run)


def test_one_run_of_vectors_of_two_widths(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 10, 32)
    make_run(run, 10, 16, first=10)
    with pytest.raises(UserError, match="a file holds vectors of 16, the run's are 32"):
        build(run)


def test_an_index_job_imports_no_tensorflow() -> None:
    program = "import sys, pipeline.indexing, pipeline.bulk_search; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_index_json_says_what_the_index_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, 100)
    build(run)
    said = json.loads((run / "index" / "index.json").read_text())
    assert (said["rows"], said["metric"], said["width"], said["recipe"]) == (100, "cosine", 32, "Flat")
    assert said["search"] == {"effort": 1, "candidates": 1}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 100), st.integers(1, 120))
def test_tasks_hold_every_part_once_and_know_their_first_row(sizes: list[int], first: int, rows: int) -> None:
    parts = [Part(str(number), size) for number, size in enumerate(sizes)]
    tasks = list(cut(parts, first, rows))
    assert [part for task in tasks for part in task.parts] == parts
    for task in tasks:
        assert task.first == first
        first += sum(part.rows for part in task.parts)
