"""What is kept of calls that may end without usage, until their tokens have been counted; bounded over all of them."""

import threading

MAX_REQUEST_BYTES = 1024 * 1024  # of a request; a larger one isn't kept
MAX_STREAM_BYTES = 64 * 1024  # the beginning of a stream, from which the rest is told
MAX_PLAIN_BYTES = 1024 * 1024  # of a reply that is one document; of a larger one nothing can be told
MAX_BYTES = 64 * 1024 * 1024  # over all calls; beyond it they aren't kept


class SampleBudget:
    """Knows how much is kept over all calls. Used from several threads."""

    def __init__(self) -> None:
        self.size = 0
        self._lock = threading.Lock()

    def acquire(self, size: int) -> bool:
        """Whether there is room for so much more; it is then taken."""
        with self._lock:
            fits = self.size + size <= MAX_BYTES
            self.size += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """It isn't kept any more."""
        with self._lock:
            self.size -= size


class ReplySample:
    """The request and the beginning of the reply of one call. `drop` it in the end."""

    __slots__ = ("__weakref__", "_keeper", "_room", "_taken", "reply", "request", "whole")

    def __init__(self, keeper: SampleBudget, request: bytes, *, streaming: bool) -> None:
        fits = len(request) <= MAX_REQUEST_BYTES and keeper.acquire(len(request))
        self.request: bytes | None = request if fits else None
        self.reply = bytearray()
        self.whole = True
        """Whether the reply, as far as it came, is kept to its end."""
        self._keeper = keeper
        self._room = MAX_STREAM_BYTES if streaming else MAX_PLAIN_BYTES
        self._taken = len(request) if fits else 0

    def add(self, chunk: bytes) -> None:
        """The next bytes of the reply, as they come from the provider."""
        if not self.whole:
            return
        size = min(len(chunk), self._room)
        if size < len(chunk) or not self._keeper.acquire(size):
            self.whole = False
            if not size or not self._keeper.acquire(size):
                return
        self.reply += chunk[:size]
        self._room -= size
        self._taken += size

    def drop(self) -> None:
        """Forget all of it."""
        self._keeper.release(self._taken)
        self._taken = 0
        self.request = None
        self.reply = bytearray()
