"""What a call takes, of methods whose threads stay awake after it, by a clock of the test's own."""

import pytest

from guided_backprop.methods import timing

# What a call takes alone, and for how long its threads are awake after it, in seconds.
CALLS = {"wakeful": (0.010, 0.015), "quiet": (0.008, 0.0), "slow": (1.0, 0.0)}


class Clock:
    """Two processors: whoever is timed while another one's threads are awake takes twice the time."""

    def __init__(self):
        self.now, self.awake, self.calls = 0.0, {}, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def methods(self):
        return {name: Method(name, self) for name in CALLS}


class Method:
    """One of :data:`CALLS`."""

    def __init__(self, name, clock):
        self.name, self.clock = name, clock
        self.takes, self.stays = CALLS[name]

    def explain(self, images, *, progress):
        clock = self.clock
        clock.calls.append(self.name)
        is_disturbed = any(until > clock.now for other, until in clock.awake.items() if other != self.name)
        clock.now += self.takes * (1 + is_disturbed)
        clock.awake[self.name] = clock.now + self.stays


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_nobody_is_timed_while_anothers_threads_are_awake(clock):
    times = timing.timed(clock.methods(), None)
    assert times == pytest.approx({name: takes for name, (takes, _) in CALLS.items()})
    # What takes long is not called as often.
    assert clock.calls.count("slow") == 3
    assert clock.calls.count("quiet") > 9


def test_what_takes_very_long_is_called_twice(clock, monkeypatch):
    monkeypatch.setitem(CALLS, "slow", (8.0, 0.0))
    assert timing.timed(clock.methods(), None)["slow"] == 8.0
    assert clock.calls.count("slow") == 2


def test_the_comparison_can_fail(clock, monkeypatch):
    """Without a pause, and call by call in turn, the faster one is taken for the slower one."""
    monkeypatch.setattr(timing, "_PAUSE", 0.0)
    monkeypatch.setattr(timing, "_CALLS", 1)
    times = timing.timed(clock.methods(), None)
    assert times["quiet"] == pytest.approx(0.016)
