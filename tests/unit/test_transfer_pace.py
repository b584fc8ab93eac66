from __future__ import annotations

from function.transfer.pace import FIRST, MOST, Pace


def run(pace: Pace, rates: list[float], *, start: float = 100.0, done: int = 1) -> tuple[float, int]:
    """Half a second at each rate, in bytes per second; where the clock and the bytes are then."""
    now = start
    pace.measure(now, done)
    for rate in rates:
        now += 0.5
        done += int(rate * 0.5)
        pace.measure(now, done)
    return now, done


def test_fast_connections_stay_few() -> None:
    """A store that fills the machine with the first connections gets no more."""
    pace = Pace()
    run(pace, [1e9] * 5)
    assert pace.limit == FIRST


def test_slow_connections_become_many() -> None:
    """Where each connection is capped, as many are used as may be."""
    pace = Pace()
    limits = []
    now, done = run(pace, [])
    for _ in range(4):
        now, done = run(pace, [80e6 * pace.limit], start=now, done=done)
        limits.append(pace.limit)
    assert limits == [MOST] * 4


def test_more_in_vain_is_taken_back() -> None:
    """On a link that is full anyway, the additional connections are given up again, and not tried again soon."""
    pace = Pace()
    now, done = run(pace, [100e6])
    assert pace.limit == MOST
    run(pace, [100e6] * 10, start=now, done=done)
    assert pace.limit == FIRST


def test_a_full_link_is_tried_again_later() -> None:
    """What was in vain once is tried again after a while: a neighbour may have left."""
    pace = Pace()
    now, done = run(pace, [100e6] * 5)
    for _ in range(40):
        now, done = run(pace, [80e6 * pace.limit], start=now, done=done)
    assert pace.limit == MOST


def test_slow_down_halves_once() -> None:
    """A store that asks for less gets half the connections, however many of them heard it at once."""
    pace = Pace()
    for _ in range(16):
        pace.slow_down(100.0)
    assert pace.limit == FIRST // 2


def test_slow_down_leaves_one() -> None:
    """A store that keeps asking for less still gets one connection, and more when it has recovered."""
    pace = Pace()
    for second in range(100, 110):
        pace.slow_down(float(second))
    assert pace.limit == 1
    now, done = run(pace, [1e9], start=130.0)
    run(pace, [2e9], start=now, done=done)
    assert pace.limit == FIRST


def test_nothing_measured_before_the_first_byte() -> None:
    """The time until the first byte says nothing about the rate."""
    pace = Pace()
    for tenth in range(50):
        pace.measure(100 + tenth / 10, 0)
    assert pace.limit == FIRST
