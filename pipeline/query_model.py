"""A query image to a vector, exactly as the run's own images were: its model, its preprocessing.

Importing this imports TensorFlow; nothing else on the query side does.
"""

from collections.abc import Mapping
from typing import Any

from transforms.errors import ImageFailure, UserError
from transforms.image import Preprocessing, decode_pixels, read_header
from transforms.model.embedder import EmbedderSettings, load_embedder
from transforms.model.options import DEFAULT_PRECISION
from transforms.vectors import Vectors

# Of lists of queries; a single one is a batch of its own.
_BATCH_SIZE = 32


def settings_of(
    identity: Mapping[str, Any], *, batch_size: int = _BATCH_SIZE
) -> tuple[EmbedderSettings, Preprocessing]:
    """Model and preprocessing that an identity stands for."""
    how, model = identity["preprocessing"], identity["model"]
    preprocessing = Preprocessing(
        how["height"], how["width"], how["resize"], allow_truncated=how["allow_truncated"]
    )
    # Runs that were begun before the precision was recorded are in float32.
    precision = model.get("precision", DEFAULT_PRECISION)
    settings = EmbedderSettings(model["handle"], model["digest"], batch_size, top_k=1, precision=precision)
    return settings, preprocessing


class QueryModel:
    """The model of a run, loaded once."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        """Raises `UserError` if the model can't be found here, or is not the one of the run."""
        settings, self._preprocessing = settings_of(identity, batch_size=1)
        self._embedder = load_embedder(settings)

    def vector(self, data: bytes, name: str) -> Vectors:
        """(1, D) float32 of an encoded image called `name`; raises `UserError` if it can't be embedded."""
        try:
            pixels = decode_pixels(data, read_header(data, self._preprocessing), self._preprocessing).pixels
            outcome = self._embedder.embed([pixels])
            for _, error in outcome.rejected:
                raise error
        except ImageFailure as error:
            raise UserError(f"{name}: {error}") from error
        return outcome.batch.vectors
