"""Planning: every URI once, in a shard, among the rows that are done, or as a duplicate."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms.plan import (
    BucketPlan,
    Forgotten,
    PlanSettings,
    PlanShards,
    bucket_count,
    plan_bucket,
    read_done,
    route,
)
from transforms.records import Shard
from transforms.tally import Tally, total

SETTINGS = PlanSettings("", "", shard_size=3, retry_failures=False)


def refs(uris: list[str]) -> pa.Table:
    kept = pa.array([f"kept {uri}" for uri in uris], pa.string()).dictionary_encode()
    return pa.table({"uri": pa.array(uris, pa.string()), "kept": kept})


def rows_done(file: str, uris: list[str], error: str | None) -> pa.Table:
    columns = {"uri": uris, "error": [error] * len(uris), "file": [file] * len(uris)}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


names = st.lists(st.sampled_from([f"/{letter}.jpg" for letter in "abcdefghij"]) | st.text(max_size=2))
worlds = st.fixed_dictionaries(
    {
        "tables": st.lists(names, max_size=3),
        "embedded": st.sets(st.sampled_from([f"/{letter}.jpg" for letter in "abcde"])),
        "failed": st.dictionaries(
            st.sampled_from([f"/{letter}.jpg" for letter in "cdefg"]),
            st.lists(st.sampled_from(["f1", "f2", "f3"]), min_size=1, unique=True),
        ),
    }
)


class World:
    """What was given, and the rows that lie there already; a failure may stand in several files."""

    def __init__(
        self,
        tables: list[list[str]],
        embedded: set[str],
        failed: dict[str, list[str]],
        settings: PlanSettings,
    ) -> None:
        self.given = [uri for table in tables for uri in table]
        self.tables = [refs(table) for table in tables]
        self.embedded, self.failed, self.settings = embedded, failed, settings
        self.done = [rows_done("e", sorted(embedded), None)]
        for uri, files in failed.items():
            self.done += [rows_done(file, [uri], f"Error{file}") for file in files]

    def check(self, shards: list[Shard], forgotten: list[Forgotten], tally: Tally) -> None:
        """The whole contract of a plan."""
        planned = [uri for shard in shards for uri in shard.uris]
        distinct = set(self.given)
        failed = {
            uri for uri in distinct & set(self.failed) - self.embedded if not self.settings.retry_failures
        }
        assert sorted(planned) == sorted(distinct - self.embedded - failed)
        assert all(0 < len(shard) <= self.settings.shard_size for shard in shards)
        for shard in shards:
            assert shard.refs["kept"].to_pylist() == [f"kept {uri}" for uri in shard.uris]
        left = {(file, uri) for uri in distinct & set(self.failed) for file in self.failed[uri]}
        left -= {(row.file, uri) for row in forgotten for uri in row.uris}
        assert sorted(uri for _, uri in left) == sorted(failed)
        assert tally.adds_up()
        assert tally.given == len(self.given)
        assert tally.duplicate == len(self.given) - len(distinct)
        assert tally.embedded == len(distinct & self.embedded)
        assert tally.pending == len(planned)
        assert tally.failed == Counter(f"Error{file}" for file, _ in left)


@given(world=worlds, retry=st.booleans(), size=st.integers(1, 5), buckets=st.integers(1, 4))
def test_every_uri_is_planned_once_whatever_the_number_of_buckets(
    world: dict, retry: bool, size: int, buckets: int
) -> None:
    here = World(**world, settings=replace(SETTINGS, shard_size=size, retry_failures=retry))
    parts: dict[int, tuple[list[pa.Table], list[pa.Table]]] = {n: ([], []) for n in range(buckets)}
    for side, tables in enumerate((here.tables, here.done)):
        for table in tables:
            for bucket, part in route(table, buckets):
                parts[bucket][side].append(part)
    plans = [plan_bucket(given, done, here.settings) for given, done in parts.values()]
    shards = [shard for plan in plans for shard in plan.shards]
    here.check(shards, [row for plan in plans for row in plan.forgotten], total(plan.tally for plan in plans))


def _write_rows(folder: Path, done: list[pa.Table]) -> PlanSettings:
    (folder / "embeddings").mkdir()
    (folder / "failures").mkdir()
    for table in done:
        name = table["file"][0].as_py()
        if name == "e":
            pq.write_table(table.select(["uri"]), folder / "embeddings" / "part-e.parquet")
        else:
            path = folder / "failures" / f"part-{name}.parquet"
            before = [pq.read_table(path)] if path.exists() else []
            pq.write_table(pa.concat_tables([*before, table.select(["uri", "error"])]), path)
    return PlanSettings(str(folder / "embeddings"), str(folder / "failures"), 3, False)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds.filter(lambda world: world["embedded"]), retry=st.booleans())
def test_the_whole_transform_keeps_the_contract_with_rows_on_disk(
    tmp_path_factory: pytest.TempPathFactory, world: dict, retry: bool
) -> None:
    here = World(**world, settings=SETTINGS)
    folder = tmp_path_factory.mktemp("run")
    here.settings = replace(_write_rows(folder, here.done), retry_failures=retry)
    (folder / "failures" / ".half.tmp").write_bytes(b"no Parquet")
    (folder / "embeddings" / "notes.txt").write_bytes(b"no Parquet")

    def check(elements: list[object]) -> None:
        (tally,) = [element for element in elements if isinstance(element, Tally)]
        forgotten = [
            replace(element, file=Path(element.file).stem.removeprefix("part-"))
            for element in elements
            if isinstance(element, Forgotten)
        ]
        here.check([element for element in elements if isinstance(element, Shard)], forgotten, tally)

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        planned = pipeline | beam.Create(here.tables, reshuffle=False) | PlanShards(here.settings)
        assert_that((planned.shards, planned.forgotten, planned.tally) | beam.Flatten(), check)


def plan(uris: list[str], *done: pa.Table, **changes: int) -> BucketPlan:
    return plan_bucket([refs(uris)], done, replace(SETTINGS, **changes))  # type: ignore[arg-type]


def test_shards_are_of_equal_length_in_the_order_of_the_input() -> None:
    uris = [f"{n}.jpg" for n in range(10)]
    shards = plan(uris, shard_size=4).shards
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert [uri for shard in shards for uri in shard.uris] == uris


def test_the_first_of_equal_uris_counts() -> None:
    table = pa.table({"uri": ["a", "b", "a"], "kept": [1, 2, 3]})
    (shard,) = plan_bucket([table], [], SETTINGS).shards
    assert shard.refs.to_pydict() == {"uri": ["a", "b"], "kept": [1, 2]}


def test_the_name_of_a_shard_depends_on_its_uris_alone() -> None:
    uris = ["a.jpg", "ü.jpg"]
    bare = Shard(pa.table({"uri": uris}))
    assert (
        Shard(refs(uris)).name == bare.name == Shard(pa.concat_tables([refs(uris[:1]), refs(uris[1:])])).name
    )
    others = [["a.jpg"], ["ü.jpg", "a.jpg"], ["a.jpg", "ü.jpg", "b.jpg"], ["a.jpgü.jpg"]]
    assert bare.name not in {Shard(pa.table({"uri": other})).name for other in others}


def test_failures_stay_until_they_are_to_be_tried_again() -> None:
    failed = rows_done("f", ["a", "b"], "NotFound")
    kept = plan(["a", "b", "c"], failed)
    assert kept.forgotten == ()
    assert kept.tally == Tally(given=3, pending=1, failed=Counter(NotFound=2))
    again = plan(["a", "b", "c"], failed, retry_failures=True)
    assert again.forgotten == (Forgotten("f", ("a", "b")),)
    assert again.tally == Tally(given=3, pending=3)


def test_an_image_that_was_embedded_after_all_forgets_its_failure() -> None:
    planned = plan(["a"], rows_done("f", ["a"], "NotFound"), rows_done("e", ["a"], None))
    assert planned.forgotten == (Forgotten("f", ("a",)),)
    assert planned.tally == Tally(given=1, embedded=1)


def test_an_image_that_failed_twice_keeps_one_row() -> None:
    planned = plan(["a"], rows_done("g", ["a"], "Late"), rows_done("f", ["a"], "Early"))
    assert planned.forgotten == (Forgotten("g", ("a",)),)
    assert planned.tally == Tally(given=1, failed=Counter(Early=1))


def test_rows_of_images_that_are_no_longer_given_do_not_count() -> None:
    planned = plan(["a"], rows_done("e", ["x"], None), rows_done("f", ["y"], "NotFound"))
    assert planned.tally == Tally(given=1, pending=1)
    assert planned.forgotten == ()


def test_read_done_tells_embedded_from_failed(tmp_path: Path) -> None:
    embedded, failed = str(tmp_path / "e.parquet"), str(tmp_path / "f.parquet")
    pq.write_table(pa.table({"uri": ["a"], "embedding": [[1.0]]}), embedded)
    pq.write_table(pa.table({"uri": ["b"], "error": pa.array(["E"]).dictionary_encode()}), failed)
    assert read_done(embedded).to_pylist() == [{"uri": "a", "error": None, "file": embedded}]
    assert read_done(failed).to_pylist() == [{"uri": "b", "error": "E", "file": failed}]


@pytest.mark.parametrize(("rows", "buckets"), [(0, 1), (1, 1), (100_000, 1), (100_001, 2), (10**9, 10_000)])
def test_buckets_grow_with_the_rows(rows: int, buckets: int) -> None:
    assert bucket_count(rows) == buckets


def test_nothing_given_is_nothing_planned(tmp_path: Path) -> None:
    settings = PlanSettings(str(tmp_path / "none"), str(tmp_path / "nothing"), 3, False)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        planned = pipeline | beam.Create([], reshuffle=False) | PlanShards(settings)
        assert_that(planned.tally, lambda tallies: _is_one_empty_tally(tallies))


def _is_one_empty_tally(tallies: list[Tally]) -> None:
    assert tallies == [Tally()]
