"""References to shards: each URI once, those with a row already left out, the rest cut evenly.

URIs are routed to buckets by a hash, whole tables at a time, so the same code plans a thousand
images and a billion. What is done is read from the rows on disk, which are the only record of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints.decorators import no_annotations

from transforms.count import PLANNED, count
from transforms.records import Forgotten, Shard
from transforms.schema import list_parts, read_columns
from transforms.tally import Tally, total

# URIs a bucket: some fifty shards; planning one takes about 50 MB.
_BUCKET = 100_000


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Where rows may lie already, how many images a shard has, and whether failures are tried again."""

    embeddings: str
    failures: str
    shard_size: int
    retry_failures: bool


@dataclass(frozen=True, slots=True, order=True)
class _FailedRow:
    file: str
    error: str


@dataclass(frozen=True, slots=True)
class BucketPlan:
    shards: tuple[Shard, ...]
    forgotten: tuple[Forgotten, ...]
    tally: Tally


class Planned(NamedTuple):
    shards: beam.PCollection
    forgotten: beam.PCollection
    tally: beam.PCollection


class PlanShards(beam.PTransform):  # type: ignore[misc]
    """PCollection[pa.Table] of references -> `Planned`, whose tally is a single `Tally`."""

    def __init__(self, settings: PlanSettings) -> None:
        super().__init__()
        self._settings = settings

    @no_annotations  # type: ignore[untyped-decorator] # which Beam would take for types of elements
    def expand(self, refs: beam.PCollection) -> Planned:
        rows = refs | "Rows" >> beam.Map(len) | "AllRows" >> beam.CombineGlobally(sum)
        buckets = beam.pvalue.AsSingleton(rows | "Buckets" >> beam.Map(bucket_count))
        done = (
            refs.pipeline
            | "Folders" >> beam.Create([self._settings.embeddings, self._settings.failures])
            | "Parts" >> beam.FlatMap(list_parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadDone" >> beam.Map(read_done)
            | "RouteDone" >> beam.FlatMap(route, buckets)
        )
        planned = (
            {"refs": refs | "RouteRefs" >> beam.FlatMap(route, buckets), "done": done}
            | beam.CoGroupByKey()
            | "PlanBucket" >> beam.ParDo(_PlanBucket(self._settings)).with_outputs(main="shards")
        )
        tally = planned.tally | "Total" >> beam.CombineGlobally(total)
        return Planned(planned.shards, planned.forgotten, tally)


def bucket_count(rows: int) -> int:
    return max(1, -(-rows // _BUCKET))


def route(table: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Split a table by the hash of its URIs."""
    if buckets == 1:
        yield 0, table
        return
    hashes = np.array([crc32(uri.encode()) for uri in table["uri"].to_pylist()], np.uint32) % buckets
    for bucket in np.unique(hashes):
        yield int(bucket), table.take(np.flatnonzero(hashes == bucket))


def read_done(file: str) -> pa.Table:
    """`uri`, `error` (null if embedded) and `file` of the rows of one output file; raises `UserError`."""
    table = read_columns(file, ["uri", "error"])
    has_errors = "error" in table.column_names
    errors = table["error"].cast(pa.string()) if has_errors else pa.nulls(len(table), pa.string())
    return pa.table(
        {"uri": table["uri"], "error": errors, "file": pa.array([file] * len(table), pa.string())}
    )


def plan_bucket(refs: Iterable[pa.Table], done: Iterable[pa.Table], settings: PlanSettings) -> BucketPlan:
    """What is left to do of one bucket; pure. The first of equal URIs counts, the others are duplicates.

    An image that is embedded has no failure row, one that failed has a single one: others are forgotten.
    """
    tables = list(refs)
    given = pa.concat_tables(tables) if tables else pa.table({"uri": pa.array([], pa.string())})
    embedded, failed = _rows_done(done)
    pending, seen, errors = [], set(), Counter[str]()
    forgotten: dict[str, list[str]] = defaultdict(list)
    embedded_count = 0
    for row, uri in enumerate(given["uri"].to_pylist()):
        if uri in seen:
            continue
        seen.add(uri)
        failures = failed.get(uri, [])
        if uri in embedded:
            embedded_count += 1
        elif failures and not settings.retry_failures:
            errors[failures.pop(0).error] += 1
        else:
            pending.append(row)
        for failure in failures:
            forgotten[failure.file].append(uri)
    return BucketPlan(
        shards=tuple(_cut(given, pending, settings.shard_size)),
        forgotten=tuple(Forgotten(file, tuple(uris)) for file, uris in forgotten.items()),
        tally=Tally(
            given=len(given),
            duplicate=len(given) - len(seen),
            embedded=embedded_count,
            pending=len(pending),
            failed=errors,
        ),
    )


def _rows_done(tables: Iterable[pa.Table]) -> tuple[set[str], dict[str, list[_FailedRow]]]:
    """The embedded URIs; the rows of the failed ones, in order of their files."""
    embedded: set[str] = set()
    failed: dict[str, list[_FailedRow]] = defaultdict(list)
    for table in tables:
        columns = (table[name].to_pylist() for name in ("uri", "error", "file"))
        for uri, error, file in zip(*columns, strict=True):
            if error is None:
                embedded.add(uri)
            else:
                failed[uri].append(_FailedRow(file, error))
    for rows in failed.values():
        rows.sort()
    return embedded, failed


def _cut(refs: pa.Table, rows: Sequence[int], size: int) -> Iterator[Shard]:
    """Shards of equal length, none longer than `size`."""
    if rows:
        for part in np.array_split(np.array(rows, np.int64), -(-len(rows) // size)):
            yield Shard(refs.take(part))


class _PlanBucket(beam.DoFn):  # type: ignore[misc]
    def __init__(self, settings: PlanSettings) -> None:
        self._settings = settings

    def process(self, group: tuple[int, Mapping[str, Iterable[pa.Table]]]) -> Iterator[Any]:
        plan = plan_bucket(group[1]["refs"], group[1]["done"], self._settings)
        count(PLANNED, plan.tally.pending)
        yield from plan.shards
        for forgotten in plan.forgotten:
            yield beam.pvalue.TaggedOutput("forgotten", forgotten)
        yield beam.pvalue.TaggedOutput("tally", plan.tally)
