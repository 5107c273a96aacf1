"""The named errors, drawn as one tree.

Two branches, told apart by who can do something about them: a `UserError` is a
mistake in the command and stops it before any work; an `ImageFailure` belongs to
one image, is caught in one place (`transforms.attempt`) and becomes a row of
`failures/`. Anything else is a bug and crashes loudly.
"""

from typing import ClassVar


class UserError(Exception):
    """A mistake in the command, its input or its set-up; the message says what to do."""


class ImageFailure(Exception):
    """One image could not be embedded. The class name is what `failures/` records."""

    stage: ClassVar[str]

    def __init__(self, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.attempts = attempts


class FetchFailure(ImageFailure):
    stage = "fetch"


class InvalidURI(FetchFailure):
    """The text cannot be a URI: empty, control characters, a scheme we do not read."""


class NotFound(FetchFailure):
    """No such file or object, a folder, or HTTP 404/410."""


class PermissionDenied(FetchFailure):
    """The storage refused us: file mode, credentials, HTTP 401/403."""


class ForbiddenAddress(FetchFailure):
    """An http(s) URI leads to a private or link-local address."""


class HTTPStatus(FetchFailure):
    """Any other HTTP answer that is not a success, after retries where they help."""


class ConnectionFailed(FetchFailure):
    """The host or the storage could not be reached, or broke off, after retries."""


class FetchTimeout(FetchFailure):
    """The bytes did not arrive in time."""


class TooManyBytes(FetchFailure):
    """The encoded image is larger than `--max-bytes`."""


class DecodeFailure(ImageFailure):
    stage = "decode"


class EmptyFile(DecodeFailure):
    """Zero bytes."""


class UnsupportedFormat(DecodeFailure):
    """The bytes are not of an image format we decode."""


class CorruptImage(DecodeFailure):
    """A known format whose content cannot be decoded."""


class TruncatedImage(DecodeFailure):
    """The file ends before the image does; `--allow-truncated` embeds what is there."""


class TooManyPixels(DecodeFailure):
    """The header declares more pixels than `--max-pixels`, or more memory than decoding may take."""


class EmbedFailure(ImageFailure):
    stage = "embed"


class NonFiniteVector(EmbedFailure):
    """The model gave NaN or infinity for this image."""


class ModelRejected(EmbedFailure):
    """The model raised an error on this image alone."""
