"""The parser of our command line: argparse, whose errors are `UserError`s that name the nearest flag."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from transforms.errors import UserError


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default not in (None, False, "")
        return super()._get_help_string(action) if told else action.help


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, so that a flag added later can't change what a command means."""

    def __init__(self, *, prog: str, description: str = "", epilog: str = "", resolve: bool = False) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
            conflict_handler="resolve" if resolve else "error",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise the error for arguments that nobody knows."""
        flags = [argument for argument in unknown if argument.startswith("-")]
        if not flags:
            self.error(f"unexpected argument {unknown[0]!r}")
        flag = flags[0].split("=")[0]
        nearest = difflib.get_close_matches(flag, list(self._option_string_actions), n=1, cutoff=0.5)
        self.error(f"unknown flag {flag}" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def parse_with_beam(
    arguments: Sequence[str], prog: str, add_flags: Callable[[Parser], Parser]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Our flags, and those of Beam that were given, by name; Beam is imported only if some may be."""
    flags, rest = add_flags(Parser(prog=prog)).parse_known_intermixed_args(arguments)
    if not rest:
        return flags, {}
    from pipeline.runners import add_beam_flags

    # Once more with Beam's flags, ours winning: only then is it known which words are their values.
    parser = Parser(prog=prog, resolve=True)
    add_beam_flags(parser)
    theirs = {action.dest for action in parser._actions}
    add_flags(parser)
    flags, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        parser.refuse(rest)
    ours = {action.dest for action in add_flags(Parser(prog=prog))._actions}
    given = {
        name: value
        for name, value in vars(flags).items()
        if name in theirs - ours and value is not None and value != parser.get_default(name)
    }
    return flags, given


def auto_or_int(text: str) -> int | str:
    """A number, or the word auto (argparse type)."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


def byte_size(text: str) -> int:
    """A number of bytes: 1000, 64MiB, 2GB (argparse type)."""
    units = {
        "": 1,
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KIB": 1 << 10,
        "MIB": 1 << 20,
        "GIB": 1 << 30,
    }
    digits = text.rstrip("BbKkMmGgIi ")
    unit = text[len(digits) :].strip().upper()
    try:
        return int(float(digits) * units[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 64MiB") from error
