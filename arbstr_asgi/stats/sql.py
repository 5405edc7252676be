"""Builds the SQL of statistics in each dialect; values are always parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import COLUMNS, Kind
from arbstr_asgi.database.statements import placeholders, quoted, table_names
from arbstr_asgi.stats.histogram import BUCKETS_PER_OCTAVE, EXACT_BELOW, OCTAVES
from arbstr_asgi.stats.query import Filters

_KINDS = {column.name: column for column in COLUMNS}
_SECONDS_BEFORE_1970 = 62_135_596_800  # seconds until 1970
_LOW_WORD = 2**32
_NANOS = 10**9

WeightedPart = tuple[str, int]
"""An expression to sum and the weight of its sum; in parts no sum exceeds 64 bits."""


@dataclass(slots=True)
class SqlParameters:
    """The parameters of one statement, in order."""

    dialect: str
    values: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> str:
        """Add a value; returns its placeholder."""
        self.values.append(value)
        return placeholders(self.dialect)(len(self.values) - 1)

    def add_all(self, values_list: Sequence[Any]) -> str:
        """Add several values; returns their placeholders, separated by commas."""
        return ", ".join([self.add(value) for value in values_list])


class SqlDialect:
    """SQL expressions for one dialect and the tables of one prefix."""

    def __init__(self, dialect: str, prefix: str) -> None:
        self.dialect = dialect
        self.tables = table_names(prefix)
        self.requests = quoted(dialect, self.tables.requests)
        self.attempts = quoted(dialect, self.tables.attempts)
        self.rollups = quoted(dialect, self.tables.rollups)
        self.dirty_hours = quoted(dialect, self.tables.dirty_hours)

    def name(self, column: str) -> str:
        """A column name in quotes."""
        return quoted(self.dialect, column)

    def key(self, column: str) -> str:
        """A column as a key of roll-ups: '' for NULL, else the value and `|`.

        The `|` keeps values distinct that differ in trailing spaces, which MySQL ignores.
        """
        name = self.name(column)
        joined = f"CONCAT({name}, '|')" if self.dialect == "mysql" else f"{name} || '|'"
        return f"CASE WHEN {name} IS NULL THEN '' ELSE {joined} END"

    def period(self, seconds: int) -> str:
        """The number of the period of `seconds` in which a row arrived, counted from the year 1."""
        name = self.name("timestamp")
        if self.dialect == "sqlite":
            return f"(CAST(strftime('%s', {name}) AS INTEGER) + {_SECONDS_BEFORE_1970}) / {seconds}"
        if self.dialect == "mysql":
            return f"TIMESTAMPDIFF(SECOND, '0001-01-01', {name}) DIV {seconds}"
        return f"CAST(floor((extract(epoch FROM {name}) + {_SECONDS_BEFORE_1970}) / {seconds}) AS BIGINT)"

    def bucket(self, column: str) -> str:
        """The histogram bucket of a duration (see `stats.histogram.bucket`); NULL for NULL."""
        name = self.name(column)
        cases = [f"WHEN {name} < 0 THEN 0 WHEN {name} < {EXACT_BELOW} THEN {name}"]
        cases += [
            f"WHEN {name} < {EXACT_BELOW << shift} THEN {shift * BUCKETS_PER_OCTAVE} + ({name} >> {shift})"
            for shift in range(1, OCTAVES + 1)
        ]
        last = OCTAVES * BUCKETS_PER_OCTAVE + EXACT_BELOW - 1
        return f"CASE {' '.join(cases)} WHEN {name} IS NOT NULL THEN {last} END"

    def json_object_agg(self, pairs: tuple[str, str]) -> str:
        """An aggregate: a JSON object of numeric keys and values."""
        key, value = pairs
        if self.dialect == "mysql":
            return f"JSON_OBJECTAGG({key}, {value})"  # GROUP_CONCAT's length has a limit
        concat = "group_concat" if self.dialect == "sqlite" else "string_agg"
        return f"""'{{' || {concat}('"' || {key} || '":' || {value}, ',') || '}}'"""

    def list_agg(self, number: str) -> str:
        """An aggregate: comma-separated numbers; not on MySQL, which limits the length."""
        return f"group_concat({number})" if self.dialect == "sqlite" else f"string_agg(CAST({number} AS TEXT), ',')"

    def integer_parts(self, number: str) -> list[WeightedPart]:
        """The parts of an integer to sum."""
        if self.dialect == "sqlite":
            return [(f"{number} >> 32", _LOW_WORD), (f"{number} & {_LOW_WORD - 1}", 1)]
        return [(number, 1)]

    def money_parts(self, alias: str) -> list[WeightedPart]:
        """The parts of an amount to sum, in billionths; `alias` and a number name the expressions of `sort_keys`."""
        if self.dialect != "sqlite":
            return [(f"{alias}0 * {_NANOS}", 1)]
        return [(f"{alias}0 / {_NANOS}", _NANOS**2), (f"{alias}0 % {_NANOS}", _NANOS), (f"{alias}1", 1)]

    def sort_keys(self, column: str) -> list[str]:
        """The expressions that sort by an amount; on SQLite, which stores text, whole sats and billionths."""
        name = self.name(column)
        if self.dialect != "sqlite":
            return [name]
        sign = f"CASE WHEN {name} < '0' THEN '-' ELSE '' END"
        return [f"CAST({name} AS INTEGER)", f"CAST({sign} || substr({name}, -9) AS INTEGER)"]

    def between(self, params: SqlParameters, since: Any, until: Any) -> str:
        """The condition that a row arrived in `since <= t < until`, bounds as the driver accepts them."""
        name = self.name("timestamp")
        return f"{name} >= {params.add(since)} AND {name} < {params.add(until)}"

    def count_up_to(self, params: SqlParameters, conditions: Iterable[str], limit: int) -> str:
        """A statement that counts matching rows up to a limit; `params` holds the parameters of the conditions."""
        inner = f"SELECT 1 AS one FROM {self.requests} WHERE {' AND '.join(conditions)} LIMIT {params.add(limit)}"  # noqa: S608
        return f"SELECT count(*) FROM ({inner}) found"  # noqa: S608

    def filter_conditions(self, params: SqlParameters, filters: Filters) -> list[str]:
        """The conditions of filters."""
        result: list[str] = []
        for column, value in filters.given.items():
            if column == "status":
                result.append(self._status_condition(params, value))
            else:
                result.append(self.equals(params, column, value))
        return result

    def equals(self, params: SqlParameters, column: str, value: Any) -> str:
        """The condition that a column equals this value exactly."""
        name, kind = self.name(column), _KINDS[column]
        if kind.kind is Kind.BOOLEAN:
            return f"{name} = {params.add(bool(value))}"
        if kind.kind is Kind.IDENTIFIER:
            return f"{name} = {params.add(values.identifier(value, kind.length))}"
        value = values.name(value) if kind.kind is Kind.NAME else values.text(value, kind.length)
        result = f"{name} = {params.add(value)}"
        if self.dialect == "mysql":  # 'a' = 'a ' there
            result += f" AND CAST({name} AS BINARY) = CAST({params.add(value)} AS BINARY)"
        return result

    def _status_condition(self, params: SqlParameters, status: int) -> str:
        number = values.integer(status)
        name = self.name("error_status")
        result = f"{name} = {params.add(number)}"
        if number == 200:
            return f"({result} OR ({name} IS NULL AND {self.name('success')} = {params.add(True)}))"
        return result


def key_of(value: str | None) -> str:
    """A column value as a key of roll-ups."""
    return "" if value is None else f"{values.text(value, 255)}|"


def value_of(key: str) -> str | None:
    """A key of roll-ups as a column value."""
    return key[:-1] if key else None
