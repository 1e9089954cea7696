"""The rate limit of lines that runs and agents write about themselves."""

from agentexec_otel.instrumentation._progress import RateLimit


def test_a_burst_is_refilled_by_time() -> None:
    """So many at once, then as many as time has brought, never more than the burst."""
    now = 100.0
    limit = RateLimit(3, 2.0, lambda: now)
    assert [limit.take() for _ in range(4)] == [True, True, True, False]
    now += 0.4
    assert not limit.take()
    now += 0.1
    assert [limit.take() for _ in range(2)] == [True, False]
    now += 3_600
    assert [limit.take() for _ in range(4)] == [True, True, True, False]
