"""Totals of rows (sums and histograms) that can be added, and the statistics computed from them."""

from collections.abc import Iterable
from decimal import Context, Decimal
from typing import NamedTuple

import msgspec

from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.histogram import Histogram
from arbstr_asgi.stats.query import SOURCES, Percentiles, Stats

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
POSITIONS = {name: place for place, name in enumerate(NAMES)}
TOTALS_PER_BATCH = 40  # parsed or built per turn of the event loop
_EXACT = Context(prec=200)
_SUMS = msgspec.json.Decoder(tuple[int, ...])


class Totals(NamedTuple):
    """Sums in the order of `NAMES`, and a histogram for each of `DURATIONS`."""

    sums: tuple[int, ...]
    histograms: tuple[Histogram, ...]

    @classmethod
    def empty(cls) -> "Totals":
        """The totals of no rows."""
        return cls((0,) * len(NAMES), (Histogram(),) * len(DURATIONS))

    @classmethod
    def sum(cls, parts: Iterable["Totals"]) -> "Totals":
        """Add totals of disjoint sets of rows."""
        sums, histograms = zip(*parts, strict=True)
        return cls(
            tuple(map(sum, zip(*sums, strict=True))), tuple(map(histogram.add_all, zip(*histograms, strict=True)))
        )

    @classmethod
    def decode(cls, sums: str, *histograms: str) -> "Totals":
        """Parse the texts of `encode`."""
        return cls(_SUMS.decode(sums), tuple(map(histogram.decode, histograms)))

    def encode(self) -> tuple[str, ...]:
        """The sums as compact JSON, then each histogram as text; equal for equal totals."""
        return f"[{','.join(map(str, self.sums))}]", *map(histogram.encode, self.histograms)

    @property
    def total(self) -> int:
        """The number of rows."""
        return self.sums[0]

    def figures(self) -> Stats:
        """The statistics of these rows."""
        sums_by_name = dict(zip(NAMES, self.sums, strict=True))
        percentiles = [
            _percentiles(sums_by_name[name], buckets) for name, buckets in zip(DURATIONS, self.histograms, strict=True)
        ]
        return Stats(
            total=sums_by_name["total"],
            success=sums_by_name["success"],
            error=sums_by_name["error"],
            streaming=sums_by_name["streaming"],
            input_tokens=sums_by_name["input"],
            output_tokens=sums_by_name["output"],
            tokens={source: (sums_by_name[f"input:{source}"], sums_by_name[f"output:{source}"]) for source in SOURCES},
            cost_sats=_sats(sums_by_name["cost"]),
            priced=sums_by_name["priced"],
            savings_sats=_sats(sums_by_name["savings"]),
            latency_ms=percentiles[0],
            ttft_ms=percentiles[1],
            stream_duration_ms=percentiles[2],
        )


def _sats(nanos: int) -> Decimal:
    return Decimal(nanos).scaleb(-9, context=_EXACT)


def _percentiles(total: int, buckets: Histogram) -> Percentiles:
    count, percentiles = histogram.percentiles(buckets, 50, 95, 99)
    return Percentiles(total / count, *percentiles) if count else Percentiles()
