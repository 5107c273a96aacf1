"""The graph of the job: what is fused, what crosses a stage, where accelerator hints land."""

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from pipeline.config import EmbedConfig, InputConfig, ModelConfig
from pipeline.embedding import EmbedShards, build_pipeline
from pipeline.run import prepare
from tests.rows import shard

FUSED = ("LoadImages", "EmbedImages", "WriteShards")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> api.Pipeline:
    folder = tmp_path_factory.mktemp("graph")
    (folder / "list.txt").write_text("a.jpg\n")
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build_pipeline(pipeline, prepare(config_of(folder)))
    return pipeline.to_runner_api()


def config_of(folder: Path) -> EmbedConfig:
    inputs = InputConfig((str(folder / "list.txt"),))
    return EmbedConfig(inputs, str(folder / "run"), ModelConfig("small"), threads=1)


def stages(graph: api.Pipeline) -> list[translations.Stage]:
    """The stages that a portable runner makes of it."""
    known = frozenset([translations.common_urns.primitives.GROUP_BY_KEY.urn])
    phases = translations.standard_optimize_phases()
    _, found = translations.create_and_optimize_stages(graph, phases, known)
    return list(found)


def leaves(stage: translations.Stage) -> set[str]:
    return {transform.unique_name for transform in stage.transforms}


def homes(graph: api.Pipeline, part: str) -> list[int]:
    """The numbers of the stages that hold a part."""
    found = enumerate(stages(graph))
    return [number for number, stage in found if any(part in name for name in leaves(stage))]


def test_loading_embedding_and_writing_are_one_stage(graph: api.Pipeline) -> None:
    assert len(homes(graph, FUSED[0])) == 1
    assert homes(graph, FUSED[0]) == homes(graph, FUSED[1]) == homes(graph, FUSED[2])


def test_hints_on_the_composite_reach_the_whole_stage_and_keep_it_whole(tmp_path: Path) -> None:
    """Hints on the inference alone would put it into an environment, and so a stage, of its own."""
    (tmp_path / "list.txt").write_text("a.jpg\n")
    plan = prepare(config_of(tmp_path))
    pipeline = beam.Pipeline(runner=FnApiRunner())
    stage = EmbedShards(plan.load, plan.embedder, plan.run.outputs, plan.row_format)
    shards = pipeline | beam.Create([shard("a.jpg")]) | beam.Reshuffle()
    _ = shards | stage.with_resource_hints(min_ram="4GB", accelerator="type:nvidia-tesla-t4;count:1")
    graph = pipeline.to_runner_api()
    hinted = [
        transform.unique_name
        for transform in graph.components.transforms.values()
        if transform.environment_id
        and graph.components.environments[transform.environment_id].resource_hints
        and not transform.subtransforms
    ]
    assert hinted
    assert all(name.startswith("EmbedShards") for name in hinted)
    assert {part for part in FUSED if any(part in name for name in hinted)} == set(FUSED)
    assert len({home for part in FUSED for home in homes(graph, part)}) == 1


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
    prepare(config_of(tmp_path))
    assert not (tmp_path / "run").exists()
