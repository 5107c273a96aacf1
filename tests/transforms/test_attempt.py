"""The one catcher: named failures become rows, everything else goes on as it is."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.attempt import attempt, failure
from transforms.errors import ImageFailure, NotFound, TruncatedImage
from transforms.records import Failure, ImageRef, Shard

REF = Shard(pa.table({"uri": ["/a.jpg"]})).images()[0]


def test_a_step_that_works_gives_its_result() -> None:
    assert attempt(REF, lambda ref: ref.uri) == "/a.jpg"


def test_a_named_failure_becomes_a_row() -> None:
    def step(ref: ImageRef) -> None:
        raise NotFound(f"HTTP 404: {ref.uri}", attempts=3)

    before = datetime.now(UTC)
    row = attempt(REF, step)
    assert isinstance(row, Failure)
    assert row.ref is REF
    assert (row.stage, row.error, row.message, row.attempts) == ("fetch", "NotFound", "HTTP 404: /a.jpg", 3)
    assert before <= row.when <= datetime.now(UTC)
    assert failure(REF, TruncatedImage("cut")).stage == "decode"


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyError, KeyboardInterrupt])
def test_any_other_error_is_a_bug_and_goes_on(error: type[BaseException]) -> None:
    def step(ref: ImageRef) -> None:
        raise error(ref.uri)

    with pytest.raises(error):
        attempt(REF, step)


@given(st.text(st.characters(exclude_categories=())))
def test_a_message_is_one_short_printable_line(text: str) -> None:
    message = failure(REF, NotFound(text)).message
    assert message.isprintable()
    assert message.encode().decode() == message
    assert len(message) <= 300
    assert message == message.strip()


def test_every_failure_knows_its_stage() -> None:
    def leaves(kind: type[ImageFailure]) -> list[type[ImageFailure]]:
        below = [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)]
        return below or [kind]

    assert {failure(REF, leaf("x")).stage for leaf in leaves(ImageFailure)} == {"fetch", "decode", "embed"}
