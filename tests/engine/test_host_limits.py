"""All fetchers together keep to a host's limits, share them, and slow down together."""

import pytest

from adbooster.engine.host_limits import DOWN_AFTER, FIRST_PAUSE_S, LEASE_S, Ask, Grant, HostLimits, Limits, Seen

HOST = "cdn.example"


class Night:
    """Fetchers that ask about one host by a clock of their own."""

    def __init__(self, per_host=8, requests_per_s=None, longest_pause_s=30.0):
        self.now = 1000.0
        self.limits = HostLimits(Limits(per_host, requests_per_s, longest_pause_s), lambda: self.now)
        self.held: dict[str, int] = {}

    def ask(self, fetcher: str, wanted=100, under_way: int | None = None, **seen) -> Grant:
        under_way = self.held.get(fetcher, 0) if under_way is None else under_way
        grant = self.limits.exchange(fetcher, {HOST: Ask(wanted, under_way, Seen(**seen))})[HOST]
        self.held[fetcher] = grant.slots
        return grant


def test_one_fetcher_gets_all_and_several_share():
    night = Night()
    assert night.ask("a").slots == 8
    assert night.ask("b").slots == 0, "a holds them"
    for _ in range(3):
        for fetcher in "abc":
            night.ask(fetcher)
            assert sum(night.held.values()) <= 8
    assert sorted(night.held.values()) == [2, 3, 3]


def test_photos_that_are_under_way_still_count():
    night = Night()
    assert night.ask("a").slots == 8
    night.ask("b")
    assert night.ask("a", under_way=8).slots == 4
    assert night.ask("b").slots == 0, "eight of a are still under way"
    assert night.ask("a", under_way=4).slots == 4
    assert night.ask("b").slots == 4


def test_more_fetchers_than_permits_take_turns():
    night, served = Night(per_host=2), set()
    for _ in range(6):
        for fetcher in "abcde":
            if night.ask(fetcher).slots:
                served.add(fetcher)
            assert sum(night.held.values()) <= 2
    assert served == set("abcde")


def test_a_fetcher_that_died_gives_back_what_it_held():
    night = Night()
    assert night.ask("dead").slots == 8
    night.now += LEASE_S - 1
    assert night.ask("b").slots == 0
    night.now += 2
    assert night.ask("b").slots == 8


def test_what_is_not_wanted_any_more_is_free_at_once():
    night = Night()
    night.ask("a")
    assert night.ask("a", wanted=0, under_way=0).slots == 0
    assert night.ask("b").slots == 8


def test_a_429_stops_everybody_and_halves_what_is_asked():
    night = Night()
    night.ask("a")
    assert night.ask("a", wanted=0, under_way=0, requests=5, throttled=1, retry_after_s=7.0).pause_s == 7.0
    grant = night.ask("b")
    assert (grant.pause_s, grant.slots) == (7.0, 4)
    assert night.ask("b", requests=3, throttled=3).slots == 4, "seen by others already: not halved twice"
    night.now += 8
    assert night.ask("b", requests=1).pause_s == 0.0
    for _ in range(8):
        night.ask("b", requests=10)
    assert night.held["b"] == 8, "answered well, it is asked as before"


def test_pauses_grow_where_the_host_names_none_and_are_capped():
    night, pauses = Night(longest_pause_s=3.0), []
    for _ in range(5):
        pauses.append(night.ask("a", requests=1, throttled=1).pause_s)
        night.now += pauses[-1] + 0.01
    assert pauses == [FIRST_PAUSE_S, 1.0, 2.0, 3.0, 3.0]
    assert night.held["a"] == 1, "never less than one at a time"
    assert night.ask("a", requests=1, throttled=1, retry_after_s=3600.0).pause_s == 3.0


def test_other_errors_take_one_off():
    night = Night()
    night.ask("a")
    assert night.ask("a", requests=4, errors=1).slots == 7
    assert night.ask("b", wanted=0, requests=4, errors=4).pause_s == 0.0


def test_a_host_that_answers_nothing_well_is_down_until_it_does():
    night = Night()
    for _ in range(DOWN_AFTER - 1):
        assert night.ask("a", under_way=0, requests=3, errors=3).down_s == 0.0
        night.now += 2
    assert night.ask("a", under_way=0, requests=3, errors=3).down_s > 0.0
    assert night.held["a"] == 1, "one asks whether it is back"
    night.now += 100
    assert night.ask("b", requests=2, throttled=2).down_s == 100.0
    assert night.ask("a", requests=2, errors=1).down_s == 0.0


def test_one_burst_of_429_is_no_host_that_is_down():
    night = Night()
    for n in range(50):
        assert night.ask(f"fetcher {n}", requests=10, throttled=10, retry_after_s=20.0).down_s == 0.0


def test_the_rate_is_shared_as_the_permits_are():
    night = Night(per_host=4, requests_per_s=10.0)
    assert night.ask("a").interval_s == pytest.approx(0.1)
    night.ask("b")
    rates = [1 / night.ask(fetcher, under_way=0).interval_s for fetcher in "ab"]
    assert rates == [pytest.approx(5.0)] * 2


def test_hosts_do_not_slow_each_other_down():
    limits = HostLimits(Limits(8, None, 30.0), lambda: 0.0)
    throttled = Ask(10, 0, Seen(requests=1, throttled=1, retry_after_s=9.0))
    grants = limits.exchange("a", {"one": throttled, "other": Ask(10, 0, Seen(requests=1))})
    assert [grants[name].pause_s for name in ("one", "other")] == [9.0, 0.0]
    assert grants["other"].slots == 8


def test_what_was_seen_is_measured():
    night = Night()
    night.ask("a")
    night.now += 2
    night.ask("a", requests=30, unchanged=20, seconds=6.0)
    night.now += 2
    night.ask("b", requests=10, errors=1, seconds=2.0)
    for fetcher in "ab":
        night.ask(fetcher, wanted=0, under_way=0)
    night.now += 3600
    night.ask("a")  # the hour in which nothing was wanted does not count
    assert night.limits.measured() == {
        HOST: {"requests": 40, "unchanged": 20, "throttled": 0, "errors": 1, "requests_per_s": 10.0, "latency_s": 0.2}
    }
