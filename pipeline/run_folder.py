"""Where each file of a run lies, and who may write there.

RUN/manifest.json   what the run promised and what came of it
RUN/plan.json       the counts of the plan, written before the first image is fetched
RUN/embeddings/     part-<shard>.parquet, a row per embedded image
RUN/failures/       part-<shard>.parquet, a row per image that could not be embedded
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from transforms import storage
from transforms.errors import UserError
from transforms.schema import OutputFolders, list_parts

# A lease on an object store is renewed every minute, and dead after five without.
_RENEW_S = 60.0
_LEASE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder on any storage; nothing is read or written before it is asked for."""

    uri: str

    @property
    def manifest(self) -> str:
        return storage.join(self.uri, "manifest.json")

    @property
    def plan(self) -> str:
        return storage.join(self.uri, "plan.json")

    @property
    def outputs(self) -> OutputFolders:
        return OutputFolders(storage.join(self.uri, "embeddings"), storage.join(self.uri, "failures"))

    @property
    def lock(self) -> str:
        return storage.join(self.uri, ".lock")

    def parts(self, folder: str) -> list[str]:
        """The complete Parquet files of one of the `outputs`."""
        return list(list_parts(folder))

    def sweep(self) -> None:
        """Remove what a killed run left half-written."""
        for folder in (self.uri, self.outputs.embeddings, self.outputs.failures):
            storage.sweep_temporary(folder)


def read_json(uri: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file; raises `UserError`."""
    try:
        value = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"{uri}: cannot be read: {storage.first_line(error)}") from error
    except ValueError as error:
        raise UserError(f"{uri} is not readable as JSON ({error}); is this a run folder?") from error
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(f"{uri} is not a JSON object; is this a run folder?")
    return value


def write_json(uri: str, value: dict[str, Any]) -> None:
    """Write it whole; raises `UserError`."""
    try:
        storage.write_whole(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"{uri}: cannot be written: {storage.first_line(error)}") from error


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run folder alone; raises `UserError` while another run holds it.

    Locally the kernel's file lock, which ends with its process however that dies. On object stores
    a lease that is renewed every minute: it stops the usual mistake, not two starts in one second.
    """
    with _file_lock(run) if storage.is_local(run.uri) else _lease(run):
        yield


def is_locked(run: RunFolder) -> bool:
    """Whether a run is writing there now."""
    try:
        with _file_lock(run) if storage.is_local(run.uri) else _free_lease(run):
            return False
    except UserError:
        return True


@contextmanager
def _file_lock(run: RunFolder) -> Iterator[None]:
    try:
        file = _open_lock(storage.local_path(run.lock))
    except OSError as error:
        raise UserError(f"{run.uri}: cannot be written to: {storage.first_line(error)}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run.uri}: another run is writing there; wait for it or use another folder"
            ) from error
        yield


def _open_lock(path: str) -> IO[str]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "a", encoding="utf-8")


@contextmanager
def _free_lease(run: RunFolder) -> Iterator[None]:
    until = _lease_end(read_json(run.lock) or {})
    if until and until > datetime.now(UTC):
        raise UserError(f"{run.uri}: another run is writing there (lease until {until.isoformat()})")
    yield


def _lease_end(lease: dict[str, Any]) -> datetime | None:
    """When it ends; what is no lease has ended."""
    try:
        return datetime.fromisoformat(lease["until"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _lease(run: RunFolder) -> Iterator[None]:
    with _free_lease(run):
        done = threading.Event()
        _renew(run)
        thread = threading.Thread(target=_keep_renewing, args=(run, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            storage.delete(run.lock)


def _renew(run: RunFolder) -> None:
    write_json(run.lock, {"until": (datetime.now(UTC) + _LEASE).isoformat(timespec="seconds")})


def _keep_renewing(run: RunFolder, done: threading.Event) -> None:
    while not done.wait(_RENEW_S):
        _renew(run)
