"""The one catcher: what an image does to fail becomes a record, anything else crashes loudly."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from transforms.errors import ImageFailure
from transforms.records import Failure, ImageRef

Result = TypeVar("Result")

# One line of a table: longer texts come from libraries that quote their input.
_MESSAGE_LENGTH = 300


def attempt(ref: ImageRef, step: Callable[[ImageRef], Result]) -> Result | Failure:
    """`step(ref)`, or the `Failure` that a named `ImageFailure` stands for."""
    try:
        return step(ref)
    except ImageFailure as error:
        return failure(ref, error)


def failure(ref: ImageRef, error: ImageFailure) -> Failure:
    """The row that `failures/` gets for this error; its message is one line of printable characters."""
    message = "".join(char if char.isprintable() else " " for char in str(error))
    return Failure(
        ref=ref,
        stage=error.stage,
        error=type(error).__name__,
        message=" ".join(message.split())[:_MESSAGE_LENGTH].rstrip(),
        attempts=error.attempts,
        when=datetime.now(UTC),
    )
