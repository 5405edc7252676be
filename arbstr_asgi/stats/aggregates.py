"""The SQL statement that aggregates rows by several groupings at once, and the parser of its result."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.totals import DURATIONS, NAMES, POSITIONS, Totals

Grouping = tuple[str, ...]

IN_MEMORY_ROWS = 100_000  # rows
_KEY_COLUMNS = 4  # index of the grouping, two keys, period
_SOURCE = _KEY_COLUMNS + len(DURATIONS)  # the column after the histograms
_TOTAL = _SOURCE + 1


class Cell(NamedTuple):
    """A group in a period: index of the grouping, keys as in roll-ups, number of the period (0: none)."""

    grouping: int
    keys: tuple[str, ...]
    period: int


class Aggregate:
    """Aggregates rows by each of `groupings` and, with `seconds`, by periods of that length.

    `in_memory`: durations are fetched as lists and counted into histograms here, which is faster up to IN_MEMORY_ROWS;
    otherwise the database counts the buckets.
    """

    def __init__(
        self, sql_dialect: SqlDialect, groupings: Sequence[Grouping], seconds: int = 0, *, in_memory: bool = False
    ) -> None:
        self._sql_dialect = sql_dialect
        self._groupings = groupings
        self._seconds = seconds
        self._in_memory = in_memory and sql_dialect.dialect != "mysql"
        self._parts = _parts(sql_dialect, () if self._in_memory else DURATIONS)
        self._places_by_source: dict[str | None, list[tuple[int, int | None, int]]] = {}

    def sql(self, params: SqlParameters, conditions: Iterable[str]) -> str:
        """The statement; `params` holds the parameters of the conditions."""
        once = "" if self._sql_dialect.dialect == "mysql" or len(self._groupings) == 1 else "MATERIALIZED "
        selects = []
        for index, grouping in enumerate(self._groupings):
            selects.append(self._sums(index, grouping))
            if not self._in_memory:
                selects += [self._histogram(index, grouping, name) for name in DURATIONS]
        return (
            f"WITH r AS {once}(SELECT {self._columns()} FROM {self._sql_dialect.requests} "  # noqa: S608 - no values
            f"WHERE {' AND '.join(conditions)}) {' UNION ALL '.join(selects)}"
        )

    def read_cell(self, row: Sequence[Any]) -> tuple[Cell, int]:
        """The cell of a result row, and the number of ledger rows in it."""
        index, key1, key2, period = row[:_KEY_COLUMNS]
        return Cell(index, (key1, key2)[: len(self._groupings[index])], period or 0), int(row[_TOTAL] or 0)

    def add_rows(self, rows: Iterable[Sequence[Any]], into: dict[Cell, Totals]) -> None:
        """Add result rows to the totals by cell."""
        for row in rows:
            read_cell, _ = self.read_cell(row)
            read_totals, known = self.read_totals(row), into.get(read_cell)
            into[read_cell] = read_totals if known is None else Totals.sum((known, read_totals))

    def read_totals(self, row: Sequence[Any]) -> Totals:
        """The totals in one result row."""
        sums, histograms = [0] * len(NAMES), []
        for name, json_object_agg in zip(DURATIONS, row[_KEY_COLUMNS:_SOURCE], strict=True):
            result = histogram.Histogram()
            if json_object_agg is not None and self._in_memory:
                result, sums[POSITIONS[name]] = histogram.count(json_object_agg)
            elif json_object_agg is not None:
                result = histogram.decode(json_object_agg)
            histograms.append(result)
        source, *numbers = row[_SOURCE:]
        for number, (index, of_source, weight) in zip(numbers, self._places(source), strict=True):
            if number is not None:
                amount = int(number) * weight
                sums[index] += amount
                if of_source is not None:
                    sums[of_source] += amount
        return Totals(tuple(sums), tuple(histograms))

    def merge_rows(self, rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
        """Merge result rows of all cells into as few as possible; their key columns become None."""
        by_source: dict[str | None, list[Sequence[Any]]] = {}
        if not self._in_memory:  # only lists can be merged
            return [*rows]
        for row in rows:
            by_source.setdefault(row[_SOURCE], []).append(row)
        result: list[Sequence[Any]] = []
        for source, group in by_source.items():
            columns = [*zip(*group, strict=True)]
            list_agg = [",".join(filter(None, column)) or None for column in columns[_KEY_COLUMNS:_SOURCE]]
            sums = [sum(map(int, filter(None, column))) for column in columns[_TOTAL:]]
            result.append([*[None] * _KEY_COLUMNS, *list_agg, source, *sums])
        return result

    def _places(self, source: str | None) -> list[tuple[int, int | None, int]]:
        """For each summed expression the positions in `Totals.sums` that it adds to, and its weight."""
        result = self._places_by_source.get(source)
        if result is None:
            result = [(POSITIONS[name], POSITIONS.get(f"{name}:{source}"), weight) for name, _, weight in self._parts]
            self._places_by_source[source] = result
        return result

    def _columns(self) -> str:
        result, name = self._sql_dialect, self._sql_dialect.name
        keys = sorted({column for grouping in self._groupings for column in grouping})
        columns = [f"{result.key(key)} AS k_{key}" for key in keys]
        if self._seconds:
            columns.append(f"{result.period(self._seconds)} AS period")
        columns.append(f"{name('usage_source')} AS source")
        columns += [f"{expression} AS {alias}" for alias, expression in _columns(result).items()]
        if not self._in_memory:
            columns += [f"{result.bucket(duration)} AS b_{duration}" for duration in DURATIONS]
        return ", ".join(columns)

    def _key_columns(self, index: int, grouping: Grouping) -> tuple[str, str]:
        """The first columns of a SELECT, and those of them to group by."""
        keys = [f"k_{name}" for name in grouping]
        period = ["period"] if self._seconds else []
        key_columns = [str(index), *keys, *["''"] * (2 - len(keys)), *(period or ["0"])]
        return ", ".join(key_columns), ", ".join([*keys, *period])

    def _sums(self, index: int, grouping: Grouping) -> str:
        key_columns, group_by = self._key_columns(index, grouping)
        list_agg = [self._sql_dialect.list_agg(f"d_{name}") if self._in_memory else "NULL" for name in DURATIONS]
        sums = ", ".join([*list_agg, "source", *(f"sum({part})" for _, part, _ in self._parts)])
        return f"SELECT {key_columns}, {sums} FROM r GROUP BY {group_by + ', ' if group_by else ''}source"  # noqa: S608

    def _histogram(self, index: int, grouping: Grouping, duration: str) -> str:
        key_columns, group_by = self._key_columns(index, grouping)
        inner = f"SELECT {group_by + ', ' if group_by else ''}b_{duration} AS b, count(*) AS n FROM r "  # noqa: S608
        inner += f"WHERE b_{duration} IS NOT NULL GROUP BY {group_by + ', ' if group_by else ''}b_{duration}"
        json_object_agg = self._sql_dialect.json_object_agg(("b", "n"))
        result = ", ".join([*(json_object_agg if name == duration else "NULL" for name in DURATIONS), "NULL"])
        result += ", NULL" * len(self._parts)
        grouped = f"GROUP BY {group_by}" if group_by else "HAVING count(*) > 0"
        return f"SELECT {key_columns}, {result} FROM ({inner}) h {grouped}"  # noqa: S608


def _columns(sql_dialect: SqlDialect) -> dict[str, str]:
    """The expressions to sum, by the alias that `_parts` uses."""
    name = sql_dialect.name
    failed = f"{name('success')} = FALSE AND {name('end_reason')} <> 'in_flight'"
    result = {
        "success": f"CASE WHEN {name('success')} THEN 1 ELSE 0 END",
        "error": f"CASE WHEN {failed} THEN 1 ELSE 0 END",
        "streaming": f"CASE WHEN {name('streaming')} THEN 1 ELSE 0 END",
        "input": name("input_tokens"),
        "output": name("output_tokens"),
        **{f"d_{duration}": name(duration) for duration in DURATIONS},
    }
    sort_keys = zip(sql_dialect.sort_keys("cost_sats"), sql_dialect.sort_keys("dearest_cost_sats"), strict=True)
    for index, (cost, dearest) in enumerate(sort_keys):
        result |= {f"cost{index}": cost, f"saved{index}": f"{dearest} - {cost}"}  # NULL if either is
    return result


def _parts(sql_dialect: SqlDialect, durations: Iterable[str]) -> list[tuple[str, str, int]]:
    """The name in `NAMES`, the expression to sum, and the weight of its sum."""
    result = [("total", "1", 1), *((name, name, 1) for name in ("success", "error", "streaming"))]
    result.append(("priced", "CASE WHEN cost0 IS NOT NULL THEN 1 END", 1))
    for name in ("input", "output"):
        result += [(name, part, weight) for part, weight in sql_dialect.integer_parts(name)]
    result += [("cost", part, weight) for part, weight in sql_dialect.money_parts("cost")]
    result += [("savings", part, weight) for part, weight in sql_dialect.money_parts("saved")]
    for duration in durations:
        result += [(duration, part, weight) for part, weight in sql_dialect.integer_parts(f"d_{duration}")]
    assert {known for known, _, _ in result} <= set(NAMES)
    return result
