"""`pnasvec sample`: renders the labelled images that the small model knows, to try things out on."""

from collections.abc import Sequence

from jobs.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Write JPEG files to a folder."""
    parser = Parser(prog="pnasvec sample", description="Render labelled sample images as JPEG files.")
    parser.add_argument("folder", help="where to write them")
    parser.add_argument("--count", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    flags = parser.parse_args(arguments)
    from transforms.sample import write_samples

    write_samples(flags.folder, flags.count, flags.seed)
    return 0
