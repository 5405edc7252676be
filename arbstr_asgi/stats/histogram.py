"""Histograms of durations that can be added: 32 buckets per octave, exact below 64 ms.

A percentile is the middle of the bucket that holds the exact one, so its error is at most 1/64.
"""

import struct
from binascii import a2b_base64, b2a_base64
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import ceil

import msgspec

EXACT_BELOW = 64  # one bucket per value
BUCKETS_PER_OCTAVE = EXACT_BELOW // 2  # buckets to an octave
OCTAVES = 34  # above EXACT_BELOW; longer durations (35 years) are clamped
MAX_VALUE = (EXACT_BELOW << OCTAVES) - 1

_COUNT_BYTES = 8  # per bucket
_HEADER = struct.Struct("<HB")  # first bucket, bytes per count
_COUNT = struct.Struct("<Q")
_DECODER = msgspec.json.Decoder(dict[int, int])
_VALUES = msgspec.json.Decoder(list[int])


class Histogram:
    """Immutable counts per bucket, packed into one int: 64 bits per bucket, the first bucket lowest.

    Adding the ints adds the histograms.
    """

    __slots__ = ("packed",)

    def __init__(self, packed: int = 0) -> None:
        self.packed = packed

    def __repr__(self) -> str:
        """Without the int: Python refuses to print one of this length."""
        return f"<Histogram of {sum(counts(self))} values>"

    def __eq__(self, other: object) -> bool:
        """Whether all counts are equal."""
        return isinstance(other, Histogram) and self.packed == other.packed

    def __hash__(self) -> int:
        """Of the number."""
        return hash(self.packed)

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory (an int stores 30 bits in 4 bytes)."""
        return self.packed.bit_length() * 2 // 15


def add_all(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of histograms."""
    return Histogram(sum([each.packed for each in histograms]))


def bucket(value: int) -> int:
    """The bucket of a number of milliseconds; negative values count as 0."""
    value = min(max(value, 0), MAX_VALUE)
    if value < EXACT_BELOW:
        return value
    shift = value.bit_length() - EXACT_BELOW.bit_length() + 1
    return (shift * BUCKETS_PER_OCTAVE) + (value >> shift)


_BUCKET_OF_VALUE = [bucket(value) for value in range(4096)]
_HIGH_SHIFT = 6  # octaves; quotients must not fall below EXACT_BELOW
_BUCKET_OF_HIGH_VALUE = [
    index + _HIGH_SHIFT * BUCKETS_PER_OCTAVE for index in _BUCKET_OF_VALUE
]  # for values divided by 2**_HIGH_SHIFT


def count(values: str) -> tuple[Histogram, int]:
    """The histogram of comma-separated numbers, and their sum."""
    numbers = _VALUES.decode(f"[{values}]")
    low, high, end = _BUCKET_OF_VALUE, _BUCKET_OF_HIGH_VALUE, len(_BUCKET_OF_VALUE)
    if numbers and min(numbers) >= 0 and max(numbers) < end << _HIGH_SHIFT:
        indexes = [low[value] if value < end else high[value >> _HIGH_SHIFT] for value in numbers]
    else:
        indexes = [bucket(value) for value in numbers]
    return of(Counter(indexes)), sum(numbers)


def of(counts: Mapping[int, int]) -> Histogram:
    """A histogram from counts by bucket."""
    if not counts:
        return Histogram()
    first = min(counts)
    raw = bytearray((max(counts) - first + 1) * _COUNT_BYTES)
    try:
        for index, number in counts.items():
            raw[(index - first) * _COUNT_BYTES] = number
    except ValueError:  # a count above 255
        for index, number in counts.items():
            _COUNT.pack_into(raw, (index - first) * _COUNT_BYTES, number)
    return Histogram(int.from_bytes(raw, "little") << 8 * _COUNT_BYTES * first)


def bucket_value(index: int) -> float:
    """The value that represents a bucket: its middle."""
    if index < EXACT_BELOW:
        return float(index)
    shift = index // BUCKETS_PER_OCTAVE - 1
    return ((index - shift * BUCKETS_PER_OCTAVE) << shift) + ((1 << shift) - 1) / 2


def counts(histogram: Histogram) -> tuple[int, ...]:
    """The count of each bucket, from the first to the last that is not empty."""
    size = -(-histogram.packed.bit_length() // (8 * _COUNT_BYTES))
    return struct.unpack(f"<{size}Q", histogram.packed.to_bytes(size * _COUNT_BYTES, "little"))


def percentiles(histogram: Histogram, *percents: int) -> tuple[int, list[float | None]]:
    """The number of values, and for each percent the value at that rank (None for an empty histogram)."""
    cumulative = [*accumulate(counts(histogram))]
    if not cumulative:
        return 0, [None] * len(percents)
    ranks = [max(ceil(percent * cumulative[-1] / 100), 1) for percent in percents]
    return cumulative[-1], [bucket_value(bisect_left(cumulative, rank)) for rank in ranks]


def encode(histogram: Histogram) -> str:
    """As text, equal for equal histograms: JSON of the non-empty buckets or, where that is shorter, base64.

    The base64 is of the first bucket and the width of a count in bytes, then the lowest bytes of all counts, then the
    second lowest, and so on.
    """
    dense = counts(histogram)
    sparse = {index: number for index, number in enumerate(dense) if number}
    as_json = msgspec.json.encode(sparse)
    if not sparse:
        return as_json.decode()
    first = min(sparse)
    width = -(-max(dense).bit_length() // 8)
    raw = histogram.packed.to_bytes(len(dense) * _COUNT_BYTES, "little")[first * _COUNT_BYTES :]
    packed = b2a_base64(
        _HEADER.pack(first, width) + b"".join([raw[n::_COUNT_BYTES] for n in range(width)]), newline=False
    )
    return min(as_json, packed, key=len).decode()


def decode(text: str) -> Histogram:
    """Parse the text of `encode`."""
    if text.startswith("{"):
        return of(_DECODER.decode(text))
    packed = a2b_base64(text)
    first, width = _HEADER.unpack_from(packed)
    size = (len(packed) - _HEADER.size) // width
    raw = bytearray(size * _COUNT_BYTES)
    for number in range(width):
        start = _HEADER.size + number * size
        raw[number::_COUNT_BYTES] = packed[start : start + size]
    return Histogram(int.from_bytes(raw, "little") << 8 * _COUNT_BYTES * first)
