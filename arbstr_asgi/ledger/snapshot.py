"""What the ledger says of itself, and how much may wait in memory."""

import msgspec


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one process's ledger; counts are since it was made.

    `queued` entries (about `queued_bytes`) wait in memory, `spilled` rows (a file of `spill_bytes`) on disk, the
    oldest of both for `oldest_unwritten_seconds`. `spills`: rows can be kept on disk, as far as is known. `degraded`
    rows stand in the database without what it refused of them, `lost` entries nowhere; `late` answers went out before
    their rows were durable (`durability = "strict"`).
    """

    queued: int
    queued_bytes: int
    oldest_unwritten_seconds: float | None
    spilled: int
    spill_bytes: int
    spills: bool
    degraded: int
    lost: int
    late: int


class QueueLimits(msgspec.Struct, frozen=True):
    """How much may wait in memory: entries, and about how many bytes.

    With `refuse` no more calls are let in when it is reached, so that whatever comes from the running ones is kept.
    """

    entries: int = 100_000
    size: int = 128 * 1024 * 1024
    refuse: bool = False

    def is_full(self, entries: int, size: int) -> bool:
        """Whether one more entry is one too many."""
        return not self.refuse and not self.has_room(entries + 1, size)

    def has_room(self, entries: int, size: int) -> bool:
        """Whether so many entries may wait."""
        return entries <= self.entries and size < self.size
