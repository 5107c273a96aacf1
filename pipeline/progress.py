"""What a person sees while a run goes on: one live line, or a plain line every ten seconds."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline.cost import duration
from transforms.count import EMBEDDED, FAILED, INDEXED, PLANNED

Counts = Callable[[], Mapping[str, int]]

_REFRESH_S = 0.25
_PLAIN_S = 10.0
# The rate that the estimate uses looks back this far: model loading must not count forever.
_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    time_s: float
    done: int


class Meter:
    """Done, total, rate and time left, from counts that grow.

    `expected_rate` is what the model alone does in a second, for the time before the first image.
    """

    def __init__(self, counts: Counts, expected_rate: float | None = None) -> None:
        self._counts = counts
        self._expected_rate = expected_rate
        self._moments = [Moment(time.monotonic(), 0)]
        self.total = self.done = self.failed = 0

    def read(self) -> None:
        counts = self._counts()
        self.total = counts.get(PLANNED, 0)
        self.failed = counts.get(FAILED, 0)
        self.done = counts.get(EMBEDDED, 0) + self.failed
        now = time.monotonic()
        if self.done and not self._moments[-1].done:
            self._moments = [Moment(now, self.done)]
        self._moments.append(Moment(now, self.done))
        while len(self._moments) > 2 and now - self._moments[1].time_s > _WINDOW_S:
            del self._moments[0]

    @property
    def rate(self) -> float:
        first, last = self._moments[0], self._moments[-1]
        return (last.done - first.done) / max(last.time_s - first.time_s, 1e-9)

    def text(self) -> str:
        if not self.done:
            return self._before() if self.total else "planning"
        parts = [f"{self.failed:,} failed"]
        if self.rate:
            parts += [f"{self.rate:,.1f} images/s", f"{_duration((self.total - self.done) / self.rate)} left"]
        return ", ".join(parts)

    def _before(self) -> str:
        if not self._expected_rate:
            return "loading the model"
        return f"loading the model, then about {duration(self.total, self._expected_rate)}"


def since_now(counts: Counts) -> Counts:
    """The growth of counts that a process may have begun before."""
    before = counts()
    return lambda: {name: count - before.get(name, 0) for name, count in counts().items()}


def shown(
    console: Console, counts: Counts, expected_rate: float | None = None
) -> AbstractContextManager[None]:
    """Show progress while the body runs; `expected_rate` is in images/s."""
    watch = _watch_live if console.is_terminal else _watch_plain
    return _watched(partial(watch, console, Meter(counts, expected_rate)))


def indexing_shown(console: Console, rows: int, counts: Counts) -> AbstractContextManager[None]:
    """The same for an index: how many of the rows are in it."""
    return _watched(partial(_watch_index, console, rows, counts))


@contextmanager
def _watched(watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """`watch` on a thread of its own until the body has ended."""
    done = threading.Event()
    thread = threading.Thread(target=watch, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch_live(console: Console, meter: Meter, done: threading.Event) -> None:
    columns = (TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("planning", total=None)
        while not done.wait(_REFRESH_S):
            meter.read()
            progress.update(task, completed=meter.done, total=meter.total or None, description=meter.text())


def _watch_plain(console: Console, meter: Meter, done: threading.Event) -> None:
    while not done.wait(_PLAIN_S):
        meter.read()
        console.print(f"{meter.done:,}/{meter.total:,}  {meter.text()}", highlight=False)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _watch_index(console: Console, rows: int, counts: Counts, done: threading.Event) -> None:
    with console.status("index: training") as status:
        while not done.wait(_REFRESH_S if console.is_terminal else _PLAIN_S):
            filled = counts().get(INDEXED, 0)
            text = f"index: {filled:,}/{rows:,} images" if filled < rows else "index: merging and measuring"
            status.update(text if filled else "index: training")
            if not console.is_terminal:
                console.print(text if filled else "index: training", highlight=False)
