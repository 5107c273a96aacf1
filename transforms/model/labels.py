"""What the classes of a network are called: ImageNet's names, and reading a list of names."""

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files

from transforms.errors import UserError


@dataclass(frozen=True, slots=True)
class Labels:
    """Entry i belongs to class i; a class that is no WordNet synset has the wnid ""."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with any wnid, name or their order."""
        text = "".join(f"{wnid}\t{name}\n" for wnid, name in zip(self.wnids, self.names, strict=True))
        return blake2b(text.encode(), digest_size=8).hexdigest()


@cache
def imagenet_labels() -> Labels:
    """The 1001 classes of TF-Slim: "background", then the synsets of ILSVRC-2012 by wnid."""
    return read_labels((files(__package__) / "imagenet_1001.tsv").read_text("utf-8"))


def read_labels(text: str) -> Labels:
    """Labels from one name a line, wnid<TAB>name, or either after a first column that counts from 0.

    Raises `UserError` that names the line.
    """
    lines = text.removeprefix("\ufeff").rstrip("\r\n").split("\n")
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    for number, row in enumerate(rows, 1):
        if not row[-1]:
            raise UserError(f"line {number} has no class name; write one class a line")
        if len(row) != len(rows[0]):
            raise UserError(f"line {number} has {len(row)} columns, line 1 has {len(rows[0])}")
    return _labels(_without_index(rows))


def _without_index(rows: list[list[str]]) -> list[list[str]]:
    width = len(rows[0])
    if width == 1:
        return rows
    wrong = next((number for number, row in enumerate(rows) if row[0] != str(number)), None)
    if wrong is None:
        return [row[1:] for row in rows]
    if width > 2:
        raise UserError(f"line {wrong + 1} starts with {rows[wrong][0]!r}; the index of its class is {wrong}")
    return rows


def _labels(rows: list[list[str]]) -> Labels:
    if len(rows[0]) > 2:
        raise UserError("line 1 has too many columns; known are name, wnid<TAB>name, index<TAB>wnid<TAB>name")
    wnids = tuple(row[0] if len(row) == 2 else "" for row in rows)
    return Labels(wnids, tuple(row[-1] for row in rows))
