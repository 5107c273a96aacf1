"""Results of a search, as a table for people or as Parquet for programs."""

from collections.abc import Sequence

import pyarrow as pa
from rich.table import Column, Table

from jobs import report
from pipeline.search import Match
from transforms import storage
from transforms.errors import UserError
from transforms.hits import hits_schema
from transforms.schema import encode_parquet


def show_table(matches: Sequence[Match]) -> None:
    """On standard output; kept columns too."""
    kept = list(dict.fromkeys(name for match in matches for name in match.kept))
    right = Column("score", justify="right")
    table = Table(right, "label", *kept, Column("uri", overflow="fold"))
    for match in matches:
        table.add_row(
            f"{match.score:.3f}", _label(match), *(str(match.kept.get(name, "")) for name in kept), match.uri
        )
    report.console(stderr=False).print(table)


def _label(match: Match) -> str:
    if match.label is None:
        return ""
    return match.label if match.probability is None else f"{match.label} {match.probability:.2f}"


def write_parquet(file: str, query: str, matches: Sequence[Match]) -> None:
    """query_uri, rank, uri, score; raises `UserError`."""
    table = pa.table(
        {
            "query_uri": [query] * len(matches),
            "rank": range(1, len(matches) + 1),
            "uri": [match.uri for match in matches],
            "score": [match.score for match in matches],
        },
        schema=hits_schema(),
    )
    try:
        storage.write_whole(storage.resolve(file, "."), encode_parquet(table))
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"{file}: cannot be written: {storage.first_line(error)}") from error
