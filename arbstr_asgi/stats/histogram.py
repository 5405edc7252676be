"""Durations counted in buckets, of which any number can be added up: 32 to an octave, exact below 64 ms.

The percentile of a histogram is the middle of the bucket that the exact one is in, so it is off by at most 1/64.
"""

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
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
_OCTAVES = 6  # not so many that the part would be below EXACT


def count(to: Histogram, values: str) -> int:
    """Count numbers with commas between them as well; returns their sum."""
    known, near, end = to.get, _NEAR, len(_NEAR)
    numbers = _VALUES.decode(f"[{values}]")
    for value in numbers:
        if 0 <= value < end:
            place = near[value]
        elif end <= value < end << _OCTAVES:  # the bucket of a part of it, so many octaves up
            place = near[value >> _OCTAVES] + _OCTAVES * HALF
        else:
            place = bucket(value)
        to[place] = known(place, 0) + 1
    return sum(numbers)


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
    places = sorted(histogram)
    seen = list(accumulate([histogram[place] for place in places]))
    if not seen:
        return [None] * len(percents)
    ranks = [max(ceil(percent * seen[-1] / 100), 1) for percent in percents]
    return [middle(places[bisect_left(seen, rank)]) for rank in ranks]


def encode(histogram: Mapping[int, int]) -> str:
    """As compact JSON, in the order of the buckets."""
    return msgspec.json.encode(dict(sorted(histogram.items()))).decode()


def decode(text: str) -> Histogram:
    """What `encode` wrote."""
    return _DECODER.decode(text)
