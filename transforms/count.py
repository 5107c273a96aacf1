"""Counters while a job runs, and their names: Beam's metrics, and the progress line of this process."""

from collections import Counter
from collections.abc import Mapping
from threading import Lock

from apache_beam.metrics import Metrics

NAMESPACE = "pnasvec"

PLANNED = "planned"
EMBEDDED = "embedded"
FAILED = "failed"
INDEXED = "indexed"

# A process-wide copy of the counters: a local runner shows Beam's only when the job is over.
_live: Counter[str] = Counter()
_live_lock = Lock()  # bundles run on several threads, and += is two steps


def count(name: str, amount: int = 1) -> None:
    """Count on the thread that runs the bundle, for Beam and for the progress line of this process."""
    Metrics.counter(NAMESPACE, name).inc(amount)
    with _live_lock:
        _live[name] += amount


def live_counts() -> Mapping[str, int]:
    """The counts of this process so far."""
    with _live_lock:
        return dict(_live)
