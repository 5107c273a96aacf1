"""Row id to what is known of an image: memory-mapped Arrow files, a segment of rows each.

Rows lie in the order of the files of `embeddings/`, so a row's id is its place. Beside each segment
lie the hashes of its URIs, sorted, so that a URI is found without reading them all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.schema import open_output
from transforms.sealed import MappedFile

Ids = NDArray[np.int64]

# Left out of what an output file has: too wide, or the best label taken out of it.
_NOT_KEPT = ("embedding", "logits", "top_k", "sha256")
_BEST = {"label": pa.string(), "probability": pa.float32()}
_BATCH_ROWS = 65_536
_HASHES = np.dtype([("hash", "<u8"), ("row", "<u4")])
LOOKUP_BYTES = _HASHES.itemsize


def read_side_rows(file: str) -> pa.Table:
    """`uri`, `label`, `probability`, `width`, `height`, `format` and kept columns of an output file."""
    with open_output(file, "uri") as parquet:
        names = parquet.schema_arrow.names
        table = parquet.read(columns=[name for name in names if name not in _NOT_KEPT])
        best = _best_labels(
            parquet.read(columns=["top_k"])["top_k"] if "top_k" in names else None, len(table)
        )
    own = {"uri": table["uri"], **best}
    return pa.table({**own, **{name: table[name] for name in table.column_names if name != "uri"}})


def _best_labels(top_k: pa.ChunkedArray | None, rows: int) -> dict[str, pa.Array]:
    """Label and probability of the first entry of each list; null where it is empty."""
    if top_k is None or not rows:
        return {name: pa.nulls(rows, kind) for name, kind in _BEST.items()}
    lists = pa.concat_arrays(top_k.chunks)
    filled = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() > 0
    first = lists.values.take(pa.array(lists.offsets.to_numpy()[:-1], pa.int64(), mask=~filled))
    return {name: pc.struct_field(first, name).cast(kind) for name, kind in _BEST.items()}


def write_side_rows(path: str, tables: Sequence[pa.Table]) -> None:
    """One Arrow file of all of them, in order."""
    table = pa.concat_tables(tables, promote_options="none").combine_chunks()
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=_BATCH_ROWS)


def hash_uris(uris: Sequence[str]) -> NDArray[np.uint64]:
    """(n,) hashes."""
    digests = b"".join(blake2b(uri.encode(), digest_size=8).digest() for uri in uris)
    return np.frombuffer(digests, "<u8")


def uri_lookup(uris: Sequence[str]) -> NDArray[np.void]:
    """(n,) records of hash and row, in order of the hashes."""
    records = np.empty(len(uris), _HASHES)
    records["hash"] = hash_uris(uris)
    records["row"] = np.arange(len(uris))
    return np.sort(records, order="hash", kind="stable")


def arrow_ids(ids: Ids) -> pa.Array:
    """The same numbers; `pa.array` would import pandas, where there is one, which takes a second."""
    return pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Of one segment: what is known of its rows, the lookup of their URIs, and how many there are."""

    side: MappedFile
    lookup: MappedFile
    rows: int


class SideTable:
    """All segments; each is opened, and its digests are checked, when something in it is first asked for."""

    def __init__(self, segments: Sequence[SideFiles]) -> None:
        self._segments = tuple(segments)
        self._starts = np.concatenate([[0], np.cumsum([part.rows for part in segments], dtype=np.int64)])
        self._tables: dict[int, pa.Table] = {}
        self._lookups: dict[int, NDArray[np.void]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, ids: Ids, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of these ids, which must exist, in their order."""
        which = np.searchsorted(self._starts, ids, side="right") - 1
        order, pieces = [], []
        for part in np.unique(which) if len(ids) else [0]:
            chosen = np.flatnonzero(which == part)
            table = self._table(int(part))
            table = table if columns is None else table.select(list(columns))
            pieces.append(table.take(arrow_ids(ids[chosen] - self._starts[part])))
            order.append(chosen)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(pieces).take(arrow_ids(back))

    def find(self, uris: Sequence[str]) -> Ids:
        """(n,) row ids, -1 for a URI that has no row."""
        found = np.full(len(uris), -1, np.int64)
        texts = np.array(uris, dtype=object)
        hashes = hash_uris(uris)
        for part in range(len(self._segments)):
            left = np.flatnonzero(found < 0)
            if not len(left):
                break
            for at, rows in self._matches(part, hashes[left]):
                same = np.array(self._table(part)["uri"].take(arrow_ids(rows)).to_pylist()) == texts[left[at]]
                found[left[at[same]]] = self._starts[part] + rows[same]
        return found

    def _matches(self, part: int, hashes: NDArray[np.uint64]) -> Iterator[tuple[Ids, Ids]]:
        """Positions of hashes that the segment has, and their rows; once more where hashes are equal."""
        lookup, rows = self._lookup(part), self._segments[part].rows
        first = np.searchsorted(lookup["hash"], hashes, side="left")
        last = np.searchsorted(lookup["hash"], hashes, side="right")
        while len(at := np.flatnonzero(last > first)):
            chosen = lookup["row"][first[at]].astype(np.int64)
            valid = chosen < rows
            yield at[valid], chosen[valid]
            first += 1

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Each segment's first row id and its rows."""
        for part in range(len(self._segments)):
            yield int(self._starts[part]), self._table(part)

    def _table(self, part: int) -> pa.Table:
        if part not in self._tables:
            files = self._segments[part]
            self._tables[part] = _open_rows(files)
        return self._tables[part]

    def _lookup(self, part: int) -> NDArray[np.void]:
        if part not in self._lookups:
            files = self._segments[part]
            data = files.lookup.checked()
            if len(data) != files.rows * _HASHES.itemsize:
                raise _damaged(files.lookup.path, "it holds other rows")
            self._lookups[part] = np.frombuffer(data, _HASHES)
        return self._lookups[part]


def _open_rows(files: SideFiles) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.py_buffer(files.side.checked())).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(files.side.path, error) from error
    if len(table) != files.rows or table.column_names[:3] != ["uri", "label", "probability"]:
        raise _damaged(files.side.path, "it holds other rows")
    return table


def _damaged(path: str, reason: object) -> UserError:
    first = (str(reason).splitlines() or ["unreadable"])[0]
    return UserError(f"{path} is damaged ({first}); build the index again with --rebuild")
