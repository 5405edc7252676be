"""How pages are sorted, and where the next one begins; values are always parameters."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.fragments import SqlParameters, SqlDialect
from arbstr_asgi.stats import Cursor, RequestsQuery


class Segment(NamedTuple):
    """A part of all rows, in their order: a condition and what to sort by."""

    condition: str
    order: str


class KeysetOrder:
    """Of one query. `walks`: along the index of the sorted column, not of the time; for SQLite, which can't know."""

    def __init__(self, driver: Driver, fragments: SqlDialect, query: RequestsQuery, *, walks: bool) -> None:
        self._driver = driver
        self._fragments = fragments
        self._query = query
        self._use_sort_index = walks

    def segments(self) -> Iterator[tuple[SqlParameters, Segment]]:
        """One after the other they are the rows that are asked for; each with the parameters that it begins with.

        What has no value comes last, so that the other rows are found by an index that has only them.
        """
        columns, after = self._columns(), self._query.after
        known, unknown = f"{self._name} IS NOT NULL", f"{self._name} IS NULL"
        asking = SqlParameters(self._driver.dialect)
        if after is not None and after.value is None:
            yield asking, Segment(f"{unknown} AND id {self._sign} {asking.add(after.id)}", self._order([]))
            return
        behind = known if after is None else f"{known} AND {self._behind(asking, columns, after)}"
        yield asking, Segment(behind, self._order(columns))
        if self._query.sort != "timestamp":
            yield SqlParameters(self._driver.dialect), Segment(unknown, self._order([]))

    def conditions(self, asking: SqlParameters) -> list[str]:
        """For the time and the filters."""
        moment, query = self._driver.read_timestamp, self._query
        found = [
            self._fragments.between(asking, moment(query.since), moment(query.until)),
            *self._fragments.fits(asking, query.filters),
        ]
        if self._driver.dialect != "sqlite" or not self._use_sort_index:
            return found
        indexed = [self._fragments.name(name) for name in ("timestamp", "end_user", "end_reason")]
        return [_aside(condition, indexed) for condition in found]

    @property
    def _name(self) -> str:
        return self._fragments.name(self._query.sort)

    @property
    def _sign(self) -> str:
        return "<" if self._query.descending else ">"

    def _columns(self) -> list[str]:
        columns = self._fragments.exact(self._query.sort) if self._query.sort == "cost_sats" else [self._name]
        if self._driver.dialect == "sqlite" and self._query.sort != "timestamp" and not self._use_sort_index:
            return [f"+{column}" for column in columns]
        return columns

    def _order(self, columns: list[str]) -> str:
        way = "DESC" if self._query.descending else "ASC"
        return ", ".join(f"{column} {way}" for column in [*columns, "id"])

    def _behind(self, asking: SqlParameters, columns: list[str], after: Cursor) -> str:
        """Behind a row; said so that each database finds the place in its index by the first column."""
        sign, parts = self._sign, self._parts(after.value)
        first = f"{columns[0]} {sign}= {asking.add(parts[0])}"
        opened = [
            f"({column} {sign} {asking.add(part)} OR ({column} = {asking.add(part)} AND "
            for column, part in zip(columns, parts, strict=True)
        ]
        return f"{first} AND {''.join(opened)}id {sign} {asking.add(after.id)}{'))' * len(opened)}"

    def _parts(self, value: Any) -> list[Any]:
        if self._query.sort == "timestamp":
            return [self._driver.read_timestamp(values.timestamp(value))]
        if self._query.sort == "latency_ms":
            return [value]
        amount = values.money(value) or Decimal(0)
        if self._driver.dialect != "sqlite":
            return [amount]
        sats = int(amount)
        return [sats, int((amount - sats).scaleb(9))]


def _aside(condition: str, names: list[str]) -> str:
    """The condition with these columns as expressions, which no index of them is used for."""
    for name in names:
        condition = condition.replace(name, f"+{name}")
    return condition
