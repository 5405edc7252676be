"""What roll-ups came to when they were last asked, for as long as none of them changes."""

from collections import OrderedDict
from collections.abc import Hashable

from arbstr_asgi.stats.totals import Totals

MOST = 25_000_000  # bytes in memory
_FOR_A_QUESTION = 2000  # bytes
_FOR_A_KEY = 150  # bytes: the names of a group and their place
_FOR_A_TALLY = 800  # bytes, without its histograms

Keys = tuple[str, ...]
Place = tuple[Keys, int]
"""The values that are grouped by, and what stands for a time."""


class CacheEntry:
    """The answer to one question, as far as somebody wanted it, from one generation of roll-ups."""

    def __init__(self, generation: Hashable = None) -> None:
        self.generation = generation
        self.totals: dict[Keys, int] | None = None
        self.tallies: dict[Place, Totals] = {}
        self.asked: set[Keys] = set()  # the groups of which there are all tallies
        self.whole = False  # whether the tallies are all that there are
        self.size = 0

    def measured(self) -> int:
        """How many bytes it has by now."""
        histograms = sum(each.size for tally in self.tallies.values() for each in tally.histograms)
        keys = len(self.totals or ()) + len(self.asked) + len(self.tallies)
        return _FOR_A_QUESTION + _FOR_A_KEY * keys + _FOR_A_TALLY * len(self.tallies) + histograms


class RollupCache:
    """Of one database's roll-ups."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, CacheEntry] = OrderedDict()

    def of(self, generation: Hashable, question: Hashable) -> CacheEntry:
        """What is known of these roll-ups, to be added to; `fit` it afterwards. Another generation's is forgotten."""
        found = self._entries.get(question)
        if found is None or found.generation != generation:
            found = self._entries[question] = CacheEntry(generation)
        self._entries.move_to_end(question)
        return found

    def evict(self, grown: CacheEntry) -> None:
        """Forget the questions that have not been asked for longest, as far as there is too much of all."""
        grown.size = grown.measured()
        size = sum(found.size for found in self._entries.values())
        while size > MOST:
            _, found = self._entries.popitem(last=False)
            size -= found.size
