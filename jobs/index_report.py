"""What a person reads at the end of `index`: what was built, its recall, its bytes, what to do next."""

from shlex import quote

from rich.console import Console
from rich.table import Table

from pipeline.index_manifest import IndexManifest
from pipeline.indexing import IndexOutcome
from transforms.faiss_index import cost, parse_recipe
from transforms.recall import AT, Measurement

# From here on a rebuild is worth its time: lists that fit the new images less, or are too few.
_DRIFT, _GROWTH = 1.25, 4
_GARBAGE = 0.2


def show_outcome(console: Console, outcome: IndexOutcome, memory: int) -> None:
    """The end of an `index`."""
    manifest = outcome.manifest
    if not outcome.added and not outcome.removed:
        console.print("Nothing to do: every image of the run is in the index.")
    show_index(console, manifest)
    if outcome.added:
        build = manifest.last_build
        console.print(
            f"{build.added:,} images added in {build.seconds:,.1f} s,"
            f" peak memory {build.peak_mb:,.0f} MB of {memory / 1e6:,.0f} MB"
        )
        if build.peak_mb * 1e6 > memory:
            console.print("That is more than --memory; the largest step takes it whatever the settings.")
    if outcome.removed or outcome.unknown:
        console.print(f"{outcome.removed:,} images removed, {outcome.unknown:,} URIs were not in the index")
    if manifest.unusable:
        console.print(f"{manifest.unusable:,} vectors are zero, NaN or infinite, and in no result")
    for advice in advices(manifest):
        console.print(advice)


def show_index(console: Console, manifest: IndexManifest) -> None:
    """Recipe, bytes, and recall with speed of each setting that was measured."""
    rows = max(manifest.files.rows, 1)
    recipe = parse_recipe(manifest.recipe, manifest.trained_rows, manifest.width, manifest.metric)
    bytes_ = cost(recipe, rows, manifest.width)
    console.print(
        f"{manifest.rows:,} images, {manifest.metric}, {manifest.recipe}:"
        f" {bytes_.memory / rows:,.0f} bytes an image in memory ({bytes_.memory / 1e6:,.1f} MB),"
        f" {bytes_.disk / rows:,.0f} on disk ({bytes_.disk / 1e6:,.1f} MB)"
    )
    if not recipe.codes:
        console.print(
            f"Every search is exact: recall 1, {manifest.measurements[0].qps:,.0f} queries/s on one thread"
        )
        return
    table = Table("effort", "candidates", *(f"R@{k}" for k in AT), "queries/s", "")
    for one in manifest.measurements:
        table.add_row(*_cells(one), "default" if one.setting == manifest.setting else "")
    console.print("Recall against exact search, and queries a second on one thread, by setting:")
    console.print(table)


def _cells(one: Measurement) -> list[str]:
    setting = one.setting
    return [
        f"{setting.effort:,}",
        f"{setting.candidates:,}",
        *(f"{value:.3f}" for value in one.recall),
        f"{one.qps:,.0f}",
    ]


def advices(manifest: IndexManifest) -> list[str]:
    """When to build anew, and why."""
    told, drift = [], manifest.last_build.drift
    if drift is not None and drift > _DRIFT:
        told.append(
            f"What was added lies {drift:.2f} times as far from the lists: --rebuild would fit them to it."
        )
    if manifest.files.rows > _GROWTH * manifest.trained_rows:
        told.append(
            f"It was made for {manifest.trained_rows:,} images: --rebuild would choose for as many as now."
        )
    if manifest.removed > _GARBAGE * manifest.files.rows:
        told.append(f"{manifest.removed:,} removed images still take room: --rebuild would free it.")
    return told


def show_shortfall(console: Console, manifest: IndexManifest, wanted: float) -> None:
    """That no setting reaches the recall, and which bytes would, by a sample."""
    best = max(one.recall[1] for one in manifest.measurements)
    console.print(
        f"No setting reaches recall@10 {wanted:g}; the best is {best:.3f}. By a sample, could reach it:"
    )
    rows, width = manifest.files.rows, manifest.width
    for text, precision in _alternatives(manifest):
        recipe = parse_recipe(text, rows, width, manifest.metric)
        bytes_ = cost(recipe, rows, width)
        total = (bytes_.memory + bytes_.disk) / rows
        if manifest.ceilings.get(precision, 0) >= wanted:
            console.print(
                f"  --rebuild --recipe {quote(text)}: {total:,.0f} bytes an image,"
                f" {total * rows / 1e6:,.0f} MB, up to {manifest.ceilings[precision]:.3f}"
            )


def _alternatives(manifest: IndexManifest) -> list[tuple[str, str]]:
    """Recipes, the smallest first, and the precision that bounds what each finds."""
    rescored = [] if "Refine" in manifest.recipe else [(f"{manifest.recipe},Refine(SQ8)", "uint8")]
    return [*rescored, ("ivf-sq8", "uint8"), ("ivf-fp16", "float16"), ("exact", "float32")]
