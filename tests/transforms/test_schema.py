"""Rows to Parquet: types, order, metadata, and files that other readers open."""

import io
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.rows import embedded, failed, row_format, shard
from transforms.errors import UserError
from transforms.schema import embeddings_table, encode_parquet, failures_table


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Three rows of width 4, written."""
    images = shard("a.jpg", "b.jpg", "c.jpg")
    rows = [embedded(images, index, [index, 0.5, -1, 2]) for index in range(3)]
    path = tmp_path / "part.parquet"
    path.write_bytes(encode_parquet(embeddings_table(images, rows, row_format())))
    return str(path)


def test_columns_and_types(file: str) -> None:
    schema = pq.read_schema(file)
    assert schema.names == ["uri", "width", "height", "format", "sha256", "embedding", "top_k"]
    assert schema.field("embedding").type == pa.list_(pa.field("element", pa.float32()), 4)
    assert {field.name for field in schema.field("top_k").type.value_type} == {
        "index",
        "wnid",
        "label",
        "probability",
    }


def test_values_come_back(file: str) -> None:
    row = pq.read_table(file).to_pylist()[2]
    assert row["uri"] == "c.jpg"
    assert row["embedding"] == [2.0, 0.5, -1.0, 2.0]
    assert row["top_k"][0] == {"index": 1, "wnid": "n1", "label": "one", "probability": 0.75}
    assert row["sha256"] == bytes(32).hex()


def test_duckdb_reads_it(file: str) -> None:
    query = f"select uri, embedding[1], top_k[1].label from '{file}' where width = 12 order by uri"
    assert duckdb.sql(query).fetchall() == [(f"{n}.jpg", float(i), "one") for i, n in enumerate("abc")]


def test_polars_reads_it(file: str) -> None:
    frame = pl.read_parquet(file)
    assert frame["embedding"].to_numpy().shape == (3, 4)


def test_pandas_reads_it(file: str) -> None:
    frame = pd.read_parquet(file)
    assert np.stack(list(frame["embedding"])).shape == (3, 4)


def test_hugging_face_datasets_reads_it(file: str, tmp_path: Path) -> None:
    rows = Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache"))
    assert rows[1]["embedding"] == [1.0, 0.5, -1.0, 2.0]


def test_metadata_tells_model_and_preprocessing(file: str) -> None:
    assert json.loads(pq.read_schema(file).metadata[b"pnasvec"]) == {"model": "test"}


def test_vectors_are_split_by_byte_and_have_no_dictionary(file: str) -> None:
    columns = pq.ParquetFile(file).metadata.row_group(0)
    vector = next(columns.column(i) for i in range(8) if "embedding" in columns.column(i).path_in_schema)
    assert vector.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in vector.encodings
    assert not any("DICTIONARY" in encoding for encoding in vector.encodings)


def test_row_groups_hold_1024_rows() -> None:
    images = shard(*(f"{i}" for i in range(2500)))
    rows = [embedded(images, index, [0, 0, 0, 0]) for index in range(2500)]
    data = encode_parquet(embeddings_table(images, rows, row_format()))
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    assert [metadata.row_group(i).num_rows for i in range(3)] == [1024, 1024, 452]


def test_float16_halves_the_vectors_and_keeps_them_close() -> None:
    images = shard("a")
    half = row_format(float16=True)
    table = embeddings_table(images, [embedded(images, 0, [0.1, 1, 2, 70_000])], half)
    data = encode_parquet(table)
    vector = pq.read_table(io.BytesIO(data))["embedding"].combine_chunks().flatten().to_numpy()
    assert vector.dtype == np.float16
    assert np.allclose(vector[:3], [0.1, 1, 2], rtol=1e-3)
    assert np.isinf(vector[3])


def test_logits_are_a_column_when_asked_for() -> None:
    images = shard("a")
    table = embeddings_table(
        images, [embedded(images, 0, [1, 2, 3, 4], logits=[0.5, 1.5])], row_format(logits=True)
    )
    assert pq.read_table(io.BytesIO(encode_parquet(table)))["logits"].to_pylist() == [[0.5, 1.5]]


def test_kept_columns_follow_their_rows_with_their_types() -> None:
    kept = pa.schema([("uri", pa.string()), ("shot", pa.timestamp("ms")), ("tags", pa.list_(pa.string()))])
    images = shard(
        "a", "b", "c", shot=pa.array([1, 2, 3], pa.timestamp("ms")), tags=[["x"], None, ["y", "z"]]
    )
    rows = [embedded(images, index, [0, 0, 0, 0]) for index in (0, 2)]
    table = embeddings_table(images, rows, row_format(kept=kept))
    assert table["tags"].to_pylist() == [["x"], ["y", "z"]]
    assert table.schema.field("shot").type == pa.timestamp("ms")
    failures = failures_table(images, [failed(images, 1)], row_format(kept=kept))
    assert failures["shot"].cast(pa.int64()).to_pylist() == [2]


@pytest.mark.parametrize("name", ["embedding", "width", "error", "logits"])
def test_a_kept_column_must_not_hide_one_of_ours(name: str) -> None:
    with pytest.raises(UserError, match=f"--keep-columns {name}"):
        row_format(kept=pa.schema([("uri", pa.string()), (name, pa.string())]))


def test_failures_say_why() -> None:
    images = shard("a", "b")
    row = failures_table(images, [failed(images, 1)], row_format()).to_pylist()[0]
    assert row["uri"] == "b"
    assert (row["stage"], row["error"], row["message"], row["attempts"]) == ("fetch", "NotFound", "gone", 1)
