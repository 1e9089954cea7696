"""Cursors of the feed: what they hold, and their text."""

import pytest

from agentexec_otel.activity._feed_cursor import MOST_GAPS, FeedCursor, Fence, Walk, without_settled


def walked(cursor: FeedCursor, *numbers: int, settled: int = 0) -> FeedCursor:
    walk = Walk(cursor, settled)
    assert all(walk.pass_id(number) for number in numbers)
    assert walk.text == str(walk.cursor)
    return walk.cursor


def test_gaps_are_kept_until_they_are_passed() -> None:
    """A gap is what lies between two ids; an id within it makes it smaller, divides it or closes it."""
    cursor = walked(FeedCursor(), 3, 4, 10)
    assert cursor == FeedCursor(10, ((1, 2), (5, 9)))
    assert walked(cursor, 1, 7) == FeedCursor(10, ((2, 2), (5, 6), (8, 9)))
    assert walked(cursor, 2, 5, 9, 11) == FeedCursor(11, ((1, 1), (6, 8)))
    assert walked(cursor, 1, 2, 5, 6, 7, 8, 9) == FeedCursor(10)


def test_gaps_that_are_settled_are_not_kept() -> None:
    """Up to a settled id there are no gaps; the fence stays for the logs that it was made for."""
    fence = Fence(20)
    cursor = walked(FeedCursor(2, fence=fence), 5, 15, settled=8)
    assert cursor == FeedCursor(15, ((9, 14),), fence)
    assert without_settled(cursor, 10) == FeedCursor(15, ((11, 14),), fence)
    assert without_settled(cursor, 20) == FeedCursor(15, (), fence)
    assert without_settled(walked(cursor, 25), 20) == FeedCursor(25, ((21, 24),))


def test_there_is_room_for_so_many_gaps() -> None:
    """A cursor that is full does not pass an id that would add a gap; it passes others."""
    full = walked(FeedCursor(), *range(2, 2 * MOST_GAPS + 1, 2))
    assert len(full.gaps) == MOST_GAPS
    walk = Walk(full, 0)
    assert not walk.pass_id(full.last + 2)
    assert walk.cursor == full
    assert walk.pass_id(full.last + 1)
    assert walk.pass_id(1)
    assert walk.pass_id(full.last + 3)
    assert FeedCursor.parse(walk.text) == walk.cursor
    assert len(walk.text) < 5_000


@pytest.mark.parametrize(
    "cursor",
    [
        FeedCursor(),
        FeedCursor(0, (), Fence(5)),
        FeedCursor(1 << 59, ((1, 1), (3, 9), (1 << 40, 1 << 50)), Fence(1 << 59, ("3-1234", "-1-77", "t1764500000"))),
        FeedCursor(12, ((12, 12),)),
    ],
)
def test_the_text_is_the_cursor(cursor: FeedCursor) -> None:
    """The text holds all of it, in characters that are safe in URLs."""
    assert FeedCursor.parse(str(cursor)) == cursor
    assert set(str(cursor)) <= set("0123456789abcdefghijklmnopqrstuvwxyz-_.")


def test_the_beginning_is_no_text() -> None:
    """None and an empty text mean the beginning."""
    assert FeedCursor.parse(None) == FeedCursor.parse("") == FeedCursor()


@pytest.mark.parametrize(
    "text",
    [5, b"1", "x", "-1", "1 ", "1\n", "1.", "1.g", "1.gx", "1.w", "a.g5_0", "a.g5-2_1", "a.g0", "4.g5", "4.g3-2",
     "1.w1_x", "1.w1_t", "f" * 16, "f.g" + "_".join(["2"] * (MOST_GAPS + 1)), "now.w1", "f.wf_3-1.g1"],
)  # fmt: skip
def test_other_texts_are_refused(text: object) -> None:
    """What is no cursor raises ValueError, with what to pass."""
    with pytest.raises(
        ValueError, match=r'after is .*: pass the cursor of a log, the next_cursor of a page, "" or "now"'
    ):
        FeedCursor.parse(text)
