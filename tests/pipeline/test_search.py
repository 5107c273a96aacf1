import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.search import SimilarityIndex
from tests.runs import run_embed
from tests.vectors import build, exact, make_run, open_index, uri, write_run
from transforms.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows of 32 numbers, by codes and stored vectors."""
    run = tmp_path_factory.mktemp("search") / "run"
    make_run(run, 3000)
    build(run, recipe="ivf-rabitq", min_recall=0.9)
    return run


@pytest.fixture(scope="module")
def vectors(run: Path) -> np.ndarray:
    from tests.vectors import clustered

    return clustered(3000, 32)


@pytest.fixture(scope="module")
def index(run: Path) -> SimilarityIndex:
    return open_index(run)


def test_a_match_says_what_is_known_of_the_image(index: SimilarityIndex) -> None:
    first, *_ = index.similar_by_uri(uri(1234), 3)
    assert (first.uri, first.label, first.width, first.height) == (uri(1234), "label 4", 134, 300)
    assert first.format == "jpeg"
    assert first.probability == pytest.approx(0.4)
    assert first.kept == {"group": 1}
    assert first.score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("label = 'label 3'", lambda n: n % 5 == 3),
        ('"group" = 1 and width >= 300', lambda n: n % 3 == 1 and n % 400 >= 200),
        ("probability > 0.85 -- sure ones", lambda n: n % 10 == 9),
        ("uri like '%0000017.jpg'", lambda n: n == 17),
        ("width < 0", lambda n: False),
    ],
)
def test_a_condition_gives_the_k_best_of_those_it_holds_for(
    index: SimilarityIndex, vectors: np.ndarray, condition: str, holds: object
) -> None:
    assert callable(holds)
    allowed = [number for number in range(3000) if holds(number)]
    found = [match.uri for match in index.similar_by_vector(vectors[5], 25, condition)]
    assert len(found) == min(25, len(allowed))
    assert set(found) <= {uri(number) for number in allowed}
    best = [uri(allowed[row]) for row in exact(vectors[allowed], vectors[5], 25)] if allowed else []
    assert len({*found} & {*best}) >= 0.9 * len(best)


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        ("lable = 'x'", "columns: uri, label, probability, width, height, format, group"),
        ("width >", "syntax error"),
        ("1=1); drop table images; select (1", "one condition is wanted"),
        ("exists (select * from read_csv('/etc/passwd'))", "disabled"),
        ("width in (select 1 from '/etc/passwd')", "does not exist"),
        (" ", "--where is empty"),
    ],
)
def test_what_is_no_condition_is_refused(index: SimilarityIndex, condition: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        index.similar_by_uri(uri(1), 3, condition)


def test_all_there_are_when_k_is_more(index: SimilarityIndex) -> None:
    found = index.similar_by_uri(uri(8), 1_000_000_000)
    assert len({match.uri for match in found}) == 3000


@pytest.mark.parametrize(
    ("query", "k", "complaint"),
    [
        (np.full(32, np.nan), 3, "NaN"),
        (np.full(32, np.inf), 3, "infinity"),
        (np.zeros(32), 3, "zeros"),
        (np.ones(31), 3, "vectors of 32 numbers, the query has 31"),
        (np.ones(32), 0, "k must be at least 1"),
    ],
)
def test_bad_queries_are_one_clear_line(
    index: SimilarityIndex, query: np.ndarray, k: int, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        index.similar_by_vector(query, k)


def test_searching_many_at_once_gives_what_one_by_one_gives(
    index: SimilarityIndex, vectors: np.ndarray
) -> None:
    together = index.search(vectors[:40], 5)
    for row in range(40):
        alone = index.search(vectors[row : row + 1], 5)
        assert np.allclose(together.scores[row], alone.scores[0], atol=1e-5)


def test_no_index_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        SimilarityIndex.open(tmp_path)
    with pytest.raises(UserError, match="has no index; build it with: pnasvec index"):
        SimilarityIndex.open(write_run(tmp_path / "run"))


@pytest.mark.parametrize("kind", [".arrow", ".uris", ".rows", "codes-", "ranges-", "index.json"])
def test_a_file_that_is_cut_off_or_missing_is_one_clear_line(run: Path, tmp_path: Path, kind: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    [file] = [path for path in (copy / "index").iterdir() if kind in path.name]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"damaged|JSON"):
        open_index(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"cannot be read|has no index"):
        open_index(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"width": 32', '"width": 1000000000000'),
        ('"width": 32', '"width": 31'),
        ('"part-00000000.parquet": 1500', '"part-00000000.parquet": 1500000000000'),
        ('"part-00000000.parquet": 1500', '"part-00000000.parquet": -1'),
        ('"coded": 3000', '"coded": 3001'),
        ('"precision": "uint8"', '"precision": "float32"'),
        ('"metric": "cosine"', '"metric": "sine"'),
        ('"effort": ', '"effort": -'),
        ('"name": "segment-', '"name": "../segment-'),
        ('"format": 1', '"format": 2'),
    ],
)
def test_an_index_json_that_says_something_else_is_refused(
    run: Path, tmp_path: Path, old: str, new: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "index" / "index.json").read_text()
    assert old in text
    (copy / "index" / "index.json").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"index"):
        open_index(copy)


@pytest.mark.parametrize("kind", [".arrow", ".uris"])
def test_a_tampered_id_table_is_seen(run: Path, tmp_path: Path, kind: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    [file] = [path for path in (copy / "index").iterdir() if kind in path.name]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="its digest is another"):
        open_index(copy).similar_by_uri(uri(3))


def test_a_vector_whose_file_is_gone_is_one_clear_line(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "embeddings" / "part-00001500.parquet").unlink()
    index = open_index(copy)
    assert index.similar_by_uri(uri(0), 1)
    with pytest.raises(UserError, match=r"part-00001500\.parquet"):
        index.similar_by_uri(uri(1700))


def test_an_image_goes_through_the_model_of_the_run(photos: Path, tmp_path: Path) -> None:
    run_embed(tmp_path / "run", photos)
    build(tmp_path / "run")
    index = open_index(tmp_path / "run")
    photo = sorted(photos.glob("*.jpg"))[4]
    copy = tmp_path / "copy.jpg"
    shutil.copy(photo, copy)
    for image in (copy, str(copy), copy.read_bytes()):
        found = index.similar(image, 3)
        assert (found[0].uri, found[0].score) == (str(photo), pytest.approx(1, abs=1e-4))
    copy.write_bytes(copy.read_bytes()[:500])
    with pytest.raises(UserError, match=r"copy\.jpg: "):
        index.similar(copy)


def test_a_model_that_is_not_the_runs_is_refused(index: SimilarityIndex, photos: Path) -> None:
    with pytest.raises(UserError, match="another model than when the job began"):
        index.similar(next(photos.glob("*.jpg")))


QUERY = """
import sys
from pipeline.search import SimilarityIndex
index = SimilarityIndex.open(sys.argv[1])
assert index.similar_by_uri(sys.argv[2], 3, "width > 0")
print({name.split(".")[0] for name in sys.modules})
"""


def test_a_query_by_uri_imports_neither_beam_nor_tensorflow(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUERY, str(run), uri(5)], capture_output=True, text=True, check=True
    )
    assert "faiss" in done.stdout
    assert not {"apache_beam", "tensorflow", "keras", "cv2", "PIL", "pandas"} & set(names_in(done.stdout))


def names_in(text: str) -> list[str]:
    return text.strip("{}\n").replace("'", "").split(", ")


@pytest.mark.parametrize("recipe", ["exact", "ivf-rabitq", "IVF16,PQ16x4fs", "hnsw"])
@pytest.mark.parametrize("how", ["as it is", "reseal"])
def test_damaged_files_never_crash(tmp_path: Path, recipe: str, how: str) -> None:
    """In a process of its own, whose native code could die; `reseal` corrects sizes and digests too."""
    run = tmp_path / "run"
    make_run(run, 800)
    build(run, recipe=recipe)
    command = [sys.executable, "-m", "tests.pipeline.fuzz_index", str(run), "60", "1", how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["refused"] > 15
