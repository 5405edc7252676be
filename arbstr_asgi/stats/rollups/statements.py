"""SQL statements on the tables `rollups` and `dirty_hours`; values are always parameters."""

from collections.abc import Collection, Sequence

from arbstr_asgi.database.columns import ROLLUP_COLUMNS
from arbstr_asgi.database.statements import placeholders
from arbstr_asgi.database.values import Row
from arbstr_asgi.stats.aggregates import Cell
from arbstr_asgi.stats.planner import GROUPINGS, Span
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.totals import Totals

_TEXTS = ", ".join(ROLLUP_COLUMNS[-4:])
MOST_KEYS = 500  # in an IN list


class RollupStatements:
    """Statements for one dialect and one prefix. Periods are those of `planner.PERIODS`, by number."""

    def __init__(self, sql_dialect: SqlDialect) -> None:
        self._sql_dialect = sql_dialect
        self._table = sql_dialect.rollups
        param = placeholders(sql_dialect.dialect)
        table, dirty = self._table, sql_dialect.dirty_hours
        state = f"WHERE period = 'state' AND dimensions = {param(0)}"
        self.state = f"SELECT total FROM {table} {state}"  # noqa: S608
        # total, name, total
        self.raise_state = (
            f"UPDATE {table} SET total = {param(0)} WHERE period = 'state' AND dimensions = {param(1)} "  # noqa: S608
            f"AND total < {param(2)}"
        )
        generation = "WHERE period = 'state' AND dimensions = 'generation'"
        self.generations = f"SELECT key1, total FROM {table} {generation}"  # noqa: S608
        # new generation, period; old generation
        new = f"UPDATE {table} SET total = {param(0)} {generation} AND key1 = {param(1)}"  # noqa: S608
        self.new_generation, self.next_generation = new, f"{new} AND total = {param(2)}"
        # until, owner, now, owner, maximum expiry
        self.take_lease = (
            f"UPDATE {table} SET total = {param(0)}, sums = {param(1)} WHERE period = 'state' AND dimensions = 'lease' "  # noqa: S608
            f"AND (total < {param(2)} OR sums = {param(3)} OR total > {param(4)})"
        )
        within = f"hour >= {param(0)} AND hour < {param(1)}"
        self.dirty = f"SELECT DISTINCT hour FROM {dirty} WHERE {within} ORDER BY hour"  # noqa: S608
        self.marks = f"SELECT writer, mark FROM {dirty} WHERE hour = {param(0)}"  # noqa: S608
        self.unmark = f"DELETE FROM {dirty} WHERE hour = {param(0)} AND writer = {param(1)} AND mark = {param(2)}"  # noqa: S608
        self.forget_marks = f"DELETE FROM {dirty} WHERE hour < {param(0)}"  # noqa: S608
        of_all = f"WHERE period = {param(0)} AND dimensions = '' AND start >= {param(1)} AND start < {param(2)}"
        self.existing_periods = f"SELECT start FROM {table} {of_all} ORDER BY start"  # noqa: S608
        hours = "WHERE period = 'hour' AND dimensions = ''"
        self.everything = f"SELECT coalesce(sum(total), 0) FROM {table} {hours}"  # noqa: S608
        columns = ", ".join(ROLLUP_COLUMNS)
        placeholders_list = ", ".join(param(place) for place in range(len(ROLLUP_COLUMNS)))
        self.insert = f"INSERT INTO {table} ({columns}) VALUES ({placeholders_list})"  # noqa: S608
        # With the dimensions, which lead the key; period, start
        every = ", ".join(f"'{','.join(grouping)}'" for grouping in GROUPINGS)  # constants of ours
        one = f"WHERE period = {param(0)} AND dimensions IN ({every}) AND start = {param(1)}"
        self.delete = f"DELETE FROM {table} {one}"  # noqa: S608
        several = f"WHERE period = 'hour' AND dimensions IN ({every}) AND start >= {param(0)} AND start < {param(1)}"
        self.hours = f"SELECT dimensions, key1, key2, total, {_TEXTS} FROM {table} {several}"  # noqa: S608
        self.forget = f"DELETE FROM {table} WHERE dimensions = 'end_user' AND key1 = {param(0)}"  # noqa: S608

    def row_counts(self, params: SqlParameters, grouping: Sequence[str], span: Span, keys: dict[str, str]) -> str:
        """The number of rows of each pair of keys; `keys` are the filters, by dimension."""
        where = self._where(params, grouping, span, keys)
        return f"SELECT key1, key2, sum(total) FROM {self._table} WHERE {where} GROUP BY key1, key2"  # noqa: S608

    def groups_per_period(
        self, params: SqlParameters, grouping: Sequence[str], span: Span, keys: dict[str, str]
    ) -> str:
        """The number of pairs of keys in each period, in order of time."""
        where = self._where(params, grouping, span, keys)
        return f"SELECT start, count(*) FROM {self._table} WHERE {where} GROUP BY start ORDER BY start"  # noqa: S608

    def rows(
        self,
        params: SqlParameters,
        grouping: Sequence[str],
        span: Span,
        keys: dict[str, str],
        first: Collection[str] = (),
    ) -> str:
        """The roll-ups; restricted to the `first` keys of the first dimension unless there are more than MOST_KEYS."""
        where = self._where(params, grouping, span, keys)
        if 0 < len(first) <= MOST_KEYS:
            where += f" AND key1 IN ({params.add_all(sorted(first))})"
            if span[2] - span[1] <= MOST_KEYS:  # index look-ups instead of a range scan
                where += f" AND start IN ({params.add_all(range(span[1], span[2]))})"
        return f"SELECT start, key1, key2, {_TEXTS} FROM {self._table} WHERE {where}"  # noqa: S608

    def _where(self, params: SqlParameters, grouping: Sequence[str], span: Span, keys: dict[str, str]) -> str:
        period, first, end = span
        result = [
            f"period = {params.add(period)}",
            f"dimensions = {params.add(','.join(grouping))}",
            f"start >= {params.add(first)}",
            f"start < {params.add(end)}",
            *(f"key{grouping.index(name) + 1} = {params.add(key)}" for name, key in keys.items()),
        ]
        return " AND ".join(result)


def row_of(period: str, start: int, cell: Cell, totals: Totals) -> Row:
    """A roll-up as a row of the table."""
    key1, key2 = (*cell.keys, "", "")[:2]
    return period, ",".join(GROUPINGS[cell.grouping]), start, key1, key2, totals.total, *totals.encode()
