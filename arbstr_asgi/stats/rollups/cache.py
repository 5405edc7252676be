"""What roll-ups came to when they were last asked, for as long as none of them changes."""

from collections import OrderedDict
from collections.abc import Hashable

from arbstr_asgi.stats.totals import Totals

MAX_BYTES = 25_000_000  # bytes in memory
_ENTRY_BYTES = 2000  # bytes
_KEY_BYTES = 150  # bytes: the names of a group and their place
_TOTALS_BYTES = 800  # bytes, without its histograms

Keys = tuple[str, ...]
GroupKey = tuple[Keys, int]
"""The values that are grouped by, and what stands for a time."""


class CacheEntry:
    """The answer to one question, as far as somebody wanted it, from one generation of roll-ups."""

    def __init__(self, generation: Hashable = None) -> None:
        self.generation = generation
        self.row_counts: dict[Keys, int] | None = None
        self.totals: dict[GroupKey, Totals] = {}
        self.loaded: set[Keys] = set()  # the groups of which there are all tallies
        self.complete = False  # whether the tallies are all that there are
        self.size = 0

    def measure(self) -> int:
        """How many bytes it has by now."""
        histograms = sum(each.size for each_totals in self.totals.values() for each in each_totals.histograms)
        keys = len(self.row_counts or ()) + len(self.loaded) + len(self.totals)
        return _ENTRY_BYTES + _KEY_BYTES * keys + _TOTALS_BYTES * len(self.totals) + histograms


class RollupCache:
    """Of one database's roll-ups."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, CacheEntry] = OrderedDict()

    def get(self, generation: Hashable, query: Hashable) -> CacheEntry:
        """What is known of these roll-ups, to be added to; `fit` it afterwards. Another generation's is forgotten."""
        entry = self._entries.get(query)
        if entry is None or entry.generation != generation:
            entry = self._entries[query] = CacheEntry(generation)
        self._entries.move_to_end(query)
        return entry

    def evict(self, grown: CacheEntry) -> None:
        """Forget the questions that have not been asked for longest, as far as there is too much of all."""
        grown.size = grown.measure()
        size = sum(entry.size for entry in self._entries.values())
        while size > MAX_BYTES:
            _, entry = self._entries.popitem(last=False)
            size -= entry.size
