"""A cache of totals read from roll-ups, invalidated when any roll-up of the period changes (its generation)."""

from collections import OrderedDict
from collections.abc import Hashable

from arbstr_asgi.stats.totals import Totals

MAX_BYTES = 25_000_000
_ENTRY_BYTES = 2000
_KEY_BYTES = 150  # per group
_TOTALS_BYTES = 800  # without histograms

Keys = tuple[str, ...]
GroupKey = tuple[Keys, int]
"""The keys of a group, and its time key (see `ResolvedQuery.time_key`)."""


class CacheEntry:
    """Cached results of one query, for one generation of roll-ups; filled step by step."""

    def __init__(self, generation: Hashable = None) -> None:
        self.generation = generation
        self.row_counts: dict[Keys, int] | None = None
        self.totals: dict[GroupKey, Totals] = {}
        self.loaded: set[Keys] = set()  # groups whose totals are complete
        self.complete = False  # whether `totals` has all groups
        self.size = 0

    def measure(self) -> int:
        """Its size in bytes, about."""
        histograms = sum(each.size for each_totals in self.totals.values() for each in each_totals.histograms)
        keys = len(self.row_counts or ()) + len(self.loaded) + len(self.totals)
        return _ENTRY_BYTES + _KEY_BYTES * keys + _TOTALS_BYTES * len(self.totals) + histograms


class RollupCache:
    """An LRU cache for the roll-ups of one database, limited to MAX_BYTES."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, CacheEntry] = OrderedDict()

    def get(self, generation: Hashable, query: Hashable) -> CacheEntry:
        """The entry of a query, to be filled, then passed to `evict`; a new one if the generation has changed."""
        entry = self._entries.get(query)
        if entry is None or entry.generation != generation:
            entry = self._entries[query] = CacheEntry(generation)
        self._entries.move_to_end(query)
        return entry

    def evict(self, grown: CacheEntry) -> None:
        """Update the size of this entry, and evict least recently used entries beyond MAX_BYTES."""
        grown.size = grown.measure()
        size = sum(entry.size for entry in self._entries.values())
        while size > MAX_BYTES:
            _, entry = self._entries.popitem(last=False)
            size -= entry.size
