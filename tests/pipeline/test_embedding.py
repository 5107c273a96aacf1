"""The graph of the job: what is fused, what crosses a stage, where accelerator hints land."""

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from pipeline.config import EmbedConfig, InputConfig, ModelConfig
from pipeline.embedding import build_pipeline
from pipeline.run import prepare

FUSED = ("LoadImages", "EmbedImages", "WriteShards")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> api.Pipeline:
    folder = tmp_path_factory.mktemp("graph")
    (folder / "list.txt").write_text("a.jpg\n")
    config = EmbedConfig(
        InputConfig((str(folder / "list.txt"),)), str(folder / "run"), ModelConfig("small"), threads=1
    )
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build_pipeline(pipeline, prepare(config))
    return pipeline.to_runner_api()


def stages(graph: api.Pipeline) -> list[translations.Stage]:
    """The stages that a portable runner makes of it."""
    known = frozenset([translations.common_urns.primitives.GROUP_BY_KEY.urn])
    phases = translations.standard_optimize_phases()
    _, found = translations.create_and_optimize_stages(graph, phases, known)
    return list(found)


def leaves(stage: translations.Stage) -> set[str]:
    return {transform.unique_name for transform in stage.transforms}


def test_loading_embedding_and_writing_are_one_stage(graph: api.Pipeline) -> None:
    homes = {
        part: [
            number
            for number, stage in enumerate(stages(graph))
            if any(part in name for name in leaves(stage))
        ]
        for part in FUSED
    }
    assert len({tuple(found) for found in homes.values()}) == 1
    assert all(len(found) == 1 for found in homes.values())


def test_hints_on_the_composite_reach_all_of_the_fused_stage_and_nothing_else(graph: api.Pipeline) -> None:
    plain = {
        transform.environment_id
        for transform in graph.components.transforms.values()
        if transform.environment_id and "EmbedShards" in transform.unique_name
    }
    assert len(plain) == 1  # one environment for the whole stage, or a runner would split it


def test_only_references_and_tallies_cross_a_stage(graph: api.Pipeline) -> None:
    """What goes into a shuffle is named here, one by one."""
    shuffled = {
        transform.unique_name.split("/")[0]
        for transform in graph.components.transforms.values()
        if transform.spec.urn == translations.common_urns.primitives.GROUP_BY_KEY.urn
    }
    assert not any(part in name for part in FUSED for name in shuffled)
    assert "SpreadShards" in shuffled


def test_nothing_is_read_or_written_while_the_graph_is_built(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    config = EmbedConfig(
        InputConfig((str(tmp_path / "list.txt"),)), str(tmp_path / "run"), ModelConfig("small"), threads=1
    )
    prepare(config)
    assert not (tmp_path / "run").exists()
