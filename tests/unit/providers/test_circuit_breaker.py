"""Who has failed lately, and when they are tried again."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arbstr_asgi import Provider
from arbstr_asgi.providers.circuit_breaker import BreakerTicket, CircuitBreaker, CircuitBreakers
from arbstr_asgi.providers.routing import Candidate

THRESHOLD, OPEN, LEASE = 3, 30.0, 20.0


def opened(at: float = 0.0) -> CircuitBreaker:
    """A breaker that opened at that time."""
    breaker = CircuitBreaker(threshold=THRESHOLD, open_seconds=OPEN, lease_seconds=LEASE)
    for _ in range(THRESHOLD):
        breaker.mark_failure(breaker.acquire(at), at)
    return breaker


def play(script: str) -> list[tuple[str, str, int, float | None]]:
    """Run a script on a new breaker and say how it was after each step.

    A step is `time action permit`: `a` admits; `+` answered, `s` succeeded, `f` failed, `x` abandoned report of it.
    """
    breaker = CircuitBreaker(threshold=THRESHOLD, open_seconds=OPEN, lease_seconds=LEASE)
    permits: dict[str, BreakerTicket] = {}
    reports: dict[str, Callable[[BreakerTicket, float], None]] = {
        "+": breaker.mark_started,
        "s": breaker.mark_success,
        "f": breaker.mark_failure,
        "x": breaker.mark_ignored,
    }
    seen = []
    for step in script.split(","):
        time, action, name = step.split()
        now = float(time)
        if action == "a":
            permits[name] = breaker.acquire(now)
        else:
            reports[action](permits[name], now)
        available = "free" if breaker.available(now) else "busy"
        seen.append((breaker.state(now), available, breaker.failures, breaker.opened_at))
    return seen


BROKEN = "0 a 1,0 a 2,0 a 3,0 a 4,0 f 1,0 f 2,0 f 3"  # 4 is still under way
CLOSED = ("closed", "free", 0, None)
WARY = ("closed", "free", THRESHOLD - 1, None)
OPENED = ("open", "busy", 3, 0.0)
HALF = ("half_open", "free", 3, 0.0)
PROBED = ("half_open", "busy", 3, 0.0)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # closed
        ("0 a 1,0 s 1", CLOSED),
        ("0 a 1,0 f 1", ("closed", "free", 1, None)),
        ("0 a 1,0 f 1,0 a 2,0 f 2", ("closed", "free", 2, None)),
        ("0 a 1,0 f 1,0 a 2,0 s 2", CLOSED),
        ("0 a 1,0 f 1,0 a 2,0 + 2", ("closed", "free", 1, None)),
        ("0 a 1,0 f 1,0 a 2,0 + 2,0 f 2", ("closed", "free", 2, None)),
        ("0 a 1,0 f 1,0 a 2,0 x 2", ("closed", "free", 1, None)),
        ("0 a 1,0 x 1,0 a 2,0 x 2,0 a 3,0 x 3,0 a 4,0 x 4", CLOSED),
        # of each permit the first final report counts
        ("0 a 1,0 f 1,0 f 1,0 f 1,0 f 1", ("closed", "free", 1, None)),
        ("0 a 1,0 x 1,0 f 1", CLOSED),
        ("0 a 1,0 s 1,0 f 1", CLOSED),
        ("0 a 1,0 f 1,0 s 1", ("closed", "free", 1, None)),
        ("0 a 1,0 f 1,0 + 1", ("closed", "free", 1, None)),
        # open
        ("0 a 1,1 f 1,0 a 2,2 f 2,0 a 3,3 f 3", ("open", "busy", 3, 3.0)),
        (BROKEN, OPENED),
        (BROKEN + ",29.9 x 1", OPENED),
        (BROKEN + ",9 a 5", OPENED),
        # who was admitted before it opened changes nothing
        (BROKEN + ",9 f 4", OPENED),
        (BROKEN + ",9 + 4", OPENED),
        (BROKEN + ",9 s 4", OPENED),
        (BROKEN + ",9 x 4", OPENED),
        (BROKEN + ",40 f 4", HALF),
        (BROKEN + ",40 s 4", HALF),
        (BROKEN + ",40 a 5,41 f 4", PROBED),
        (BROKEN + ",40 a 5,41 x 4", PROBED),
        (BROKEN + ",40 a 5,41 s 5,42 f 4", CLOSED),
        # who was admitted all the same
        (BROKEN + ",9 a 5,9 s 5", CLOSED),
        (BROKEN + ",9 a 5,9 + 5", WARY),
        (BROKEN + ",9 a 5,9 x 5", OPENED),
        (BROKEN + ",9 a 5,10 f 5", ("open", "busy", 4, 0.0)),
        (BROKEN + ",9 a 5,40 f 5", ("half_open", "free", 4, 0.0)),
        (BROKEN + ",9 a 5,40 a 6,41 f 5", ("half_open", "busy", 4, 0.0)),
        (BROKEN + ",9 a 5,40 a 6,41 x 5", PROBED),
        (BROKEN + ",9 a 5,40 a 6,41 s 5", CLOSED),
        (BROKEN + ",40 a 5,41 a 6,42 f 6", ("half_open", "busy", 4, 0.0)),
        (BROKEN + ",40 a 5,41 a 6,42 x 6", PROBED),
        # half-open
        (BROKEN + ",30 f 1", HALF),
        (BROKEN + ",30 a 5", PROBED),
        (BROKEN + ",30 a 5,31 x 5", HALF),
        (BROKEN + ",30 a 5,31 f 5", ("open", "busy", 4, 31.0)),
        (BROKEN + ",30 a 5,31 f 5,60.9 f 5", ("open", "busy", 4, 31.0)),
        (BROKEN + ",30 a 5,31 f 5,61 f 5", ("half_open", "free", 4, 31.0)),
        (BROKEN + ",30 a 5,31 f 5,32 s 5", ("open", "busy", 4, 31.0)),
        (BROKEN + ",30 a 5,31 s 5", CLOSED),
        (BROKEN + ",30 a 5,31 + 5", WARY),
        # closed by a first byte, it opens at the next failure, until something succeeds wholly
        (BROKEN + ",30 a 5,31 + 5,32 + 5", WARY),
        (BROKEN + ",30 a 5,31 + 5,32 s 5", CLOSED),
        (BROKEN + ",30 a 5,31 + 5,32 x 5", WARY),
        (BROKEN + ",30 a 5,31 + 5,32 f 5", ("open", "busy", 3, 32.0)),
        (BROKEN + ",30 a 5,31 + 5,32 a 6,33 f 6", ("open", "busy", 3, 33.0)),
        (BROKEN + ",30 a 5,31 + 5,32 a 6,33 f 6,34 f 5", ("open", "busy", 3, 33.0)),
        (BROKEN + ",30 a 5,31 + 5,32 a 6,33 + 6,34 f 6", ("open", "busy", 3, 34.0)),
        (BROKEN + ",30 a 5,31 + 5,32 a 6,33 s 6,34 f 5", ("closed", "free", 1, None)),
        # leases
        (BROKEN + ",30 a 5,49.9 x 1", PROBED),
        (BROKEN + ",30 a 5,50 x 1", HALF),
        (BROKEN + ",30 a 5,50 a 6", PROBED),
        (BROKEN + ",30 a 5,50 a 6,69.9 x 1", PROBED),
        (BROKEN + ",30 a 5,50 a 6,51 x 5", PROBED),
        (BROKEN + ",30 a 5,50 a 6,51 f 5", ("half_open", "busy", 4, 0.0)),
        (BROKEN + ",30 a 5,50 a 6,51 s 5", CLOSED),
        (BROKEN + ",30 a 5,50 a 6,51 s 5,52 f 6", CLOSED),
        (BROKEN + ",30 a 5,50 a 6,51 + 6,52 f 5", WARY),
        (BROKEN + ",30 a 5,55 f 5", ("open", "busy", 4, 55.0)),
    ],
)
def test_transitions(script: str, expected: tuple[str, str, int, float | None]) -> None:
    """Each sequence of reports leaves the breaker as it should be."""
    assert play(script)[-1] == expected


def test_alone_with_time() -> None:
    """States follow from the time alone: without any traffic an open breaker is half-open when its time is over."""
    breaker = opened(at=100.0)
    assert [breaker.state(now) for now in (100.0, 129.9, 130.0, 1e9)] == ["open", "open", "half_open", "half_open"]
    assert [breaker.available(now) for now in (100.0, 129.9, 130.0, 1e9)] == [False, False, True, True]


def test_threshold_of_one() -> None:
    """Where one failure is enough, it is, also after a first byte."""
    breaker = CircuitBreaker(threshold=1)
    breaker.mark_failure(breaker.acquire(0), 0)
    assert breaker.state(0) == "open"
    probe = breaker.acquire(30)
    breaker.mark_started(probe, 31)
    assert breaker.state(31) == "closed"
    breaker.mark_failure(probe, 32)
    assert (breaker.state(32), breaker.opened_at) == ("open", 32)


def test_failed_probe_gives_its_lease_back() -> None:
    """A lease that would outlast the time until the next probe ends with its probe."""
    breaker = CircuitBreaker(threshold=1, open_seconds=10, lease_seconds=100)
    breaker.mark_failure(breaker.acquire(0), 0)
    breaker.mark_failure(breaker.acquire(10), 11)
    assert (breaker.state(21), breaker.available(21)) == ("half_open", True)


CANDIDATES = [Candidate(Provider(name=name, url="http://h"), "m", None) for name in "abc"]


def broken(breakers: CircuitBreakers, name: str, at: float) -> None:
    """Let one provider's breaker open."""
    for _ in range(THRESHOLD):
        breakers.get(name).mark_failure(breakers.get(name).acquire(at), at)


@pytest.mark.parametrize(
    ("opened_at", "probed", "now", "expected"),
    [
        ({}, "", 0, "a"),
        ({"a": 0}, "", 1, "b"),
        ({"b": 0}, "", 1, "a"),
        ({"a": 0, "b": 0}, "", 1, "c"),
        ({"a": 0}, "", 30, "a"),
        ({"a": 0}, "a", 31, "b"),
        ({"a": 0, "b": 1, "c": 2}, "", 3, "a"),
        ({"a": 2, "b": 0, "c": 1}, "", 3, "b"),
        ({"a": 1, "b": 0, "c": 0}, "", 3, "b"),
        ({"a": 0, "b": 0, "c": 0}, "", 3, "a"),
        ({"a": 9, "b": 8, "c": 0}, "c", 31, "c"),
        ({"a": 0, "b": 8, "c": 9}, "a", 60, "a"),
        ({"a": 1, "b": 8, "c": 0}, "ac", 38, "b"),
    ],
)
def test_choose(opened_at: dict[str, float], probed: str, now: float, expected: str) -> None:
    """The first who is available; else who has been open longest; always somebody."""
    breakers = CircuitBreakers("abc", threshold=THRESHOLD, open_seconds=OPEN, lease_seconds=LEASE)
    for name, at in opened_at.items():
        broken(breakers, name, at)
    for name in probed:
        breakers.get(name).acquire(opened_at[name] + OPEN)
    assert breakers.choose(CANDIDATES, now).provider.name == expected


def test_choose_among_those_given() -> None:
    """A single candidate is chosen however it is, and nobody who was not named."""
    breakers = CircuitBreakers("abc")
    broken(breakers, "b", 0)
    for _ in range(5):
        assert breakers.choose(CANDIDATES[1:2], 1) is CANDIDATES[1]
        breakers.get("b").acquire(1)


def test_states() -> None:
    """All providers are listed from the start, each with its state and its failures."""
    breakers = CircuitBreakers("abc", threshold=THRESHOLD, open_seconds=OPEN)
    broken(breakers, "a", 0)
    breakers.get("b").mark_failure(breakers.get("b").acquire(0), 0)
    a, b, c = (
        {"state": "open", "failure_count": 3},
        {"state": "closed", "failure_count": 1},
        {"state": "closed", "failure_count": 0},
    )
    assert breakers.states(1) == {"a": a, "b": b, "c": c}
    assert breakers.states(30)["a"]["state"] == "half_open"


class Attempt:
    """An attempt under way, and what its provider was when it began."""

    def __init__(self, number: int, name: str, ticket: BreakerTicket, *, well: bool) -> None:
        self.number, self.name, self.ticket, self.well = number, name, ticket, well
        self.reported = False


GAP = 5.0  # seconds between requests that "keep coming"
NAMES = ("a", "b", "c")


class Traffic(RuleBasedStateMachine):
    """Requests to providers that fall ill and recover, reported late, twice, out of order or never."""

    @initialize()
    def begin(self) -> None:
        """Nothing has happened yet."""
        self.now = 0.0
        self.breakers = CircuitBreakers(NAMES, threshold=THRESHOLD, open_seconds=OPEN, lease_seconds=LEASE)
        self.well = dict.fromkeys(NAMES, True)
        self.attempts: list[Attempt] = []
        self.asked_at = dict.fromkeys(NAMES, -1e9)  # as the first choice
        self.passed_over_since: dict[str, float] = {}
        self.leases: dict[str, tuple[BreakerTicket, float]] = {}
        self.turned: dict[str, int] = dict.fromkeys(
            NAMES, 0
        )  # how many attempts there had been when it opened or closed
        self.turned_by: dict[str, Attempt] = {}

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 4.9, 5.0, 19.9, 20.0, 30.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """It always does."""
        self.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def changes(self, name: str) -> None:
        """A provider falls ill or recovers."""
        self.well[name] = not self.well[name]
        self.passed_over_since.pop(name, None)

    @rule(order=st.permutations(NAMES), size=st.integers(1, 3))
    def asks(self, order: list[str], size: int) -> None:
        """A request, for which some of the providers may be asked in some order."""
        self._ask([CANDIDATES[NAMES.index(name)] for name in order[:size]])

    @rule(times=st.integers(1, 30), seconds=st.sampled_from([1.0, 3.0, GAP]), heard=st.booleans())
    def keep_coming(self, times: int, seconds: float, heard: bool) -> None:
        """A steady stream of requests with one first choice, of whose ends nothing or all is heard."""
        for _ in range(times):
            attempt = self._ask(CANDIDATES)
            if heard:
                self._report(attempt, "mark_success" if attempt.well else "mark_failure")
            self.now += seconds

    def _ask(self, candidates: list[Candidate]) -> Attempt:
        free = [c for c in candidates if self.breakers.get(c.provider.name).available(self.now)]
        chosen = self.breakers.choose(candidates, self.now)
        name = chosen.provider.name
        assert chosen in candidates
        assert not free or chosen is free[0]
        self._not_passed_over_too_long(candidates[0].provider.name, name)
        breaker = self.breakers.get(name)
        half_open, available = breaker.state(self.now) == "half_open", breaker.available(self.now)
        before = breaker.opened_at
        ticket = breaker.acquire(self.now)
        assert breaker.opened_at == before
        if half_open and available:
            lease = self.leases.get(name)
            assert lease is None or self.now >= lease[1], "two probes at once"
            self.leases[name] = ticket, self.now + LEASE
            assert not breaker.available(self.now)
        self.attempts.append(Attempt(len(self.attempts), name, ticket, well=self.well[name]))
        return self.attempts[-1]

    def _not_passed_over_too_long(self, first: str, chosen: str) -> None:
        if self.now - self.asked_at[first] > GAP:  # there was nobody to choose it
            self.passed_over_since.pop(first, None)
        self.asked_at[first] = self.now
        self.passed_over_since.pop(chosen, None)
        if first != chosen and self.well[first]:
            since = self.passed_over_since.setdefault(first, self.now)
            assert self.now - since <= OPEN + LEASE + 2 * GAP

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), left=st.booleans())
    def reports(self, data: st.DataObject, left: bool) -> None:
        """Any attempt's end is reported, for the first time or once more; or its client has left."""
        attempt = data.draw(st.sampled_from(self.attempts))
        self._report(attempt, "mark_ignored" if left else "mark_success" if attempt.well else "mark_failure")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def begins(self, data: st.DataObject) -> None:
        """The first byte of an attempt, which may be followed by a failure."""
        attempt = data.draw(st.sampled_from(self.attempts))
        self._report(attempt, "mark_started")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), times=st.integers(1, 5))
    def are_refused(self, data: st.DataObject, times: int) -> None:
        """A client's own mistakes, as many as you like."""
        attempt = data.draw(st.sampled_from(self.attempts))
        for _ in range(times):
            new = self._ask([CANDIDATES[NAMES.index(attempt.name)]])
            before = self.breakers.get(new.name).opened_at
            self._report(new, "mark_ignored")
            assert self.breakers.get(new.name).opened_at == before

    def _report(self, attempt: Attempt, what: str) -> None:
        breaker = self.breakers.get(attempt.name)
        before = self._facts(breaker)
        lease = self.leases.get(attempt.name)
        holds = lease is not None and lease[0] is attempt.ticket
        getattr(breaker, what)(attempt.ticket, self.now)
        if attempt.reported:
            assert self._facts(breaker) == before, "counted twice"
        if attempt.number < self.turned[attempt.name] and attempt is not self.turned_by.get(attempt.name):
            assert self._facts(breaker) == before, "of an earlier era"
        if breaker.opened_at != before[2]:
            self.turned[attempt.name], self.turned_by[attempt.name] = len(self.attempts), attempt
        attempt.reported = attempt.reported or what != "mark_started"
        if before[0] != "closed" and not holds and breaker.opened_at is not None:
            assert self._facts(breaker)[:3] == before[:3], "somebody else's lease"
        if before[0] == "open":
            assert breaker.opened_at in (before[2], None), "it moved while open"
        if what == "mark_ignored":
            assert breaker.opened_at == before[2]
        if breaker.opened_at is None or (holds and attempt.reported):
            self.leases.pop(attempt.name, None)

    def _facts(self, breaker: CircuitBreaker) -> tuple[Any, ...]:
        return breaker.state(self.now), breaker.available(self.now), breaker.opened_at, breaker.failures

    @invariant()
    def states_are_reported(self) -> None:
        """Health knows everybody, and says what the breakers say."""
        states = self.breakers.states(self.now)
        assert list(states) == list(NAMES)
        assert all(states[name]["state"] == self.breakers.get(name).state(self.now) for name in NAMES)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(stateful_step_count=60)
