"""The counts of a run and the law that they obey: given = duplicate + embedded + failed + pending."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Seconds of work by step, those of threads side by side added up."""

    fetch: float = 0.0
    decode: float = 0.0
    embed: float = 0.0
    write: float = 0.0

    def __add__(self, other: "StepSeconds") -> "StepSeconds":
        return StepSeconds(
            self.fetch + other.fetch,
            self.decode + other.decode,
            self.embed + other.embed,
            self.write + other.write,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts that add up; `failed` is by error name."""

    given: int = 0
    duplicate: int = 0
    embedded: int = 0
    pending: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: StepSeconds = field(default_factory=StepSeconds)

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
            "seconds": {step: round(value, 3) for step, value in asdict(self.seconds).items()},
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Tally":
        return Tally(
            values["given"],
            values["duplicate"],
            values["embedded"],
            values["pending"],
            Counter(values["failed_by_error"]),
            StepSeconds(**values["seconds"]),
        )


def total(tallies: Iterable[Tally]) -> Tally:
    return reduce(Tally.__add__, tallies, Tally())
