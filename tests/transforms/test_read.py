"""Reading inputs: every kind of list gives its rows, and whatever stands in a list becomes one."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from transforms.errors import UserError
from transforms.read import ReadRefs, inspect_source, kept_schema, read_refs


def read(path: Path | str, keep: tuple[str, ...] = (), uri_column: str | None = None) -> pa.Table:
    source = inspect_source(str(path), uri_column)
    schema = kept_schema([source], keep)
    tables = list(read_refs(source, schema))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    table.validate(full=True)
    assert table.schema == schema
    return table


def uris(path: Path | str, uri_column: str | None = None) -> list[str]:
    return read(path, uri_column=uri_column)["uri"].to_pylist()  # type: ignore[no-any-return]


def write(path: Path, content: str | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def below(folder: Path, *names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names]


LISTS = {
    "list.txt": "# photos\n\na.jpg\n  b c.jpg  \r\nhttps://host/d.jpg\n\t\n",
    "list.csv": 'id,URL,note\n1,a.jpg,x\n2," b c.jpg ","two\r\nlines, ""quoted"""\n\n3,https://host/d.jpg,\n',
    "list.tsv": 'id\tpath\tnote\n1\ta.jpg\tx\n2\tb c.jpg\t"two\r\nlines, ""quoted"""\n3\thttps://host/d.jpg\t\n',
    "list.jsonl": (
        '{"id": 1, "image": "a.jpg", "note": "x"}\n\n'
        '{"note": "two\\r\\nlines, \\"quoted\\"", "image": " b c.jpg ", "id": 2}\r\n'
        '{"id": 3, "image": "https://host/d.jpg", "note": ""}'
    ),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("marked", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("name", LISTS)
def test_every_kind_of_list_gives_its_rows_in_order(
    tmp_path: Path, name: str, marked: str, packed: str
) -> None:
    path = write(tmp_path / (name + packed), marked + LISTS[name])
    assert uris(path) == [*below(tmp_path, "a.jpg", "b c.jpg"), "https://host/d.jpg"]
    if not name.endswith(".txt"):
        kept = read(path, ("note", "id")).select(["note", "id"]).to_pydict()
        assert kept == {"note": ["x", 'two\r\nlines, "quoted"', ""], "id": ["1", "2", "3"]}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path, kind: pa.DataType) -> None:
    kept = {
        "number": pa.array([1, None], pa.int16()),
        "when": pa.array([0, 1], pa.timestamp("us", "UTC")),
        "boxes": pa.array([[{"x": 1.5}], []], pa.list_(pa.struct([("x", pa.float32())]))),
        "class": pa.array(["cat", "dog"]).dictionary_encode(),
    }
    path = write_parquet(tmp_path / "list.parquet", path=pa.array([" a.jpg", None]).cast(kind), **kept)
    table = read(path, tuple(kept))
    assert table["uri"].to_pylist() == [*below(tmp_path, "a.jpg"), ""]
    for name, column in kept.items():
        assert table[name].type == column.type
        assert table[name].to_pylist() == column.to_pylist()


def test_the_uri_column_may_be_kept_as_it_was_written(tmp_path: Path) -> None:
    for path in (
        write_parquet(tmp_path / "list.parquet", path=["a.jpg"]),
        write(tmp_path / "list.csv", "path\na.jpg\n"),
    ):
        assert read(path, ("path",)).to_pylist() == [{"uri": f"{tmp_path}/a.jpg", "path": "a.jpg"}]


def test_a_list_without_rows_has_none(tmp_path: Path) -> None:
    empty = (
        write(tmp_path / "a.txt", ""),
        write(tmp_path / "b.csv", "uri\n"),
        write_parquet(tmp_path / "c.parquet", uri=pa.array([], pa.string())),
    )
    assert [uris(path) for path in empty] == [[], [], []]


def test_uris_of_every_scheme_stay_and_relative_paths_resolve(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    absolute = ["gs://b/a b?.jpg", "s3://b/k", "hdfs:///a", "http://h/ä", "file:///a%20b", "/abs/x.jpg"]
    path = write(tmp_path / "lists" / "list.txt", "\n".join([*absolute, "../y.jpg", "./z.jpg"]))
    assert uris(path) == [*absolute, f"{tmp_path}/y.jpg", f"{tmp_path}/lists/z.jpg"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl", "list.parquet"])
def test_bytes_that_are_not_utf8_still_name_files(tmp_path: Path, name: str) -> None:
    content = {
        "list.txt": b"caf\xe9.jpg\nhttp://h/\xe9\n",
        "list.csv": b"uri,note\ncaf\xe9.jpg,caf\xe9\nhttp://h/\xe9,\n",
        "list.jsonl": b'{"uri": "caf\xe9.jpg", "note": "caf\xe9"}\n{"uri": "http://h/\xe9"}\n',
    }
    path = tmp_path / name
    if name in content:
        write(path, content[name])
    else:
        column = pa.array([b"caf\xe9.jpg", b"http://h/\xe9"])
        write_parquet(path, uri=pa.StringArray.from_buffers(2, *column.buffers()[1:]))
    assert uris(path) == [f"file://{tmp_path}/caf%E9.jpg", "http://h/%E9"]
    if name in ("list.csv", "list.jsonl"):
        assert read(path, ("note",))["note"].to_pylist()[0] == "caf\ufffd"


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.txt", "a\0b.jpg\nnot a uri\n" + "x" * 200_000, ["a\0b.jpg", "not a uri", "x" * 200_000]),
        ("a.csv", "n,uri\n1,a\n2\n3,\n4,b,c,d\n,,\n", ["a", None, None, "b", None]),
        ("a.csv", "uri,n\n" + "x" * 200_000 + ",1\nb,2\n", ["x" * 200_000, "b"]),
        ("a.csv", 'uri,n\n"open,1\nb,2\n', ["open,1\nb,2"]),
        ("a.csv", "uri\na\rb\r\nc\0d\n", ["a", "b", "c\0d"]),
        ("a.jsonl", '{"uri": 7}\n{"uri": null}\n{}\n{"uri": ""}\n', ["7", None, None, None]),
        ("a.jsonl", '{"uri": "a"}\n{"uri": "b"\n["c"]\n"d"\n', ["a", '{"uri": "b"', '["c"]', '"d"']),
        ("a.jsonl", '{"uri": "a"}\n{"uri": ["b"]}\n{"uri": "\\ud800c"}\n', ["a", '["b"]', "\ufffdc"]),
        ("a.jsonl", '{"uri": "a"}\n' + "[" * 100_000 + "\n" + "9" * 5000, ["a", "[" * 100_000, "9" * 5000]),
    ],
)
def test_a_bad_line_becomes_a_row(tmp_path: Path, name: str, content: str, names: list[str | None]) -> None:
    expected = [f"{tmp_path}/{name}" if name is not None else "" for name in names]
    assert uris(write(tmp_path / name, content)) == expected


def test_a_cell_beyond_all_measure_is_a_row_that_says_where_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "n,uri\n1,a\n2," + "x" * (17 << 20) + "\n3,b\n")
    first, bad, last = uris(path)
    assert (first, last) == tuple(below(tmp_path, "a", "b"))
    assert "line 3 is not CSV" in bad


@pytest.mark.parametrize("cut", [5, 30, -4, -12])
@pytest.mark.parametrize("name", ["list.txt.gz", "list.csv.gz", "list.jsonl.gz", "list.parquet"])
def test_a_list_that_was_cut_off_is_never_taken_for_the_whole(tmp_path: Path, name: str, cut: int) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        write_parquet(path, uri=[f"{n}.jpg" for n in range(1000)])
    else:
        lines = [json.dumps({"uri": f"{n}.jpg"}) if "jsonl" in name else f"{n}.jpg" for n in range(1000)]
        write(path, "\n".join(["uri", *lines] if "csv" in name else lines))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cannot be read"):
        read(path)


def test_a_damaged_gz_is_a_mistake_that_names_the_list(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt.gz", os.urandom(100_000).hex())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"list.txt.gz cannot be read to its end"):
        read(path)


def test_folders_and_globs_list_their_files(tmp_path: Path) -> None:
    for name in ("b.jpg", "x/a.png", ".hidden", "x/.cache/c.jpg", os.fsdecode(b"\xff.jpg"), " e.jpg "):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rest = [f"file://{tmp_path}/%FF.jpg"]
    assert uris(tmp_path) == below(tmp_path, " e.jpg ", "b.jpg", "x/a.png") + rest
    assert uris(f"{tmp_path}/*.jpg") == below(tmp_path, "b.jpg") + rest
    assert uris(f"{tmp_path}/**/*.png") == below(tmp_path, "x/a.png")


def test_a_run_inside_its_input_is_not_listed(tmp_path: Path) -> None:
    for name in ("a.jpg", "run/embeddings/part.parquet", "runner.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for text in (str(tmp_path), f"{tmp_path}/**"):
        source = inspect_source(text, None)
        for run in (f"{tmp_path}/run", f"file://{tmp_path}/run/"):
            inside = type(source)(source.uri, source.kind, skip=run)
            (table,) = read_refs(inside, kept_schema([inside], ()))
            assert table["uri"].to_pylist() == below(tmp_path, "a.jpg", "runner.jpg")


def test_the_uri_column_is_found_by_name_or_said(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "image,Url,other\n1,a,b\n")
    assert uris(path) == below(tmp_path, "a")
    assert uris(path, "other") == below(tmp_path, "b")
    images = pa.array([{"bytes": b"", "path": "x"}])
    assert uris(write_parquet(tmp_path / "list.parquet", uri=images, image=["c"])) == below(tmp_path, "c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "a,b\n1,2\n", "which column holds the URIs.*a, b"),
        ("list.csv", "", "which column holds the URIs.*none"),
        ("list.jsonl", "no json\n", "which column holds the URIs"),
        ("list.parquet", "no parquet", "cannot be read"),
        ("list.csv.gz", "", "which column"),
        ("photo.jpg", "", "must be named"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inspect_source(str(write(tmp_path / name, content)), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("missing.csv", "no such file"),
        ("*.none", "no file matches"),
        ("https://host/list.csv", "put image URLs into a text file"),
        ("ftp://host/list.csv", "cannot read ftp"),
        ("file://host/list.csv", "must name a local path"),
    ],
)
def test_an_input_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        inspect_source(text, None)


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", uri=[1], text=["a"], n=[1])
    with pytest.raises(UserError, match="'uri' holds int64"):
        inspect_source(str(path), "uri")
    with pytest.raises(UserError, match="no column 'nope'"):
        inspect_source(str(path), "nope")
    parquet = inspect_source(str(path), "text")
    table = inspect_source(str(write(tmp_path / "b.csv", "uri,n\na,1\n")), None)
    with pytest.raises(UserError, match="no column 'nope' to keep; its columns: uri, text, n"):
        kept_schema([parquet], ["nope"])
    with pytest.raises(UserError, match="int64 in one input, string in another"):
        kept_schema([parquet, table], ["n"])
    with pytest.raises(UserError, match="to keep"):
        kept_schema([parquet, inspect_source(str(tmp_path), None)], ["n"])


def test_a_kept_column_may_be_null_whatever_the_first_input_promised(tmp_path: Path) -> None:
    strict = pa.schema([("uri", pa.string()), pa.field("n", pa.int64(), nullable=False, metadata={"k": "v"})])
    pq.write_table(pa.table({"uri": ["a"], "n": [1]}, schema=strict), tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", uri=["b"], n=pa.array([None], pa.int64()))
    sources = [inspect_source(str(tmp_path / name), None) for name in ("a.parquet", "b.parquet")]
    schema = kept_schema(sources, ["n"])
    tables = [table for source in sources for table in read_refs(source, schema)]
    merged = pa.concat_tables(tables)
    merged.validate(full=True)
    assert merged["n"].to_pylist() == [1, None]
    assert schema.field("n").nullable


def test_several_inputs_are_read_in_a_pipeline(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "uri,label\n1,cat\n")
    write(tmp_path / "b.jsonl", '{"url": "2", "label": "dog"}')
    sources = [inspect_source(str(tmp_path / name), None) for name in ("a.csv", "b.jsonl")]
    expected = [{"uri": f"{tmp_path}/1", "label": "cat"}, {"uri": f"{tmp_path}/2", "label": "dog"}]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        tables = pipeline | beam.Create(sources) | ReadRefs(kept_schema(sources, ["label"]))
        assert_that(tables | beam.FlatMap(lambda table: table.to_pylist()), equal_to(expected))


def _csv(rows: list[str]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", "uri"], *enumerate(rows)])
    return file.getvalue().encode()


def _jsonl(rows: list[str]) -> bytes:
    return "\n".join(json.dumps({"id": index, "uri": row}) for index, row in enumerate(rows)).encode()


@pytest.mark.parametrize(("name", "encode"), [("list.csv", _csv), ("list.jsonl", _jsonl)])
@given(rows=st.lists(st.text(), min_size=1, max_size=20))
def test_every_row_of_a_well_formed_table_is_a_reference(
    tmp_path_factory: pytest.TempPathFactory, name: str, encode: Callable[[list[str]], bytes], rows: list[str]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / name, encode(rows))
    table = read(path, ("id",))
    assert table["id"].to_pylist() == [str(index) for index in range(len(rows))]


@pytest.mark.parametrize("name", ["junk.txt", "junk.csv", "junk.tsv", "junk.jsonl"])
@given(junk=st.binary(max_size=300))
def test_any_bytes_are_rows(tmp_path_factory: pytest.TempPathFactory, name: str, junk: bytes) -> None:
    head = {"junk.csv": b"id,uri\n", "junk.tsv": b"uri\tid\n", "junk.jsonl": b'{"uri": ""}\n'}
    path = write(tmp_path_factory.getbasetemp() / name, head.get(name, b"") + junk)
    assert len(uris(path)) <= len(junk) + 1
