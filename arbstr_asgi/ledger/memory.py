"""What roll-ups came to when they were last asked, for as long as none of them changes."""

from array import array
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from arbstr_asgi.stats.histogram import Histogram
from arbstr_asgi.stats.tally import Tally

MOST = 1_000_000  # numbers in memory, of 4 bytes and more
_FOR_A_KEY = 20  # numbers that take as much memory as the names of a group

Keys = tuple[str, ...]
Place = tuple[Keys, int]
"""The values that are grouped by, and what stands for a time."""


class Packed(NamedTuple):
    """A tally in little memory."""

    sums: tuple[int, ...]
    places: tuple["array[int]", ...]
    counts: tuple["array[int]", ...]

    @classmethod
    def of(cls, tally: Tally) -> "Packed":
        """From one that may change."""
        places = tuple([array("H", counted) for counted in tally.histograms])
        return cls(tuple(tally.sums), places, tuple([array("Q", counted.values()) for counted in tally.histograms]))

    def tally(self) -> Tally:
        """One of its own, which may be changed."""
        latency, ttft, duration = map(_histogram, self.places, self.counts)
        return Tally([*self.sums], (latency, ttft, duration))

    @property
    def size(self) -> int:
        """How many numbers."""
        return _FOR_A_KEY + len(self.sums) + 2 * sum(map(len, self.places))


class Remembered:
    """The answer to one question, as far as somebody wanted it."""

    def __init__(self) -> None:
        self.totals: dict[Keys, int] | None = None
        self.tallies: dict[Place, Packed] = {}
        self.whole = False  # whether the tallies are all that there are
        self.size = 0

    def measured(self) -> int:
        """How many numbers it has by now."""
        return _FOR_A_KEY * len(self.totals or ()) + sum(packed.size for packed in self.tallies.values())


class Memory:
    """Of one database's roll-ups; forgets everything when there is a new generation of them."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._kept: OrderedDict[Hashable, Remembered] = OrderedDict()

    def of(self, generation: int, question: Hashable) -> Remembered:
        """What is known, to be added to; `fit` it afterwards."""
        if generation != self._generation:
            self._generation = generation
            self._kept.clear()
        found = self._kept.setdefault(question, Remembered())
        self._kept.move_to_end(question)
        return found

    def fit(self, grown: Remembered) -> None:
        """Forget the questions that have not been asked for longest, as far as there is too much of all."""
        grown.size = grown.measured()
        size = sum(found.size for found in self._kept.values())
        while size > MOST:
            _, found = self._kept.popitem(last=False)
            size -= found.size


def _histogram(places: "array[int]", counts: "array[int]") -> Histogram:
    return dict(zip(places, counts, strict=True))
