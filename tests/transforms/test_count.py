"""Counting while a job runs: on all threads, for Beam and for this process."""

from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from transforms.count import EMBEDDED, NAMESPACE, count, live_counts


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
