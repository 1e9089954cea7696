"""Which transactions the feed waits for, by what the server shows."""

from agentexec_otel.activity._feed_fence import Moment


def test_transactions_are_waited_for_by_name() -> None:
    """A fence names those of its moment; later ones are not added."""
    assert Moment(10, 1_000, hidden=False, holders={"4-9", "3-7"}).writers == ("3-7", "4-9")
    later = Moment(12, 1_001, hidden=False, holders={"4-9", "5-1"})
    assert later.open_writers(("3-7", "4-9")) == ("4-9",)
    assert Moment(12, 1_002, hidden=False, holders={"5-1"}).open_writers(("4-9",)) == ()


def test_hidden_transactions_are_waited_for_by_time() -> None:
    """Where the server shows none, five minutes pass, by its clock."""
    assert Moment(10, 1_000, hidden=True, holders=set()).writers == ("t1300",)
    assert Moment(10, 1_299, hidden=True, holders=set()).open_writers(("t1300",)) == ("t1300",)
    assert Moment(10, 1_300, hidden=True, holders=set()).open_writers(("t1300",)) == ()


def test_a_cursor_of_the_primary_on_a_standby() -> None:
    """A standby shows no locks: transactions of the primary are waited for by time, and by time only."""
    on_standby = Moment(10, 1_000, hidden=True, holders=set())
    assert on_standby.open_writers(("3-7",)) == ("t1300",)
    on_primary = Moment(10, 1_001, hidden=False, holders={"3-7"})
    assert on_primary.open_writers(("t1300",)) == ("t1300",)
