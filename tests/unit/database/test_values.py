"""The pure parts of the ledger: values made fit, states of a call made one, SQL, losses."""

import asyncio
import decimal
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from databases import Database
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS, Kind
from arbstr_asgi.database.drivers.base import describe_error, load
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.database.statements import statements
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.queue import FlushMarker, UsageUpdate, WriteQueue, newer_state
from arbstr_asgi.ledger.status import LossCounters
from tests.support.databases import an_entry

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(alphabet=st.characters(exclude_categories=())),
    st.binary(),
    st.lists(st.integers(), max_size=2),
)


def test_the_columns_are_the_fields_of_an_entry() -> None:
    """Nothing that is known of a call is left out of its row."""
    assert {column.name for column in COLUMNS} == set(LedgerEntry.__struct_fields__) - {"tries"}
    assert {column.name for column in ATTEMPT_COLUMNS[1:]} == set(AttemptEntry.__struct_fields__)


@given(st.text(alphabet=st.characters(exclude_categories=())), st.integers(1, 20))
def test_text_is_short_and_clean(raw: str, length: int) -> None:
    """Never longer than the column, always encodable, never a NUL; clean text within the length is untouched."""
    clean = values.text(raw, length)
    assert len(clean) <= length
    assert "\0" not in clean
    clean.encode()
    if len(raw) <= length and "\0" not in raw and not any(0xD800 <= ord(c) <= 0xDFFF for c in raw):
        assert clean == raw


@given(st.one_of(st.text(alphabet=st.characters(exclude_categories=()), max_size=300), ANYTHING))
def test_a_name_is_stored_as_it_is_or_not_at_all(raw: Any) -> None:
    """No two names become one: what is stored equals what was given, and what no column can hold is not stored."""
    stored = values.name(raw)
    fits = isinstance(raw, str) and len(raw) <= 255 and "\0" not in raw
    assert stored == (raw if fits and not any(0xD800 <= ord(c) <= 0xDFFF for c in raw) else None)
    assert stored is None or type(stored) is str


@given(st.text(alphabet=st.characters(exclude_categories=())), st.integers(1, 20))
def test_documents_are_cut_in_bytes(raw: str, length: int) -> None:
    """At most so many bytes of UTF-8, and never half a character."""
    assert len(values.document(raw, length).encode()) <= length
    assert values.text(raw, length).startswith(values.document(raw, length))


@given(st.decimals(allow_nan=True, allow_infinity=True), st.sampled_from([3, 28, 60]))
def test_money_has_nine_decimals(raw: Decimal, precision: int) -> None:
    """Rounded half to even, whatever the host's decimal context; None when it can't be stored."""
    with decimal.localcontext() as context:
        context.prec = precision
        context.traps[decimal.Inexact] = True
        amount = values.money(raw)
    if amount is None:
        assert not raw.is_finite() or abs(raw) >= Decimal("999999999999999.9999999995")
    else:
        assert amount.as_tuple().exponent == -9
        assert len(amount.as_tuple().digits) <= 24
        with decimal.localcontext() as context:
            context.prec = 60
            assert abs(amount - raw) <= Decimal("0.5e-9")
        assert Decimal(f"{amount:f}") == amount


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("0.0000000005", "0.000000000"),
        ("0.0000000015", "0.000000002"),
        ("0.0000000025", "0.000000002"),
        ("-0.0000000001", "0.000000000"),
        ("1E+3", "1000.000000000"),
    ],
)
def test_money_at_its_edges(raw: str, expected: str) -> None:
    """Ties go to the even neighbour, and a zero has no sign."""
    assert f"{values.money(Decimal(raw)):f}" == expected


@pytest.mark.parametrize("raw", ["0.000000001", "-0.000000012", "0", "12.5", "999999999999999.999999999"])
def test_money_as_text_has_no_exponent(raw: str) -> None:
    """What SQLite keeps is sorted and added up by its digits."""
    amount = values.money(Decimal(raw))
    assert load("sqlite").money(amount) == f"{amount:f}"


def test_money_is_not_a_float() -> None:
    """An int is an amount; a float, a bool and a text are not."""
    assert [values.money(v) for v in (3, 0.5, True, "1", None)] == [Decimal(3), None, None, None, None]


@given(st.integers())
def test_integers_are_of_64_bits(raw: int) -> None:
    """Within int64 untouched, beyond it unknown."""
    assert values.integer(raw) == (raw if -(2**63) <= raw < 2**63 else None)


@given(st.datetimes(timezones=st.one_of(st.none(), st.timezones())))
def test_moments_are_utc_and_never_later(raw: datetime) -> None:
    """Aware UTC in whole milliseconds, cut and not rounded; the text sorts as the time does."""
    from arbstr_asgi.database.drivers.base import format_timestamp

    moment = values.timestamp(raw)
    assert moment.tzinfo is UTC
    assert moment.microsecond % 1000 == 0
    assert len(format_timestamp(moment)) == 24
    if raw.tzinfo is not None and 2 < raw.year < 9998:
        assert 0 <= (raw - moment).total_seconds() < 0.001
    assert datetime.fromisoformat(format_timestamp(moment)) == moment


@given(st.fixed_dictionaries({column.name: ANYTHING for column in COLUMNS if column.kind is not Kind.TIMESTAMP}))
def test_any_entry_becomes_a_row_that_drivers_take(fields: dict[str, Any]) -> None:
    """Whatever is in an entry, its row has only values of the column's type, and required columns are never NULL."""
    allowed = {
        Kind.IDENTIFIER: str,
        Kind.TEXT: str,
        Kind.NAME: str,
        Kind.DOCUMENT: str,
        Kind.INTEGER: int,
        Kind.REAL: float,
        Kind.MONEY: Decimal,
        Kind.BOOLEAN: bool,
        Kind.TIMESTAMP: datetime,
    }
    row = values.normalise(LedgerEntry(timestamp=datetime(2026, 1, 1, tzinfo=UTC), **fields))
    for column, value in zip(COLUMNS, row, strict=True):
        assert type(value) is allowed[column.kind] or (value is None and not column.required), column
    for dialect in ("sqlite", "postgresql", "mysql"):
        assert len(load(dialect).encode(row)) == len(COLUMNS)
    assert values.read(load("sqlite").encode(row)) == dict(zip((c.name for c in COLUMNS), row, strict=True))


def states(*numbers: int) -> list[LedgerEntry]:
    return [
        an_entry("call", revision=number, model=str(place), end_reason="completed" if number else "in_flight")
        for place, number in enumerate(numbers)
    ]


def test_states_taken_together_become_one() -> None:
    """The highest revision of each call, the first of equal ones; the others never reach the database."""
    for order, model in (([0, 1], "1"), ([1, 0], "0"), ([0, 2, 1], "1"), ([1, 1], "0")):
        queue = WriteQueue()
        for entry in (*states(*order), an_entry("other")):
            queue.add(entry, 1.0)
        entries, updates, marks, since, _ = queue.take(500)
        assert since == 1.0
        assert [entry.correlation_id for entry in entries] == ["call", "other"]
        assert (entries[0].revision, entries[0].model) == (max(order), model)
        assert not updates
        assert not marks


def test_an_entry_behind_an_update_waits_for_the_next_batch() -> None:
    """Entries are written before updates, so one that came after an update of its call must not overtake it."""
    queue = WriteQueue()
    update = UsageUpdate.create("call", 1, 2, None, lambda _: None)
    mark = FlushMarker(lambda _: None)
    first, second = states(0, 1)
    for item in (first, update, an_entry("other"), second, mark):
        queue.add(item, 1.0)
    entries, updates, marks, *_ = queue.take(500)
    assert [entry.correlation_id for entry in entries] == ["call", "other"]
    assert (entries[0], updates, marks) == (first, [update], [])
    assert queue.take(500)[:3] == ([second], [], [mark])
    assert (len(queue), queue.size) == (0, 0)


def test_no_more_is_taken_than_asked_for() -> None:
    """The rest keeps its order."""
    queue = WriteQueue()
    for number in range(5):
        queue.add(an_entry(str(number)), 1.0)
    assert [[e.correlation_id for e in queue.take(2)[0]] for _ in range(4)] == [["0", "1"], ["2", "3"], ["4"], []]


def test_a_finished_state_beats_a_raised_revision_in_flight() -> None:
    """As the upsert does: the end applies although the start has a higher number, which is kept."""
    known = an_entry("call", revision=3)
    end = an_entry("call", revision=1, end_reason="completed")
    assert newer_state(known, end).end_reason == "completed"
    assert newer_state(known, end).revision == 3
    assert newer_state(end, known) is known
    assert newer_state(end, an_entry("call")) is end


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mysql"])
def test_statements_hold_no_values(dialect: str) -> None:
    """As many placeholders as columns, the prefix on both tables, and MySQL's revision assigned last."""
    sql = statements(dialect, "my_")
    mark = {"sqlite": "?", "postgresql": "$", "mysql": "%s"}[dialect]
    assert sql.upsert.count(mark) == len(COLUMNS)
    assert (sql.names.requests, sql.names.version) == ("my_requests", "my_arbstr_version")
    if dialect == "mysql":
        assert sql.upsert.rindex("end_reason") < sql.upsert.rindex("GREATEST")


def test_losses_are_counted_each_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Every loss counts; CRITICAL comes with the first, again after a minute, and at the end with the true number."""
    clock = [0.0]
    losses = LossCounters(lambda: clock[0])
    for at, number in ((0.0, 1), (30.0, 1), (59.9, 1), (60.0, 2)):
        clock[0] = at
        losses.add(number, "full")
    losses.log_summary()
    losses.add(4, "closed")
    losses.log_summary()
    assert losses.count == 9
    assert [record.getMessage() for record in caplog.records] == [
        "ledger: 1 entries lost (full), 1 in all",
        "ledger: 2 entries lost (full), 5 in all",
        "ledger: 9 entries lost in all",
    ]


def test_descriptions_keep_secrets() -> None:
    """Type and first line; neither the password nor a statement."""
    database = Database("postgresql://user:p%40ss@host/name")
    assert describe_error(OSError("no p@ss, no p%40ss\nmore"), database) == "OSError: no ***, no ***"
    assert describe_error(TimeoutError()) == "TimeoutError: no answer in time"
    assert describe_error(ValueError()) == "ValueError"

    class ProgrammingError(Exception):
        pass

    assert describe_error(ProgrammingError("near 'secret'")) == "ProgrammingError"


def test_errors_are_the_rows_or_the_databases() -> None:
    """Constraint and conversion errors are the row's; lost connections, locks and full disks are not."""
    import sqlite3

    import asyncpg
    from pymysql import err

    rows: list[tuple[str, BaseException]] = [
        ("sqlite", sqlite3.IntegrityError("x")),
        ("sqlite", sqlite3.ProgrammingError("Error binding parameter 1")),
        ("sqlite", OverflowError()),
        ("postgresql", asyncpg.StringDataRightTruncationError("x")),
        ("postgresql", asyncpg.UniqueViolationError("x")),
        ("postgresql", asyncpg.DataError("x")),
        ("postgresql", asyncpg.RaiseError("x")),
        ("postgresql", UnicodeEncodeError("utf-8", "x", 0, 1, "x")),
        ("mysql", err.DataError(1406, "x")),
        ("mysql", err.OperationalError(1292, "x")),
        ("mysql", err.OperationalError(4025, "x")),
        ("mysql", err.IntegrityError(1062, "x")),
        ("mysql", err.ProgrammingError("nan can not be used with MySQL")),
        ("mysql", TypeError("x")),
    ]
    for dialect, error in rows:
        reason = load(dialect).is_row_error(error)
        assert reason is not None, error
        assert type(error).__name__ in reason or "SQLITE" in reason
    troubles: list[tuple[str, BaseException]] = [
        ("sqlite", sqlite3.OperationalError("database is locked")),
        ("sqlite", sqlite3.ProgrammingError("Cannot operate on a closed database.")),
        ("postgresql", asyncpg.InterfaceError("closed")),
        ("postgresql", asyncpg.ConnectionDoesNotExistError("x")),
        ("postgresql", asyncpg.UndefinedTableError("x")),
        ("postgresql", ConnectionRefusedError()),
        ("mysql", err.OperationalError(2013, "x")),
        ("mysql", err.InterfaceError(0, "Not connected")),
        ("mysql", err.ProgrammingError(1146, "no such table")),
        ("mysql", TimeoutError()),
    ]
    for dialect, error in troubles:
        assert load(dialect).is_row_error(error) is None, error


def test_a_promise_whose_caller_left_is_settled_quietly() -> None:
    """Settling a cancelled future does nothing."""
    from arbstr_asgi.ledger.queue import make_future

    async def main() -> None:
        settle, future = make_future()
        future.cancel()
        settle(1)
        settle, future = make_future()
        settle(LedgerError("closed"))
        with pytest.raises(LedgerError):
            await future

    asyncio.run(main())
