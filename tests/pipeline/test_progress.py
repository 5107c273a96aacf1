"""What is shown while a run goes on."""

import io
from collections import Counter
from collections.abc import Mapping

import pytest
from rich.console import Console

from pipeline.progress import Meter, shown, since_now
from transforms.count import EMBEDDED, FAILED, PLANNED


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_the_rate_counts_from_the_first_image_not_from_the_start(clock: Clock) -> None:
    counts: Mapping[str, int] = {}
    meter = Meter(lambda: counts)
    meter.read()
    assert meter.text() == "planning"
    clock.now, counts = 140.0, {PLANNED: 100}
    meter.read()
    assert meter.text() == "loading the model"
    clock.now, counts = 160.0, {PLANNED: 100, EMBEDDED: 10}
    meter.read()
    assert meter.text() == "0 failed"
    clock.now, counts = 165.0, {PLANNED: 100, EMBEDDED: 28, FAILED: 2}
    meter.read()
    assert (meter.done, meter.total) == (30, 100)
    assert meter.text() == "2 failed, 4.0 images/s, 0:18 left"


def test_before_the_first_image_the_models_own_rate_says_how_long_it_takes(clock: Clock) -> None:
    meter = Meter(lambda: {PLANNED: 6_000}, expected_rate=20.0)
    meter.read()
    assert meter.text() == "loading the model, then about 5 min"


def test_the_rate_forgets_what_is_older_than_a_minute(clock: Clock) -> None:
    done = 0
    meter = Meter(lambda: {PLANNED: 10_000, EMBEDDED: done})
    for second in range(400):
        done += 1 if second < 200 else 10
        clock.now += 1
        meter.read()
    assert meter.rate == pytest.approx(10, rel=0.02)


def test_counts_of_an_earlier_run_do_not_count() -> None:
    counts = Counter({EMBEDDED: 5})
    growth = since_now(lambda: dict(counts))
    counts[EMBEDDED] += 2
    counts[FAILED] += 1
    assert growth() == {EMBEDDED: 2, FAILED: 1}


@pytest.mark.parametrize("terminal", [True, False])
def test_it_ends_with_the_work_and_lets_errors_through(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with pytest.raises(ZeroDivisionError), shown(console, lambda: {PLANNED: 1}):
        _ = 1 / 0
