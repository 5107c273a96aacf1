"""Fetching and decoding ahead: everything arrives, nothing runs too far ahead, no memory limit is passed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests.rows import shard
from transforms.errors import UserError
from transforms.fetch import FetchLimits
from transforms.image import Preprocessing
from transforms.load import ByteGate, LoadImages, LoadSettings, load_image, map_ahead
from transforms.records import DecodedImage, Failure, ShardEnd
from transforms.sample import render_sample


def settings(**changes: object) -> LoadSettings:
    values = {"fetch": FetchLimits(), "preprocessing": Preprocessing(32, 32), "threads": 2, "ahead": 4}
    return LoadSettings(**{**values, **changes})  # type: ignore[arg-type]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 8), st.integers(1, 12))
def test_every_item_gives_one_result(items: list[int], threads: int, ahead: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        assert sorted(map_ahead(pool, lambda item: -item, items, ahead)) == sorted(-item for item in items)


def test_no_more_than_ahead_are_begun_before_one_is_consumed() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        results = map_ahead(pool, lambda item: begun.append(item), range(100), 5)
        next(results)
        assert len(begun) <= 5
        results.close()  # type: ignore[attr-defined]


def test_a_slow_item_does_not_hold_up_the_others() -> None:
    release = threading.Event()

    def wait_for_first(item: int) -> int:
        if item == 0:
            release.wait()
        return item

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, wait_for_first, range(20), 4)
        assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
        release.set()
        assert sorted(results) == [0, *range(6, 20)]


def test_an_error_that_is_not_named_is_not_swallowed() -> None:
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        list(map_ahead(pool, lambda item: 1 // item, [1, 0, 2], 2))


def test_the_gate_never_lets_more_in_than_its_limit() -> None:
    gate, lock, held, most = ByteGate(100), threading.Lock(), 0, 0

    def hold(size: int) -> None:
        nonlocal held, most
        with gate.hold(size):
            with lock:
                held += size
                most = max(most, held)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [30, 40, 50, 60, 10] * 40))
    assert held == 0
    assert 60 <= most <= 100


def test_what_is_larger_than_the_limit_gets_in_alone() -> None:
    gate = ByteGate(10)
    with gate.hold(1000):
        pass
    with gate.hold(5), gate.hold(5):
        pass


def test_an_image_is_decoded_and_described(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(render_sample(0, 0))
    ref = shard(str(tmp_path / "a.jpg")).images()[0]
    image = load_image(ref, settings(), ByteGate(1 << 30)).image
    assert isinstance(image, DecodedImage)
    assert image.pixels.shape == (32, 32, 3)
    assert image.facts.format == "jpeg"


@pytest.mark.parametrize(
    ("content", "stage", "error"),
    [(None, "fetch", "NotFound"), (b"", "decode", "EmptyFile"), (b"text", "decode", "UnsupportedFormat")],
)
def test_a_failure_names_stage_and_error(
    tmp_path: Path, content: bytes | None, stage: str, error: str
) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    ref = shard(str(tmp_path / "a.jpg")).images()[0]
    failure = load_image(ref, settings(), ByteGate(1 << 30)).image
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error, failure.ref) == (stage, error, ref)


def test_shards_come_out_whole_and_end_with_their_end(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / f"{index}.jpg").write_bytes(render_sample(0, index))
    first = shard(*(str(tmp_path / f"{i}.jpg") for i in range(12)))
    second = shard(str(tmp_path / "missing.jpg"))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        kinds = pipeline | beam.Create([first, second]) | LoadImages(settings()) | beam.Map(_kind)
        images = [("DecodedImage", first.name)] * 12 + [("Failure", second.name)]
        assert_that(kinds, equal_to([*images, ("ShardEnd", first.name), ("ShardEnd", second.name)]))


def _kind(item: DecodedImage | Failure | ShardEnd) -> tuple[str, str]:
    return type(item).__name__, (item.shard if isinstance(item, ShardEnd) else item.ref.shard).name


def test_no_threads_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="--threads"):
        settings(threads=0)
