import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.errors import UserError
from transforms.faiss_index import (
    RECIPES,
    Recipe,
    choose_recipe,
    cost,
    list_count,
    parse_recipe,
    sample_rows,
    segment_rows,
)


@pytest.mark.parametrize(
    ("count", "width", "memory", "recipe"),
    [
        (440, 4320, 4e9, "Flat"),
        (20_000, 4320, 1e9, "Flat"),
        (100_000, 4320, 4e9, "PCAR256,IVF1024,RaBitQ,Refine(SQ8)"),
        (10_000_000, 4320, 4e9, "PCAR256,IVF8192,RaBitQ,Refine(SQ8)"),
        (100_000_000, 4320, 4e9, "PCAR128,IVF32768,RaBitQ,Refine(SQ8)"),
        (100_000_000, 4320, 3e9, "PCAR128,IVF32768,PQ16,Refine(SQ8)"),
        (1_000_000, 64, 4e9, "PCAR64,IVF2048,RaBitQ,Refine(SQ8)"),
    ],
)
def test_the_recipe_follows_from_count_width_and_memory(
    count: int, width: int, memory: float, recipe: str
) -> None:
    chosen = choose_recipe(count, width, int(memory))
    assert chosen.text == recipe
    assert cost(chosen, count, width).memory <= memory


def test_too_little_memory_names_what_it_takes() -> None:
    with pytest.raises(UserError, match=r"1,000,000,000 vectors of 4,320 take at least 24,\d+ MB"):
        choose_recipe(1_000_000_000, 4320, 4 * 10**9)


@pytest.mark.parametrize("width", [17, 100, 640, 4320])
@pytest.mark.parametrize("name", [row.name for row in RECIPES])
def test_every_row_can_be_built_and_is_read_back_from_its_notation(name: str, width: int) -> None:
    recipe = parse_recipe(name, 200_000, width, "cosine")
    assert parse_recipe(recipe.text, 200_000, width, "cosine") == recipe
    spent = cost(recipe, 200_000, width)
    assert spent.memory + spent.disk > 0


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("Flat", Recipe("", "float32")),
        ("OPQ64_256, IVF4096, PQ64", Recipe("OPQ64_256,IVF4096,PQ64", None)),
        ("IVF64,PQ60x4fs,RFlat", Recipe("IVF64,PQ60x4fs", "float32")),
        ("IVF64,SQ4,Refine(SQfp16)", Recipe("IVF64,SQ4", "float16")),
    ],
)
def test_faiss_notation_is_understood(text: str, recipe: Recipe) -> None:
    assert parse_recipe(text, 1000, 4320, "cosine") == recipe


@pytest.mark.parametrize("text", ["", "LSH", "PQ64", "IDMap2,HNSW32", "IVF64,Refine(PQ8),PQ8", "IVFx,Flat"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="known are exact, ivf-rabitq"):
        parse_recipe(text, 1000, 4320, "cosine")


@pytest.mark.parametrize(
    ("text", "mergeable"),
    [("IVF8,PQ4x4fs", False), ("IVF8,RaBitQfs4", False), ("IVF8,PQ4", True), ("HNSW8", False)],
)
def test_what_faiss_cannot_merge_is_known(text: str, mergeable: bool) -> None:
    assert parse_recipe(text, 1000, 32, "cosine").is_mergeable == mergeable


@given(st.integers(1, 10**9))
def test_lists_are_a_power_of_two_below_four_roots(count: int) -> None:
    lists = list_count(count)
    assert lists & (lists - 1) == 0
    assert 16 <= lists <= max(16, 4 * count**0.5)


@given(st.integers(512 * 10**6, 10**11), st.integers(16, 10_000))
def test_samples_and_segments_fit_their_share_of_memory(memory: int, width: int) -> None:
    recipe = parse_recipe("IVF1024,SQfp16", 10**6, width, "cosine")
    assert sample_rows(recipe, 10**9, width, memory) * 4 * width <= memory / 4
    assert 1 <= segment_rows(recipe, width, memory) * 2 * width <= memory / 4
