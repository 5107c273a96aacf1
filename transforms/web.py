"""http(s): one GET with time, size and address limits, and retries where they help.

Private and link-local addresses are refused when connecting, so neither a redirect nor a name that
resolves differently the second time gets through. Proxies of the environment are not used: behind
one, nobody could check the address that is reached in the end.
"""

import io
import ipaddress
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPResponse
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Retry, Timeout, make_headers, parse_url

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
from transforms.records import EncodedImage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 1 << 18
_REDIRECTS = 5
_LONGEST_WAIT_S = 30.0
_RETRIED_STATUS = (429, 500, 502, 503, 504)
_STATUS_ERRORS: dict[int, type[FetchFailure]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    410: NotFound,
}
# IPv6 addresses under this prefix are translated to the IPv4 address in their last 32 bits (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_NODATA)

_deadline: ContextVar[float] = ContextVar("deadline")


@dataclass(frozen=True, slots=True)
class WebLimits:
    """`timeout_s` bounds each connect and read, and ten times it the whole of one image."""

    timeout_s: float = 20.0
    retries: int = 4
    backoff_s: float = 0.5
    allow_private: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= 3600:
            raise UserError(f"--timeout must be from above 0 to 3600 seconds, not {self.timeout_s}")
        if self.retries < 0:
            raise UserError(f"--retries must not be negative, not {self.retries}")


class _Passing(Exception):
    """A failure that another try may not meet, and how long the server asks to wait."""

    def __init__(self, failure: FetchFailure, wait_s: float = 0.0) -> None:
        super().__init__(failure)
        self.failure = failure
        self.wait_s = wait_s


def get(url: str, limits: WebLimits, max_bytes: int) -> EncodedImage:
    """The body of `url`; raises a `FetchFailure` that says why there is none."""
    deadline = time.monotonic() + 10 * limits.timeout_s
    _deadline.set(deadline)
    attempt = 0
    while True:
        attempt += 1
        try:
            return EncodedImage(_get_once(url, limits, max_bytes), attempt)
        except FetchFailure as failure:
            failure.attempts = attempt
            raise
        except _Passing as passing:
            wait_s = max(passing.wait_s, limits.backoff_s * 2 ** (attempt - 1) * random.uniform(1, 2))
            wait_s = min(wait_s, _LONGEST_WAIT_S)
            if attempt > limits.retries or time.monotonic() + wait_s > deadline:
                passing.failure.attempts = attempt
                raise passing.failure from passing
        time.sleep(wait_s)


def _get_once(url: str, limits: WebLimits, max_bytes: int) -> bytes:
    try:
        with _open(url, limits) as response:
            return _body(response, max_bytes)
    except (exceptions.HTTPError, OSError) as error:
        raise _named(error) from error


def _open(url: str, limits: WebLimits) -> urllib3.BaseHTTPResponse:
    """The answer at the end of the redirects, whose bodies are not read."""
    pool = _pool(limits)
    for _ in range(_REDIRECTS + 1):
        try:
            headers = {**pool.headers, **_credentials(url)}
            response = pool.request(
                "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
            )
            location = response.get_redirect_location()
            if not location:
                return response
            response.close()
            # http.client reads headers as Latin-1, servers that don't escape write UTF-8
            url = urljoin(url, location.encode("latin-1", "replace").decode(errors="replace"))
        except ValueError as error:
            raise InvalidURI(f"not a usable URL: {error}") from error
    raise HTTPStatus(f"more than {_REDIRECTS} redirects")


def _credentials(url: str) -> dict[str, str]:
    login = parse_url(url).auth
    return make_headers(basic_auth=unquote(login)) if login else {}


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    status = f"HTTP {response.status} {response.reason or ''}".strip()
    if response.status in _RETRIED_STATUS:
        raise _Passing(HTTPStatus(status), _retry_after_s(response))
    if response.status != 200:
        raise _STATUS_ERRORS.get(response.status, HTTPStatus)(status)
    if (response.length_remaining or 0) > max_bytes:
        raise TooManyBytes(f"{response.length_remaining:,} bytes; the limit is {max_bytes:,} (--max-bytes)")
    body = bytearray()
    while chunk := response.read(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > max_bytes:
            raise TooManyBytes(f"more than {max_bytes:,} bytes (--max-bytes)")
    return bytes(body)


def _retry_after_s(response: urllib3.BaseHTTPResponse) -> float:
    try:
        return Retry().get_retry_after(response) or 0.0
    except (exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def _named(error: Exception) -> FetchFailure | _Passing:
    """Our failure for an error of urllib3; a host without an address or a bad certificate stays so."""
    cause = _innermost(error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    if isinstance(cause, TimeoutError | exceptions.TimeoutError):
        return _Passing(FetchTimeout(text))
    unknown = isinstance(cause, socket.gaierror) and cause.errno in _NO_SUCH_HOST
    if unknown or isinstance(error, exceptions.SSLError | exceptions.DecodeError):
        return ConnectionFailed(text)
    return _Passing(ConnectionFailed(text))


def _innermost(error: BaseException) -> BaseException:
    """The first cause: what urllib3 says itself quotes objects and their addresses in memory."""
    inner = error.__cause__ or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
    return _innermost(inner) if inner else error


@lru_cache(maxsize=4)
def _pool(limits: WebLimits) -> urllib3.PoolManager:
    pool = urllib3.PoolManager(
        num_pools=256,
        maxsize=64,
        timeout=Timeout(limits.timeout_s),
        headers={"User-Agent": f"pnasvec/{version('pnasvec')}", "Accept": "image/*,*/*;q=0.5"},
    )
    kinds = (_TimedHTTP, _TimedHTTPS) if limits.allow_private else (_PublicHTTP, _PublicHTTPS)
    pool.pool_classes_by_scheme = {
        "http": type("HTTPPool", (HTTPConnectionPool,), {"ConnectionCls": kinds[0]}),
        "https": type("HTTPSPool", (HTTPSConnectionPool,), {"ConnectionCls": kinds[1]}),
    }
    return pool


class _TimedReader(io.RawIOBase):
    """Reads while the image has time left: a timeout on each read alone lets a server drip for hours."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        if time.monotonic() > _deadline.get():
            raise TimeoutError("the bytes came too slowly")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    """Its status, headers and body are all read through a `_TimedReader`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach()))


class _TimedHTTP(HTTPConnection):
    response_class = _TimedResponse


class _TimedHTTPS(HTTPSConnection):
    response_class = _TimedResponse


class _PublicHTTP(_TimedHTTP):
    def _new_conn(self) -> socket.socket:
        return _connect_public(self, super()._new_conn)


class _PublicHTTPS(_TimedHTTPS):
    def _new_conn(self) -> socket.socket:
        return _connect_public(self, super()._new_conn)


def _connect_public(connection: HTTPConnection, connect: Callable[[], socket.socket]) -> socket.socket:
    with suppress(OSError, UnicodeError):  # a name that can't be resolved: `connect` says so too
        found = socket.getaddrinfo(connection.host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
        for *_, address in found:
            _refuse_private(address)
    connected = connect()
    try:
        _refuse_private(connected.getpeername())  # the name may have been resolved differently now
    except ForbiddenAddress:
        connected.close()
        raise
    return connected


def _refuse_private(address: tuple[Any, ...]) -> None:
    host = ipaddress.ip_address(address[0].split("%")[0])
    reached = host
    if isinstance(host, ipaddress.IPv6Address):
        reached = host.ipv4_mapped or host.sixtofour or (_last_32_bits(host) if host in _NAT64 else host)
    if not reached.is_global or reached.is_multicast:
        raise ForbiddenAddress(f"{host} is not a public address (--allow-private-addresses)")


def _last_32_bits(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
