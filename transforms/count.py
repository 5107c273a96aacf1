"""What is counted, under which names: Beam's metrics, and the tally that the manifest proves.

The accounting law is a method here: given = duplicate + embedded + failed + pending.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from threading import Lock
from typing import Any

from apache_beam.metrics import Metrics

NAMESPACE = "pnasvec"

PLANNED = "planned"
EMBEDDED = "embedded"
FAILED = "failed"

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


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts that add up. `failed` is by error name, `seconds` (thread seconds) by step."""

    given: int = 0
    duplicate: int = 0
    embedded: int = 0
    pending: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.given + other.given,
            self.duplicate + other.duplicate,
            self.embedded + other.embedded,
            self.pending + other.pending,
            self.failed + other.failed,
            self.seconds + other.seconds,
        )

    def adds_up(self) -> bool:
        """The accounting law, at any moment of a run."""
        return self.given == self.duplicate + self.embedded + self.failed.total() + self.pending

    def to_json(self) -> dict[str, Any]:
        return {
            "given": self.given,
            "duplicate": self.duplicate,
            "embedded": self.embedded,
            "failed": self.failed.total(),
            "pending": self.pending,
            "failed_by_error": dict(sorted(self.failed.items())),
            "seconds": {step: round(value, 3) for step, value in sorted(self.seconds.items())},
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Tally":
        return Tally(
            values["given"],
            values["duplicate"],
            values["embedded"],
            values["pending"],
            Counter(values["failed_by_error"]),
            Counter(values["seconds"]),
        )


def total(tallies: Iterable[Tally]) -> Tally:
    return reduce(Tally.__add__, tallies, Tally())
