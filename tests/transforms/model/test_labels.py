"""Class names: ImageNet's, and those a person writes."""

from hashlib import sha256
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.errors import UserError
from transforms.model.labels import Labels, imagenet_labels, read_labels

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
WNIDS = st.from_regex(r"n[0-9]{8}", fullmatch=True)


def test_imagenet_has_background_and_a_thousand_synsets_in_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1001
    assert labels.names[0] == "background"
    assert (labels.wnids[1], labels.names[1]) == ("n01440764", "tench, Tinca tinca")
    assert labels.wnids[1000] == "n15075141"
    assert list(labels.wnids[1:]) == sorted(set(labels.wnids[1:]))


def test_imagenet_table_is_the_published_one() -> None:
    table = files("transforms.model") / "imagenet_1001.tsv"
    expected = "87fa094ccd67c9af10be38dfb3d39bd2314540192dd06a469441789990feafa9"
    assert sha256(table.read_bytes()).hexdigest() == expected


@given(st.lists(st.tuples(WNIDS, NAMES), min_size=1))
def test_every_format_reads_back(classes: list[tuple[str, str]]) -> None:
    labels = Labels(tuple(wnid for wnid, _ in classes), tuple(name for _, name in classes))
    unnamed = Labels(("",) * len(classes), labels.names)
    assert read_labels("\n".join(f"{wnid}\t{name}" for wnid, name in classes)) == labels
    assert read_labels("\n".join(f"{i}\t{w}\t{n}" for i, (w, n) in enumerate(classes)) + "\n") == labels
    assert read_labels("\n".join(f"{i}\t{name}" for i, (_, name) in enumerate(classes))) == unnamed
    assert read_labels("\n".join(labels.names)) == unnamed


def test_names_keep_their_commas_and_spaces_but_not_windows_line_ends() -> None:
    assert read_labels("\ufeffmaillot\r\nmaillot, tank suit\r\n\r\n").names == (
        "maillot",
        "maillot, tank suit",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1 has no class name"),
        ("cat\n\ndog", "line 2 has no class name"),
        ("n1\tcat\ndog", "line 2 has 1 columns, line 1 has 2"),
        ("n1\tcat\nn2\t", "line 2 has no class name"),
        ("0\tn1\tcat\n2\tn2\tdog", "line 2 starts with '2'; the index of its class is 1"),
        ("index\twnid\tname\n0\tn1\tcat", "line 1 starts with 'index'"),
        ("0\tn1\tcat\tfelis", "too many columns"),
    ],
)
def test_a_line_that_is_no_class_is_named(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_labels(text)


def test_digest_tells_apart_names_wnids_and_order() -> None:
    tables = ["a\nb", "b\na", "n1\ta\nn2\tb", "n2\ta\nn1\tb", "a\nb\nc"]
    assert len({read_labels(table).digest for table in tables}) == len(tables)
    assert read_labels("a\nb").digest == read_labels("0\ta\n1\tb\n").digest
