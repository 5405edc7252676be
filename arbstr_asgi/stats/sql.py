"""The pieces of SQL that statistics are made of, in each dialect's words; values are always parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import COLUMNS, Kind
from arbstr_asgi.database.statements import placeholders, quoted, table_names
from arbstr_asgi.stats.histogram import EXACT, HALF, OCTAVES
from arbstr_asgi.stats.query import Filters

_KINDS = {column.name: column for column in COLUMNS}
_SINCE_YEAR_1 = 62_135_596_800  # seconds until 1970
_LOW = 2**32
_NANOS = 10**9

Weighed = tuple[str, int]
"""An expression whose value, times this, is a part of a sum; in parts, no sum is too large for 64 bits."""


@dataclass(slots=True)
class SqlParameters:
    """One statement's parameters, in their order."""

    dialect: str
    parameters: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> str:
        """The placeholder of one more."""
        self.parameters.append(value)
        return placeholders(self.dialect)(len(self.parameters) - 1)

    def add_all(self, several: Sequence[Any]) -> str:
        """Their placeholders, in a list."""
        return ", ".join([self.add(value) for value in several])


class SqlDialect:
    """For one dialect and the tables of one prefix."""

    def __init__(self, dialect: str, prefix: str) -> None:
        self.dialect = dialect
        self.tables = table_names(prefix)
        self.requests = quoted(dialect, self.tables.requests)
        self.attempts = quoted(dialect, self.tables.attempts)
        self.rollups = quoted(dialect, self.tables.rollups)
        self.dirty_hours = quoted(dialect, self.tables.dirty_hours)

    def name(self, column: str) -> str:
        """A column."""
        return quoted(self.dialect, column)

    def key(self, column: str) -> str:
        """A column's value as a roll-up has it: '' for NULL, else with a `|` behind it.

        No database then takes two different ones for the same: MySQL ignores spaces at the end.
        """
        name = self.name(column)
        joined = f"CONCAT({name}, '|')" if self.dialect == "mysql" else f"{name} || '|'"
        return f"CASE WHEN {name} IS NULL THEN '' ELSE {joined} END"

    def period(self, seconds: int) -> str:
        """The number of the period of so many seconds in which a row arrived, from the year 1 on."""
        name = self.name("timestamp")
        if self.dialect == "sqlite":
            return f"(CAST(strftime('%s', {name}) AS INTEGER) + {_SINCE_YEAR_1}) / {seconds}"
        if self.dialect == "mysql":
            return f"TIMESTAMPDIFF(SECOND, '0001-01-01', {name}) DIV {seconds}"
        return f"CAST(floor((extract(epoch FROM {name}) + {_SINCE_YEAR_1}) / {seconds}) AS BIGINT)"

    def bucket(self, column: str) -> str:
        """The bucket of a duration, as `stats.histogram.bucket` has it; NULL for NULL."""
        name = self.name(column)
        cases = [f"WHEN {name} < 0 THEN 0 WHEN {name} < {EXACT} THEN {name}"]
        cases += [
            f"WHEN {name} < {EXACT << shift} THEN {shift * HALF} + ({name} >> {shift})"
            for shift in range(1, OCTAVES + 1)
        ]
        last = OCTAVES * HALF + EXACT - 1
        return f"CASE {' '.join(cases)} WHEN {name} IS NOT NULL THEN {last} END"

    def counted(self, pairs: tuple[str, str]) -> str:
        """An aggregate: a JSON object of keys and values that are numbers."""
        key, value = pairs
        if self.dialect == "mysql":
            return f"JSON_OBJECTAGG({key}, {value})"  # GROUP_CONCAT's length has a limit
        concat = "group_concat" if self.dialect == "sqlite" else "string_agg"
        return f"""'{{' || {concat}('"' || {key} || '":' || {value}, ',') || '}}'"""

    def listed(self, number: str) -> str:
        """An aggregate: the numbers, with commas between them; not of MySQL, where that has a limit."""
        return f"group_concat({number})" if self.dialect == "sqlite" else f"string_agg(CAST({number} AS TEXT), ',')"

    def whole(self, number: str) -> list[Weighed]:
        """The parts of an integer."""
        if self.dialect == "sqlite":
            return [(f"{number} >> 32", _LOW), (f"{number} & {_LOW - 1}", 1)]
        return [(number, 1)]

    def money(self, alias: str) -> list[Weighed]:
        """The parts of an amount, in billionths; what `exact` says is called so, with a number behind it."""
        if self.dialect != "sqlite":
            return [(f"{alias}0 * {_NANOS}", 1)]
        return [(f"{alias}0 / {_NANOS}", _NANOS**2), (f"{alias}0 % {_NANOS}", _NANOS), (f"{alias}1", 1)]

    def exact(self, column: str) -> list[str]:
        """What an amount is sorted by; for SQLite, which has text there, its whole sats and its billionths."""
        name = self.name(column)
        if self.dialect != "sqlite":
            return [name]
        sign = f"CASE WHEN {name} < '0' THEN '-' ELSE '' END"
        return [f"CAST({name} AS INTEGER)", f"CAST({sign} || substr({name}, -9) AS INTEGER)"]

    def between(self, asking: SqlParameters, since: Any, until: Any) -> str:
        """The condition for when a row arrived; the bounds as the driver takes them."""
        name = self.name("timestamp")
        return f"{name} >= {asking.add(since)} AND {name} < {asking.add(until)}"

    def counting(self, asking: SqlParameters, conditions: Iterable[str], limit: int) -> str:
        """A statement: how many rows fit, counted up to a limit; the conditions' parameters are `asking`'s."""
        inner = f"SELECT 1 AS one FROM {self.requests} WHERE {' AND '.join(conditions)} LIMIT {asking.add(limit)}"  # noqa: S608
        return f"SELECT count(*) FROM ({inner}) found"  # noqa: S608

    def fits(self, asking: SqlParameters, filters: Filters) -> list[str]:
        """The conditions of filters."""
        found: list[str] = []
        for column, value in filters.given.items():
            if column == "status":
                found.append(self._has_status(asking, value))
            else:
                found.append(self.equals(asking, column, value))
        return found

    def equals(self, asking: SqlParameters, column: str, value: Any) -> str:
        """The condition that a column has this value, exactly."""
        name, kind = self.name(column), _KINDS[column]
        if kind.kind is Kind.BOOLEAN:
            return f"{name} = {asking.add(bool(value))}"
        if kind.kind is Kind.IDENTIFIER:
            return f"{name} = {asking.add(values.identifier(value, kind.length))}"
        value = values.text(value, kind.length)
        found = f"{name} = {asking.add(value)}"
        if self.dialect == "mysql":  # 'a' = 'a ' there
            found += f" AND CAST({name} AS BINARY) = CAST({asking.add(value)} AS BINARY)"
        return found

    def _has_status(self, asking: SqlParameters, status: int) -> str:
        number = values.integer(status)
        name = self.name("error_status")
        found = f"{name} = {asking.add(number)}"
        if number == 200:
            return f"({found} OR ({name} IS NULL AND {self.name('success')} = {asking.add(True)}))"
        return found


def key_of(value: str | None) -> str:
    """The value of a column as a roll-up has it."""
    return "" if value is None else f"{values.text(value, 255)}|"


def value_of(key: str) -> str | None:
    """And back."""
    return key[:-1] if key else None
