"""Durations counted in buckets, of which any number can be added up: 32 to an octave, exact below 64 ms.

The percentile of a histogram is the middle of the bucket that the exact one is in, so it is off by at most 1/64.
"""

from collections.abc import Mapping
from math import ceil

import msgspec

Histogram = dict[int, int]
"""How many values are in each bucket."""

EXACT = 64  # values below have a bucket each
HALF = EXACT // 2  # buckets to an octave
OCTAVES = 34  # from there on; longer durations (35 years) count as that long
LONGEST = (EXACT << OCTAVES) - 1

_DECODER = msgspec.json.Decoder(dict[int, int])
_VALUES = msgspec.json.Decoder(list[int])


def bucket(value: int) -> int:
    """Where a number of milliseconds belongs; what is below 0 is with the zeros."""
    value = min(max(value, 0), LONGEST)
    if value < EXACT:
        return value
    shift = value.bit_length() - EXACT.bit_length() + 1
    return (shift * HALF) + (value >> shift)


_NEAR = [bucket(value) for value in range(4096)]


def count(to: Histogram, values: str) -> None:
    """Count numbers with commas between them as well."""
    known, near, end = to.get, _NEAR, len(_NEAR)
    for value in _VALUES.decode(f"[{values}]"):
        place = near[value] if 0 <= value < end else bucket(value)
        to[place] = known(place, 0) + 1


def middle(place: int) -> float:
    """The value that stands for a bucket."""
    if place < EXACT:
        return float(place)
    shift = place // HALF - 1
    return ((place - shift * HALF) << shift) + ((1 << shift) - 1) / 2


def add(to: Histogram, other: Mapping[int, int]) -> None:
    """Count what `other` has counted as well."""
    known = to.get  # looked up once: this is what most of a large answer's time goes into
    for place, count in other.items():
        to[place] = known(place, 0) + count


def percentiles(histogram: Mapping[int, int], *percents: int) -> list[float | None]:
    """For each of these the smallest value that so many per cent of all are not above; None where there are none."""
    count = sum(histogram.values())
    if not count:
        return [None] * len(percents)
    found: list[float | None] = []
    ranks = iter(sorted((max(ceil(percent * count / 100), 1), percent) for percent in percents))
    answers: dict[int, float] = {}
    rank, percent = next(ranks)
    seen = 0
    for place in sorted(histogram):
        seen += histogram[place]
        while seen >= rank and percent not in answers:
            answers[percent] = middle(place)
            rank, percent = next(ranks, (rank, percent))
    found.extend(answers[percent] for percent in percents)
    return found


def encode(histogram: Mapping[int, int]) -> str:
    """As compact JSON, in the order of the buckets."""
    return msgspec.json.encode(dict(sorted(histogram.items()))).decode()


def decode(text: str) -> Histogram:
    """What `encode` wrote."""
    return _DECODER.decode(text)
