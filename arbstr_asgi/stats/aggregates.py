"""One statement that sums rows up, for several groupings at once, and how its answer is read."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.totals import DURATIONS, NAMES, PLACES, Totals

Grouping = tuple[str, ...]

FEW = 100_000  # rows, of which a list may be in memory
_HEAD = 4  # columns: the place of the grouping, two keys, and the period
_SOURCE = _HEAD + len(DURATIONS)  # behind the histograms
_TOTAL = _SOURCE + 1


class Cell(NamedTuple):
    """Which rows a tally is of: the place of the grouping, its keys as roll-ups have them, and the period or 0."""

    grouping: int
    keys: tuple[str, ...]
    period: int


class Aggregate:
    """Sums, by each of `groupings` and, with `seconds`, by periods of that length.

    `few`: the durations are counted here and not by the database, which is faster as long as they fit into memory.
    """

    def __init__(
        self, fragments: SqlDialect, groupings: Sequence[Grouping], seconds: int = 0, *, few: bool = False
    ) -> None:
        self._fragments = fragments
        self._groupings = groupings
        self._seconds = seconds
        self._few = few and fragments.dialect != "mysql"
        self._parts = _parts(fragments, () if self._few else DURATIONS)
        self._known: dict[str | None, list[tuple[int, int | None, int]]] = {}

    def sql(self, asking: SqlParameters, conditions: Iterable[str]) -> str:
        """The statement; the conditions' parameters are `asking`'s."""
        once = "" if self._fragments.dialect == "mysql" or len(self._groupings) == 1 else "MATERIALIZED "
        selects = []
        for place, grouping in enumerate(self._groupings):
            selects.append(self._sums(place, grouping))
            if not self._few:
                selects += [self._histogram(place, grouping, name) for name in DURATIONS]
        return (
            f"WITH r AS {once}(SELECT {self._columns()} FROM {self._fragments.requests} "  # noqa: S608 - no values
            f"WHERE {' AND '.join(conditions)}) {' UNION ALL '.join(selects)}"
        )

    def cell(self, row: Sequence[Any]) -> tuple[Cell, int]:
        """What a row of the answer is about, and how many rows of the ledger it adds."""
        place, key1, key2, period = row[:_HEAD]
        return Cell(place, (key1, key2)[: len(self._groupings[place])], period or 0), int(row[_TOTAL] or 0)

    def read(self, rows: Iterable[Sequence[Any]], into: dict[Cell, Totals]) -> None:
        """Add what the statement has found."""
        for row in rows:
            cell, _ = self.cell(row)
            tally, known = self.tally(row), into.get(cell)
            into[cell] = tally if known is None else Totals.sum((known, tally))

    def tally(self, row: Sequence[Any]) -> Totals:
        """What a row of the answer adds to its cell."""
        sums, histograms = [0] * len(NAMES), []
        for name, counted in zip(DURATIONS, row[_HEAD:_SOURCE], strict=True):
            found = histogram.Histogram()
            if counted is not None and self._few:
                found, sums[PLACES[name]] = histogram.count(counted)
            elif counted is not None:
                found = histogram.decode(counted)
            histograms.append(found)
        source, *numbers = row[_SOURCE:]
        for number, (place, of_source, weight) in zip(numbers, self._places(source), strict=True):
            if number is not None:
                amount = int(number) * weight
                sums[place] += amount
                if of_source is not None:
                    sums[of_source] += amount
        return Totals(tuple(sums), tuple(histograms))

    def together(self, rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
        """As few rows that add the same to all cells together; of their first columns nothing is left."""
        by_source: dict[str | None, list[Sequence[Any]]] = {}
        if not self._few:  # what is counted already can't be put together as text
            return [*rows]
        for row in rows:
            by_source.setdefault(row[_SOURCE], []).append(row)
        found: list[Sequence[Any]] = []
        for source, some in by_source.items():
            columns = [*zip(*some, strict=True)]
            listed = [",".join(filter(None, column)) or None for column in columns[_HEAD:_SOURCE]]
            sums = [sum(map(int, filter(None, column))) for column in columns[_TOTAL:]]
            found.append([*[None] * _HEAD, *listed, source, *sums])
        return found

    def _places(self, source: str | None) -> list[tuple[int, int | None, int]]:
        """For each part the places in a tally's sums that it adds to, and its weight."""
        found = self._known.get(source)
        if found is None:
            found = [(PLACES[name], PLACES.get(f"{name}:{source}"), weight) for name, _, weight in self._parts]
            self._known[source] = found
        return found

    def _columns(self) -> str:
        found, name = self._fragments, self._fragments.name
        keys = sorted({column for grouping in self._groupings for column in grouping})
        columns = [f"{found.key(key)} AS k_{key}" for key in keys]
        if self._seconds:
            columns.append(f"{found.period(self._seconds)} AS period")
        columns.append(f"{name('usage_source')} AS source")
        columns += [f"{expression} AS {alias}" for alias, expression in _columns(found).items()]
        if not self._few:
            columns += [f"{found.bucket(duration)} AS b_{duration}" for duration in DURATIONS]
        return ", ".join(columns)

    def _head(self, place: int, grouping: Grouping) -> tuple[str, str]:
        """The first columns, and those of them that group."""
        keys = [f"k_{name}" for name in grouping]
        period = ["period"] if self._seconds else []
        head = [str(place), *keys, *["''"] * (2 - len(keys)), *(period or ["0"])]
        return ", ".join(head), ", ".join([*keys, *period])

    def _sums(self, place: int, grouping: Grouping) -> str:
        head, by = self._head(place, grouping)
        listed = [self._fragments.listed(f"d_{name}") if self._few else "NULL" for name in DURATIONS]
        sums = ", ".join([*listed, "source", *(f"sum({part})" for _, part, _ in self._parts)])
        return f"SELECT {head}, {sums} FROM r GROUP BY {by + ', ' if by else ''}source"  # noqa: S608

    def _histogram(self, place: int, grouping: Grouping, duration: str) -> str:
        head, by = self._head(place, grouping)
        inner = f"SELECT {by + ', ' if by else ''}b_{duration} AS b, count(*) AS n FROM r "  # noqa: S608
        inner += f"WHERE b_{duration} IS NOT NULL GROUP BY {by + ', ' if by else ''}b_{duration}"
        counted = self._fragments.counted(("b", "n"))
        found = ", ".join([*(counted if name == duration else "NULL" for name in DURATIONS), "NULL"])
        found += ", NULL" * len(self._parts)
        grouped = f"GROUP BY {by}" if by else "HAVING count(*) > 0"
        return f"SELECT {head}, {found} FROM ({inner}) h {grouped}"  # noqa: S608


def _columns(fragments: SqlDialect) -> dict[str, str]:
    """What of a row goes into sums, by the names that `_parts` has for it."""
    name = fragments.name
    failed = f"{name('success')} = FALSE AND {name('end_reason')} <> 'in_flight'"
    found = {
        "success": f"CASE WHEN {name('success')} THEN 1 ELSE 0 END",
        "error": f"CASE WHEN {failed} THEN 1 ELSE 0 END",
        "streaming": f"CASE WHEN {name('streaming')} THEN 1 ELSE 0 END",
        "input": name("input_tokens"),
        "output": name("output_tokens"),
        **{f"d_{duration}": name(duration) for duration in DURATIONS},
    }
    exact = zip(fragments.exact("cost_sats"), fragments.exact("dearest_cost_sats"), strict=True)
    for place, (cost, dearest) in enumerate(exact):
        found |= {f"cost{place}": cost, f"saved{place}": f"{dearest} - {cost}"}  # NULL where one of them is
    return found


def _parts(fragments: SqlDialect, durations: Iterable[str]) -> list[tuple[str, str, int]]:
    """The name in a tally, what is summed up, and what the sum is multiplied with."""
    found = [("total", "1", 1), *((name, name, 1) for name in ("success", "error", "streaming"))]
    found.append(("priced", "CASE WHEN cost0 IS NOT NULL THEN 1 END", 1))
    for name in ("input", "output"):
        found += [(name, part, weight) for part, weight in fragments.whole(name)]
    found += [("cost", part, weight) for part, weight in fragments.money("cost")]
    found += [("savings", part, weight) for part, weight in fragments.money("saved")]
    for duration in durations:
        found += [(duration, part, weight) for part, weight in fragments.whole(f"d_{duration}")]
    assert {known for known, _, _ in found} <= set(NAMES)
    return found
