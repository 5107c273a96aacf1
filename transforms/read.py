"""Inputs to tables of image references: lists of every kind, folders and globs.

A table has `uri: string` and the kept columns. Whatever stands in a list becomes a row: a line
that holds no usable URI is a reference that fails to be fetched, never an error of the job.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

URI_COLUMNS = ("uri", "url", "path", "image")
Row = tuple[str, Sequence[str | None]]  # the URI as it was written, and the kept values

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_LIST_KINDS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}

# Rows a table: large enough that a table's fixed cost (about 50 us) vanishes, small beside a shard's pixels.
_ROWS = 50_000
# Lines of a JSONL file whose keys are its columns.
_JSONL_SAMPLE = 1000
# One request to an object store fetches this much of a list.
_READ_BYTES = 1 << 20
# Characters of a CSV cell: more than any text that is kept, and where an unclosed quote must end.
_LONGEST_CELL = 1 << 24

_READ_ERRORS = (*storage.STORAGE_ERRORS, EOFError, zlib.error, csv.Error)

# Invalid bytes are decoded to surrogates U+DC80 to U+DCFF; the others come from escapes in JSON.
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNPAIRED = re.compile("[\ud800-\udc7f\udd00-\udfff]")


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
    """The source's references, in order, as tables of at most 50,000 rows.

    Raises `UserError` for a list that cannot be read to its end, such as a truncated .gz: a part of a
    list is never taken for the whole.
    """
    try:
        yield from _tables(source, schema)
    except _READ_ERRORS as error:
        reason = storage.first_line(error)
        raise UserError(f"{source.uri} cannot be read to its end: {reason}") from error


def _tables(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    if source.kind == "parquet":
        yield from _parquet_tables(source, schema)
        return
    listing = source.kind in ("folder", "glob")
    rows = _listed_rows(source) if listing else _list_rows(source, schema.names[1:])
    while batch := list(islice(rows, _ROWS)):
        columns = zip(*((uri, *kept) for uri, kept in batch), strict=True)
        yield pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=schema)


def inspect_source(text: str, uri_column: str | None) -> Source:
    """What an input of the command line is; raises `UserError` if it cannot be read as that."""
    if storage.scheme_of(text) in ("http", "https"):
        raise UserError(f"{text}: an input is a list, a folder or a glob; put image URLs into a text file")
    if not text:
        raise UserError("an input is empty: name a list, a folder or a glob")
    uri = storage.resolve(text, ".")
    try:
        if storage.is_pattern(uri):
            return _inspect_glob(uri)
        if storage.is_folder(uri):
            return Source(uri, "folder")
        if not storage.exists(uri):
            raise UserError(f"{text}: no such file, folder or glob")
        return _inspect_list(uri, uri_column)
    except _READ_ERRORS as error:
        raise UserError(f"{text}: cannot be read: {storage.first_line(error)}") from error


def kept_schema(sources: Sequence[Source], keep: Sequence[str]) -> pa.Schema:
    """`uri` and the kept columns; types come from Parquet, elsewhere they are strings."""
    kinds: dict[str, pa.DataType] = {}
    for source in sources if keep else ():
        columns = _columns(source)
        for name in keep:
            if name not in columns:
                raise UserError(
                    f"{source.uri} has no column {name!r} to keep; its columns: {_listed(columns)}"
                )
            kind = kinds.setdefault(name, columns[name])
            if kind != columns[name]:
                raise UserError(f"column {name!r} is {kind} in one input, {columns[name]} in another")
    return pa.schema([pa.field("uri", pa.string(), nullable=False), *kinds.items()])


def _inspect_glob(uri: str) -> Source:
    if next(storage.match_files(uri), None) is None:
        raise UserError(f"{uri}: no file matches")
    return Source(uri, "glob")


def _inspect_list(uri: str, uri_column: str | None) -> Source:
    kind = _list_kind(uri)
    if kind == "text":
        return Source(uri, kind)
    columns = _columns(Source(uri, kind))
    name = uri_column or _default_column(columns)
    if name is None:
        raise UserError(
            f"{uri}: which column holds the URIs? Say --uri-column; its columns: {_listed(columns)}"
        )
    if name not in columns:
        raise UserError(f"{uri} has no column {name!r}; its columns: {_listed(columns)}")
    if not _is_text(columns[name]):
        raise UserError(f"{uri}: column {name!r} holds {columns[name]}, not URIs; say --uri-column")
    return Source(uri, kind, name)


def _default_column(columns: dict[str, pa.DataType]) -> str | None:
    lowered = {name.lower(): name for name in reversed(columns) if _is_text(columns[name])}
    return next((lowered[name] for name in URI_COLUMNS if name in lowered), None)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns) or "none"


def _list_kind(uri: str) -> str:
    name = uri.lower().removesuffix(".gz")
    for suffix, kind in _LIST_KINDS.items():
        if name.endswith(suffix):
            return kind
    raise UserError(
        f"{uri}: a list must be named .txt, .csv, .tsv, .jsonl (or these with .gz) or .parquet; "
        "a single image can be given as a glob"
    )


def _columns(source: Source) -> dict[str, pa.DataType]:
    """The columns that could be read, by name; none for a source that is no table."""
    if source.kind == "parquet":
        with storage.open_input(source.uri) as file:
            schema = pq.ParquetFile(file).schema_arrow
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{source.uri} has two columns named {twice!r}; rename one")
        return {field.name: _plain(field.type) for field in schema}
    names: Iterable[str] = ()
    if source.kind in _DELIMITERS:
        with _open_text(source.uri) as file:
            names = next(_csv_reader(file, source.kind), [])
    elif source.kind == "jsonl":
        with _open_text(source.uri) as lines:
            rows = [_parse_object(line) for line in islice(lines, _JSONL_SAMPLE)]
        names = [name for row in rows for name in row or ()]
    return {name: pa.string() for name in names}


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in known)


def _listed_rows(source: Source) -> Iterator[Row]:
    listing = storage.list_files if source.kind == "folder" else storage.match_files
    for info in listing(source.uri):
        if not (source.skip and storage.is_below(info.uri, source.skip)):
            yield info.uri, ()


def _list_rows(source: Source, kept: Sequence[str]) -> Iterator[Row]:
    """The rows of a text, CSV, TSV or JSONL file."""
    base = storage.parent(source.uri)
    with _open_text(source.uri) as file:
        if source.kind == "text":
            rows = _text_rows(file)
        elif source.kind == "jsonl":
            rows = _jsonl_rows(file, source.uri_column, kept)
        else:
            rows = _csv_rows(_csv_reader(file, source.kind), source.uri_column, kept)
        for text, values in rows:
            yield _resolve(text, base), [value and _SURROGATE.sub("\ufffd", value) for value in values]


def _resolve(text: str, base: str) -> str:
    """What stands in a list as a URI; nothing stays nothing, and fails as that."""
    text = _UNPAIRED.sub("\ufffd", text.strip())
    return storage.resolve(text, base) if text else ""


def _text_rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            yield text, ()


def _csv_reader(file: IO[str], kind: str) -> "CsvReader":
    csv.field_size_limit(_LONGEST_CELL)
    return csv.reader(file, delimiter=_DELIMITERS[kind])


def _csv_rows(reader: "CsvReader", uri_column: str, kept: Sequence[str]) -> Iterator[Row]:
    header = next(reader)
    wanted = [header.index(name) for name in (uri_column, *kept)]
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num} is not CSV: {error}", [None] * len(kept)
            continue
        if row:
            uri, *values = (row[index] if index < len(row) else None for index in wanted)
            yield uri or "", values


def _jsonl_rows(lines: Iterable[str], uri_column: str, kept: Sequence[str]) -> Iterator[Row]:
    for line in lines:
        if line.strip():
            row = _parse_object(line)
            uri = _as_text(row.get(uri_column)) if row is not None else line
            yield uri or "", [_as_text((row or {}).get(name)) for name in kept]


def _parse_object(line: str) -> dict[str, Any] | None:
    """None for a line that is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parquet_tables(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    base = storage.parent(source.uri)
    with storage.open_input(source.uri) as file:
        columns = [source.uri_column, *schema.names[1:]]
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=columns):
            # as bytes: Parquet does not check that its strings are UTF-8
            texts = batch[source.uri_column].cast(pa.string()).cast(pa.binary()).to_pylist()
            uris = [_resolve(text.decode(errors="surrogateescape"), base) if text else "" for text in texts]
            arrays = [pa.array(uris, pa.string()), *(batch[f.name].cast(f.type) for f in list(schema)[1:])]
            yield pa.Table.from_arrays(arrays, schema=schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Views as what they are views of: Arrow's kernels do not know all of them."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


@contextmanager
def _open_text(uri: str) -> Iterator[IO[str]]:
    """Decoded so that bytes that are not UTF-8 can be written back; quoted line ends stay as they are."""
    with storage.open_input(uri) as file:
        raw: Any = io.BufferedReader(file, _READ_BYTES)
        if uri.lower().endswith(".gz"):
            raw = gzip.GzipFile(fileobj=raw)
        yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
