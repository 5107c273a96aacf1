"""The Parquet schema of hits: a row for each query and each image that was found for it."""

import pyarrow as pa


def hits_schema() -> pa.Schema:
    """`rank` counts from 1, the best first; `score` as `pipeline.search.Match` has it."""
    return pa.schema(
        [
            pa.field("query_uri", pa.string(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
        ]
    )
