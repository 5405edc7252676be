"""One statement that sums rows up, for several groupings at once, and how its answer is read."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from arbstr_asgi.ledger.fragments import Asking, Fragments
from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.tally import DURATIONS, NAMES, PLACES, Tally

Grouping = tuple[str, ...]

_HISTOGRAMS = {f"#{name}": place for place, name in enumerate(DURATIONS)}


class Cell(NamedTuple):
    """Which rows a tally is of: the place of the grouping, its keys as roll-ups have them, and the period or 0."""

    grouping: int
    keys: tuple[str, ...]
    period: int


class Aggregate:
    """Sums, by each of `groupings` and, with `seconds`, by periods of that length."""

    def __init__(self, fragments: Fragments, groupings: Sequence[Grouping], seconds: int = 0) -> None:
        self._fragments = fragments
        self._groupings = groupings
        self._seconds = seconds
        self._parts = _parts(fragments)

    def sql(self, asking: Asking, conditions: Iterable[str]) -> str:
        """The statement; the conditions' parameters are `asking`'s."""
        once = "" if self._fragments.dialect == "mysql" else "MATERIALIZED "
        selects = []
        for place, grouping in enumerate(self._groupings):
            selects.append(self._sums(place, grouping))
            selects += [self._histogram(place, grouping, name) for name in DURATIONS]
        return (
            f"WITH r AS {once}(SELECT {self._columns()} FROM {self._fragments.requests} "  # noqa: S608 - no values
            f"WHERE {' AND '.join(conditions)}) {' UNION ALL '.join(selects)}"
        )

    def read(self, rows: Iterable[Sequence[Any]], into: dict[Cell, Tally]) -> None:
        """Add what the statement has found."""
        for place, key1, key2, period, kind, counted, *numbers in rows:
            keys = (key1, key2)[: len(self._groupings[place])]
            cell = Cell(place, keys, period or 0)
            tally = into.get(cell)
            if tally is None:
                tally = into[cell] = Tally.empty()
            if kind in _HISTOGRAMS:
                histogram.add(tally.histograms[_HISTOGRAMS[kind]], histogram.decode(counted))
            else:
                self._read_sums(kind, numbers, tally.sums)

    def _read_sums(self, source: str, numbers: Sequence[Any], sums: list[int]) -> None:
        for (name, _, weight), number in zip(self._parts, numbers, strict=True):
            if number is not None:
                amount = int(number) * weight
                sums[PLACES[name]] += amount
                of_source = PLACES.get(f"{name}:{source}")
                if of_source is not None:
                    sums[of_source] += amount

    def _columns(self) -> str:
        found, name = self._fragments, self._fragments.name
        keys = sorted({column for grouping in self._groupings for column in grouping})
        columns = [f"{found.key(key)} AS k_{key}" for key in keys]
        if self._seconds:
            columns.append(f"{found.period(self._seconds)} AS period")
        columns.append(f"{name('usage_source')} AS source")
        columns += [f"{expression} AS {alias}" for alias, expression in _columns(found).items()]
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
        sums = ", ".join(f"sum({part})" for _, part, _ in self._parts)
        return f"SELECT {head}, source, NULL, {sums} FROM r GROUP BY {by + ', ' if by else ''}source"  # noqa: S608

    def _histogram(self, place: int, grouping: Grouping, duration: str) -> str:
        head, by = self._head(place, grouping)
        nothing = ", NULL" * len(self._parts)
        inner = f"SELECT {by + ', ' if by else ''}b_{duration} AS b, count(*) AS n FROM r "  # noqa: S608
        inner += f"WHERE b_{duration} IS NOT NULL GROUP BY {by + ', ' if by else ''}b_{duration}"
        found = self._fragments.counted(("b", "n"))
        grouped = f"GROUP BY {by}" if by else "HAVING count(*) > 0"
        return f"SELECT {head}, '#{duration}', {found}{nothing} FROM ({inner}) h {grouped}"  # noqa: S608


def _columns(fragments: Fragments) -> dict[str, str]:
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
    for column in ("cost", "dearest"):
        exact = fragments.exact("cost_sats" if column == "cost" else "dearest_cost_sats")
        found |= {f"{column}{place}": expression for place, expression in enumerate(exact)}
    return found


def _parts(fragments: Fragments) -> list[tuple[str, str, int]]:
    """The name in a tally, what is summed up, and what the sum is multiplied with."""
    found = [("total", "1", 1), *((name, name, 1) for name in ("success", "error", "streaming"))]
    found.append(("priced", "CASE WHEN cost0 IS NOT NULL THEN 1 END", 1))
    for name in ("input", "output"):
        found += [(name, part, weight) for part, weight in fragments.whole(name)]
    for part, weight in fragments.money("cost"):
        found.append(("cost", part, weight))
        found.append(("savings", f"CASE WHEN dearest0 IS NOT NULL THEN {part} END", -weight))
    for part, weight in fragments.money("dearest"):
        found.append(("savings", f"CASE WHEN cost0 IS NOT NULL THEN {part} END", weight))
    for duration in DURATIONS:
        found += [(duration, part, weight) for part, weight in fragments.whole(f"d_{duration}")]
    assert {known for known, _, _ in found} <= set(NAMES)
    return found
