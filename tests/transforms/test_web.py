"""http(s) against a real server on loopback: answers, retries, redirects, limits and refused addresses."""

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import web
from transforms.errors import (
    ConnectionFailed,
    FetchFailure,
    FetchTimeout,
    ForbiddenAddress,
    HTTPStatus,
    InvalidURI,
    NotFound,
    PermissionDenied,
    TooManyBytes,
    UserError,
)

BODY = b"an image" * 1000
LIMITS = web.WebLimits(timeout_s=5, retries=2, backoff_s=0.01, allow_private=True)
ONCE = web.WebLimits(timeout_s=5, retries=0, backoff_s=0.01, allow_private=True)
HASTY = web.WebLimits(timeout_s=0.2, retries=1, backoff_s=0.01, allow_private=True)

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers the n-th request to a path with the path's n-th answer, the last of them again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[Answer, ...]] = {}
        self.requests: list[str] = []
        self.headers: list[Message] = []
        self.peers: set[tuple[str, int]] = set()

    def url(self, path: str, *answers: Answer) -> str:
        self.answers[path] = answers
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        before = self.server.requests.count(self.path)
        self.server.requests.append(self.path)
        self.server.headers.append(self.headers)
        self.server.peers.add(self.client_address)
        answers = self.server.answers.get(self.path, (status(404),))
        answers[min(before, len(answers) - 1)](self)

    def log_message(self, format: str, *args: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: send(handler, code, body, **headers)


def redirect(location: str) -> Answer:
    return status(302, b"moved", Location=location)


def raw(*parts: bytes, pause_s: float = 0.0) -> Answer:
    """Bytes as they are, each after a pause, then the end of the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        pause = threading.Event()
        try:
            for part in parts:
                handler.wfile.write(part)
                pause.wait(pause_s)
        except OSError:  # the client has gone
            return

    return answer


ok = status(200, BODY)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that only itself vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    file = str(tmp_path / "server.pem")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", file, "-out", file + ".crt"], check=True, capture_output=True
    )
    with open(file, "ab") as pem:
        pem.write(Path(file + ".crt").read_bytes())
    return Path(file)


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port that nobody else can take and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def get(url: str, limits: web.WebLimits = LIMITS, max_bytes: int = 1 << 20) -> web.EncodedImage:
    return web.get(url, limits, max_bytes)


def failure(url: str, limits: web.WebLimits = LIMITS, max_bytes: int = 1 << 20) -> FetchFailure:
    with pytest.raises(FetchFailure) as caught:
        get(url, limits, max_bytes)
    return caught.value


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def test_the_body_comes_back_after_one_attempt_on_a_connection_that_is_kept(server: Server) -> None:
    url = server.url("/kept", ok)
    server.peers.clear()
    images = [get(url) for _ in range(3)]
    assert [(image.data, image.attempts) for image in images] == [(BODY, 1)] * 3
    assert len(server.peers) == 1
    assert server.headers[-1]["User-Agent"].startswith("pnasvec/")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, NotFound),
        (410, NotFound),
        (204, HTTPStatus),
        (302, HTTPStatus),
        (400, HTTPStatus),
        (501, HTTPStatus),
    ],
)
def test_a_final_answer_is_named_and_not_asked_for_again(
    server: Server, code: int, error: type[FetchFailure]
) -> None:
    url = server.url(f"/final/{code}", status(code))
    failed = failure(url)
    assert type(failed) is error
    assert str(failed).startswith(f"HTTP {code}")
    assert failed.attempts == 1
    assert server.requests.count(f"/final/{code}") == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_an_overloaded_server_is_asked_again(server: Server, code: int) -> None:
    url = server.url(f"/busy/{code}", status(code), status(code), ok)
    assert get(url).attempts == 3
    failed = failure(server.url(f"/down/{code}", status(code)))
    assert type(failed) is HTTPStatus
    assert failed.attempts == 3
    assert server.requests.count(f"/down/{code}") == 3


def test_attempts_count_up_to_the_failure_that_is_final(server: Server) -> None:
    failed = failure(server.url("/busy-then-gone", status(503), status(404)))
    assert (type(failed), failed.attempts) == (NotFound, 2)


@pytest.mark.parametrize(
    "broken",
    [
        raw(),
        raw(b"this is no HTTP\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf"),
    ],
    ids=["closed", "no-http", "short-body", "short-chunk"],
)
def test_a_connection_that_breaks_is_tried_again(
    server: Server, request: pytest.FixtureRequest, broken: Answer
) -> None:
    path = f"/{request.node.callspec.id}"
    assert get(server.url(path, broken, ok)) == web.EncodedImage(BODY, 2)
    failed = failure(server.url(f"{path}/always", broken))
    assert (type(failed), failed.attempts) == (ConnectionFailed, 3)
    assert " object at 0x" not in str(failed)


def test_retry_after_in_seconds_is_waited_for(server: Server) -> None:
    url = server.url("/later", status(429, Retry_After="1"), ok)
    start = time.monotonic()
    assert get(url).attempts == 2
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize("value", ["soon", "9" * 5000, formatdate(0, usegmt=True), "-1", ""])
def test_a_useless_retry_after_is_ignored(server: Server, value: str) -> None:
    limits = web.WebLimits(timeout_s=0.5, retries=1, backoff_s=0.01, allow_private=True)
    path = f"/useless/{value[:9].replace(' ', '')}"
    with within(3):
        try:
            attempts = get(server.url(path, status(503, Retry_After=value), ok), limits).attempts
        except HTTPStatus as failed:
            attempts = failed.attempts
    assert attempts in (1, 2)


def test_an_image_whose_time_would_be_up_is_not_waited_for(server: Server) -> None:
    url = server.url("/much-later", status(503, Retry_After="29"))
    with within(1):
        failed = failure(url, HASTY)
    assert (type(failed), failed.attempts) == (HTTPStatus, 1)


def test_redirects_are_followed_even_without_retries(server: Server) -> None:
    target = server.url("/target", ok)
    hop = server.url("/hop", redirect("target"))
    assert get(server.url("/start", redirect(hop)), ONCE) == web.EncodedImage(BODY, 1)
    assert get(target, ONCE).data == BODY


def test_a_redirect_may_be_written_in_plain_utf8(server: Server) -> None:
    server.url("/bild%20%C3%A4", ok)
    location = "/bild ä".encode().decode("latin-1")
    assert get(server.url("/utf8", redirect(location))).data == BODY


def test_redirect_loops_end(server: Server) -> None:
    failed = failure(server.url("/loop", redirect("/loop")))
    assert (type(failed), failed.attempts) == (HTTPStatus, 1)
    assert "redirects" in str(failed)
    assert server.requests.count("/loop") == 6


def test_the_body_of_a_redirect_is_not_read(server: Server) -> None:
    server.url("/after-endless", ok)
    endless = raw(
        b"HTTP/1.1 302 Found\r\nLocation: /after-endless\r\n\r\n", *[b"x" * 1000] * 1000, pause_s=0.1
    )
    with within(5):
        assert get(server.url("/endless", endless)).data == BODY


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://[bad"])
def test_a_redirect_out_of_the_web_is_refused(server: Server, location: str) -> None:
    path = f"/out/{location[:4]}{len(location)}"
    failed = failure(server.url(path, redirect(location)))
    assert type(failed) is InvalidURI
    assert failed.attempts == 1


def test_as_many_bytes_as_allowed_and_no_more(server: Server) -> None:
    known = server.url("/known", ok)
    closing = server.url("/unknown", raw(b"HTTP/1.1 200 OK\r\n\r\n", BODY))
    for url in (known, closing):
        assert get(url, max_bytes=len(BODY)).data == BODY
        assert type(failure(url, max_bytes=len(BODY) - 1)) is TooManyBytes


def test_an_endless_body_is_cut(server: Server) -> None:
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    endless = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk] * 10_000)
    with within(5):
        assert type(failure(server.url("/chunks", endless), max_bytes=1 << 20)) is TooManyBytes


def test_a_compressed_body_is_unpacked_and_a_bomb_is_not(server: Server) -> None:
    packed = server.url("/packed", status(200, gzip.compress(BODY), Content_Encoding="gzip"))
    assert get(packed).data == BODY
    bomb = gzip.compress(gzip.compress(bytes(200 << 20), 1), 1)
    url = server.url("/bomb", status(200, bomb, Content_Encoding="gzip, gzip"))
    assert type(failure(url, max_bytes=1 << 20)) is TooManyBytes
    broken = server.url("/broken-gzip", status(200, b"no gzip", Content_Encoding="gzip"))
    failed = failure(broken)
    assert (type(failed), failed.attempts) == (ConnectionFailed, 1)


def test_a_server_that_does_not_answer_times_out(server: Server) -> None:
    silent = raw(b"", b"", pause_s=3)
    failed = failure(server.url("/silent", silent), HASTY)
    assert (type(failed), failed.attempts) == (FetchTimeout, 2)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
    ],
    ids=["body", "chunk", "header"],
)
def test_a_server_that_drips_is_cut_when_time_is_up(
    server: Server, request: pytest.FixtureRequest, head: bytes
) -> None:
    drip = raw(head, *[b"1"] * 300, pause_s=0.05)
    url = server.url(f"/drip/{request.node.callspec.id}", drip)
    with within(4):
        failed = failure(url, HASTY)
    assert (type(failed), failed.attempts) == (FetchTimeout, 1)
    assert "slowly" in str(failed)


def test_a_refused_connection_is_tried_again_and_explained(closed_port: int) -> None:
    failed = failure(f"http://127.0.0.1:{closed_port}/a.jpg")
    assert (type(failed), failed.attempts) == (ConnectionFailed, 3)
    assert str(failed) == "Connection refused"


def test_a_server_without_tls_fails_once_over_https(server: Server) -> None:
    failed = failure(server.url("/tls", ok).replace("http:", "https:"))
    assert (type(failed), failed.attempts) == (ConnectionFailed, 1)
    assert " object at 0x" not in str(failed)


def test_https_needs_a_certificate_that_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server = Server()
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    with serving(server):
        url = server.url("/tls", ok).replace("http:", "https:")
        failed = failure(url)
        assert (type(failed), failed.attempts) == (ConnectionFailed, 1)
        assert "certificate verify failed" in str(failed)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert get(url, replace(LIMITS, timeout_s=6)) == web.EncodedImage(BODY, 1)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "localhost",
        "localhost.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_private_addresses_are_refused_however_they_are_written(
    server: Server, scheme: str, host: str
) -> None:
    limits = web.WebLimits(timeout_s=2, retries=2, backoff_s=0.01)
    before = len(server.requests)
    failed = failure(f"{scheme}://{host}:{server.server_port}/secret", limits)
    assert type(failed) is ForbiddenAddress
    assert failed.attempts == 1
    assert len(server.requests) == before


def test_proxies_of_the_environment_are_not_used(
    server: Server, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    assert get(server.url("/direct", ok)).data == BODY


def test_spaces_letters_and_fragments_of_a_url_are_encoded(server: Server) -> None:
    server.url("/bild%20%C3%A4.jpg?q=%E2%98%83&a=%20b", ok)
    url = f"http://127.0.0.1:{server.server_port}/bild ä.jpg?q=☃&a=%20b#part"
    assert get(url).data == BODY


def test_credentials_in_a_url_are_sent_to_its_host_alone(server: Server) -> None:
    target = server.url("/open", ok)
    url = server.url("/login", redirect(target)).replace("//", "//me%40home:p:w@")
    assert get(url).data == BODY
    assert server.headers[-2]["Authorization"] == "Basic " + b64encode(b"me@home:p:w").decode()
    assert "Authorization" not in server.headers[-1]


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.jpg",
        "http://host:99999/a.jpg",
        "http://host:port/a.jpg",
        "http://[::1/a.jpg",
        "http://a b/c.jpg",
        "http://☃\udcff:ä@127.0.0.1:1/",
        f"http://{'a' * 70}.invalid/",
        "https://..invalid/",
        "http://xn--\u0378/",
    ],
    ids=ascii,
)
def test_what_is_no_url_says_so_once(url: str) -> None:
    failed = failure(url)
    assert (type(failed), failed.attempts) == (InvalidURI, 1)


no_host = st.text().filter(lambda text: "@" not in text)


@settings(max_examples=200, deadline=None)
@given(path=st.text(), port=no_host)
def test_any_text_after_the_host_is_a_named_failure(closed_port: int, path: str, port: str) -> None:
    for url in (f"http://127.0.0.1:{closed_port}/{path}", f"https://127.0.0.1:{closed_port}{port}"):
        failed = failure(url, ONCE)
        assert str(failed)
        assert failed.attempts == 1


@pytest.mark.parametrize(
    "wrong", [partial(web.WebLimits, timeout_s=0), partial(web.WebLimits, timeout_s=float("nan"))]
)
def test_limits_that_cannot_work_are_a_mistake_in_the_command(wrong: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="--timeout"):
        wrong()
    with pytest.raises(UserError, match="--retries"):
        web.WebLimits(retries=-1)
