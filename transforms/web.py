"""http(s): one GET with time, size and address limits, and retries where they help.

Private and link-local addresses are refused at the moment of connecting, so neither a redirect
nor a name that resolves differently the second time gets through.
"""

import ipaddress
import socket
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError
from urllib3.util import Retry, Timeout

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
)
from transforms.records import EncodedImage

_CHUNK = 1 << 18
_RETRIED_STATUS = (429, 500, 502, 503, 504)
_STATUS_ERRORS: dict[int, type[FetchFailure]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    410: NotFound,
}


@dataclass(frozen=True, slots=True)
class WebLimits:
    """`timeout_s` bounds each connect and read, and ten times it the whole of one image."""

    timeout_s: float = 20.0
    retries: int = 4
    backoff_s: float = 0.5
    allow_private: bool = False


def get(url: str, limits: WebLimits, max_bytes: int) -> EncodedImage:
    """The body of `url`; raises a `FetchFailure` that says why there is none."""
    deadline = time.monotonic() + 10 * limits.timeout_s
    try:
        response = _pool(limits).request("GET", url, preload_content=False, redirect=True)
    except MaxRetryError as error:
        raise _failure(error.reason or error, limits.retries + 1) from error
    except (LocationParseError, UnicodeError, ValueError) as error:
        raise InvalidURI(f"not a usable URL: {error}") from error
    except (HTTPError, OSError) as error:
        raise _failure(error, 1) from error
    history = response.retries.history if response.retries else ()
    attempts = 1 + sum(past.redirect_location is None for past in history)
    try:
        return EncodedImage(_body(response, max_bytes, deadline), attempts)
    except (HTTPError, OSError) as error:
        raise _failure(error, attempts) from error
    except FetchFailure as error:
        error.attempts = attempts
        raise
    finally:
        response.close()


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int, deadline: float) -> bytes:
    if response.status != 200:
        error = _STATUS_ERRORS.get(response.status, HTTPStatus)
        raise error(f"HTTP {response.status} {response.reason or ''}".strip())
    if (response.length_remaining or 0) > max_bytes:
        raise TooManyBytes(f"{response.length_remaining:,} bytes; the limit is {max_bytes:,} (--max-bytes)")
    body = bytearray()
    for chunk in response.stream(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > max_bytes:
            raise TooManyBytes(f"more than {max_bytes:,} bytes (--max-bytes)")
        if time.monotonic() > deadline:
            raise FetchTimeout(f"only {len(body):,} bytes had arrived when time was up")
    return bytes(body)


def _failure(error: BaseException, attempts: int) -> FetchFailure:
    timed_out = isinstance(error, exceptions.TimeoutError | TimeoutError)
    return (FetchTimeout if timed_out else ConnectionFailed)(str(error), attempts)


@lru_cache(maxsize=4)
def _pool(limits: WebLimits) -> urllib3.PoolManager:
    retry = Retry(
        total=limits.retries,
        redirect=5,
        status_forcelist=_RETRIED_STATUS,
        backoff_factor=limits.backoff_s,
        backoff_jitter=limits.backoff_s,
        respect_retry_after_header=True,
        raise_on_status=False,
        retry_after_max=30,
    )
    pool = urllib3.PoolManager(
        num_pools=256,
        maxsize=16,
        retries=retry,
        timeout=Timeout(limits.timeout_s),
        headers={"User-Agent": f"pnasvec/{version('pnasvec')}", "Accept": "image/*,*/*;q=0.5"},
    )
    if not limits.allow_private:
        pool.pool_classes_by_scheme = {"http": _PublicHTTPPool, "https": _PublicHTTPSPool}
    return pool


def _refuse_private(connected: socket.socket) -> socket.socket:
    address = ipaddress.ip_address(connected.getpeername()[0].split("%")[0])
    if not address.is_global:
        connected.close()
        raise ForbiddenAddress(f"{address} is not a public address (--allow-private-addresses)")
    return connected


class _PublicHTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _refuse_private(super()._new_conn())


class _PublicHTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _refuse_private(super()._new_conn())


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTPConnection


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPSConnection
