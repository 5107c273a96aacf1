"""The Parquet schema of `embeddings/` and `failures/`: records to Arrow, whole columns at a time.

Vectors are float32 lists of fixed size: zstd level 1 over BYTE_STREAM_SPLIT, without a dictionary
(which doubles the cost of writing random floats) and without statistics nobody prunes by.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms import storage
from transforms.errors import UserError
from transforms.model.labels import Labels
from transforms.records import EmbeddedImage, Failure, Shard

SCHEMA_VERSION = 1
METADATA_KEY = b"pnasvec"

# Rows a row group: 1,024 x 4,320 floats are 17.7 MB, read column by column in one request.
ROW_GROUP = 1024
_DICTIONARY_COLUMNS = ("format", "stage", "error", "message", "wnid", "label")
_VECTOR_COLUMNS = ("embedding", "logits")

_TOP_K = pa.list_(
    pa.struct(
        [
            pa.field("index", pa.int32()),
            pa.field("wnid", pa.string()),
            pa.field("label", pa.string()),
            pa.field("probability", pa.float32()),
        ]
    )
)


@dataclass(frozen=True, slots=True)
class OutputFolders:
    """Where the files of both kinds lie."""

    embeddings: str
    failures: str


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What a row holds: D = `feature_width`, C = `class_count`, and the columns kept from the input.

    `metadata` goes into every file: the identity of model and preprocessing, as JSON.
    """

    feature_width: int
    class_count: int
    labels: Labels
    kept: pa.Schema
    metadata: str = "{}"
    float16: bool = False
    logits: bool = False

    def __post_init__(self) -> None:
        ours = {*embedding_schema_fields(self), *_FAILURE_FIELDS, "logits"}
        for name in self.kept.names[1:]:
            if name in ours:
                raise UserError(f"--keep-columns {name}: the output has a column of that name; rename it")

    @property
    def embeddings(self) -> pa.Schema:
        return self._schema(embedding_schema_fields(self))

    @property
    def failures(self) -> pa.Schema:
        return self._schema(_FAILURE_FIELDS)

    def _schema(self, fields: Mapping[str, pa.DataType]) -> pa.Schema:
        own = [pa.field(name, kind, nullable=name != "uri") for name, kind in fields.items()]
        return pa.schema([*own, *list(self.kept)[1:]], metadata={METADATA_KEY: self.metadata.encode()})


def embedding_schema_fields(row_format: RowFormat) -> dict[str, pa.DataType]:
    number = pa.float16() if row_format.float16 else pa.float32()
    fields = {
        "uri": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "sha256": pa.string(),
        "embedding": pa.list_(number, row_format.feature_width),
        "top_k": _TOP_K,
    }
    if row_format.logits:
        fields["logits"] = pa.list_(pa.float32(), row_format.class_count)
    return fields


_FAILURE_FIELDS: dict[str, pa.DataType] = {
    "uri": pa.string(),
    "stage": pa.string(),
    "error": pa.string(),
    "message": pa.string(),
    "attempts": pa.int32(),
    "when": pa.timestamp("ms", tz="UTC"),
}


def embeddings_table(shard: Shard, rows: Sequence[EmbeddedImage], row_format: RowFormat) -> pa.Table:
    """One row an image, in the order given."""
    facts = [row.facts for row in rows]
    number = np.dtype(np.float16 if row_format.float16 else np.float32)
    columns = {
        "uri": pa.array([row.ref.uri for row in rows], pa.string()),
        "width": pa.array([fact.width for fact in facts], pa.int32()),
        "height": pa.array([fact.height for fact in facts], pa.int32()),
        "format": pa.array([fact.format for fact in facts], pa.string()),
        "sha256": pa.array([fact.sha256.hex() for fact in facts], pa.string()),
        "embedding": _vectors([row.vector for row in rows], number),
        "top_k": _top_k(rows, row_format.labels),
    }
    if row_format.logits:
        columns["logits"] = _vectors(
            [row.logits for row in rows if row.logits is not None], np.dtype(np.float32)
        )
    return _with_kept(columns, shard, [row.ref.index for row in rows], row_format.embeddings)


def failures_table(shard: Shard, rows: Sequence[Failure], row_format: RowFormat) -> pa.Table:
    """One row a failure, in the order given."""
    values = {
        "uri": [row.ref.uri for row in rows],
        "stage": [row.stage for row in rows],
        "error": [row.error for row in rows],
        "message": [row.message for row in rows],
        "attempts": [row.attempts for row in rows],
        "when": [row.when for row in rows],
    }
    columns = {name: pa.array(values[name], kind) for name, kind in _FAILURE_FIELDS.items()}
    return _with_kept(columns, shard, [row.ref.index for row in rows], row_format.failures)


def read_columns(file: str, columns: Sequence[str]) -> pa.Table:
    """Those of the columns that an output file has; raises `UserError` if damaged or without the first."""
    with open_output(file, columns[0]) as parquet:
        return parquet.read(columns=list(columns))


def count_rows(file: str) -> int:
    """The rows of an output file, by its footer; raises `UserError` as `read_columns` does."""
    with open_output(file, "uri") as parquet:
        return int(parquet.metadata.num_rows)


def vector_width(file: str) -> int:
    """The width of an output file's vectors; raises `UserError` as `read_columns` does."""
    with open_output(file, "embedding") as parquet:
        kind = parquet.schema_arrow.field("embedding").type
        if not pa.types.is_fixed_size_list(kind):
            raise damaged(file, f"its vectors are {kind}")
        return int(kind.list_size)


def list_parts(folder: str) -> Iterator[str]:
    """The complete files of one of the `OutputFolders`."""
    for info in storage.list_files(folder, recursive=False):
        if info.uri.endswith(".parquet"):
            yield info.uri


@contextmanager
def open_output(file: str, column: str) -> Iterator[pq.ParquetFile]:
    """An output file that has this column; raises `UserError` if damaged or without it."""
    try:
        with storage.open_input(file) as source:
            parquet = pq.ParquetFile(source)
            if column not in parquet.schema_arrow.names:
                raise damaged(file, f"it has no column {column!r}")
            yield parquet
    except storage.STORAGE_ERRORS as error:
        raise damaged(file, storage.first_line(error)) from error


def damaged(file: str, reason: str) -> UserError:
    """The error for an output file that is not what it should be."""
    return UserError(f"{file} is damaged ({reason}): remove it and embed again, which makes up its images")


def encode_parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a Parquet file with our encodings."""
    names = set(table.schema.names)
    # A half is a fixed binary to Parquet, whose split not every reader knows: only floats are split.
    split = [f"{n}.list.element" for n in _VECTOR_COLUMNS if n in names and _is_float32(table.schema, n)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=[n for n in _leaf_columns(table.schema) if n.split(".")[-1] in _DICTIONARY_COLUMNS],
        use_byte_stream_split=split,
        write_statistics=[n for n in table.schema.names if n not in _VECTOR_COLUMNS],
    )
    return sink.getvalue()


def _leaf_columns(schema: pa.Schema) -> list[str]:
    leaves = ["top_k.list.element.wnid", "top_k.list.element.label"] if "top_k" in schema.names else []
    return [*schema.names, *leaves]


def _is_float32(schema: pa.Schema, name: str) -> bool:
    return bool(schema.field(name).type.value_type == pa.float32())


def _vectors(rows: Sequence[NDArray[np.float32]], number: "np.dtype[Any]") -> pa.Array:
    """A FixedSizeList over one contiguous block; what float16 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        block = np.stack(rows).astype(number, copy=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])


def _top_k(rows: Sequence[EmbeddedImage], labels: Labels) -> pa.Array:
    classes = pa.array(np.concatenate([row.top_classes for row in rows]), pa.int32())
    probabilities = pa.array(np.concatenate([row.top_probabilities for row in rows]), pa.float32())
    texts = [pa.array(column, pa.string()).take(classes) for column in (labels.wnids, labels.names)]
    entries = pa.StructArray.from_arrays([classes, *texts, probabilities], fields=list(_TOP_K.value_type))
    ends = np.cumsum([len(row.top_classes) for row in rows], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), entries)


def _with_kept(
    columns: dict[str, pa.Array], shard: Shard, indices: Sequence[int], schema: pa.Schema
) -> pa.Table:
    kept = shard.refs.take(pa.array(indices, pa.int64()))
    arrays = [columns[name] if name in columns else kept[name] for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)
