"""`--where`: an SQL condition over the side table, evaluated by DuckDB, which may touch nothing else."""

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.side_table import SideTable, arrow_ids

# DuckDB's own id of a row is not part of what a condition may use.
_ID = "__row_id"


def rows_where(condition: str, side_table: SideTable) -> NDArray[np.bool_]:
    """(rows,) bool: where the condition is true; raises `UserError` if it is none on these columns."""
    mask = np.zeros(len(side_table), np.bool_)
    with duckdb.connect(":memory:", config=_CLOSED) as connection:
        statement = _statement(connection, condition)
        for first, table in side_table.tables():
            ids = np.arange(first, first + len(table), dtype=np.int64)
            connection.register("images", table.append_column(_ID, arrow_ids(ids)))
            try:
                rows = connection.execute(statement).fetchnumpy()[_ID]
            except duckdb.Error as error:
                raise _refused(condition, error, table) from error
            mask[np.asarray(rows, np.int64)] = True
    return mask


_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}


def _statement(connection: duckdb.DuckDBPyConnection, condition: str) -> duckdb.Statement:
    """One SELECT, whatever the condition says."""
    if not condition.strip():
        raise UserError("--where is empty: leave it out, or give a condition")
    query = f"select {_ID} from images where (\n{condition}\n)"
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise UserError(f"--where {condition}: {_first_line(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UserError(f"--where {condition}: one condition is wanted, no further statements")
    return statements[0]


def _refused(condition: str, error: duckdb.Error, table: pa.Table) -> UserError:
    columns = ", ".join(table.column_names)
    return UserError(f"--where {condition}: {_first_line(error)}; columns: {columns}")


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0]
