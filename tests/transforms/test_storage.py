"""Storage: names of every kind, writes that are whole, listings that end, and nothing that hangs."""

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import storage
from transforms.errors import UserError

NAMES = [
    "plain.jpg",
    "with space.jpg",
    "ünïcode ☃.jpg",
    "new\nline.jpg",
    "hash#1.jpg",
    "per%20cent.jpg",
    "question?.jpg",
    "star*.jpg",
    "bra[ck]et.jpg",
    "back\\slash.jpg",
    os.fsdecode(b"not utf-8 \xff.jpg"),
    "n" * 255,
]


def listed(folder: Path, *, recursive: bool = True) -> list[str]:
    found = storage.list_files(str(folder), recursive=recursive)
    return [os.path.relpath(storage.local_path(info.uri), folder) for info in found]


def matched(pattern: str, folder: Path) -> list[str]:
    return [os.path.relpath(storage.local_path(info.uri), folder) for info in storage.match_files(pattern)]


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_file_name_can_be_written_read_listed_and_deleted(tmp_path: Path, name: str) -> None:
    uri = storage.local_uri(str(tmp_path / name))
    storage.write_whole(uri, b"bytes")
    assert storage.read_bytes(uri) == b"bytes"
    assert [info.uri for info in storage.list_files(str(tmp_path))] == [uri]
    assert storage.exists(uri)
    assert not storage.is_folder(uri)
    assert not storage.is_pattern(uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
def test_every_path_has_a_utf8_uri_that_leads_back_to_it(name: bytes) -> None:
    path = os.fsdecode(b"/" + name)
    uri = storage.local_uri(path)
    assert uri.encode()
    assert storage.local_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b.jpg", "/a/b.jpg"),
        ("file://localhost/a/b.jpg", "/a/b.jpg"),
        ("FILE:///a%20b%23%FF.jpg", os.fsdecode(b"/a b#\xff.jpg")),
        ("file:///a?b#c.jpg", "/a?b#c.jpg"),
        ("file:///a\nb.jpg", "/a\nb.jpg"),
    ],
)
def test_file_uris_name_local_paths(uri: str, path: str) -> None:
    assert storage.local_path(uri) == path


@pytest.mark.parametrize("uri", ["file://server/a.jpg", "file://a.jpg", "file://[::1/a.jpg"])
def test_a_file_uri_with_a_host_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="must name a local path"):
        storage.read_bytes(uri)


@pytest.mark.parametrize(
    ("text", "base", "resolved"),
    [
        ("a.jpg", "/lists", "/lists/a.jpg"),
        ("../images/./a.jpg", "/lists", "/images/a.jpg"),
        ("/images/a.jpg", "/lists", "/images/a.jpg"),
        ("a.jpg", "file:///my%20lists", "/my lists/a.jpg"),
        (os.fsdecode(b"\xff.jpg"), "/lists", "file:///lists/%FF.jpg"),
        ("https://host/a b.jpg", "/lists", "https://host/a b.jpg"),
        (os.fsdecode(b"https://host/\xff.jpg"), "/lists", "https://host/%FF.jpg"),
        ("gs://bucket/a.jpg", "/lists", "gs://bucket/a.jpg"),
        ("a.jpg", "gs://bucket", "gs://bucket/a.jpg"),
        ("../images/a?.jpg", "s3://bucket/lists", "s3://bucket/images/a?.jpg"),
        ("../../../a.jpg", "gs://anonymous@bucket/lists", "gs://anonymous@bucket/a.jpg"),
        ("/images/a.jpg", "gs://bucket/lists", "/images/a.jpg"),
        ("a.jpg", "hdfs://name:9000/lists", "hdfs://name:9000/lists/a.jpg"),
        ("a.jpg", "hdfs://", "hdfs:///a.jpg"),
    ],
)
def test_references_resolve_against_the_folder_of_their_list(text: str, base: str, resolved: str) -> None:
    assert storage.resolve(text, base) == resolved


@pytest.mark.parametrize(
    ("uri", "parent"),
    [
        ("/lists/a.csv", "/lists"),
        ("file:///my%20lists/a.csv", "/my lists"),
        ("gs://bucket/a.csv", "gs://bucket"),
        ("s3://bucket/lists/a.csv", "s3://bucket/lists"),
        ("hdfs:///a.csv", "hdfs://"),
    ],
)
def test_parent_is_the_folder(uri: str, parent: str) -> None:
    assert storage.parent(uri) == parent


def test_is_below_compares_whole_names_and_ignores_how_a_path_is_said() -> None:
    assert storage.is_below("/data/run/embeddings/a", "/data/run")
    assert storage.is_below("/data/my run/a", "file:///data/my%20run/")
    assert storage.is_below("gs://bucket/run/a", "gs://bucket/run")
    assert not storage.is_below("/data/running/a", "/data/run")
    assert not storage.is_below("gs://data/run/a", "/data/run")


def test_a_relative_path_is_written_beside_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_whole("a.bin", b"1")
    assert (tmp_path / "a.bin").read_bytes() == b"1"


def test_a_write_replaces_the_file_makes_its_folders_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "deep" / "a.bin")
    storage.write_whole(uri, b"first")
    storage.write_whole(uri, pa.py_buffer(b"second"))
    assert storage.read_text(uri) == "second"
    assert os.listdir(tmp_path / "new" / "deep") == ["a.bin"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    make_files(tmp_path, "folder/inside")
    with pytest.raises(IsADirectoryError):
        storage.write_whole(str(tmp_path / "folder"), b"data")
    assert sorted(os.listdir(tmp_path)) == ["folder"]
    assert (tmp_path / "folder" / "inside").read_bytes() == b"x"


def test_readers_see_only_whole_files_while_they_are_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.bin")
    contents = [bytes([value]) * 300_000 for value in range(20)]
    storage.write_whole(uri, contents[0])
    writer = threading.Thread(target=lambda: [storage.write_whole(uri, content) for content in contents])
    writer.start()
    seen = [storage.read_bytes(uri)]
    while writer.is_alive():
        seen.append(storage.read_bytes(uri))
    writer.join()
    assert set(seen) <= set(contents)


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (0, 0), (9, 9), (10, 10), (11, 10)])
def test_reading_stops_at_the_limit(tmp_path: Path, limit: int | None, expected: int) -> None:
    make_files(tmp_path, "a")
    (tmp_path / "a").write_bytes(b"0123456789")
    assert storage.read_bytes(str(tmp_path / "a"), limit) == b"0123456789"[:expected]


def _make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)


@pytest.mark.parametrize("make", [os.mkfifo, _make_socket, os.mkdir])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[str], None]) -> None:
    path = str(tmp_path / "odd")
    make(path)
    with pytest.raises(IsADirectoryError):
        storage.read_bytes(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_devices_are_refused() -> None:
    with pytest.raises(IsADirectoryError, match="device"):
        storage.read_bytes("/dev/zero")


def test_a_listing_is_in_order_of_name_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    make_files(tmp_path, "b.jpg", "a/2.jpg", "a/1.jpg", "c/d/e.jpg", ".hidden", ".git/config", "a/.DS_Store")
    assert listed(tmp_path) == ["a/1.jpg", "a/2.jpg", "b.jpg", "c/d/e.jpg"]
    assert listed(tmp_path, recursive=False) == ["b.jpg"]
    assert listed(tmp_path / "missing") == []


def test_links_to_files_are_followed_and_no_loop_is_walked(tmp_path: Path) -> None:
    make_files(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert listed(tmp_path) == ["dangling.jpg", "link.jpg", "real/a.jpg", "self"]


def test_folders_may_be_nested_deeper_than_calls(tmp_path: Path) -> None:
    folders = [str(tmp_path / "d")]
    while len(folders) < sys.getrecursionlimit() + 100:
        folders.append(folders[-1] + "/d")
    for folder in folders:
        os.mkdir(folder)
    os.mkfifo(folders[-1] + "/last")
    found = listed(tmp_path)
    os.remove(folders[-1] + "/last")
    for folder in reversed(folders):
        os.rmdir(folder)
    assert found == ["d/" * len(folders) + "last"]


def test_a_folder_that_cannot_be_read_is_listed_itself(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        if os.access(tmp_path / "locked", os.R_OK):
            pytest.skip("root may read everything")
        assert listed(tmp_path) == ["a.jpg", "locked"]
        with pytest.raises(PermissionError):
            storage.read_bytes(str(tmp_path / "locked"))
        with pytest.raises(PermissionError):
            listed(tmp_path / "locked")
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg", "b1.jpg"]),
        ("?.jpg", ["a.jpg"]),
        ("[!a]*.jpg", ["b1.jpg"]),
        ("b[0-9].jpg", ["b1.jpg"]),
        ("*/*.jpg", ["x/c.jpg"]),
        ("x/**/*.jpg", ["x/c.jpg", "x/y/z/d.jpg"]),
        ("**/*.jpg", ["a.jpg", "b1.jpg", "x/c.jpg", "x/y/z/d.jpg"]),
        ("**", ["a.jpg", "b1.jpg", "n.txt", "x/c.jpg", "x/y/z/d.jpg"]),
        ("x/**/d.jpg", ["x/y/z/d.jpg"]),
        ("**/z/**", ["x/y/z/d.jpg"]),
        ("[z-a].jpg", []),
        ("[.jpg", []),
        ("*.gif", []),
    ],
)
def test_globs_match_within_a_name_and_two_stars_across_folders(
    tmp_path: Path, pattern: str, names: list[str]
) -> None:
    make_files(tmp_path, "a.jpg", "b1.jpg", "n.txt", "x/c.jpg", "x/y/z/d.jpg", ".hidden.jpg")
    assert matched(f"{tmp_path}/{pattern}", tmp_path) == names
    assert matched(f"file://{tmp_path}/{pattern}", tmp_path) == names


def test_a_relative_glob_is_matched_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "a.jpg", "x/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert [info.uri for info in storage.match_files("*.jpg")] == ["./a.jpg"]
    assert [info.uri for info in storage.match_files("x/*.jpg")] == ["x/b.jpg"]


def test_a_glob_finds_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    make_files(tmp_path, name)
    assert matched(f"{tmp_path}/*.jpg", tmp_path) == [name]


def test_a_path_that_exists_is_no_glob(tmp_path: Path) -> None:
    make_files(tmp_path, "a[1].jpg")
    assert not storage.is_pattern(f"{tmp_path}/a[1].jpg")
    assert storage.is_pattern(f"{tmp_path}/b[1].jpg")


@pytest.mark.parametrize("uri", ["ftp://host/a.jpg", "data://x", "weird+scheme://host/a"])
def test_an_unknown_scheme_is_named_with_those_that_are_known(uri: str) -> None:
    with pytest.raises(UserError, match=r"gs, s3, hdfs"):
        storage.read_bytes(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("gs:///a.jpg", "names no bucket"),
        ("s3://", "names no bucket"),
        ("gs://anonymous@/a.jpg", "names no bucket"),
        ("s3://key:secret@bucket/a.jpg", "credentials come from the environment"),
        ("gs://user@bucket/a.jpg", "credentials come from the environment"),
    ],
)
def test_object_uris_must_name_a_bucket_and_no_secret(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        storage.read_bytes(uri)
    assert "secret" not in str(caught.value)


def test_the_reason_of_an_error_is_one_line_without_numbers() -> None:
    assert storage.first_line(FileNotFoundError(2, "No such file", "/x")) == "No such file"
    assert storage.first_line(OSError("first\nsecond")) == "first"
    assert storage.first_line(ValueError()) == "ValueError"
