"""The whole job in one process: accounting, resume, refusals, and what it writes."""

import fcntl
import gzip
import io
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.config import DecodeConfig, EmbedConfig, InputConfig, ModelConfig, OutputConfig
from pipeline.manifest import load_manifest
from pipeline.run import embed as embed_job
from pipeline.run import prepare
from pipeline.run_folder import RunFolder
from pipeline.runners import beam_options
from pipeline.status import status_of
from tests.runs import RunOutcome, run_embed
from transforms.errors import UserError
from transforms.fetch import FetchLimits
from transforms.image import Preprocessing, decode_image
from transforms.model.embedder import EmbedderSettings, load_embedder
from transforms.model.source import identify_model, locate_model
from transforms.web import WebLimits

Embed = Callable[..., RunOutcome]
SMALL_SHARDS = OutputConfig(shard_size=10)


def counts(outcome: RunOutcome) -> tuple[int, int, int, int]:
    tally = outcome.manifest.tally
    assert tally is not None
    assert tally.adds_up()
    assert tally.pending == 0
    return tally.given, tally.duplicate, tally.embedded, tally.failed.total()


def test_a_folder_gives_a_row_for_each_image(photos: Path, embed: Embed) -> None:
    outcome = embed(photos, output=SMALL_SHARDS)
    assert counts(outcome) == (48, 0, 48, 0)
    assert outcome.names == sorted(path.name for path in photos.iterdir())
    assert not list((outcome.run / "failures").glob("*"))
    assert len(list((outcome.run / "embeddings").glob("part-*.parquet"))) == 5
    assert status_of(RunFolder(str(outcome.run))).state == "complete"


def test_labels_are_right(photos: Path, embed: Embed) -> None:
    outcome = embed(photos.parent / "labels.csv", photos, columns=())
    assert counts(outcome) == (96, 0, 48, 48)  # the list is relative to its own folder, without images/
    right = [row["top_k"][0]["label"] in row["uri"] for row in outcome.rows.to_pylist()]
    assert sum(right) >= 46


def test_rows_equal_decoding_and_embedding_by_hand(photos: Path, embed: Embed) -> None:
    paths = sorted(photos.iterdir())[:5]
    rows = embed(*paths_as_list(photos.parent, paths), output=OutputConfig(top_k=3, logits=True)).rows
    digest = identify_model(locate_model("small"))
    embedder = load_embedder(EmbedderSettings("small", digest, batch_size=8, top_k=3, keep_logits=True))
    pixels = [decode_image(path.read_bytes(), Preprocessing(96, 96)).pixels for path in paths]
    batch = embedder.embed(pixels).batch
    vectors = np.stack(rows.sort_by("uri")["embedding"].to_pylist())
    assert np.abs(vectors - batch.vectors).max() <= 1e-5 * np.abs(batch.vectors).max()
    logits = np.stack(rows.sort_by("uri")["logits"].to_pylist())
    assert np.allclose(logits, batch.logits, atol=1e-4)
    assert all(len(row["top_k"]) == 3 for row in rows.to_pylist())


def paths_as_list(folder: Path, paths: list[Path]) -> list[Path]:
    (folder / "some.txt").write_text("\n".join(map(str, paths)))
    return [folder / "some.txt"]


def test_bad_inputs_become_failures_and_cost_no_other_row(photos: Path, embed: Embed, tmp_path: Path) -> None:
    good = sorted(photos.iterdir())[:3]
    whole = good[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    lines = [
        *good,
        good[0],
        "cut.jpg",
        "empty.jpg",
        "text.jpg",
        "folder.jpg",
        "missing.jpg",
        "ftp://host/a.jpg",
    ]
    (tmp_path / "list.txt").write_text("\n".join(map(str, lines)))
    outcome = embed(tmp_path / "list.txt")
    assert counts(outcome) == (10, 1, 3, 6)
    assert outcome.errors == {
        "cut.jpg": "TruncatedImage",
        "empty.jpg": "EmptyFile",
        "text.jpg": "UnsupportedFormat",
        "folder.jpg": "NotFound",
        "missing.jpg": "NotFound",
        "a.jpg": "InvalidURI",
    }


def test_kept_columns_come_along_with_their_types(photos: Path, embed: Embed, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(photos.iterdir())[:4]] + ["missing.jpg"]
    table = pa.table({"image": paths, "day": pa.array(range(5), pa.date32()), "size": [[1, 2]] * 5})
    pq.write_table(table, tmp_path / "list.parquet")
    outcome = embed(tmp_path / "list.parquet", columns=("size", "day"))
    assert outcome.rows.schema.field("day").type == pa.date32()
    assert outcome.rows["size"].to_pylist() == [[1, 2]] * 4
    assert outcome.failures["day"].cast(pa.int32()).to_pylist() == [4]


def test_kept_columns_of_every_type_arrive(photos: Path, embed: Embed, tmp_path: Path) -> None:
    columns = {
        "view": pa.array(["a"], pa.string_view()),
        "bytes": pa.array([b"a"], pa.binary_view()),
        "large": pa.array([["x"]], pa.large_list(pa.string())),
        "dictionary": pa.array(["a"]).dictionary_encode(),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "nothing": pa.nulls(1),
        "struct.with dot": pa.array([{"a": [1]}]),
        "taken": pa.array([0], pa.timestamp("ns", "Europe/Berlin")),
    }
    uri = pa.array([str(next(photos.iterdir()))], pa.large_string())
    pq.write_table(pa.table({"uri": uri, **columns}), tmp_path / "list.parquet")
    outcome = embed(tmp_path / "list.parquet", columns=tuple(columns))
    for name, values in columns.items():
        assert outcome.rows[name].to_pylist() == values.to_pylist()


def test_a_damaged_part_is_named_with_what_to_do(photos: Path, embed: Embed) -> None:
    first = embed(photos, output=SMALL_SHARDS)
    part = next((first.run / "embeddings").iterdir())
    part.write_bytes(part.read_bytes()[:700])
    with pytest.raises(UserError, match=f"{part.name} is damaged .*: remove it and embed again") as error:
        embed(photos, output=SMALL_SHARDS)
    assert "while running" not in str(error.value)
    with pytest.raises(UserError, match=f"{part.name} is damaged"):
        status_of(RunFolder(str(first.run)))
    part.unlink()
    assert counts(embed(photos, output=SMALL_SHARDS)) == (48, 0, 48, 0)


def test_a_list_that_breaks_off_is_a_users_mistake(embed: Embed, tmp_path: Path) -> None:
    whole = gzip.compress(b"a.jpg\n" * 100_000)
    (tmp_path / "list.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"list\.txt\.gz cannot be read to its end"):
        embed(tmp_path / "list.txt.gz")


def test_running_again_does_only_what_is_missing(photos: Path, embed: Embed) -> None:
    first = embed(photos, output=SMALL_SHARDS)
    parts = sorted((first.run / "embeddings").iterdir())
    kept = {part: part.stat().st_mtime_ns for part in parts[1:]}
    lost = pq.read_metadata(parts[0]).num_rows
    parts[0].unlink()
    again = embed(photos, output=SMALL_SHARDS)
    assert counts(again) == (48, 0, 48, 0)
    assert again.manifest.embedded_now == lost
    assert again.names == sorted(path.name for path in photos.iterdir())
    assert {part: part.stat().st_mtime_ns for part in kept} == kept


def test_nothing_left_to_do_is_fine(photos: Path, embed: Embed) -> None:
    embed(photos)
    again = embed(photos, output=OutputConfig(shard_size=7))
    assert counts(again) == (48, 0, 48, 0)
    assert again.manifest.embedded_now == 0


def test_an_empty_input_is_fine(tmp_path: Path, embed: Embed) -> None:
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    assert counts(embed(tmp_path / "empty.txt")) == (0, 0, 0, 0)


def test_only_new_uris_are_embedded(photos: Path, embed: Embed, tmp_path: Path) -> None:
    paths = sorted(map(str, photos.iterdir()))
    (tmp_path / "list.txt").write_text("\n".join(paths[:20]))
    embed(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n".join(paths[:30]))
    more = embed(tmp_path / "list.txt")
    assert counts(more) == (30, 0, 30, 0)
    assert more.manifest.embedded_now == 10
    assert len(set(more.names)) == 30


def test_failures_stay_failed_until_retried(photos: Path, embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"late.jpg\nnever.jpg\n{next(photos.iterdir())}")
    assert embed(tmp_path / "list.txt").errors == {"late.jpg": "NotFound", "never.jpg": "NotFound"}
    (tmp_path / "late.jpg").write_bytes(next(photos.iterdir()).read_bytes())
    assert counts(embed(tmp_path / "list.txt")) == (3, 0, 1, 2)
    retried = embed(tmp_path / "list.txt", retry_failures=True)
    assert counts(retried) == (3, 0, 2, 1)
    assert retried.errors == {"never.jpg": "NotFound"}
    assert len(retried.failures) == 1


def test_a_run_inside_its_own_input_does_not_embed_itself(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(next(photos.iterdir()).read_bytes())
    run_embed(tmp_path / "run", tmp_path)
    assert counts(run_embed(tmp_path / "run", tmp_path)) == (1, 0, 1, 0)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"decode": DecodeConfig(resize="squash")}, "preprocessing.resize: crop there, squash now"),
        ({"output": OutputConfig(top_k=1)}, "top_k: 5 there, 1 now"),
        ({"output": OutputConfig(float16=True)}, "rows.embedding"),
    ],
)
def test_another_way_of_embedding_is_refused(
    photos: Path, embed: Embed, changes: dict[str, object], difference: str
) -> None:
    before = embed(photos).manifest
    with pytest.raises(UserError, match=difference):
        embed(photos, **changes)
    assert load_manifest(RunFolder(str(embed(photos).run))).identity == before.identity  # type: ignore[union-attr]


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    photos: Path, embed: Embed, tmp_path: Path
) -> None:
    first = tmp_path / "first.txt"
    first.write_text("".join(f"{path}\n" for path in sorted(photos.iterdir())[:5]))
    embed(first, model=ModelConfig("small", precision="bfloat16", batch_size=4))
    outcome = embed(photos, model=ModelConfig("small", batch_size=4))
    assert outcome.manifest.identity["model"]["precision"] == "bfloat16"
    assert len(outcome.names) == 48
    with pytest.raises(UserError, match=r"model\.precision: bfloat16 there, float32 now"):
        embed(photos, model=ModelConfig("small", precision="float32"))


def test_half_precision_gives_nearly_the_same_vectors(photos: Path, embed: Embed, tmp_path: Path) -> None:
    half = embed(photos, model=ModelConfig("small", precision="bfloat16", batch_size=8)).rows
    exact = run_embed(
        tmp_path / "exact", photos, model=ModelConfig("small", precision="float32", batch_size=8)
    ).rows
    a, b = (
        np.stack(table.sort_by("uri")["embedding"].to_numpy()).astype(np.float64) for table in (half, exact)
    )
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.9995
    assert not np.array_equal(a, b)


def test_what_the_model_takes_is_said_before_the_work_starts(photos: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    config = EmbedConfig(InputConfig((str(photos),)), str(tmp_path / "run"), ModelConfig("small"), threads=2)
    embed_job(config, beam_options({}), Console(file=said, width=200))
    assert re.search(
        r"^Model:  our network in \w+, \d+ images a pass, on .*: [\d.,]+ images/s", said.getvalue()
    )


def test_elsewhere_nothing_is_tried(photos: Path, tmp_path: Path) -> None:
    config = EmbedConfig(InputConfig((str(photos),)), str(tmp_path / "run"), ModelConfig("small"), threads=2)
    plan = prepare(config, here=False)
    assert plan.trial is None
    assert (plan.embedder.precision, plan.embedder.batch_size, plan.embedder.engine) == (
        "float32",
        32,
        "auto",
    )


def test_other_labels_are_refused_too(photos: Path, embed: Embed, tmp_path: Path) -> None:
    embed(photos)
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(16)))
    with pytest.raises(UserError, match=r"model\.labels"):
        embed(photos, model=ModelConfig("small", str(tmp_path / "names.txt")))


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(
    photos: Path, embed: Embed, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("only\ntwo")
    with pytest.raises(UserError, match="2 classes"):
        embed(photos, model=ModelConfig("small", str(tmp_path / "names.txt")))
    assert not (tmp_path / "run").exists()


def test_a_second_run_at_the_same_time_is_refused(photos: Path, embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing there"):
            embed(photos)


def test_what_is_no_run_folder_is_not_touched(photos: Path, embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="schema version"):
        embed(photos)


def test_half_written_files_of_a_killed_run_are_swept(photos: Path, embed: Embed, tmp_path: Path) -> None:
    leftover = tmp_path / "run" / "embeddings" / ".part-x.parquet.123.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    embed(photos)
    assert not leftover.exists()


def test_the_manifest_tells_what_the_run_was(photos: Path, embed: Embed) -> None:
    outcome = embed(photos)
    manifest = json.loads((outcome.run / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["identity"]["model"]["handle"] == "small"
    assert len(manifest["identity"]["model"]["digest"]) == 64
    assert manifest["identity"]["preprocessing"]["height"] == 96
    assert manifest["counts"]["embedded"] == 48
    assert {"fetch", "decode", "embed", "write"} <= set(manifest["last_run"]["thread_seconds"])
    assert manifest["software"]["tensorflow"]
    part = next((outcome.run / "embeddings").iterdir())
    assert json.loads(pq.read_schema(part).metadata[b"pnasvec"]) == manifest["identity"]


def test_a_shards_file_is_there_before_the_next_shard_is_fetched(photos: Path, tmp_path: Path) -> None:
    """The images come from a server that looks at the run folder when it is asked for one."""
    run, seen = tmp_path / "run", []
    names = sorted(path.name for path in photos.iterdir())[:30]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(len(list(run.glob("embeddings/part-*.parquet"))))
            body = (photos / self.path.rsplit("/", 1)[-1]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "urls.txt").write_text("".join(f"http://127.0.0.1:{server.server_port}/{n}\n" for n in names))
    fetch = FetchLimits(web=WebLimits(allow_private=True))
    outcome = run_embed(run, tmp_path / "urls.txt", fetch=fetch, output=SMALL_SHARDS)
    server.shutdown()
    server.server_close()
    assert counts(outcome) == (30, 0, 30, 0)
    assert seen == [0] * 10 + [1] * 10 + [2] * 10


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_runs_ends_with_one_row_for_each_uri(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Lists grow, shrink and repeat, shard sizes change, files vanish: the accounting law holds."""
    folder = tmp_path_factory.mktemp("sequence")
    paths = [*sorted(map(str, photos.iterdir()))[:8], "missing.jpg", "", "ftp://x"]
    named: set[str] = set()
    for _ in range(2):
        lines = data.draw(st.lists(st.sampled_from(paths), max_size=20))
        pq.write_table(pa.table({"uri": pa.array(lines, pa.string())}), folder / "list.parquet")
        size, retry = data.draw(st.integers(1, 6)), data.draw(st.booleans())
        outcome = run_embed(
            folder / "run",
            folder / "list.parquet",
            output=OutputConfig(shard_size=size),
            retry_failures=retry,
        )
        named |= set(lines)
        bad = {line for line in lines if not line.endswith(".jpg") or line == "missing.jpg"}
        good = set(lines) - bad
        assert counts(outcome) == (len(lines), len(lines) - len(set(lines)), len(good), len(bad))
        rows = outcome.rows["uri"].to_pylist() + outcome.failures["uri"].to_pylist()
        assert len(rows) == len(set(rows)) == len(named)
