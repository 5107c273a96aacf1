"""Inputs to tables of image references: lists of every kind, folders and globs.

A table has `uri: string` and the kept columns. Whatever stands in a list becomes a row: a line
that holds no usable URI is a reference that fails to be fetched, never an error of the job.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import UserError

URI_COLUMNS = ("uri", "url", "path", "image")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_LIST_KINDS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}

# Rows a table: large enough that a table's fixed cost (about 50 us) vanishes, small beside a shard's pixels.
_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Source:
    """One input: `kind` is text, csv, tsv, jsonl, parquet, folder or glob.

    Nothing below the folder `skip` is listed: a run inside its own input must not embed itself.
    """

    uri: str
    kind: str
    uri_column: str = ""
    skip: str = ""


class ReadRefs(beam.PTransform):  # type: ignore[misc]
    """PCollection[Source] -> PCollection[pa.Table] of references, with columns of `schema`."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__()
        self._schema = schema

    def expand(self, sources: beam.PCollection) -> beam.PCollection:
        return sources | beam.FlatMap(read_refs, self._schema)


def read_refs(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    """The source's references, in order, as tables of at most 50,000 rows."""
    if source.kind == "parquet":
        yield from _read_parquet(source, schema)
        return
    kept = schema.names[1:]
    base = storage.parent(source.uri)
    rows = _rows(source, kept)
    while batch := list(islice(rows, _ROWS)):
        uris = [storage.resolve(uri, base) if uri else uri for uri, _ in batch]
        columns = [pa.array(uris, pa.string())]
        columns += [pa.array([values[i] for _, values in batch], pa.string()) for i in range(len(kept))]
        yield pa.Table.from_arrays(columns, schema=schema)


def inspect_source(text: str, uri_column: str | None) -> Source:
    """What an input of the command line is; raises `UserError` if it cannot be read as that."""
    if storage.scheme_of(text) in ("http", "https"):
        raise UserError(f"{text}: an input is a list, a folder or a glob; put image URLs into a text file")
    uri = storage.resolve(text, ".")
    try:
        if storage.is_pattern(uri):
            return _inspect_glob(uri)
        if storage.is_folder(uri):
            return Source(uri, "folder")
        if not storage.exists(uri):
            raise UserError(f"{text}: no such file, folder or glob")
        return _inspect_list(uri, uri_column)
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"{text}: cannot be read: {storage.first_line(error)}") from error


def kept_schema(sources: Sequence[Source], keep: Sequence[str]) -> pa.Schema:
    """`uri` and the kept columns; types come from Parquet, elsewhere they are strings."""
    fields: dict[str, pa.Field] = {}
    for source in sources:
        columns = _columns(source)
        for name in keep:
            if name not in columns:
                known = ", ".join(columns) or "none: it is no table"
                raise UserError(f"{source.uri} has no column {name!r} to keep; its columns: {known}")
            field = fields.setdefault(name, columns[name])
            if field.type != columns[name].type:
                raise UserError(
                    f"column {name!r} is {field.type} in one input, {columns[name].type} in another"
                )
    return pa.schema([pa.field("uri", pa.string(), nullable=False), *(fields[name] for name in keep)])


def _inspect_glob(uri: str) -> Source:
    if next(storage.match_files(uri), None) is None:
        raise UserError(f"{uri}: no file matches")
    return Source(uri, "glob")


def _inspect_list(uri: str, uri_column: str | None) -> Source:
    kind = _list_kind(uri)
    if kind == "text":
        return Source(uri, kind)
    columns = _columns(Source(uri, kind))
    if uri_column is not None:
        if uri_column not in columns:
            raise UserError(f"{uri} has no column {uri_column!r}; its columns: {', '.join(columns)}")
        return Source(uri, kind, uri_column)
    lowered = {name.lower(): name for name in reversed(columns)}
    for name in URI_COLUMNS:
        if name in lowered:
            return Source(uri, kind, lowered[name])
    raise UserError(
        f"{uri}: which column holds the URIs? Say --uri-column; its columns: {', '.join(columns)}"
    )


def _list_kind(uri: str) -> str:
    name = uri.lower().removesuffix(".gz")
    for suffix, kind in _LIST_KINDS.items():
        if name.endswith(suffix):
            return kind
    raise UserError(
        f"{uri}: a list must be named .txt, .csv, .tsv, .jsonl (or these with .gz) or .parquet; "
        "a single image can be given as a glob"
    )


def _columns(source: Source) -> dict[str, pa.Field]:
    """The columns that could be read, by name; none for a source that is no table."""
    if source.kind == "parquet":
        with storage.open_input(source.uri) as file:
            schema = pq.ParquetFile(file).schema_arrow
        return {field.name: field for field in schema}
    names: Iterable[str] = ()
    if source.kind in _DELIMITERS:
        with _open_text(source.uri) as lines:
            names = next(csv.reader(lines, delimiter=_DELIMITERS[source.kind]), [])
    elif source.kind == "jsonl":
        with _open_text(source.uri) as lines:
            names = _keys_of(islice((line for line in lines if line.strip()), 100))
    return {name: pa.field(name, pa.string()) for name in names}


def _keys_of(lines: Iterable[str]) -> dict[str, None]:
    return {key: None for line in lines for key in _parse_object(line)}


def _rows(source: Source, kept: Sequence[str]) -> Iterator[tuple[str, list[str | None]]]:
    """(URI as written, kept values) of each row."""
    if source.kind in ("folder", "glob"):
        return _listed_rows(source)
    if source.kind == "text":
        return _text_rows(source)
    return _jsonl_rows(source, kept) if source.kind == "jsonl" else _csv_rows(source, kept)


def _listed_rows(source: Source) -> Iterator[tuple[str, list[str | None]]]:
    listing = storage.list_files if source.kind == "folder" else storage.match_files
    skipped = storage.join(source.skip, "") if source.skip else None
    for info in listing(source.uri):
        if skipped is None or not info.uri.startswith(skipped):
            yield info.uri, []


def _text_rows(source: Source) -> Iterator[tuple[str, list[str | None]]]:
    with _open_text(source.uri) as lines:
        for line in lines:
            text = line.strip()
            if text and not text.startswith("#"):
                yield _valid(text), []


def _csv_rows(source: Source, kept: Sequence[str]) -> Iterator[tuple[str, list[str | None]]]:
    with _open_text(source.uri) as lines:
        reader = csv.reader(lines, delimiter=_DELIMITERS[source.kind])
        header = {name: index for index, name in reversed(list(enumerate(next(reader, []))))}
        wanted = [header[name] for name in (source.uri_column, *kept)]
        for row in _parsed(reader):
            if row:
                cells = [_valid(row[i]) if i < len(row) else None for i in wanted]
                yield (cells[0] or "").strip() or _valid(" ".join(row).strip()), cells[1:]


def _parsed(reader: Any) -> Iterator[list[str]]:
    """The rows; a line that is no CSV becomes a row whose only cell says so."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield [f"line {reader.line_num} is not CSV: {error}"]


def _jsonl_rows(source: Source, kept: Sequence[str]) -> Iterator[tuple[str, list[str | None]]]:
    with _open_text(source.uri) as lines:
        for line in lines:
            if not line.strip():
                continue
            row = _parse_object(line)
            uri = row.get(source.uri_column)
            text = uri.strip() if isinstance(uri, str) else ""
            yield _valid(text or line.strip()), [_as_text(row.get(name)) for name in kept]


def _parse_object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return _valid(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _valid(text: str) -> str:
    """Arrow's strings are UTF-8: what is not becomes a file:// URI of the same bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return storage.local_uri(text)
    return text


def _read_parquet(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    base = storage.parent(source.uri)
    with storage.open_input(source.uri) as file:
        columns = [source.uri_column, *schema.names[1:]]
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=columns):
            texts = batch.column(source.uri_column).cast(pa.string()).to_pylist()
            uris = [storage.resolve(text.strip(), base) if text else "" for text in texts]
            arrays = [pa.array(uris, pa.string()), *(batch.column(name) for name in schema.names[1:])]
            yield pa.Table.from_arrays(arrays, schema=schema)


def _open_text(uri: str) -> IO[str]:
    file = storage.open_input(uri)
    raw = gzip.open(file) if uri.lower().endswith(".gz") else file
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=None)
