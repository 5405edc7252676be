"""Statistics and pages are those of the rows, whatever of them comes from roll-ups."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.stats.query import GROUPS, SORTS, Filters, RequestsQuery, StatsQuery
from tests.support import reference_stats as naive
from tests.support.databases import an_entry
from tests.support.ledger_bench import Bench, bench

__all__ = ["bench"]

DST = datetime(2026, 3, 29, tzinfo=UTC)  # Europe puts its clocks forward, at 01:00 UTC
BACK = datetime(2025, 10, 26, tzinfo=UTC)  # and back
HOSTILE = "'; DROP TABLE requests; --"
NAMES = ["gpt-4o", "GPT-4o", "gpt-4o ", "", " ", "é", "🙂", HOSTILE, '"', "%s", "a|b", "|"]
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kathmandu"]
STATES = ("rows", "rolled up", "dirty", "partly rolled up")


def moments() -> st.SearchStrategy[datetime]:
    """Some hours around midnight in the zones, on days without and with a change of the clocks; many are equal."""
    days = st.sampled_from(
        [DST - timedelta(hours=6), DST, BACK - timedelta(hours=6), BACK, datetime(2026, 1, 5, tzinfo=UTC)]
    )
    offsets = st.one_of(st.integers(0, 12 * 4).map(lambda n: n * 900_000), st.integers(0, 12 * 3_600_000))
    return st.builds(lambda day, ms: day + timedelta(milliseconds=ms), days, offsets)


def amounts() -> st.SearchStrategy[Decimal | None]:
    """Money: unknown, none, tiny, huge, ties."""
    some = [
        None,
        Decimal(0),
        Decimal("0.000000001"),
        Decimal("-0.5"),
        Decimal("-7.25"),
        Decimal(9),
        Decimal("10.5"),
        Decimal("999999999999999.999999999"),
    ]
    return st.one_of(st.sampled_from(some), st.decimals(-(10**15) + 1, 10**15 - 1, places=9))


def entries() -> st.SearchStrategy[LedgerEntry]:
    """Rows of every kind."""
    name = st.sampled_from(NAMES)
    ms = st.one_of(st.none(), st.integers(0, 200), st.integers(0, 10**6), st.integers(-5, 2**62))
    count = st.one_of(st.none(), st.integers(0, 50), st.integers(-(2**63), 2**63 - 1))
    return st.builds(
        an_entry,
        timestamp=moments(),
        model=name,
        provider=st.one_of(st.none(), name),
        end_user=st.one_of(st.none(), name),
        tenant=st.one_of(st.none(), name),
        policy=st.one_of(st.none(), name),
        streaming=st.booleans(),
        success=st.booleans(),
        error_status=st.sampled_from([None, 200, 400, 503]),
        end_reason=st.sampled_from(["in_flight", "completed", "timeout"]),
        usage_source=st.sampled_from(["provider", "provider_partial", "estimated", "none"]),
        input_tokens=count,
        output_tokens=count,
        cost_sats=amounts(),
        dearest_cost_sats=amounts(),
        latency_ms=ms,
        ttft_ms=ms,
        stream_duration_ms=ms,
    )


def filters() -> st.SearchStrategy[Filters]:
    """None, one or several."""
    each = st.sampled_from(NAMES)
    name = st.one_of(st.none(), st.none(), each)
    return st.one_of(
        st.just(Filters()),
        st.builds(
            lambda column, value: Filters(**{column: value}), st.sampled_from(GROUPS[:5]), st.sampled_from(NAMES)
        ),
        st.builds(
            Filters,
            model=name,
            provider=name,
            end_user=name,
            tenant=name,
            policy=name,
            status=st.sampled_from([None, None, 200, 503]),
            success=st.sampled_from([None, None, True, False]),
            streaming=st.sampled_from([None, None, True]),
            end_reason=st.sampled_from([None, None, "completed", HOSTILE]),
        ),
    )


def spans() -> st.SearchStrategy[tuple[datetime, datetime]]:
    """Everything, or from one moment to another, with microseconds, in any order."""
    edge = st.builds(lambda moment, us: moment + timedelta(microseconds=us), moments(), st.integers(-1000, 1000))
    return st.one_of(st.just((BACK - timedelta(days=1), DST + timedelta(days=2))), st.tuples(edge, edge))


def questions() -> st.SearchStrategy[StatsQuery]:
    """Of every kind."""
    groups = st.lists(st.sampled_from(GROUPS), max_size=2, unique=True).map(tuple)
    return st.builds(
        lambda span, **rest: StatsQuery(since=span[0], until=span[1], **rest),
        spans(),
        filters=filters(),
        group_by=groups,
        zone=st.sampled_from(ZONES),
        limit=st.sampled_from([100, 100, 1, 3, 0]),
    )


async def into_state(
    bench: Bench, state: str, some: list[LedgerEntry], more: list[LedgerEntry], chance: random.Random
) -> None:
    """Record, and roll up as much as `state` says; `more` comes behind the first roll-up, into closed hours."""
    await bench.clear()
    for entry in some:
        bench.ledger.record(entry)
    await bench.ledger.flush()
    if state != "rows":
        await bench.maintenance.roll_up()
    for entry in more:
        bench.ledger.record(entry)
    await bench.ledger.flush()
    if state == "rolled up":
        await bench.maintenance.roll_up()
    elif state == "partly rolled up":

        async def perhaps() -> bool:
            return chance.random() < 0.7

        await bench.maintenance.roll_up(perhaps)


OFTEN = settings(
    max_examples=settings().max_examples // 8,  # each is a database filled and asked
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


@OFTEN
@given(
    some=st.lists(entries(), max_size=25),
    more=st.lists(entries(), max_size=8),
    state=st.sampled_from(STATES),
    asked=st.lists(questions(), min_size=8, max_size=8),
    chance=st.randoms(use_true_random=False),
)
def test_figures_are_those_of_the_rows(
    bench: Bench,
    some: list[LedgerEntry],
    more: list[LedgerEntry],
    state: str,
    asked: list[StatsQuery],
    chance: random.Random,
) -> None:
    """Every grouping, filter, zone and time gives exactly the sums of the rows, however much of it is rolled up."""

    async def scenario() -> None:
        await into_state(bench, state, some, more, chance)
        rows = await bench.rows()
        for query in asked:
            naive.compare_summary(await bench.ledger.summary(query), rows, query)
        for column in ("model", "provider"):
            assert await bench.ledger.distinct(column) == sorted({row[column] for row in rows} - {None})

    bench.run(scenario())


def listings() -> st.SearchStrategy[RequestsQuery]:
    """Of every kind."""
    return st.builds(
        lambda span, **rest: RequestsQuery(since=span[0], until=span[1], **rest),
        spans(),
        filters=filters(),
        sort=st.sampled_from(SORTS),
        descending=st.booleans(),
        limit=st.sampled_from([1, 2, 5, 100]),
        offset=st.sampled_from([0, 0, 1, 7, 50]),
    )


@OFTEN
@given(
    some=st.lists(entries(), max_size=25),
    more=st.lists(entries(), max_size=8),
    state=st.sampled_from(STATES),
    asked=st.lists(listings(), min_size=6, max_size=6),
    chance=st.randoms(use_true_random=False),
)
def test_pages_are_the_rows_in_order(
    bench: Bench,
    some: list[LedgerEntry],
    more: list[LedgerEntry],
    state: str,
    asked: list[RequestsQuery],
    chance: random.Random,
) -> None:
    """Offsets, cursors and the export all give the same rows in the same order, and the total is right."""
    from msgspec.structs import replace

    async def scenario() -> None:
        await into_state(bench, state, some, more, chance)
        rows = await bench.rows()
        for query in asked:
            expected = naive.in_order(rows, query)
            page = await bench.ledger.requests(query)
            assert page.rows == expected[query.offset : query.offset + query.limit]
            assert page.total == len(expected)
            assert (page.next is not None) == (query.offset + query.limit < len(expected))
            followed, after = [], replace(query, offset=0)
            while True:
                page = await bench.ledger.requests(after)
                followed += page.rows
                if page.next is None:
                    break
                after = replace(after, after=type(page.next).decode(page.next.encode()))
            assert followed == expected
            assert [row async for row in bench.ledger.export(replace(query, offset=0))] == expected

    bench.run(scenario())
