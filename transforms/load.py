"""Shards to decoded images: a bounded pool of threads fetches and decodes ahead.

The pool goes on while whoever consumes the images runs the model, so both overlap even on a
runner with one thread. Images come as they get ready: a slow host holds up one thread, not all.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import apache_beam as beam

from transforms.attempt import attempt
from transforms.errors import UserError
from transforms.fetch import FetchLimits, fetch_image
from transforms.image import Preprocessing, decode_pixels, read_header
from transforms.records import DecodedImage, EncodedImage, Failure, ImageFacts, ImageRef, Shard, ShardEnd

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """At most `ahead` images are in flight or waiting, and decoding takes at most `decode_bytes` at once."""

    fetch: FetchLimits
    preprocessing: Preprocessing
    threads: int
    ahead: int
    decode_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserError(f"--threads must be at least 1, not {self.threads}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image or why there is none, and the thread seconds it took."""

    image: DecodedImage | Failure
    fetch_s: float
    decode_s: float


class LoadImages(beam.PTransform):  # type: ignore[misc]
    """PCollection[Shard] -> PCollection[DecodedImage | Failure | ShardEnd]; never shuffle its output."""

    def __init__(self, settings: LoadSettings) -> None:
        super().__init__()
        self._settings = settings

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return shards | beam.ParDo(_LoadImages(self._settings))


class ByteGate:
    """Lets threads in while what they hold together stays within a limit; one alone always gets in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


def load_image(ref: ImageRef, settings: LoadSettings, gate: ByteGate) -> Loaded:
    """Fetch and decode one image; a named failure of either is a result."""
    start = time.perf_counter()
    encoded = attempt(ref, lambda ref: fetch_image(ref.uri, settings.fetch))
    fetched = time.perf_counter()
    if isinstance(encoded, Failure):
        return Loaded(encoded, fetched - start, 0.0)
    image = attempt(ref, lambda ref: _decode(ref, encoded, settings.preprocessing, gate))
    return Loaded(image, fetched - start, time.perf_counter() - fetched)


def _decode(
    ref: ImageRef, encoded: EncodedImage, preprocessing: Preprocessing, gate: ByteGate
) -> DecodedImage:
    header = read_header(encoded.data, preprocessing)
    with gate.hold(header.decoding_bytes):
        image = decode_pixels(encoded.data, header, preprocessing)
    facts = ImageFacts(image.width, image.height, image.format, sha256(encoded.data).digest())
    return DecodedImage(ref, facts, image.pixels)


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`function` of every item, as results get ready; at most `ahead` are begun and not yet consumed."""
    ready: SimpleQueue[Future[Result]] = SimpleQueue()
    waiting = iter(items)

    def begin(count: int) -> int:
        chosen = list(islice(waiting, count))
        for item in chosen:
            pool.submit(function, item).add_done_callback(ready.put)
        return len(chosen)

    running = begin(ahead)
    while running:
        yield ready.get().result()
        running += begin(1) - 1


class _LoadImages(beam.DoFn):  # type: ignore[misc]
    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings

    def setup(self) -> None:
        self._gate = ByteGate(self._settings.decode_bytes)
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="load")

    def process(self, shard: Shard) -> Iterator[DecodedImage | Failure | ShardEnd]:
        fetch_s = decode_s = 0.0
        for loaded in map_ahead(self._pool, self._load, shard.images(), self._settings.ahead):
            fetch_s += loaded.fetch_s
            decode_s += loaded.decode_s
            yield loaded.image
        yield ShardEnd(shard, fetch_s, decode_s)

    def teardown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, ref: ImageRef) -> Loaded:
        return load_image(ref, self._settings, self._gate)
