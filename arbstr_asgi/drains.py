"""How many provider streams are read on for clients that have left."""

from collections import Counter


class Drains:
    """Counts drains at once, over all and per end user, against their caps."""

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._users: Counter[str] = Counter()
        self.active = 0

    def begin(self, end_user: str | None) -> bool:
        """Take a place; False where none is left. Callers without a name share the overall cap only."""
        if self.active >= self._limit or (end_user and self._users[end_user] >= self._limit_per_user):
            return False
        self.active += 1
        if end_user:
            self._users[end_user] += 1
        return True

    def end(self, end_user: str | None) -> None:
        """Give the place back."""
        self.active -= 1
        if end_user:
            self._users[end_user] -= 1
            if not self._users[end_user]:
                del self._users[end_user]
