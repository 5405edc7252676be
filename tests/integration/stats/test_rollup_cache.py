"""What a ledger remembers of its roll-ups: exact, bounded, and of their generation."""

from datetime import timedelta

import pytest

from arbstr_asgi.stats.histogram import of
from arbstr_asgi.stats.planner import HOUR
from arbstr_asgi.stats.rollups import cache
from arbstr_asgi.stats.rollups.cache import CacheEntry, RollupCache
from arbstr_asgi.stats.timezones import period_number
from arbstr_asgi.stats.totals import NAMES, Totals
from tests.integration.stats.test_rollups_maintenance import DAY, compare, filled
from tests.support.databases import an_entry
from tests.support.ledger_bench import Bench, bench

__all__ = ["bench"]


EACH = Totals(tuple(range(len(NAMES))), (of({5: 7}), of({}), of(dict.fromkeys(range(300), 1))))


def test_a_new_generation_is_not_answered_from_the_old() -> None:
    """Nothing is remembered of roll-ups that have changed; what still fills an old answer reaches no new question."""
    known = RollupCache()
    old = known.get(1, "question")
    assert known.get(1, "question") is old
    new = known.get(2, "question")
    old.row_counts = {("a|",): 1}
    assert new.row_counts is None
    assert known.get(1, "question").row_counts is None


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions that were not asked for longest are forgotten; one answer that is too large too."""
    alone = CacheEntry()
    alone.totals[("a",), 0] = EACH
    monkeypatch.setattr(cache, "MAX_BYTES", 3 * alone.measure())
    known = RollupCache()
    for name in "abcdc":
        found = known.get(1, name)
        found.totals[(name,), 0] = EACH
        known.evict(found)
    assert [bool(known.get(1, name).totals) for name in "bcda"] == [True, True, True, False]
    found = known.get(1, "large")
    found.row_counts = {(str(number),): 1 for number in range(1000)}
    known.evict(found)
    assert [known.get(1, name).row_counts for name in ("large", "b")] == [None, None]


def test_answers_are_the_same_again(bench: Bench) -> None:
    """A question is answered alike from memory, and at once otherwise when a closed hour was rolled up again."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.maintenance.roll_up()
        for _ in range(3):
            await compare(bench, await bench.rows())
        await bench.record(an_entry(timestamp=DAY, model="m-1", latency_ms=10**6, end_user="ann"))
        await bench.maintenance.roll_up()
        for _ in range(2):
            await compare(bench, await bench.rows())

    bench.run(scenario())


def test_days_are_not_read_again(bench: Bench) -> None:
    """When another hour has been rolled up, longer periods that are as they were are answered from memory."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.maintenance.roll_up()
        await compare(bench, await bench.rows())
        await bench.sql("UPDATE rollups SET sums = 'unreadable' WHERE period IN ('day', '6h')")
        new = DAY + timedelta(days=2, hours=5)
        await bench.record(an_entry(timestamp=new, model="m-1", latency_ms=5, end_user="ann"))
        await bench.maintenance._roll_up_hour(period_number(new, HOUR), attempts=1, rebuild=True)
        await compare(bench, await bench.rows())

    bench.run(scenario())
