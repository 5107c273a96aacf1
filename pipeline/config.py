"""What a run is to do: frozen settings, validated on construction. Below here nobody sees a flag."""

from dataclasses import dataclass, field

from transforms.errors import UserError
from transforms.fetch import FetchLimits
from transforms.model.options import Auto, DeviceKind, Engine, Precision
from transforms.resize import ResizeMode
from transforms.vectors import Metric

DEFAULT_SHARD_SIZE = 2000
LEAST_INDEX_MEMORY = 512 * 10**6


@dataclass(frozen=True, slots=True)
class InputConfig:
    """Lists, folders and globs; the column of tables that holds the URI; the columns kept beside it."""

    inputs: tuple[str, ...]
    uri_column: str | None = None
    keep_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("name at least one input: a list, a folder or a glob")
        if len(set(self.keep_columns)) != len(self.keep_columns):
            raise UserError(f"--keep-columns names a column twice: {', '.join(self.keep_columns)}")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How an image becomes the model's input."""

    resize: ResizeMode = "crop"
    max_pixels: int = 178_000_000
    allow_truncated: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, labels if it has none of its own, and how it runs; `auto` is what a trial finds best."""

    handle: str
    labels: str | None = None
    batch_size: int | Auto = "auto"
    engine: Engine = "auto"
    precision: Precision | Auto = "auto"
    device: DeviceKind = "auto"


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """What a row holds beside the vector, and how many images a file."""

    top_k: int = 5
    logits: bool = False
    float16: bool = False
    shard_size: int = DEFAULT_SHARD_SIZE

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UserError(f"--shard-size must be at least 1, not {self.shard_size}")


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """One `embed` run: from inputs to the run folder `run`."""

    input: InputConfig
    run: str
    model: ModelConfig
    threads: int
    fetch: FetchLimits = field(default_factory=FetchLimits)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    retry_failures: bool = False


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """One `index` of the run folder `run`; `memory` in bytes, `remove` a list of URIs.

    `metric`, `recipe` and `min_recall` are None where the index that is there, or a default, decides.
    """

    run: str
    metric: Metric | None = None
    recipe: str | None = None
    memory: int = 4 * 10**9
    min_recall: float | None = None
    rebuild: bool = False
    remove: str | None = None

    def __post_init__(self) -> None:
        if self.memory < LEAST_INDEX_MEMORY:
            raise UserError(
                f"--memory must be at least {LEAST_INDEX_MEMORY // 10**6} MB: an empty job takes that"
            )
        if self.min_recall is not None and not 0 < self.min_recall <= 1:
            raise UserError(f"--min-recall must be above 0 and at most 1, not {self.min_recall}")
