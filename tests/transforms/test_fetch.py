"""Fetching: one image by any kind of URI, or a named failure; never another error, never a wait."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.errors import (
    ConnectionFailed,
    FetchFailure,
    InvalidURI,
    NotFound,
    PermissionDenied,
    TooManyBytes,
    UserError,
)
from transforms.fetch import FetchLimits, fetch_image
from transforms.records import EncodedImage
from transforms.web import WebLimits

LIMITS = FetchLimits(
    max_bytes=1000, web=WebLimits(timeout_s=2, retries=0, backoff_s=0.01, allow_private=True)
)


def failure(uri: str, limits: FetchLimits = LIMITS) -> FetchFailure:
    with pytest.raises(FetchFailure) as caught:
        fetch_image(uri, limits)
    assert "\n" not in str(caught.value)
    return caught.value


def outcome(uri: str) -> bytes | type[FetchFailure]:
    """The bytes, or the kind of the failure; any other error goes on."""
    try:
        return fetch_image(uri, LIMITS).data
    except FetchFailure as failed:
        return type(failed)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "an image#1 ü?.jpg"
    path.write_bytes(b"bytes")
    return path


@pytest.fixture
def site(image: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(image.parent))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_path_a_file_uri_and_a_url_give_the_same_bytes(image: Path, site: str) -> None:
    for uri in (str(image), image.as_uri(), f"{site}/an%20image%231%20%C3%BC%3F.jpg"):
        assert fetch_image(uri, LIMITS) == EncodedImage(b"bytes", attempts=1)
    assert type(failure(f"{site}/other.jpg")) is NotFound


def test_an_image_may_have_just_max_bytes(image: Path) -> None:
    assert fetch_image(str(image), replace(LIMITS, max_bytes=5)).data == b"bytes"
    assert type(failure(str(image), replace(LIMITS, max_bytes=4))) is TooManyBytes
    with pytest.raises(UserError, match="--max-bytes"):
        FetchLimits(max_bytes=0)


def test_an_empty_file_has_no_bytes_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert fetch_image(str(tmp_path / "empty.jpg"), LIMITS).data == b""


def test_what_is_not_there_or_no_file_is_not_found(tmp_path: Path, image: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ["missing.jpg", ".", "fifo", "loop", "n" * 256, f"{image.name}/inside.jpg", f"{image.name}/"]
    for name in names:
        assert type(failure(f"{tmp_path}/{name}")) is NotFound, name
    assert str(failure(f"{tmp_path}/missing.jpg")) == "No such file or directory"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such devices")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/stdin/../zero", "file:///dev/urandom"])
def test_devices_are_not_read(device: str) -> None:
    assert type(failure(device)) is NotFound


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no such files")
@pytest.mark.parametrize("name", ["status", "mem", "environ", "maps", "pagemap", "root"])
def test_nothing_of_the_process_is_read(name: str) -> None:
    assert outcome(f"/proc/self/{name}") in (b"", ConnectionFailed, NotFound, TooManyBytes)


def test_a_file_that_may_not_be_read_is_named_so(image: Path) -> None:
    image.chmod(0)
    if os.access(image, os.R_OK):
        pytest.skip("root may read everything")
    assert type(failure(str(image))) is PermissionDenied


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "a\0b.jpg",
        "/a\0b.jpg",
        "/" + "long/" * 2000,
        "/lone\ud800.jpg",
        "ftp://host/a.jpg",
        "file://host/a.jpg",
        "gs:///a.jpg",
        "s3://bu cket/a.jpg",
        "s3://key:secret@bucket/a.jpg",
        "http://a b/c.jpg",
    ],
    ids=lambda uri: ascii(uri[:20]),
)
def test_what_cannot_be_a_uri_is_invalid(uri: str) -> None:
    assert type(failure(uri)) is InvalidURI


@pytest.mark.parametrize("uri", ["gs://bucket", "gs://anonymous@bucket/"])
def test_a_bucket_is_no_image(uri: str) -> None:
    assert type(failure(uri)) is NotFound


def test_object_storage_that_is_not_reached_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        assert type(failure("s3://bucket-out-of-reach/a.jpg")) is ConnectionFailed


@pytest.mark.skipif("HADOOP_HOME" in os.environ, reason="Hadoop is installed")
def test_hdfs_without_its_libraries_is_a_failed_connection() -> None:
    assert type(failure("hdfs://name:9000/a.jpg")) is ConnectionFailed


uris = st.one_of(
    st.text(),
    st.text().map("/{}".format),
    st.text().map("file:///{}".format),
    st.text().map("file://{}".format),
    st.builds("{}://{}".format, st.text(min_size=2).filter(str.isalnum), st.text()),
)


@settings(max_examples=300, deadline=None)
@given(uri=uris)
def test_any_text_gives_bytes_or_a_named_failure(uri: str) -> None:
    found = outcome(uri)
    assert len(found) <= LIMITS.max_bytes if isinstance(found, bytes) else issubclass(found, FetchFailure)
