"""Rolling up, rebuilding, pruning and forgetting: what is kept, what is gone, and what is told meanwhile."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arbstr_asgi._utils import is_name
from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.database.drivers.sqlite import Sqlite
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.database.values import record
from arbstr_asgi.errors import LedgerError, RequestError
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.queries import open_reader
from arbstr_asgi.ledger.spill.locks import SpillLocks
from arbstr_asgi.ledger.spill.store import SpillStore
from arbstr_asgi.stats import live, pagination
from arbstr_asgi.stats.planner import PERIODS
from arbstr_asgi.stats.query import GROUPS, NAMES, Filters, Rebuilt, RequestsQuery, StatsQuery
from arbstr_asgi.stats.rollups import builder, scheduler
from tests.support import reference_stats as naive
from tests.support.databases import an_entry, run_sql
from tests.support.ledger_bench import Bench, bench
from tests.support.raw_http_client import eventually

__all__ = ["bench"]

DAY = datetime(2026, 1, 5, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
ALL = StatsQuery(since=DAY - timedelta(days=3), until=DAY + timedelta(days=3))
PERSON = "Zoë O'Neill <zoe@example.com>"


HOSTILE = ("'; DROP TABLE requests; --", "' OR '1'='1", "\\' OR 1=1 #", "%", "\0", "\ud800", "x" * 5000, "?$1%s")
PLACE = [column.name for column in COLUMNS].index("end_user")


def filled(count: int = 60, **facts: Any) -> list[LedgerEntry]:
    """Rows of two days, one every hour and a bit."""
    entries = []
    for number in range(count):
        at = DAY + timedelta(minutes=47 * number)
        tried = AttemptEntry(number=1, provider="alpha", timestamp=at, model="m", revision=1)
        rest = {
            "model": f"m-{number % 3}",
            "provider": [None, "alpha", "beta"][number % 3],
            "end_user": [PERSON, "ann", None, ""][number % 4],
            "cost_sats": Decimal(number) / 8,
            "latency_ms": number * 37,
            "success": number % 5 > 0,
            "end_reason": "completed",
            "revision": 1,
            "tries": (tried,),
            **facts,
        }
        entries.append(an_entry(timestamp=at, **rest))
    return entries


async def compare(bench: Bench, rows: list[dict[str, Any]], query: StatsQuery = ALL) -> None:
    """Every grouping alone has the figures of these rows."""
    from msgspec.structs import replace

    for name in (None, *GROUPS):
        asked = replace(query, group_by=(name,) if name else ())
        found = await bench.ledger.summary(asked)
        naive.compare_summary(found, rows, asked)
        assert await bench.ledger.stats(asked) == found.groups


def test_rolled_up_is_what_is_read(bench: Bench) -> None:
    """Closed hours are answered from roll-ups: without the rows the figures are the same."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        rows = await bench.rows()
        await bench.maintenance.roll_up()
        assert await bench.fetch("SELECT * FROM dirty_hours") == []
        assert {row[0] for row in await bench.fetch("SELECT period FROM rollups")} == {"state", *PERIODS}
        await bench.sql("DELETE FROM requests")
        await compare(bench, rows)
        assert (await bench.ledger.distinct("provider")) == ["alpha", "beta"]

    bench.run(scenario())


def test_many_rows_are_counted_by_the_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many rows for memory, figures and roll-ups are the same."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.maintenance.roll_up()
        for module in (live, builder):
            monkeypatch.setattr(module, "IN_MEMORY_ROWS", 0)
        assert (await bench.maintenance.rebuild(None)).differed == 0
        await bench.record(*filled(tenant="late"))
        await compare(bench, await bench.rows())

    bench.run(scenario())


def test_a_summary_is_of_all_rows(bench: Bench) -> None:
    """Where only the first hours' groups are wanted, the figures of everything are still those of everything."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        for _ in range(2):
            rows = await bench.rows()
            for group_by in (("hour", "model"), ("day", "tenant"), ("end_user",)):
                query = StatsQuery(since=ALL.since, until=ALL.until, group_by=group_by, limit=2, zone="Asia/Kolkata")
                naive.compare_summary(await bench.ledger.summary(query), rows, query)
            await bench.maintenance.roll_up()
            late = (an_entry(timestamp=DAY + timedelta(hours=hour), tenant="late") for hour in (0, 40))
            await bench.record(*late)

    bench.run(scenario())


def test_rows_of_this_second_and_of_closed_hours_are_in(bench: Bench) -> None:
    """What is committed is counted at once, and once: just arrived, replayed into a closed hour, or corrected there."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.maintenance.roll_up()
        late = an_entry("late", timestamp=DAY + timedelta(minutes=3), model="new")
        await bench.record(late)
        await compare(bench, await bench.rows())
        await bench.maintenance.roll_up()
        assert await bench.ledger.update_usage("late", 5, 6, Decimal("0.5")) == 1
        await compare(bench, await bench.rows())
        await bench.maintenance.roll_up()
        await compare(bench, await bench.rows())
        part = StatsQuery(since=DAY + timedelta(hours=5), until=DAY + timedelta(hours=20))
        await compare(bench, await bench.rows(), part)
        await bench.record(an_entry("later", timestamp=DAY + timedelta(hours=13), model="new"))
        await bench.maintenance.roll_up()
        await compare(bench, await bench.rows())
        await compare(bench, await bench.rows(), part)
        await bench.record(an_entry("now", model="now"))
        now = datetime.now(UTC)
        (group,) = await bench.ledger.stats(StatsQuery(since=now - AN_HOUR, until=now + timedelta(seconds=1)))
        assert group.figures.total == 1

    bench.run(scenario())


def test_sums_are_exact(bench: Bench) -> None:
    """Ten tenths and the largest amount are exactly that, and so are counts beyond 64 bits."""

    async def scenario() -> None:
        await bench.clear()
        costs = [*[Decimal("0.1")] * 10, Decimal("999999999999999.999999999")]
        await bench.record(*(an_entry(timestamp=DAY, cost_sats=cost, input_tokens=2**63 - 1) for cost in costs))
        for _ in range(2):
            (group,) = await bench.ledger.stats(ALL)
            assert group.figures.cost_sats == Decimal("1000000000000000.999999999")
            assert group.figures.input_tokens == 11 * (2**63 - 1)
            await bench.maintenance.roll_up()

    bench.run(scenario())


def test_an_older_version_leaves_no_marks(bench: Bench) -> None:
    """Rows that came without a mark are counted, from rows at first and then from roll-ups."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.sql("DELETE FROM dirty_hours")
        rows = await bench.rows()
        await compare(bench, rows)
        await bench.maintenance.roll_up()
        assert len(await bench.fetch("SELECT * FROM rollups WHERE period = 'hour' AND dimensions = ''")) == 47
        await compare(bench, rows)

    bench.run(scenario())


def test_what_changes_meanwhile_stays_dirty(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is committed while its hour is rolled up is not lost in it: the hour is done again."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        of_rows = builder.RollupBuilder._aggregate_hour
        late = [an_entry(f"late-{n}", timestamp=DAY + timedelta(minutes=47 * n), model="late") for n in range(50)]

        async def slowly(self: builder.RollupBuilder, raw: Any, hour: int) -> Any:
            found = await of_rows(self, raw, hour)
            if late:
                await bench.record(late.pop())
            return found

        with monkeypatch.context() as patch:
            patch.setattr(builder.RollupBuilder, "_aggregate_hour", slowly)
            await bench.maintenance.roll_up()
        assert await bench.fetch("SELECT * FROM dirty_hours") != []
        await compare(bench, await bench.rows())
        await bench.maintenance.roll_up()
        assert await bench.fetch("SELECT * FROM dirty_hours") == []
        await compare(bench, await bench.rows())

    bench.run(scenario())


def test_rebuilding_finds_what_is_wrong(bench: Bench) -> None:
    """Hours that differ from their rows are counted, and right afterwards, days too."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.maintenance.roll_up()
        assert await bench.ledger.rebuild() == Rebuilt(47, 0)
        await bench.sql("UPDATE rollups SET total = total + 1 WHERE dimensions = 'model'")
        await bench.sql("DELETE FROM rollups WHERE period = 'hour' AND dimensions = 'tenant'")
        heard: list[tuple[int, int]] = []
        assert await bench.ledger.rebuild(lambda done, to_do: heard.append((done, to_do))) == Rebuilt(47, 47)
        assert heard == [(done, 47) for done in range(1, 48)]
        await compare(bench, await bench.rows())
        assert await bench.ledger.rebuild() == Rebuilt(47, 0)

    bench.run(scenario())


def test_pruning_keeps_the_figures(bench: Bench) -> None:
    """Rows and attempts of whole hours go; every grouping says the same as before, also after a rebuild."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        rows = await bench.rows()
        before = DAY + timedelta(hours=30, minutes=20)
        kept = [row for row in rows if row["timestamp"] >= DAY + timedelta(hours=30)]
        heard: list[tuple[int, int]] = []
        removed = await bench.ledger.prune(before, lambda done, to_do: heard.append((done, to_do)))
        assert removed == len(rows) - len(kept)
        assert heard[-1] == (removed, removed)
        assert await bench.rows() == kept
        assert len(await bench.fetch("SELECT * FROM attempts")) == len(kept)
        await compare(bench, rows)
        assert await bench.ledger.prune(before) == 0
        await bench.maintenance.roll_up()
        assert (await bench.ledger.rebuild()).differed == 0
        await compare(bench, rows)
        page = await bench.ledger.requests(RequestsQuery(since=ALL.since, until=ALL.until))
        assert page.rows[0] == kept[0]
        late = an_entry("late", timestamp=DAY)
        await bench.record(late)
        await bench.maintenance.roll_up()
        await compare(bench, rows)
        assert await bench.ledger.prune(before) == 1
        assert await bench.ledger.prune(datetime.now(UTC) + timedelta(days=9)) == len(kept)
        await compare(bench, rows)

    bench.run(scenario())


def test_nobody_is_left_of_whom_was_forgotten(bench: Bench) -> None:
    """No row, attempt or roll-up has the name, wherever the figures came from; the others' figures stay."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        await bench.ledger.prune(DAY + timedelta(hours=9))
        await bench.record(an_entry("late", timestamp=DAY + timedelta(hours=20), end_user=PERSON, tags=PERSON))
        rows = await bench.rows()
        others = [row for row in rows if row["end_user"] != PERSON]
        found = await bench.ledger.forget(PERSON)
        mine = len(rows) - len(others)
        assert found.pop("rollups") > 0
        assert found == {"requests": mine, "attempts": mine - 1, "spilled": 0}
        query = StatsQuery(since=DAY + timedelta(hours=9), until=ALL.until)
        await compare(bench, others, query)
        await bench.maintenance.roll_up()
        await compare(bench, others, query)
        for table in ("requests", "attempts", "rollups", "dirty_hours"):
            assert PERSON not in repr([tuple(row) for row in await bench.fetch(f"SELECT * FROM {table}")])
        assert await bench.ledger.forget("nobody") == {"requests": 0, "attempts": 0, "rollups": 0, "spilled": 0}

    bench.run(scenario())


def test_the_spill_forgets_too(tmp_path: Path) -> None:
    """What waits on disk about a person is gone, from the file too, whoever it belongs to; what is others' stays."""

    async def main() -> None:
        folder = tmp_path / "l.db-spill"
        for _ in range(2):  # the second one is held by somebody who lives
            spill = SpillStore(SpillLocks(folder).claim())
            await spill.open()
            await spill.write([record(entry) for entry in filled(8)])
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db", spill=str(folder.with_name("elsewhere")))
        await ledger.open()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(ledger), "spill_folder", folder)
            assert (await ledger.forget(PERSON))["spilled"] == 4
        await ledger.close()
        kept = await spill.read(10)
        assert {one.record.row[PLACE] for one in kept} == {"ann", None, ""}
        assert sum(len(one.record.attempts) for one in kept) == 6
        assert PERSON.encode() not in b"".join(file.read_bytes() for file in folder.iterdir())
        await spill.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["model", "provider", "end_user", "tenant", "policy", "end_reason", "correlation_id"])
def test_values_are_never_sql(bench: Bench, name: str) -> None:
    """Hostile strings as filters find what has that name, which is nothing, and change nothing."""

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled(5))
        rows = await bench.rows()
        for value in (
            "'; DROP TABLE requests; --",
            "' OR '1'='1",
            "\\' OR 1=1 #",
            "%",
            "\0",
            "\ud800",
            "x" * 5000,
            "?$1%s",
        ):
            if not is_name(value):
                with pytest.raises(RequestError, match="255"):
                    await bench.ledger.forget(value)
                if name in NAMES:
                    with pytest.raises(ValueError, match=name):
                        Filters(**{name: value})
                    continue
            filters = Filters(**{name: value})
            (group,) = await bench.ledger.stats(StatsQuery(since=ALL.since, until=ALL.until, filters=filters))
            assert group.figures.total == 0
            page = await bench.ledger.requests(RequestsQuery(since=ALL.since, until=ALL.until, filters=filters))
            assert (page.rows, page.total) == ([], 0)
            if is_name(value):
                await bench.ledger.forget(value)
        assert await bench.rows() == rows

    bench.run(scenario())


def test_names_that_begin_alike_are_forgotten_apart(bench: Bench) -> None:
    """Whose name agrees in 255 characters, or in all but what can't be stored, is not forgotten for somebody else."""

    async def scenario() -> None:
        await bench.clear()
        long, marked = "u" * 255, "al\ufffdice"
        await bench.record(*[an_entry(f"c-{n}", timestamp=DAY, end_user=who) for n, who in enumerate((long, marked))])
        for unfit in (f"{long}B", "al\0ice", "al\ud800ice"):
            with pytest.raises(RequestError):
                await bench.ledger.forget(unfit)
        assert await bench.ledger.forget(f"{long[:-1]} ") == dict.fromkeys(
            ("requests", "attempts", "rollups", "spilled"), 0
        )
        assert {row["end_user"] for row in await bench.rows()} == {long, marked}

    bench.run(scenario())


def test_no_count_takes_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where roll-ups don't know how many there are and too many would have to be looked at, it is not said."""
    monkeypatch.setattr(pagination, "MAX_EXACT_COUNT", 20)

    async def scenario() -> None:
        await bench.clear()
        await bench.record(*filled())
        totals = []
        for state in ("rows", "rolled up"):
            for filters in (
                Filters(),
                Filters(model="m-1"),
                Filters(status=200),
                Filters(end_user="ann", success=True),
            ):
                query = RequestsQuery(since=ALL.since, until=ALL.until, filters=filters, limit=3)
                page = await bench.ledger.requests(query)
                assert len(page.rows) == 3
                totals.append(page.total)
            if state == "rows":
                await bench.maintenance.roll_up()
        assert totals == [None, None, None, None, 60, 20, None, 12]

    bench.run(scenario())


@pytest.mark.parametrize("sort", ["cost_sats", "latency_ms"])
def test_a_sorted_page_reads_no_row_that_is_not_on_it(
    sort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite finds the rows of a sorted page, however deep, in an index alone."""
    asked: list[tuple[str, Any]] = []

    async def fetch(self: Sqlite, raw: Any, sql: str, parameters: Any = ()) -> Any:
        asked.append((sql, parameters))
        return await plain(self, raw, sql, parameters)

    async def scenario() -> None:
        ledger = Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db")
        await ledger.open()
        for entry in filled():
            ledger.record(entry)
        await ledger.flush()
        page = await ledger.requests(RequestsQuery(since=ALL.since, until=ALL.until, sort=sort, limit=2, offset=3))
        assert len(page.rows) == 2
        await ledger.close()

    plain = Sqlite.fetch
    monkeypatch.setattr(Sqlite, "fetch", fetch)
    asyncio.run(scenario())
    ((sql, parameters),) = [(sql, given) for sql, given in asked if sql.startswith("SELECT id FROM")]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
    (step,) = [step[3] for step in plan]
    assert f" USING COVERING INDEX ix_requests_{sort}" in step


def test_the_scheduler_works_by_itself(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside two open ledgers hours are rolled up and old rows pruned, by one of them; both close at once."""
    monkeypatch.setattr(scheduler, "INTERVAL", 0.1)

    async def main() -> None:
        now = datetime.now(UTC)
        first = Ledger(database_url)  # keeps everything: what comes after it was pruned is in no figures
        await first.open()
        for age in (8, 8, 9, 1, 2):
            first.record(an_entry(timestamp=now - timedelta(days=age), revision=1, end_reason="completed"))
        await first.close()
        monkeypatch.setattr(scheduler, "START_DELAY", 0.05)
        ledgers = [Ledger(database_url, retention_days=7) for _ in range(2)]
        for ledger in ledgers:
            await ledger.open()
        async with asyncio.timeout(20):
            while len(await ledgers[1].rows()) > 2 or await hours_of(ledgers[1]) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        (group,) = await ledgers[1].stats(StatsQuery(since=now - timedelta(days=30), until=now))
        assert group.figures.total == 5
        assert len([one for one in ledgers if one._scheduler and one._scheduler._lease_expires > 0]) == 1
        begun = asyncio.get_running_loop().time()
        for ledger in ledgers:
            await ledger.close()
        assert asyncio.get_running_loop().time() - begun < 8

    asyncio.run(main())


async def hours_of(ledger: Ledger) -> int:
    """How many hours are rolled up."""
    connections = ledger._open_reader().connections
    sql = "SELECT start FROM rollups WHERE period = 'hour' AND dimensions = ''"
    return len(await connections.run(lambda raw: connections.driver.fetch(raw, sql)))


def test_a_closed_ledger_answers_nothing(database_url: str) -> None:
    """Every question is a LedgerError then."""

    async def main() -> None:
        ledger = Ledger(database_url)
        query = RequestsQuery(since=ALL.since, until=ALL.until)
        questions: list[Any] = [
            lambda: ledger.stats(ALL),
            lambda: ledger.requests(query),
            lambda: anext(ledger.export(query)),
            lambda: ledger.distinct("model"),
            ledger.rebuild,
            lambda: ledger.prune(DAY),
            lambda: ledger.forget("x"),
        ]
        for ask in questions:
            with pytest.raises(LedgerError, match="not open"):
                await ask()

    asyncio.run(main())


def test_forgetting_beside_a_writer_with_a_spill(tmp_path: Path) -> None:
    """What another process erases from a live spill is not waited for: the writer goes on and settles everything."""

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/l.db"
        ledger = Ledger(url)
        await ledger.open()
        holder = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        ledger.record(an_entry("a", end_user="alice"))
        ledger.record(an_entry("b", end_user="bob"))
        await eventually(lambda: ledger.snapshot().spilled == 2)
        async with open_reader(url) as other:
            forgetting = asyncio.create_task(other.forget("alice"))
            await asyncio.sleep(0.3)
            holder.close()
            await forgetting
        async with asyncio.timeout(10):
            await ledger.flush()
        await eventually(lambda: ledger.snapshot().spilled == 0)
        await ledger.close()

    asyncio.run(main())


def test_a_page_does_not_count_what_is_pruned(tmp_path: Path) -> None:
    """The total of a page is of rows that are there, whatever roll-ups remember."""

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db")
        await ledger.open()
        old, new = DAY, DAY + timedelta(days=2)
        for moment in (old, new):
            ledger.record(an_entry(timestamp=moment, revision=1, end_reason="completed"))
        await ledger.flush()
        await ledger.rebuild()
        await ledger.prune(DAY + timedelta(days=1))
        page = await ledger.requests(RequestsQuery(since=ALL.since, until=ALL.until))
        assert (len(page.rows), page.total) == (1, 1)
        gone = await ledger.requests(RequestsQuery(since=ALL.since, until=DAY + timedelta(hours=5)))
        assert (gone.rows, gone.total) == ([], 0)
        await ledger.close()

    asyncio.run(main())


def test_a_lease_of_a_clock_that_ran_ahead_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ends later than any lease can is anybody's."""
    monkeypatch.setattr(scheduler, "INTERVAL", 0.1)

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/l.db"
        ledger = Ledger(url)
        await ledger.open()
        ahead = f"UPDATE rollups SET total = {2**40}, sums = 'gone' WHERE dimensions = 'lease'"
        await asyncio.to_thread(run_sql, url, ahead)
        ledger.record(an_entry(timestamp=DAY))
        await ledger.close()
        monkeypatch.setattr(scheduler, "START_DELAY", 0.05)
        again = Ledger(url)
        await again.open()
        made = "SELECT count(*) > 0 FROM rollups WHERE dimensions = '' AND period = 'hour'"
        await eventually(lambda: run_sql(url, made) == [(1,)])
        await again.close()

    asyncio.run(main())


@pytest.mark.parametrize("zone", ["Asia/Kabul", "Australia/Lord_Howe", "Asia/Kolkata", "Europe/Zurich"])
def test_days_of_zones_that_begin_within_an_hour(zone: str, tmp_path: Path) -> None:
    """A day is the same from rows and from roll-ups, wherever within an hour it begins."""

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db")
        await ledger.open()
        for number in range(4 * 48):
            ledger.record(
                an_entry(timestamp=DAY + timedelta(minutes=15 * number + 1), revision=1, end_reason="completed")
            )
        await ledger.flush()
        query = StatsQuery(since=ALL.since, until=ALL.until, group_by=("day",), zone=zone)
        before = await ledger.stats(query)
        await ledger.rebuild()
        assert await ledger.stats(query) == before
        ever = datetime(1, 1, 1, tzinfo=UTC)  # when zones were minutes and seconds apart
        assert await ledger.stats(msgspec.structs.replace(query, since=ever)) == before
        await ledger.close()

    asyncio.run(main())
