"""The embedded model through the whole pipeline, JPEG files in, Parquet out, on images it never saw."""

from pathlib import Path

from pipeline.config import OutputConfig
from tests.runs import run_embed
from transforms.sample import write_samples

# Neither the seed of the training nor the one that it was evaluated with.
HELD_OUT_SEED = 424_242


def test_at_least_97_percent_of_1000_held_out_images_get_their_label(tmp_path: Path) -> None:
    write_samples(str(tmp_path / "images"), 1000, HELD_OUT_SEED)
    outcome = run_embed(
        tmp_path / "run",
        tmp_path / "images" / "labels.csv",
        columns=("label",),
        output=OutputConfig(shard_size=400),
    )
    rows = outcome.rows.select(["label", "top_k"]).to_pylist()
    right = sum(row["label"] == row["top_k"][0]["label"] for row in rows)
    print(f"{right} of {len(rows)} right")  # noqa: T201
    assert len(rows) == 1000
    assert right >= 970
