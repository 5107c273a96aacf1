"""Tallies add up, however they are summed, and survive JSON."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from transforms.tally import StepSeconds, Tally, total

amounts = st.integers(0, 10**12)
errors = st.dictionaries(st.sampled_from(["NotFound", "FetchTimeout"]), st.integers(1, 9)).map(Counter)
seconds = st.builds(StepSeconds, *[st.integers(0, 9)] * 4)


@st.composite
def lawful_tallies(draw: st.DrawFn) -> Tally:
    duplicate, embedded, pending, failed = draw(amounts), draw(amounts), draw(amounts), draw(errors)
    given = duplicate + embedded + pending + failed.total()
    return Tally(given, duplicate, embedded, pending, failed, draw(seconds))


@given(st.lists(lawful_tallies()))
def test_sums_of_tallies_that_add_up_add_up(tallies: list[Tally]) -> None:
    whole = total(tallies)
    assert whole.adds_up()
    assert whole == total(reversed(tallies))
    assert whole.embedded == sum(tally.embedded for tally in tallies)
    assert Tally.from_json(whole.to_json()) == whole


@given(lawful_tallies(), amounts.filter(bool))
def test_a_lost_image_is_noticed(tally: Tally, lost: int) -> None:
    assert not (tally + Tally(given=lost)).adds_up()
    assert not (tally + Tally(embedded=lost)).adds_up()


def test_a_shard_moves_its_images_from_pending_to_rows() -> None:
    planned = Tally(given=5, duplicate=1, pending=4)
    written = Tally(embedded=3, pending=-4, failed=Counter(NotFound=1))
    done = planned + written
    assert done.adds_up()
    assert done.pending == 0
    assert done.to_json()["failed_by_error"] == {"NotFound": 1}
