"""Runs of the whole job in this process, and what they left on disk."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console

from pipeline.config import EmbedConfig, InputConfig, ModelConfig
from pipeline.manifest import Manifest
from pipeline.run import embed
from pipeline.runners import beam_options

# What gives the same vectors on every machine, and tries nothing out first.
EXACT = ModelConfig("small", precision="float32", batch_size=32)


@dataclass(frozen=True)
class RunOutcome:
    run: Path
    manifest: Manifest

    @property
    def rows(self) -> pa.Table:
        return read_rows(self.run / "embeddings")

    @property
    def failures(self) -> pa.Table:
        return read_rows(self.run / "failures")

    @property
    def names(self) -> list[str]:
        """File names of the embedded images, sorted."""
        return sorted(uri.rsplit("/", 1)[-1] for uri in self.rows["uri"].to_pylist())

    @property
    def errors(self) -> dict[str, str]:
        """File name of each failed image to the error."""
        rows = self.failures.to_pylist() if self.failures.num_rows else []
        return {row["uri"].rsplit("/", 1)[-1]: row["error"] for row in rows}


def read_rows(folder: Path) -> pa.Table:
    parts = sorted(folder.glob("*.parquet"))
    return ds.dataset(parts).to_table() if parts else pa.table({"uri": pa.array([], pa.string())})


def run_embed(run: Path, *inputs: object, columns: tuple[str, ...] = (), **changes: Any) -> RunOutcome:
    values: dict[str, Any] = {"model": EXACT, "threads": 2, **changes}
    config = EmbedConfig(InputConfig(tuple(str(path) for path in inputs), None, columns), str(run), **values)
    return RunOutcome(run, embed(config, beam_options({}), Console(file=io.StringIO())))
