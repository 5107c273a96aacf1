"""The command line: a table of commands, and what their exit codes mean.

0 done; 1 the job failed; 2 a mistake in the command; 3 images failed and --strict was said.
"""

import atexit
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from jobs.arguments import Parser
from transforms.errors import UserError

USER_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Command:
    """`module` has `main(arguments) -> exit code`, and imports what is heavy only there."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("embed", "jobs.embed", "images to vectors and labels: lists, folders or globs to a run folder"),
    Command("index", "jobs.index", "a run folder's vectors to an index that finds similar images"),
    Command("search", "jobs.search", "similar images by image, URI or vector, one or millions"),
    Command("status", "jobs.status", "what a run promised, how far it is, and its failures by reason"),
    Command("sample", "jobs.sample", "render labelled sample images to try things out on"),
    Command("train", "jobs.train", "train the small model on rendered images"),
)


def run() -> NoReturn:
    """The program: `main`, then out without tearing down the interpreter.

    Threads of native libraries that still wait for it abort the process then, about once in forty
    runs: a finished job would look like a crash.
    """
    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every error that a person can do something about is one line."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"pnasvec: {error}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        print("pnasvec: stopped; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    table = "\n".join(f"  {command.name:8}{command.help}" for command in COMMANDS)
    parser = Parser(
        prog="pnasvec",
        description="Vectors and labels for piles of images.",
        epilog=f"commands (each has its own --help):\n{table}",
    )
    parser.add_argument("--version", action="version", version=f"pnasvec {version('pnasvec')}")
    parser.add_argument("command", metavar="command", choices=[command.name for command in COMMANDS])
    chosen = parser.parse_args(arguments[:1]).command
    module = next(command.module for command in COMMANDS if command.name == chosen)
    return int(import_module(module).main(arguments[1:]))


if __name__ == "__main__":
    run()
