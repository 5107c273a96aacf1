from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from transforms.errors import UserError
from transforms.sealed import MappedFile, SealedFile, seal
from transforms.side_table import SideFiles, SideTable, uri_lookup, write_side_rows


def segment(folder: Path, name: str, uris: list[str]) -> SideFiles:
    rows, lookup = folder / f"{name}.arrow", folder / f"{name}.uris"
    labels = {"label": ["x"] * len(uris), "probability": pa.array([0.5] * len(uris), pa.float32())}
    write_side_rows(str(rows), [pa.table({"uri": uris, **labels})])
    uri_lookup(uris).tofile(lookup)
    mapped = [MappedFile(str(path), seal(str(path), path.name, digest=True)) for path in (rows, lookup)]
    return SideFiles(mapped[0], mapped[1], len(uris))


@pytest.fixture
def table(tmp_path: Path) -> SideTable:
    return SideTable([segment(tmp_path, "0", ["a", "b", "ü"]), segment(tmp_path, "1", ["d", "e"])])


def test_uris_are_found_in_any_segment_and_order(table: SideTable) -> None:
    assert len(table) == 5
    assert table.find(["e", "nowhere", "ü", "a", "e"]).tolist() == [4, -1, 2, 0, 4]
    assert table.find([]).tolist() == []


def test_rows_come_in_the_order_of_their_ids(table: SideTable) -> None:
    assert table.take(np.array([4, 0, 3, 0]))["uri"].to_pylist() == ["e", "a", "d", "a"]
    assert table.take(np.array([], np.int64), ["uri"]).column_names == ["uri"]


def test_uris_with_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.side_table.hash_uris", lambda uris: np.zeros(len(uris), np.uint64))
    table = SideTable([segment(tmp_path, "0", ["a", "b", "c"])])
    assert table.find(["c", "a", "x", "b"]).tolist() == [2, 0, -1, 1]


def test_a_lookup_of_another_length_is_refused(tmp_path: Path) -> None:
    files = segment(tmp_path, "0", ["a", "b"])
    (tmp_path / "short").write_bytes(b"\0" * 12)
    short = MappedFile(str(tmp_path / "short"), SealedFile("short", 12))
    with pytest.raises(UserError, match="holds other rows"):
        SideTable([SideFiles(files.side, short, 2)]).find(["a"])
