"""Sums over rows that can be added up further, and the figures that they come to."""

import json
from decimal import Context, Decimal
from typing import NamedTuple

from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.histogram import Histogram
from arbstr_asgi.stats.query import SOURCES, Figures, Spread

DURATIONS = ("latency_ms", "ttft_ms", "stream_duration_ms")
COUNTS = ("total", "success", "error", "streaming", "priced")
NAMES = (
    *COUNTS,
    "input",
    "output",
    *(f"{way}:{source}" for source in SOURCES for way in ("input", "output")),
    "cost",  # in billionths of a sat
    "savings",
    *DURATIONS,
)
PLACES = {name: place for place, name in enumerate(NAMES)}
_EXACT = Context(prec=200)


class Tally(NamedTuple):
    """The sums, in the order of `NAMES`, and a histogram for each of `DURATIONS`."""

    sums: list[int]
    histograms: tuple[Histogram, Histogram, Histogram]

    @classmethod
    def empty(cls) -> "Tally":
        """Of no rows."""
        return cls([0] * len(NAMES), ({}, {}, {}))

    @classmethod
    def decode(cls, sums: str, *histograms: str) -> "Tally":
        """What `encode` wrote."""
        latency, ttft, duration = map(histogram.decode, histograms)
        return cls(json.loads(sums), (latency, ttft, duration))

    def encode(self) -> tuple[str, str, str, str]:
        """The sums and the histograms as compact JSON, the same for equal ones."""
        latency, ttft, duration = map(histogram.encode, self.histograms)
        return json.dumps(self.sums, separators=(",", ":")), latency, ttft, duration

    @property
    def total(self) -> int:
        """How many rows."""
        return self.sums[0]

    def add(self, other: "Tally") -> None:
        """Count the rows of `other` as well."""
        self.sums[:] = [one + more for one, more in zip(self.sums, other.sums, strict=True)]
        for to, more in zip(self.histograms, other.histograms, strict=True):
            histogram.add(to, more)

    def figures(self) -> Figures:
        """What they come to."""
        found = dict(zip(NAMES, self.sums, strict=True))
        spreads = [_spread(found[name], one) for name, one in zip(DURATIONS, self.histograms, strict=True)]
        return Figures(
            total=found["total"],
            success=found["success"],
            error=found["error"],
            streaming=found["streaming"],
            input_tokens=found["input"],
            output_tokens=found["output"],
            tokens={source: (found[f"input:{source}"], found[f"output:{source}"]) for source in SOURCES},
            cost_sats=_sats(found["cost"]),
            priced=found["priced"],
            savings_sats=_sats(found["savings"]),
            latency_ms=spreads[0],
            ttft_ms=spreads[1],
            stream_duration_ms=spreads[2],
        )


def _sats(nanos: int) -> Decimal:
    return Decimal(nanos).scaleb(-9, context=_EXACT)


def _spread(total: int, counted: Histogram) -> Spread:
    count = sum(counted.values())
    return Spread(total / count, *histogram.percentiles(counted, 50, 95, 99)) if count else Spread()
