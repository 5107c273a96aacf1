"""Counting: tallies that add up and survive JSON, and live counts of all threads."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from hypothesis import given
from hypothesis import strategies as st

from transforms.count import EMBEDDED, NAMESPACE, Tally, count, live_counts, total

amounts = st.integers(0, 10**12)
errors = st.dictionaries(st.sampled_from(["NotFound", "FetchTimeout"]), st.integers(1, 9)).map(Counter)
seconds = st.dictionaries(st.sampled_from(["fetch", "embed"]), st.integers(1, 9)).map(Counter)


@st.composite
def lawful_tallies(draw: st.DrawFn) -> Tally:
    duplicate, embedded, pending, failed = draw(amounts), draw(amounts), draw(amounts), draw(errors)
    given = duplicate + embedded + pending + failed.total()
    return Tally(given, duplicate, embedded, pending, failed, draw(seconds))


@given(st.lists(lawful_tallies()))
def test_sums_of_tallies_that_add_up_add_up(tallies: list[Tally]) -> None:
    whole = total(tallies)
    assert whole.adds_up()
    assert whole == total(reversed(tallies))
    assert whole.embedded == sum(tally.embedded for tally in tallies)
    assert Tally.from_json(whole.to_json()) == whole


@given(lawful_tallies(), amounts.filter(bool))
def test_a_lost_image_is_noticed(tally: Tally, lost: int) -> None:
    assert not (tally + Tally(given=lost)).adds_up()
    assert not (tally + Tally(embedded=lost)).adds_up()


def test_a_shard_moves_its_images_from_pending_to_rows() -> None:
    planned = Tally(given=5, duplicate=1, pending=4)
    written = Tally(embedded=3, pending=-4, failed=Counter(NotFound=1))
    done = planned + written
    assert done.adds_up()
    assert done.pending == 0
    assert done.to_json()["failed_by_error"] == {"NotFound": 1}


def test_live_counts_lose_nothing_between_threads() -> None:
    before = live_counts().get("tested", 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [count("tested") for _ in range(1000)], range(8)))
    assert live_counts()["tested"] - before == 8000


def test_beam_gets_the_same_counts() -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([1, 2, 3], reshuffle=False) | beam.Map(lambda amount: count(EMBEDDED, amount))
    before = live_counts().get(EMBEDDED, 0)
    result = pipeline.run()
    result.wait_until_finish()
    (metric,) = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    assert (metric.key.metric.name, metric.committed) == (EMBEDDED, 6)
    assert live_counts()[EMBEDDED] - before == 6
