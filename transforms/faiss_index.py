"""FAISS: the table of recipes, and to train, fill, merge, load and search what they build.

A recipe is written in the notation of FAISS's index factory. What follows the last comma may be a
store of vectors beside the codes, from which candidates are scored again: `RFlat`, `Refine(SQfp16)`
or `Refine(SQ8)`. The codes are served from memory, the store from disk (`transforms.vector_store`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import faiss
import numpy as np
from numpy.typing import NDArray

from transforms.errors import UserError
from transforms.projection import fit_projection
from transforms.vector_store import Precision
from transforms.vectors import Metric, Vectors

# Up to here a scan of everything takes 20 ms at 4,320 wide: nothing to train, nothing to lose.
_EXACT_ROWS = 20_000
# k-means wants 39 points a centroid at least; 50 leave room for rows that are not usable.
_POINTS_A_LIST = 50
_MOST_LISTS = 65_536
# Rows that a projection is fitted on: more change no figure behind the comma.
_PROJECTION_ROWS = 16_384
# Of --memory, for the sample: the rest is for copies that training makes of it.
_SAMPLE_SHARE = 4

# Rows that are filled together: a few seconds of work, and a few MB of codes.
_SEGMENT_ROWS = 65_536

_ID_BYTES = 8

_STORES: dict[str, Precision] = {"RFlat": "float32", "Refine(SQfp16)": "float16", "Refine(SQ8)": "uint8"}
_FAST_SCAN = re.compile(r"fs[_\d]*$")
_PROJECTED = re.compile(r"PCAR(\d+),(.+)")


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """A row of the table: `factory` with `{lists}`; `projected` is the widest that codes are made of."""

    name: str
    factory: str
    projected: int
    merge: str
    when: str
    why: str


# Recall and speed of each: docs/benchmarks.md. The first that fits --memory is taken of those that
# are `automatic`; all can be named.
RECIPES = (
    RecipeRow(
        "exact",
        "Flat",
        0,
        merge="files side by side",
        when="up to 20,000 images",
        why="recall 1 without training; 4 bytes a dimension, on disk",
    ),
    RecipeRow(
        "ivf-rabitq",
        "IVF{lists},RaBitQ,Refine(SQ8)",
        256,
        merge="lists end to end",
        when="by default",
        why="48 bytes an image in memory; 50 candidates, scored again, hold what the probed lists hold",
    ),
    RecipeRow(
        "ivf-rabitq-128",
        "IVF{lists},RaBitQ,Refine(SQ8)",
        128,
        merge="lists end to end",
        when="memory is short",
        why="32 bytes an image; needs more candidates",
    ),
    RecipeRow(
        "ivf-pq",
        "IVF{lists},PQ16,Refine(SQ8)",
        128,
        merge="lists end to end",
        when="memory is very short",
        why="24 bytes an image; needs still more candidates",
    ),
    RecipeRow(
        "ivf-sq8",
        "IVF{lists},SQ8",
        0,
        merge="lists end to end",
        when="named",
        why="a byte a dimension in memory, and no second file to read from",
    ),
    RecipeRow(
        "ivf-fp16",
        "IVF{lists},SQfp16",
        0,
        merge="lists end to end",
        when="named",
        why="two bytes a dimension; scores are true to three digits",
    ),
    RecipeRow(
        "hnsw",
        "HNSW32_SQ8",
        0,
        merge="none: one worker adds everything",
        when="named",
        why="fast at high recall where everything fits into one machine; slow to build",
    ),
)
AUTOMATIC = ("exact", "ivf-rabitq", "ivf-rabitq-128", "ivf-pq")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`codes` in FAISS's notation, "" for none; `store` beside them, or None. One of both there is."""

    codes: str
    store: Precision | None

    @property
    def text(self) -> str:
        suffix = next((name for name, kind in _STORES.items() if kind == self.store), "")
        return f"{self.codes},{suffix}".rstrip(",") if self.codes else "Flat"

    @property
    def is_mergeable(self) -> bool:
        """Whether segments can be filled apart. FAISS 1.15 crashes when it merges fast-scan's lists."""
        return not self.codes or ("IVF" in self.codes and not _FAST_SCAN.search(self.codes))

    @property
    def has_lists_on_disk(self) -> bool:
        return self.is_mergeable and bool(self.codes)


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that a served index takes: in memory, and memory-mapped beside it."""

    memory: int
    disk: int


def choose_recipe(count: int, width: int, memory: int) -> Recipe:
    """The first automatic recipe that fits; raises `UserError` where none does."""
    names = AUTOMATIC if count <= _EXACT_ROWS else AUTOMATIC[1:]
    recipes = [_resolve(row, count, width) for row in RECIPES if row.name in names]
    for recipe in recipes:
        if cost(recipe, count, width).memory <= memory:
            return recipe
    needed = cost(recipes[-1], count, width).memory
    raise UserError(f"--memory: {count:,} vectors of {width:,} take at least {needed / 1e6:,.0f} MB to serve")


def parse_recipe(text: str, count: int, width: int, metric: Metric) -> Recipe:
    """A name out of the table, or FAISS's notation; raises `UserError` for what it is not."""
    row = next((row for row in RECIPES if row.name == text), None)
    if row is not None:
        return _resolve(row, count, width)
    codes, store = text.replace(" ", ""), None
    for suffix, precision in _STORES.items():
        if codes.endswith(f",{suffix}"):
            codes, store = codes.removesuffix(f",{suffix}"), precision
    if codes == "Flat":
        return Recipe("", "float32")
    recipe = Recipe(codes, store)
    known = ", ".join(row.name for row in RECIPES)
    if not ("IVF" in codes or codes.startswith("HNSW")) or "IDMap" in codes or "Refine" in codes:
        raise UserError(f"--recipe {text}: known are {known}, and FAISS's IVF…, HNSW… and Flat")
    try:
        new_index(recipe, width, metric)
    except RuntimeError as error:
        raise UserError(
            f"--recipe {text}: FAISS can't build it for vectors of {width}; known are {known}"
        ) from error
    return recipe


def _resolve(row: RecipeRow, count: int, width: int) -> Recipe:
    """The recipe of a row for so many vectors."""
    if row.factory == "Flat":
        return Recipe("", "float32")
    codes, _, suffix = row.factory.format(lists=list_count(count)).partition(",Refine")
    if row.projected:
        # PCA with a rotation after it; where nothing is left out it is the rotation alone that helps.
        inner = min(row.projected, width)
        codes = f"PCAR{inner // 16 * 16 or inner},{codes}"  # quantisers split dimensions evenly
    return Recipe(codes, "uint8" if suffix else None)


def list_count(count: int) -> int:
    """Inverted lists for so many vectors: a power of two below 4 sqrt(n)."""
    return int(min(_MOST_LISTS, max(16, 1 << int(4 * count**0.5).bit_length() - 1)))


def cost(recipe: Recipe, count: int, width: int) -> Cost:
    """What serving takes, from the recipe alone."""
    disk = count * width * np.dtype(recipe.store).itemsize if recipe.store else 0
    if not recipe.codes:
        return Cost(0, disk)
    index = new_index(recipe, width, "l2")
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        hnsw = faiss.downcast_index(faiss.downcast_index(index).index)
        links = 4 * hnsw.hnsw.cum_nb_neighbors(1) + 16
        return Cost(count * (hnsw.storage.sa_code_size() + links + _ID_BYTES), disk)
    transform = index.d * ivf.d if isinstance(index, faiss.IndexPreTransform) else 0
    fixed = 4 * (ivf.nlist * ivf.d + transform)
    return Cost(count * (ivf.code_size + _ID_BYTES) + fixed, disk)


def new_index(recipe: Recipe, width: int, metric: Metric) -> faiss.Index:
    """The untrained codes of a recipe; raises `RuntimeError` as FAISS does."""
    projected = _PROJECTED.fullmatch(recipe.codes)
    if projected:
        inner = int(projected[1])
        if inner > width:
            raise RuntimeError(f"cannot project {width} dimensions to {inner}")
        codes = faiss.index_factory(inner, projected[2], _faiss_metric(metric))
        return _owned(faiss.LinearTransform(width, inner, True), codes)
    prefix = "IDMap2," if recipe.codes.startswith("HNSW") else ""
    return faiss.index_factory(width, prefix + recipe.codes, _faiss_metric(metric))


def _owned(transform: faiss.VectorTransform, codes: faiss.Index) -> faiss.Index:
    """Both as one index, which owns them."""
    index = faiss.IndexPreTransform(transform, codes)
    index.own_fields = True
    codes.this.disown()
    transform.this.disown()
    return index


def _faiss_metric(metric: Metric) -> int:
    """Cosine is L2 of unit vectors: a projection keeps distances, not inner products."""
    return int(faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2)


def sample_rows(recipe: Recipe, count: int, width: int, memory: int) -> int:
    """Vectors to train on: what the lists want, and no more than memory takes."""
    if not recipe.codes:
        return 0
    index = new_index(recipe, width, "l2")  # which owns what is taken out of it
    ivf = faiss.try_extract_index_ivf(index)
    wanted = max(_PROJECTION_ROWS, _POINTS_A_LIST * ivf.nlist if ivf else 0)
    kept = ivf.d if ivf and _PROJECTED.fullmatch(recipe.codes) else width
    return min(count, wanted, memory // _SAMPLE_SHARE // (4 * kept))


def segment_rows(recipe: Recipe, width: int, memory: int) -> int:
    """Rows whose codes one worker fills at a time."""
    per_row = cost(recipe, 1_000_000, width).memory // 1_000_000 + 1
    return max(1, min(_SEGMENT_ROWS, memory // _SAMPLE_SHARE // per_row))


def train_index(
    recipe: Recipe, width: int, metric: Metric, memory: int, sample: Iterator[Vectors]
) -> faiss.Index:
    """Codes trained on blocks of prepared vectors; a projection is fitted on the first of them."""
    index = new_index(recipe, width, metric)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.cp.min_points_per_centroid = 1  # below 39 it complains on standard error; recall is measured
    if _PROJECTED.fullmatch(recipe.codes):
        first = _rows(sample, min(_PROJECTION_ROWS, memory // _SAMPLE_SHARE // (4 * width)))
        _fit_transform(faiss.downcast_VectorTransform(index.chain.at(0)), first, centred=metric != "ip")
        transform = index.chain.at(0)
        blocks = [transform.apply(block) for block in chain([first], sample) if len(block)]
        faiss.downcast_index(index.index).train(np.concatenate(blocks))
        index.is_trained = True
    else:
        index.train(np.concatenate(list(sample)))
    return index


def _rows(sample: Iterator[Vectors], rows: int) -> Vectors:
    taken: list[Vectors] = []
    while sum(map(len, taken)) < rows and (block := next(sample, None)) is not None:
        taken.append(block)
    return np.concatenate(taken)


def _fit_transform(transform: faiss.LinearTransform, sample: Vectors, *, centred: bool) -> None:
    """Principal components, then a random rotation, so that each dimension says as much."""
    projection = fit_projection(sample, transform.d_out, centred=centred)
    faiss.copy_array_to_vector(projection.matrix.ravel(), transform.A)
    faiss.copy_array_to_vector(projection.offset, transform.b)
    transform.is_trained = True


def merge_indexes(trained: faiss.Index, files: Sequence[str]) -> faiss.Index:
    """The trained index with everything in those index files; takes its size in memory and that of a file."""
    for file in files:
        faiss.merge_into(trained, faiss.read_index(file), False)
    return trained


def load_index(files: Sequence[str], width: int, count: int) -> faiss.Index:
    """One index of several files with lists of the same kind; raises `UserError` if one is damaged.

    Lists are memory-mapped, except those of fast-scan: nothing is read in before it is searched.
    """
    parts = [_read(file) for file in files]
    index = parts[0]
    if len(parts) > 1:
        _stack_lists(index, parts)
    if index.d != width or index.ntotal != count or not index.is_trained:
        raise UserError(
            f"{files[0]} holds {index.ntotal:,} vectors of {index.d:,}, not {count:,} of {width:,};"
            " build the index again with --rebuild"
        )
    return index


def _read(file: str) -> faiss.Index:
    try:
        index = faiss.read_index(file, faiss.IO_FLAG_MMAP)
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            lists = faiss.downcast_InvertedLists(ivf.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                lists.prefetch_nthread = 0  # its threads, started for each search, cost 1 ms
        if ivf is not None and ivf.invlists.compute_ntotal() != index.ntotal:
            raise RuntimeError("its lists hold another number of vectors")
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{file} is damaged; build the index again with --rebuild") from error
    return index


def _stack_lists(index: faiss.Index, parts: Sequence[faiss.Index]) -> None:
    """Let the first index search the lists of them all, as if they were one."""
    ivfs = [faiss.extract_index_ivf(part) for part in parts]
    pointers = faiss.InvertedListsPtrVector()
    for ivf in ivfs:
        pointers.push_back(ivf.invlists)
    stacked = faiss.HStackInvertedLists(pointers.size(), pointers.data())
    ivfs[0].own_invlists = False
    ivfs[0].replace_invlists(stacked, False)
    index.ntotal = ivfs[0].ntotal = sum(part.ntotal for part in parts)
    index.referenced_objects = [stacked, *ivfs, *parts[1:]]


def most_effort(index: faiss.Index) -> int:
    """The setting above which no search finds more: all lists, or all vectors."""
    ivf = faiss.try_extract_index_ivf(index)
    return int(ivf.nlist if ivf is not None else max(index.ntotal, 1))


def search_codes(
    index: faiss.Index, queries: Vectors, k: int, effort: int, allowed: NDArray[np.uint8] | None
) -> tuple[Vectors, NDArray[np.int64]]:
    """(n, k) distances and row ids, -1 where fewer are found, of vectors whose bit in `allowed` is set.

    `effort` is nprobe or efSearch.
    """
    chosen = {} if allowed is None else {"sel": faiss.IDSelectorBitmap(allowed)}
    if faiss.try_extract_index_ivf(index) is None:
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k), **chosen)
    else:
        parameters = faiss.SearchParametersIVF(nprobe=effort, **chosen)
    if isinstance(index, faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    distances, ids = index.search(queries, k, params=parameters)
    return distances, ids


def list_distance(index: faiss.Index, vectors: Vectors) -> float:
    """The mean squared distance to the nearest list: how well the lists were made for these vectors."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None or not len(vectors):
        return 0.0
    moved = index.chain.at(0).apply(vectors) if isinstance(index, faiss.IndexPreTransform) else vectors
    distances, _ = ivf.quantizer.search(moved, 1)
    return float(np.abs(distances).mean())
